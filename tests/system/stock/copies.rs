//! Copies with all that the store's URL can ask for, repeated and broken off.

use pushgate_tests::process::{Gateway, Nix, NixVersion, wait_for};
use rstest::rstest;

use super::*;

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn every_compression_is_taken_and_published(#[case] version: NixVersion) {
    let nix = Nix::builder_with(version);
    let (tool, drv) = tree(&nix);
    let listings = "&write-nar-listing=true&index-debug-info=true";
    // older ones know no compression of narinfos, and say so
    let narinfos = if version == NixVersion::Here { "" } else { "&narinfo-compression=br" };
    for (parameters, suffix) in [
        ("&compression=none".to_owned(), ".nar"),
        (format!("&compression=xz{listings}"), ".nar.xz"),
        (format!("&compression=zstd{listings}{narinfos}"), ".nar.zst"),
        (narinfos.replace("br", "gzip"), ".nar.xz"),
    ] {
        let gateway = Gateway::start();
        let alice = Pusher::enrol(&gateway, &nix, "alice");
        alice.copy_derivation(&nix, &drv).ended_with(0);
        alice.copy(&nix, &parameters, &tool).ended_with(0);
        for path in nix.closure(&tool) {
            assert!(is_public(&gateway, &path), "{parameters}: {}", alice.status(&nix, &path));
            let file = gateway.public("main").join(format!("{}.narinfo", hash_part(&path)));
            let narinfo = fs::read_to_string(file).unwrap();
            let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
            assert!(url.ends_with(suffix), "{narinfo}");
            // the gateway's key, and the submitter's
            assert_eq!(narinfo.matches("\nSig: ").count(), 2, "{narinfo}");
            let listing = gateway.public("main").join(format!("{}.ls", hash_part(&path)));
            assert!(listing.exists(), "the gateway makes listings itself");
        }
        let consumer = Nix::consumer_with(version, &[gateway.cache_url("main")], &[gateway.key("main")]);
        consumer.fetch(&tool).ended_with(0);
        consumer.assert_has_all_of(&nix, &tool);
    }
}

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn a_copy_may_be_repeated(#[case] version: NixVersion) {
    let nix = Nix::builder_with(version);
    let (tool, drv) = tree(&nix);
    let gateway = Gateway::start();
    let alice = Pusher::enrol(&gateway, &nix, "alice");
    // held first, then published: Nix asks, and sends nothing again
    alice.copy(&nix, "", &tool).ended_with(0);
    let taken = gateway.metric("pushgate_nars_taken_total");
    assert_eq!(taken, 2);
    forget(&nix);
    alice.copy(&nix, "", &tool).ended_with(0);
    assert_eq!(gateway.metric("pushgate_nars_taken_total"), taken);
    alice.copy_derivation(&nix, &drv).ended_with(0);
    let taken = gateway.metric("pushgate_nars_taken_total");
    forget(&nix);
    alice.copy(&nix, "", &tool).ended_with(0);
    assert_eq!(gateway.metric("pushgate_nars_taken_total"), taken);
    assert!(is_public(&gateway, &tool[0]));
}

/// As the README has it: the submitter's own token, in the line for a netrc file.
#[test]
fn a_submitter_makes_a_token_without_the_admin() {
    let nix = Nix::builder();
    let (tool, drv) = tree(&nix);
    let gateway = Gateway::start();
    let submitter = gateway.enrol("alice", &[]);
    let made = submitter.run(&["token", "--netrc"]).ended_with(0);
    assert!(made.out.starts_with("machine 127.0.0.1 login alice password "), "{}", made.out);
    // what to do with it, with the key's own file
    let key = made.err.split("secret-key=").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
    assert!(std::path::Path::new(key).exists(), "{}", made.err);
    let token = made.out.split_whitespace().last().unwrap().to_owned();
    assert_ne!(submitter.run(&["token"]).line(), token, "each is another");
    let alice = Pusher::with(&gateway, &nix, submitter, "alice", &token);
    fs::write(&alice.netrc, made.out).unwrap();
    alice.copy(&nix, "", &tool).ended_with(0);
    alice.copy_derivation(&nix, &drv).ended_with(0);
    wait_for("publication", || is_public(&gateway, &tool[0]).then_some(()));
    // as one line in the list, whatever their number
    let listed = alice.submitter.run(&["status"]).lines();
    assert!(listed.len() == 1 && listed[0].ends_with("(by stock Nix)"), "{listed:#?}");
    let id = listed[0].split_whitespace().next().unwrap().to_owned();
    let shown = alice.submitter.run(&["status", &id, "--verbose"]).ended_with(0).out;
    assert!(nix.closure(&tool).iter().all(|path| shown.contains(path.as_str())), "{shown}");
}

#[test]
fn a_copy_that_broke_off_goes_on() {
    let nix = Nix::builder();
    let (tool, drv) = tree(&nix);
    let mut gateway = Gateway::start();
    let alice = Pusher::enrol(&gateway, &nix, "alice");
    alice.copy_derivation(&nix, &drv).ended_with(0);
    // the gateway dies with the library taken and the tool missing, and the client forgets what it was told
    let library: Vec<String> = nix.closure(&tool).into_iter().filter(|p| *p != tool[0]).collect();
    alice.copy(&nix, "", &library).ended_with(0);
    gateway.kill();
    forget(&nix);
    gateway.restart();
    // another port: the same submitter with the same token
    let token = fs::read_to_string(&alice.netrc).unwrap();
    let token = token.split_whitespace().last().unwrap().to_owned();
    let alice = Pusher::with(&gateway, &nix, alice.submitter, "alice", &token);
    alice.copy(&nix, "", &tool).ended_with(0);
    assert!(is_public(&gateway, &tool[0]));
}

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn logs_are_read_back_by_nix_log(#[case] version: NixVersion) {
    let nix = Nix::builder_with(version);
    let (tool, drv) = tree(&nix);
    let gateway = Gateway::start();
    let alice = Pusher::enrol(&gateway, &nix, "alice");
    let netrc = alice.netrc.to_str().unwrap();
    let log_to = |parameters: &str| {
        let url = format!("{}{parameters}", alice.url);
        nix.run("nix", &["store", "copy-log", "--option", "netrc-file", netrc, "--to", &url, &drv])
    };
    // of something that she hasn't pushed
    let refused = log_to("");
    assert_ne!(refused.code, Some(0));
    assert!(
        refused.err.contains("you pushed neither that derivation nor an output of it"),
        "{}",
        refused.err
    );
    alice.copy(&nix, "", &tool).ended_with(0);
    log_to(if version == NixVersion::Here { "" } else { "&log-compression=br" }).ended_with(0);
    let public = gateway.public("main").join(format!("log/{}", drv.rsplit('/').next().unwrap()));
    assert!(!public.exists(), "the tool isn't published yet");
    alice.copy_derivation(&nix, &drv).ended_with(0);
    wait_for("the log", || public.exists().then_some(()));
    assert_eq!(fs::read_to_string(&public).unwrap(), "built\n");
    let consumer = Nix::consumer_with(version, &[gateway.cache_url("main")], &[gateway.key("main")]);
    let log = consumer.run("nix", &["log", "--store", &gateway.cache_url("main"), &drv]);
    assert_eq!(log.ended_with(0).out, "built\n");
}

/// Has Nix forget what it knows of caches.
fn forget(nix: &Nix) {
    let _ = fs::remove_dir_all(nix.dir().join("home/.cache"));
}
