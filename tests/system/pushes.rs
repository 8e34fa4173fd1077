//! Pushes as people do them: everything that a store can hold goes through and comes out of stock Nix unchanged.

use std::time::Instant;

use pushgate_formats::api::PathState;
use pushgate_tests::process::{Gateway, Nix, Web, names};

/// One derivation of every kind, each referring to the others.
const KINDS: &str = r#"
let
  system = builtins.currentSystem;
  common = { inherit system; builder = "/bin/sh"; PATH = "/bin:/usr/bin"; };
  sh = name: script: more: derivation (common // { inherit name; args = [ "-c" script ]; } // more);
  text = builtins.toFile "notes" "some notes\n";
  textWithReference = builtins.toFile "more-notes" "see ${text}\n";
  source = builtins.path { path = ./src; name = "source"; };
  multi = sh "multi" ''
    mkdir -p $out/bin $out/deep/er $dev $doc
    printf '#!/bin/sh\necho hello\n' > $out/bin/hello
    chmod +x $out/bin/hello
    ln -s hello $out/bin/hi
    ln -s $dev $out/dev
    ln -s /nowhere/at/all $out/dangling
    : > $out/deep/er/empty
    mkdir $out/deep/nothing
    echo "$out $notes" > $out/deep/self
    echo $dev > $dev/self
    echo $out > $doc/of
  '' { outputs = [ "out" "dev" "doc" ]; notes = textWithReference; };
  flat = sh "flat-1.0.tar" "printf contents > $out" {
    outputHashAlgo = "sha256"; outputHashMode = "flat"; outputHash = builtins.hashString "sha256" "contents";
  };
  recursive = sh "recursive" "mkdir $out; printf x > $out/x" {
    outputHashAlgo = "sha256"; outputHashMode = "recursive"; outputHash = "sha256-e68OFh3vfkqgvwQcETzd5AYH61mlcNZTcjUDnOiyQj8=";
  };
  structured = sh "structured" ''
    . ./.attrs.sh
    echo "''${list[1]}" > ''${outputs[out]}
  '' { __structuredAttrs = true; builder = "/bin/bash"; list = [ "a" multi ]; outputs = [ "out" ]; number = 1.5; };
  executable = sh "executable" "echo '#!/bin/sh' > $out; chmod +x $out" { };
  link = sh "link" "ln -s $executable $out" { inherit executable; };
in
sh "everything" ''
  mkdir $out
  for i in $all; do echo $i >> $out/all; done
  cat $source/file $flat > $out/copied
'' {
  inherit source flat;
  all = [ text multi.out multi.dev multi.doc flat recursive structured executable link source ];
}
"#;

/// The builder with the sources of [`KINDS`] beside it.
fn kinds() -> (Nix, Vec<String>) {
    let nix = Nix::builder();
    let src = nix.dir().join("src");
    std::fs::create_dir_all(src.join("sub dir")).unwrap();
    std::fs::write(src.join("file"), "a file\n").unwrap();
    std::fs::write(src.join("sub dir/ümläut"), "another").unwrap();
    // a relative path needs a file to be relative to
    std::fs::write(nix.dir().join("kinds.nix"), KINDS).unwrap();
    let built = nix.run("nix-build", &["--no-out-link", "kinds.nix"]).lines();
    (nix, built)
}

#[test]
fn everything_a_store_holds_comes_out_of_stock_nix_unchanged() {
    let (nix, built) = kinds();
    let gateway = Gateway::start();
    let alice = gateway.enrol("alice", &[]);
    let report = alice.push(&nix, &built);

    let all = nix.closure(&built);
    assert!(all.len() >= 12, "{all:#?}");
    assert_eq!(report.in_state(PathState::Published).len(), all.len(), "{report:#?}");
    assert_eq!((report.failed.len(), report.timed_out), (0, false));
    assert_eq!(report.notices, [""; 0]);
    assert_eq!(report.sent.nars as usize, all.len());
    assert_eq!(gateway.metric("pushgate_nars_taken_total") as usize, all.len());

    let url = gateway.cache_url("main");
    let consumer = Nix::consumer(std::slice::from_ref(&url), &[gateway.key("main")]);
    consumer.fetch(&built).ended_with(0);
    consumer.assert_has_all_of(&nix, &built);

    // and by the newer commands
    let copier = Nix::consumer(&[], &[gateway.key("main")]);
    copier.run("nix", &["copy", "--from", &url, &built[0]]).ended_with(0);
    copier.assert_has_all_of(&nix, &built);
    let verify = |more: &[&str]| {
        copier.run("nix", &[&["store", "verify", "--recursive", "--sigs-needed"], more].concat())
    };
    verify(&["1", &built[0]]).ended_with(0);
    let info = consumer.run("nix", &["path-info", "--store", &url, "--sigs", &built[0]]).line();
    let key = gateway.public_key("main");
    let signed_by = |name: &str| info.split_whitespace().any(|word| word.starts_with(&format!("{name}:")));
    assert!(signed_by(key.name().as_str()), "{info}");
    // the submitter's own signature is there for whoever wants it
    assert!(signed_by("alice-1"), "{info}");
}

#[test]
fn nix_refuses_what_another_key_signed() {
    let (nix, built) = kinds();
    let gateway = Gateway::start();
    gateway.add_cache("other");
    gateway.enrol("alice", &[]).push(&nix, &built);
    let consumer = Nix::consumer(&[gateway.cache_url("main")], &[gateway.key("other")]);
    let refused = consumer.fetch(&built);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.err.contains("signed by any") || refused.err.contains("signature"), "{}", refused.err);
    assert!(!consumer.physical(&built[0]).exists());
}

