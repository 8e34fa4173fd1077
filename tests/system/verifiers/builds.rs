//! `pushgate build`, from a machine that builds nothing.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
};

use pushgate_tests::process::{Nix, Verifier, toolset};

use super::{REBUILT, Stage, is_public, policy};

const MAY_BUILD: &str = "[[build]]\nsubmitter = [\"alice\"]";

/// A policy by which what verifiers built, and nothing else, is published.
fn stage() -> Stage {
    Stage::bare(&policy(REBUILT, MAY_BUILD), "")
}

/// A store that never builds and fetches from the gateway.
fn consumer(stage: &Stage) -> Nix {
    Nix::consumer(&[stage.gateway.cache_url("main")], &[stage.gateway.key("main")])
}

#[test]
fn it_is_built_elsewhere_with_its_log_here_and_then_fetched() {
    let stage = stage();
    let verifier = Verifier::start(&stage.gateway, "kiln", "kiln-operator");
    let machine = consumer(&stage);
    let text = toolset(
        r#"run "tool" "echo the first line; sleep 4; for i in 2 3 4; do echo line $i; done; echo tool > $out" { }"#,
    );
    let log = machine.dir().join("said");
    let mut running = stage.alice.spawn_saying(&machine, &["build", "-E", &text], &log);
    // while it is built
    let mut said = BufReader::new(File::open(&log).unwrap());
    pushgate_tests::process::wait_for("the log's first line", || {
        let mut line = String::new();
        assert!(!running.has_ended(), "{}", fs::read_to_string(&log).unwrap());
        said.read_line(&mut line).unwrap();
        line.contains("the first line").then_some(())
    });
    assert!(!fs::read_to_string(&log).unwrap().contains("line 2"));
    let ran = running.finish();
    let err = fs::read_to_string(&log).unwrap();
    assert_eq!(ran.code, Some(0), "{err}");
    let places = ["the first line", "line 2", "line 3", "line 4"].map(|line| {
        assert_eq!(err.matches(line).count(), 1, "{err}");
        err.find(line).unwrap()
    });
    assert!(places.is_sorted(), "{err}");

    let tool = ran.out.trim_end().to_owned();
    assert!(tool.ends_with("-tool") && is_public(&stage.gateway, &tool), "{tool}");
    assert_eq!(fs::read_to_string(machine.physical(&tool)).unwrap(), "tool\n");
    // the toolset was built there too, and nothing here
    assert_eq!((verifier.began("tools"), verifier.began("tool")), (1, 1));
    verifier.idle();

    let other = consumer(&stage);
    other.fetch(std::slice::from_ref(&tool)).ended_with(0);
    other.assert_has_all_of(&machine, std::slice::from_ref(&tool));

    // and whoever asks for its log finds it
    let derivation = machine.instantiate(&text);
    let file = stage.gateway.public("main").join("log").join(&derivation["/nix/store/".len()..]);
    pushgate_tests::process::wait_for("the log", || file.exists().then_some(()));
    let log = other.run("nix", &["log", "--store", &stage.gateway.cache_url("main"), &tool]);
    assert_eq!(log.code, Some(0), "{log:#?}");
    assert!(log.out.starts_with("the first line\nline 2\nline 3\nline 4\n"), "{log:#?}");

    // once more: nothing is built
    let again = stage.alice.run_on(&machine, &["build", "-E", &text]);
    assert_eq!(again.line(), tool);
    assert_eq!(verifier.began("tool"), 1);
}

#[test]
fn a_build_that_fails_shows_its_log_and_says_so() {
    let stage = stage();
    let verifier = Verifier::start(&stage.gateway, "kiln", "kiln-operator");
    let machine = consumer(&stage);
    let text = toolset(
        r#"let broken = run "broken" "echo it will not work >&2; exit 7" { };
           in run "tool" "cat ${broken} > $out" { }"#,
    );
    let ran = stage.alice.run_on(&machine, &["build", "-E", &text]).ended_with(1);
    assert_eq!(ran.out, "");
    assert!(ran.err.contains("it will not work"), "{}", ran.err);
    assert!(
        ran.err.contains("the build of `broken` failed: its builder ended with exit code 7"),
        "{}",
        ran.err
    );
    verifier.idle();
}

#[test]
fn who_may_not_ask_for_builds_is_refused() {
    let stage = stage();
    let mut verifier = Verifier::start(&stage.gateway, "kiln", "kiln-operator");
    let bob = stage.gateway.enrol("bob", &["--owner", "bob"]);
    let text = toolset(r#"run "tool" "echo tool > $out" { }"#);
    let machine = consumer(&stage);
    let ran = bob.run_on(&machine, &["build", "-E", &text]).ended_with(3);
    assert_eq!(ran.out, "");
    assert!(verifier.is_alive() && !verifier.log().contains(" begins "), "{}", verifier.log());
}

/// A fixed output that is itself to be built, from what nobody has built before.
#[test]
fn a_fixed_output_is_built_by_its_own_derivation() {
    let stage = stage();
    let verifier = Verifier::start(&stage.gateway, "kiln", "kiln-operator");
    let machine = consumer(&stage);
    let text = toolset(
        r#"run "fixed" "echo ok > $out" {
             outputHashAlgo = "sha256"; outputHashMode = "flat"; outputHash = builtins.hashString "sha256" "ok\n";
           }"#,
    );
    let fixed = stage.alice.run_on(&machine, &["build", "--timeout", "60", "-E", &text]).line();
    assert_eq!(fs::read_to_string(machine.physical(&fixed)).unwrap(), "ok\n");
    assert_eq!((verifier.began("tools"), verifier.began("fixed")), (1, 1));
    verifier.idle();
}
