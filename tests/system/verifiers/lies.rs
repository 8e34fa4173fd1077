//! What wasn't built as its derivation says, and what can't be built twice alike.

use pushgate_formats::api::PathState;
use pushgate_tests::process::Verifier;
use rstest::rstest;

use super::{REBUILT, Stage, count, is_public, policy, rebuilds, tamper, toolset, wait_claim};

const TOOL: &str = r#"run "tool" "mkdir -p $out/bin; echo good > $out/bin/tool; echo same > $out/other" {}"#;

/// A backdoor is found, and its submitter dealt with as the rule says; the truth is published.
#[rstest]
#[case::reject("reject", "rejected", "rebuild-mismatch")]
#[case::hold_key("hold-key", "held", "key-held")]
#[case::freeze("freeze", "held", "identity-frozen")]
fn a_backdoor_is_found(#[case] follows: &str, #[case] state: &str, #[case] code: &str) {
    let rest = format!("{REBUILT}\non-mismatch = \"{follows}\"");
    let stage = Stage::set(&policy(&rest, "[rebuilds]\nconfirm = 1"));
    let honest = pushgate_tests::process::Nix::builder();
    let tool = stage.build(TOOL);
    assert_eq!(honest.build(&toolset(TOOL)), std::slice::from_ref(&tool));
    tamper(&stage.nix, &tool, "bin/tool", "good, and evil\n");
    // honest, and held only by what becomes of its key
    let later = stage.build(r#"run "later" "echo later > $out" {}"#);
    stage.push_held(&tool);

    let first = Verifier::start(&stage.gateway, "kiln", "kiln-operator");
    // one verifier isn't enough to convict
    stage.wait_claim(&tool, "held", "rebuild-mismatch");
    assert_eq!(count(&stage.gateway, "SELECT count(*) FROM mismatches WHERE path = ?", &tool), 0);
    let second = Verifier::start(&stage.gateway, "oven", "oven-operator");
    pushgate_tests::process::wait_for("a mismatch that is confirmed", || {
        let found = count(&stage.gateway, "SELECT count(*) FROM mismatches WHERE path = ?", &tool);
        (found == 1).then_some(())
    });
    stage.wait_claim(&tool, state, code);
    assert!(!is_public(&stage.gateway, &tool));
    assert!((3..=4).contains(&rebuilds(&stage.gateway, &tool)), "the first one twice, and the second");
    let diff = stage.alice.run(&["why", "--diff", &tool]).ended_with(0).out;
    assert!(diff.contains("~ bin/tool ") && diff.contains("evil") && diff.contains("  1 differ "), "{diff}");

    let push = stage.alice.run_on(&stage.nix, &["push", "--json", &later]);
    match follows {
        "reject" => {
            push.ended_with(0);
            stage.wait_public(&later);
        }
        "hold-key" => {
            push.ended_with(0);
            stage.wait_claim(&later, "held", "key-held");
        }
        _ => assert_ne!(push.code, Some(0), "a frozen submitter pushes: {push:#?}"),
    }
    // the liar has squatted on the path for nothing
    let carol = stage.gateway.enrol("carol", &["--owner", "carol"]);
    let report = carol.push_ending_with(0, &honest, std::slice::from_ref(&tool), &["--wait"]);
    assert_eq!(report.of(&tool).state, PathState::Published, "{report:#?}");
    stage.wait_public(&tool);
    first.idle();
    second.idle();
}

#[rstest]
// of busybox in whole seconds: no two builds begin in the same one
#[case::time("date +%s > $out; sleep 2")]
#[case::random("dd if=/dev/urandom of=$out bs=32 count=1")]
fn what_is_never_the_same_is_held_until_an_admin_waives(#[case] script: &str) {
    let stage = Stage::set(&policy(REBUILT, "[rebuilds]\nconfirm = 1"));
    let odd = stage.build(&format!(r#"run "odd" "{script}" {{}}"#));
    stage.push_held(&odd);
    let verifier = Verifier::start(&stage.gateway, "kiln", "kiln-operator");
    wait_claim(&stage.alice, &odd, "held", "rebuild-inconclusive");
    assert_eq!(count(&stage.gateway, "SELECT count(*) FROM mismatches WHERE path = ?", &odd), 0);
    assert!(!is_public(&stage.gateway, &odd));

    let waive = ["admin", "held", "waive", &odd, "--reason", "it writes the time", "--until", "30d"];
    stage.admin().run(&waive).ended_with(0);
    stage.wait_public(&odd);
    assert_eq!(stage.nix.hashes(std::slice::from_ref(&odd)).len(), 1);
    verifier.idle();
}