#[test]
fn derivations_can_be_pushed_as_store_paths() {
    let nix = Nix::builder();
    let drv = nix.instantiate(
        r#"let d = name: more: derivation ({ inherit name; system = "x86_64-linux"; builder = "/bin/sh"; } // more);
           in d "top" { input = d "input" { text = builtins.toFile "t" "text"; }; }"#,
    );
    let gateway = Gateway::start();
    let alice = gateway.enrol("alice", &[]);
    let report = alice.push(&nix, std::slice::from_ref(&drv));
    assert_eq!(report.in_state(PathState::Published).len(), 3, "{report:#?}");
    let consumer = Nix::consumer(&[gateway.cache_url("main")], &[gateway.key("main")]);
    // without the flag its outputs would be meant
    consumer.run("nix", &["copy", "--derivation", "--from", &gateway.cache_url("main"), &drv]).ended_with(0);
    consumer.assert_has_all_of(&nix, std::slice::from_ref(&drv));
}

/// 1,000 paths: 940 texts, 59 outputs that refer to 15 of them and to each other, and one that refers to all.
const THOUSAND: &str = r#"
let
  text = i: builtins.toFile "text-${toString i}" "text number ${toString i}\n";
  range = a: b: builtins.genList (i: a + i) (b - a);
  common = { system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin"; };
  node = i: derivation (common // {
    name = "node-${toString i}";
    args = [ "-c" "printf '%s\\n' $texts $parent > $out" ];
    texts = map text (range (i * 15) (i * 15 + 15));
    parent = if i == 0 then "" else node (i / 2);
  });
in
derivation (common // {
  name = "top";
  args = [ "-c" "printf '%s\\n' $nodes $texts > $out" ];
  nodes = map node (range 0 59);
  texts = map text (range 885 940);
})
"#;

#[test]
fn a_thousand_paths_go_through_and_the_second_push_sends_nothing() {
    let nix = Nix::builder();
    let built = nix.build(THOUSAND);
    assert_eq!(nix.closure(&built).len(), 1000);
    let gateway = Gateway::start();
    let alice = gateway.enrol("alice", &[]);

    let start = Instant::now();
    let first = alice.push(&nix, &built);
    let first_time = start.elapsed();
    assert_eq!(first.in_state(PathState::Published).len(), 1000);
    assert_eq!(first.sent.nars, 1000);
    assert_eq!(gateway.metric("pushgate_nars_taken_total"), 1000);

    let requests = gateway.metric("pushgate_requests_total");
    let start = Instant::now();
    let again = alice.push(&nix, &built);
    let second_time = start.elapsed();
    eprintln!(
        "1,000 paths in {first_time:.2?}, again in {second_time:.2?}: {:.1} times as fast",
        first_time.as_secs_f64() / second_time.as_secs_f64()
    );
    // what a published root refers to is published with it, and needn't be asked for
    assert_eq!(again.in_state(PathState::Published).len(), 1);
    assert_eq!((again.sent.nars, again.sent.body_bytes, again.pushes.len()), (0, 0, 0));
    assert_eq!(gateway.metric("pushgate_nars_taken_total"), 1000);
    // who the gateway is, and what is missing; and a look at the metrics
    let asked = gateway.metric("pushgate_requests_total") - requests;
    assert!(asked <= 6, "{asked} requests to send nothing");

    // another submitter doesn't send either what is published
    let bob = gateway.enrol("bob", &[]).push(&nix, &built);
    assert_eq!((bob.sent.nars, bob.in_state(PathState::Published).len()), (0, 1));

    let consumer = Nix::consumer(&[gateway.cache_url("main")], &[gateway.key("main")]);
    consumer.fetch(&built).ended_with(0);
    consumer.assert_has_all_of(&nix, &built);
}

