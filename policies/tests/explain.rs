//! What is told of a decision.

use pushgate_policies::{Policy, explain::Explanation, scenario::Scenario};
use rstest::rstest;

const TEAM: &str = include_str!("../examples/team.toml");

fn policy() -> Policy {
    Policy::parse(TEAM, "team.toml", "main").unwrap()
}

fn scenario(path: &str, evidence: &[&str]) -> Scenario {
    let policy = policy();
    let mut scenario = Scenario::new(Scenario::path(path).unwrap(), "alice");
    scenario.evidence = evidence.iter().map(|text| policy.evidence(text).unwrap()).collect();
    scenario
}

#[test]
fn each_rule_says_why_it_matched_or_not_and_what_is_missing() {
    let explanation = scenario("hello-2.12", &["derivation", "submitters=1"]).explain(&policy());
    assert_eq!(
        explanation.to_string(),
        "hold /nix/store/00000000000000000000000000000000-hello-2.12 [needs-rebuild]\n\
         \x20 of `/nix/store/00000000000000000000000000000000-hello-2.12`, the rule `people` requires derivation and (1 rebuild or 2 submitters or 1 approval from `core`)\n\
         \x20 waits for 1 rebuild (0 of 1) or 2 submitters (1 of 2) or 1 approval from `core` (0 of 1)\n\
         rules of `main`, in order, for a claim by `alice`:\n\
         \x20 contents speak for themselves: doesn't match\n\
         \x20   no: content-addressed (found: not content-addressed)\n\
         \x20 what everything is built with: doesn't match\n\
         \x20   no: pname is `bash`, `binutils`, `coreutils`, `gcc`, `glibc`, `linux` or `stdenv-linux` (found: `hello`)\n\
         \x20 ci: doesn't match\n\
         \x20   no: submitter is `@ci` (found: `alice`)\n\
         \x20 people: matches\n\
         \x20   missing: derivation and (1 rebuild or 2 submitters or 1 approval from `core`)\n\
         \x20     met: derivation\n\
         \x20     missing: 1 rebuild or 2 submitters or 1 approval from `core`\n\
         \x20       missing: 1 rebuild (there are 0)\n\
         \x20       missing: 2 submitters (there are 1)\n\
         \x20       missing: 1 approval from `core` (there are 0)\n"
    );
}

#[test]
fn what_is_not_known_and_what_is_not_reached_is_told() {
    let explanation = scenario("hello-2.12", &[]).explain(&policy());
    let text = explanation.to_string();
    assert!(text.contains("contents speak for themselves: can't be told yet\n    unknown: content-addressed (found: not known yet)"), "{text}");
    assert!(text.ends_with("  people: not reached\n"), "{text}");
}

#[test]
fn an_explanation_is_data() {
    let explanation = scenario("hello-2.12", &["derivation", "rebuilds=1"]).explain(&policy());
    let json = serde_json::to_string(&explanation).unwrap();
    assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), explanation);
    assert!(
        json.contains("\"verdict\":\"publish\"")
            && json.contains("\"evidence\":[\"derivation\",\"rebuilds\"]"),
        "{json}"
    );
}

#[rstest]
#[case("derivation", true)]
#[case("rebuilds=2", true)]
#[case("approvals=1@core", true)]
#[case("{ rebuilds = 1, outcome = \"mismatch\" }", true)]
#[case("rebuilds=1, owner=\"alice\"", true)]
#[case("approvals=1@cor", false)]
#[case("rebuild=1", false)]
#[case("derivatio", false)]
#[case("a\"b", false)]
#[case("", false)]
#[case("{", false)]
fn evidence_on_a_command_line(#[case] text: &str, #[case] good: bool) {
    assert_eq!(policy().evidence(text).is_ok(), good);
}
