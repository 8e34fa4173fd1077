//! What shows that a copied path is right, and what becomes of those of which nothing does.

use pushgate_tests::process::{Gateway, Nix, NixVersion, wait_for};
use rstest::rstest;

use super::*;

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn a_derivation_copied_later_is_evidence(#[case] version: NixVersion) {
    let nix = Nix::builder_with(version);
    let (tool, drv) = tree(&nix);
    let gateway = Gateway::start();
    let alice = Pusher::enrol(&gateway, &nix, "alice");
    // held is good news to Nix
    alice.copy(&nix, "", &tool).ended_with(0);
    assert_nothing_public(&gateway);
    let status = alice.status(&nix, &tool[0]);
    assert!(
        status.contains("held") && status.contains(&drv) && status.contains("nix copy --derivation"),
        "{status}"
    );
    alice.copy_derivation(&nix, &drv).ended_with(0);
    for path in nix.closure(&tool) {
        wait_for("publication", || is_public(&gateway, &path).then_some(()));
    }
    assert!(alice.status(&nix, &tool[0]).contains("published"));
}

#[test]
fn what_another_copied_is_no_evidence_until_it_is_public_and_not_seen() {
    let nix = Nix::builder();
    let (tool, drv) = tree(&nix);
    let gateway = Gateway::start();
    let (alice, bob) = (Pusher::enrol(&gateway, &nix, "alice"), Pusher::enrol(&gateway, &nix, "bob"));
    alice.copy(&nix, "", &tool).ended_with(0);
    let taken = gateway.metric("pushgate_nars_taken_total");
    let _ = fs::remove_dir_all(nix.dir().join("home/.cache"));
    // bob is asked for every byte
    bob.copy(&nix, "", &tool).ended_with(0);
    assert_eq!(gateway.metric("pushgate_nars_taken_total"), 2 * taken);
    assert_nothing_public(&gateway);
    bob.copy_derivation(&nix, &drv).ended_with(0);
    // a derivation that is published is anybody's to read, and evidence for whoever named it first
    let file = gateway.public("main").join(format!("{}.narinfo", hash_part(&tool[0])));
    let narinfo = wait_for("publication", || fs::read_to_string(&file).ok());
    assert!(narinfo.contains("\nSig: bob-") || narinfo.contains("\nSig: alice-"), "{narinfo}");
}

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn only_the_submitters_own_signature_counts(#[case] version: NixVersion) {
    let nix = Nix::builder_with(version);
    let (tool, _) = tree(&nix);
    let gateway = Gateway::start();
    let alice = Pusher::enrol(&gateway, &nix, "alice");
    let bob = Pusher::enrol(&gateway, &nix, "bob");
    // alice's token, bob's key
    let mixed = Pusher { submitter: bob.submitter, netrc: alice.netrc.clone(), url: bob.url };
    let ran = mixed.copy(&nix, "", &tool);
    assert_ne!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.err.contains("signature-missing") && ran.err.contains("only the submitter's own counts"),
        "{}",
        ran.err
    );
    // and none at all
    let bare = alice.url.split('?').next().unwrap().to_owned();
    let unsigned =
        Pusher { submitter: alice.submitter, netrc: alice.netrc, url: format!("{bare}?compression=xz") };
    let ran = unsigned.copy(&nix, "", &tool);
    assert!(ran.err.contains("signature-missing"), "{}", ran.err);
    assert_nothing_public(&gateway);
}

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn a_wrong_token_is_told(#[case] version: NixVersion) {
    let nix = Nix::builder_with(version);
    let (tool, _) = tree(&nix);
    let gateway = Gateway::start();
    let alice = Pusher::enrol(&gateway, &nix, "alice");
    fs::write(&alice.netrc, "machine 127.0.0.1 login alice password nonsense\n").unwrap();
    let ran = alice.copy(&nix, "", &tool);
    assert_ne!(ran.code, Some(0));
    // the oldest one keeps the gateway's words to itself
    let told =
        if version == NixVersion::Here { "does not appear to be a binary cache" } else { "token-invalid" };
    assert!(ran.err.contains(told), "{}", ran.err);
    assert_nothing_public(&gateway);
}

/// A floating content-addressed derivation.
const FLOATING: &str = r#"derivation {
  name = "floating"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
  args = [ "-c" "mkdir -p $out; echo contents > $out/file" ];
  __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
}"#;

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn realisations_are_taken_and_stay_private(#[case] version: NixVersion) {
    let nix = Nix::builder_with(version);
    let file = nix.dir().join("floating.nix");
    fs::write(&file, FLOATING).unwrap();
    let gateway = Gateway::start();
    let alice = Pusher::enrol(&gateway, &nix, "alice");
    let (netrc, file) = (alice.netrc.to_str().unwrap(), file.to_str().unwrap());
    let copy = ["copy", "--impure", "--option", "netrc-file", netrc, "--to", &alice.url, "-f", file];
    let ran = nix.run("nix", &copy).ended_with(0);
    let path = nix.build(FLOATING).remove(0);
    // the contents speak for themselves; that they are what the derivation yields is one submitter's word
    wait_for("publication", || is_public(&gateway, &path).then_some(()));
    for file in names(&gateway.public("main")) {
        assert!(!file.starts_with("realisations") && !file.starts_with("build-trace"), "{file} is public");
    }
    let log = gateway.log();
    assert!(gateway.metric("pushgate_realisations_taken_total") == 1, "{}\n{log}", ran.err);
    // and again, with nothing remembered
    let _ = fs::remove_dir_all(nix.dir().join("home/.cache"));
    nix.run("nix", &copy).ended_with(0);
}

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn what_an_upstream_has_is_not_sent(#[case] version: NixVersion) {
    let nix = Nix::builder_with(version);
    let (tool, drv) = tree(&nix);
    let library: Vec<String> = nix.closure(&tool).into_iter().filter(|p| *p != tool[0]).collect();
    let upstream = Gateway::start();
    upstream.enrol("eve", &[]).push(&nix, &library);
    let policy = format!(
        "[[upstream]]\nurl = \"{}\"\nkey = \"{}\"\n",
        upstream.cache_url("main"),
        upstream.key("main")
    );
    let gateway = Gateway::with_policy(&policy);
    let alice = Pusher::enrol(&gateway, &nix, "alice");
    alice.copy_derivation(&nix, &drv).ended_with(0);
    let taken = gateway.metric("pushgate_nars_taken_total");
    // the whole closure, and the tool alone: its reference isn't in the batch
    alice.copy(&nix, "", &tool).ended_with(0);
    assert_eq!(gateway.metric("pushgate_nars_taken_total"), taken + 1);
    wait_for("publication", || is_public(&gateway, &tool[0]).then_some(()));
    assert!(!is_public(&gateway, &library[0]));
    let urls = [gateway.cache_url("main"), upstream.cache_url("main")];
    let consumer = Nix::consumer_with(version, &urls, &[gateway.key("main"), upstream.key("main")]);
    consumer.fetch(&tool).ended_with(0);
}