/// A tree of one path and a reference.
fn small(nix: &Nix, name: &str) -> Vec<String> {
    nix.build(&format!(
        r#"derivation {{
          name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
          args = [ "-c" "echo $text > $out" ]; text = builtins.toFile "{name}-text" "{name}";
        }}"#
    ))
}

#[test]
fn caches_of_one_gateway_are_apart() {
    let nix = Nix::builder();
    let built = small(&nix, "apart");
    let gateway = Gateway::start();
    gateway.add_cache("second");
    let alice = gateway.enrol("alice", &[]);
    let report = alice.push_ending_with(0, &nix, &built, &["--cache", "second"]);
    assert_eq!((report.cache.as_str(), report.in_state(PathState::Published).len()), ("second", 2));

    let mut keys = [gateway.key("main"), gateway.key("second")];
    assert_ne!(keys[0], keys[1]);
    let from_main = Nix::consumer(&[gateway.cache_url("main")], &keys);
    assert_ne!(from_main.fetch(&built).code, Some(0));
    assert_eq!(names(&gateway.public("main")), ["nix-cache-info"]);
    let from_second = Nix::consumer(&[gateway.cache_url("second")], &keys[1..]);
    from_second.fetch(&built).ended_with(0);
    from_second.assert_has_all_of(&nix, &built);

    // what is printed at the next start names both
    let mut gateway = gateway;
    gateway.stop();
    gateway.restart();
    keys.sort();
    let urls = format!("{} {}", gateway.cache_url("main"), gateway.cache_url("second"));
    assert_eq!(gateway.printed[0], format!("extra-substituters = {urls}"));
    let printed = gateway.printed[1].strip_prefix("extra-trusted-public-keys = ").unwrap();
    let mut printed: Vec<&str> = printed.split(' ').collect();
    printed.sort_unstable();
    assert_eq!(printed, keys);

    // a cache that isn't there is an error that names those that are
    let ran = alice.run_on(&nix, &["push", "--cache", "third", &built[0]]).ended_with(1);
    assert!(ran.err.contains("no cache `third`") && ran.err.contains("`second`"), "{}", ran.err);
}

#[test]
fn a_key_for_one_cache_is_refused_at_another() {
    let nix = Nix::builder();
    let built = small(&nix, "scoped");
    let gateway = Gateway::start();
    gateway.add_cache("second");
    let alice = gateway.enrol("alice", &["--cache", "second"]);
    let ran = alice.run_on(&nix, &["push", &built[0]]).ended_with(1);
    assert!(ran.err.contains("[key-not-for-cache]"), "{}", ran.err);
    assert_eq!(names(&gateway.public("main")), ["nix-cache-info"]);
    alice.push_ending_with(0, &nix, &built, &["--cache", "second"]);
}

#[test]
fn each_exit_code_is_met() {
    let nix = Nix::builder();
    let (good, unproven, large) =
        (small(&nix, "good"), small(&nix, "unproven"), small(&nix, &"large".repeat(20)));
    // its output stays, but what made it can't be shown
    let derivation = nix.query(&["--deriver"], &unproven).remove(0);
    nix.delete(&derivation);
    let gateway = Gateway::with_policy("[limits]\nnar-size = \"230 B\"");
    let alice = gateway.enrol("alice", &[]);

    // 0: published, in words
    let ran = alice.run_on(&nix, &["push", &good[0]]).ended_with(0);
    assert!(ran.out.contains(&format!("published {}", good[0])), "{}", ran.out);
    assert!(ran.out.contains("2 paths: 2 published; sent 2 paths"), "{}", ran.out);
    assert!(ran.err.is_empty(), "{}", ran.err);
    // 2: wrong usage
    alice.run(&["push"]).ended_with(2);
    alice.run(&["push", "--jobs", "many", "x"]).ended_with(2);
    // 1: an error
    let ran = alice.run_on(&nix, &["push", "/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-absent"]);
    assert!(ran.ended_with(1).err.contains("is not valid in this store"));
    // 3: rejected
    let report = alice.push_ending_with(3, &nix, &large, &[]);
    let rejected = report.of(&large[0]);
    assert_eq!((rejected.state, rejected.code.as_deref()), (PathState::Rejected, Some("nar-too-large")));
    let text = report.paths.iter().find(|p| p.path.absolute() != large[0]).unwrap();
    // one rejected path doesn't take with it what it refers to
    assert_eq!(text.state, PathState::Published, "{report:#?}");
    // 0: held counts as accepted
    let report = alice.push(&nix, &unproven);
    let held = report.of(&unproven[0]);
    assert_eq!((held.state, held.code.as_deref()), (PathState::Held, Some("needs-derivation")));
    assert!(held.waits_for.contains(&derivation), "{held:?}");
    assert!(report.notices.iter().any(|n| n.contains(&derivation)), "{:?}", report.notices);
    // 4: time ran out while waiting for it
    let report = alice.push_ending_with(4, &nix, &unproven, &["--wait", "--timeout", "1"]);
    assert!(report.timed_out);
    assert_eq!(report.of(&unproven[0]).state, PathState::Held);
    // its bytes were here already
    assert_eq!(report.sent.nars, 0);
    let public = Web::new().get(&gateway.url(&format!("/main/{}.narinfo", &unproven[0][11..43])));
    assert_eq!(public.status.as_u16(), 404);
}

#[test]
fn status_says_what_became_of_it() {
    let nix = Nix::builder();
    let (good, unproven) = (small(&nix, "good"), small(&nix, "unproven"));
    let derivation = nix.query(&["--deriver"], &unproven).remove(0);
    nix.delete(&derivation);
    let gateway = Gateway::start();
    let alice = gateway.enrol("alice", &[]);
    assert_eq!(alice.run(&["status"]).line(), "no pushes yet");
    let first = alice.push(&nix, &good);
    let second = alice.push(&nix, &unproven);

    let recent = alice.run(&["status"]).lines();
    assert_eq!(recent.len(), 2, "{recent:?}");
    assert!(recent[0].starts_with(&second.pushes[0]), "{recent:?}");
    assert!(recent[0].ends_with("1 held, 1 published"), "{recent:?}");
    assert!(recent[1].starts_with(&first.pushes[0]), "{recent:?}");
    assert!(recent[1].ends_with("2 published"), "{recent:?}");

    let push = alice.run(&["status", &second.pushes[0]]).lines();
    assert!(
        push.iter().any(|l| l.starts_with(&format!("held      {}  waits for {derivation}", unproven[0]))),
        "{push:?}"
    );
    let path = alice.run(&["status", &good[0]]).line();
    assert_eq!(path, format!("published {}", good[0]));
    let json = alice.run(&["status", "--json", &unproven[0]]).ended_with(0).out;
    let status: pushgate_formats::api::PathStatus = serde_json::from_str(&json).unwrap();
    assert_eq!((status.state, status.waits_for), (PathState::Held, vec![derivation]));

    // somebody else learns nothing of what is held, and not even of the push
    let bob = gateway.enrol("bob", &[]);
    let ran = bob.run(&["status", &unproven[0]]).ended_with(1);
    assert!(ran.err.contains("[not-found]"), "{}", ran.err);
    let ran = bob.run(&["status", &second.pushes[0]]).ended_with(1);
    assert!(ran.err.contains("[not-found]"), "{}", ran.err);
    assert_eq!(bob.run(&["status", &good[0]]).line(), format!("published {}", good[0]));
}

#[test]
fn a_held_path_is_published_when_its_derivation_comes() {
    let nix = Nix::builder();
    let built = small(&nix, "late");
    let derivation = nix.query(&["--deriver"], &built).remove(0);
    nix.delete(&derivation);
    let gateway = Gateway::start();
    let alice = gateway.enrol("alice", &[]);
    assert_eq!(alice.push(&nix, &built).of(&built[0]).state, PathState::Held);
    // what waits while the other push brings the derivation
    let waiting = alice.spawn(&nix, &["push", "--wait", "--json", &built[0]]);
    assert_eq!(nix.build(&small_expression("late")), built);
    assert_eq!(nix.run("nix-instantiate", &["-E", &small_expression("late")]).line(), derivation);
    let report = alice.push(&nix, &built);
    assert_eq!(report.of(&built[0]).state, PathState::Published, "{report:#?}");
    waiting.finish().ended_with(0);
}

fn small_expression(name: &str) -> String {
    format!(
        r#"derivation {{
          name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
          args = [ "-c" "echo $text > $out" ]; text = builtins.toFile "{name}-text" "{name}";
        }}"#
    )
}

#[test]
fn a_path_that_vanishes_ends_only_itself() {
    let nix = Nix::builder();
    let (gone, good) = (small(&nix, "gone"), small(&nix, "good"));
    std::fs::remove_file(nix.physical(&gone[0])).unwrap();
    let gateway = Gateway::start();
    let alice = gateway.enrol("alice", &[]);
    let both = [gone.clone(), good.clone()].concat();
    let report = alice.push_ending_with(1, &nix, &both, &[]);
    let [failed] = report.failed.as_slice() else { panic!("{report:#?}") };
    assert_eq!(failed.path, gone[0]);
    assert!(failed.message.contains(&gone[0][11..]), "{}", failed.message);
    assert_eq!(report.of(&good[0]).state, PathState::Published);
    assert_eq!(report.in_state(PathState::Published).len(), 3, "{report:#?}");
    let ran = alice.run_on(&nix, &["push", &gone[0]]).ended_with(1);
    assert!(ran.out.contains(&format!("failed    {}", gone[0])), "{}", ran.out);
}

#[test]
fn an_unreachable_gateway_and_a_refused_key_are_said_plainly() {
    let nix = Nix::builder();
    let built = small(&nix, "plain");
    let mut gateway = Gateway::start();
    let alice = gateway.enrol("alice", &[]);
    gateway.stop();
    let ran = alice.run_on(&nix, &["push", &built[0]]).ended_with(1);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(ran.err.contains(&format!("the gateway `{}` can't be reached", gateway.url(""))), "{}", ran.err);
    assert!(ran.err.contains("is it running"), "{}", ran.err);

    gateway.restart();
    gateway.admin(&["key", "revoke", "alice-1"]).ended_with(0);
    let ran = alice.run_on(&nix, &["push", &built[0]]).ended_with(1);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(ran.err.contains("[key-revoked]") && ran.err.contains("ask the gateway's admin"), "{}", ran.err);
    assert_eq!(names(&gateway.public("main")), ["nix-cache-info"]);
    assert_eq!(gateway.metric("pushgate_nars_taken_total"), 0);

    let stranger = gateway.enrol("bob", &[]);
    std::fs::remove_file(stranger.config().join("config.toml")).unwrap();
    let ran = stranger.run_on(&nix, &["push", &built[0]]).ended_with(1);
    assert!(ran.err.contains("no gateway joined yet"), "{}", ran.err);
}

#[test]
fn a_full_quarantine_is_said_with_what_to_do() {
    let nix = Nix::builder();
    let file = pushgate_tests::process::noise_file(nix.dir(), "noise", 7, 4000);
    let noise = nix.run("nix-store", &["--add".as_ref(), file.as_os_str()]).lines();
    let gateway = Gateway::with_policy("[limits]\nquarantine-size = \"1 KiB\"");
    let alice = gateway.enrol("alice", &[]);
    let report = alice.push_ending_with(1, &nix, &noise, &[]);
    let [failed] = report.failed.as_slice() else { panic!("{report:#?}") };
    assert_eq!(failed.path, noise[0]);
    assert!(failed.message.contains("[quota-exceeded]"), "{}", failed.message);
    assert!(failed.message.contains("1024"), "{}", failed.message);
    assert_eq!(names(&gateway.public("main")), ["nix-cache-info"]);
    // what fits goes through all the same
    let small = small(&nix, "small");
    assert_eq!(alice.push(&nix, &small).in_state(PathState::Published).len(), 2);
}
