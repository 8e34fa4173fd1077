//! The shipped policies: each passes its own tests, and each of their rules has a test that notices when it is gone.

use pushgate_policies::{Policy, starting_policy};
use rstest::rstest;

fn parse(text: &str) -> Policy {
    let checked = Policy::check(text, None);
    assert_eq!(
        checked.problems,
        [],
        "{:?}",
        checked.problems.iter().map(|p| p.render("f")).collect::<Vec<_>>()
    );
    checked.policy.unwrap()
}

#[rstest]
#[case(include_str!("../examples/personal.toml"))]
#[case(include_str!("../examples/team.toml"))]
#[case(include_str!("../examples/ci-only.toml"))]
#[case(include_str!("../examples/open-source-project.toml"))]
#[case(include_str!("../examples/strict.toml"))]
fn shipped_policies_do_what_their_tests_say(#[case] text: &str) {
    assert!(text.starts_with("#:schema ../schema.json\n"));
    let policy = parse(text);
    assert!(!policy.tests.is_empty());
    for result in policy.run_tests() {
        assert!(result.passed, "{result:?}");
    }
    for i in 0..policy.rules.len() {
        let mut fewer = policy.clone();
        let gone = fewer.rules.remove(i);
        let failed = fewer.run_tests().iter().any(|result| !result.passed);
        assert!(failed, "no test notices that the rule `{}` is gone", gone.name);
    }
}

#[test]
fn a_test_names_what_is_expected_and_what_came() {
    let text = format!(
        "{}\n[[test]]\nname = \"alone\"\ngiven = {{ path = \"glibc-2.40-66\", submitter = \"alice\", evidence = [\"derivation\"] }}\n\
         expect = \"hold\"\ncode = \"needs-rebuild\"\n",
        starting_policy("main")
    );
    let results = parse(&text).run_tests();
    assert_eq!(
        results[0].difference.as_deref(),
        Some(
            "expected `hold` with `needs-rebuild`, but the policy says `publish` by the rule `everything else`"
        )
    );
    assert_eq!(text.lines().nth(results[0].line - 1), Some("[[test]]"));
}

#[rstest]
#[case::path("given = { submitter = \"a\" }\nexpect = \"hold\"", "`given` has no `path`")]
#[case::bad_path(
    "given = { path = \"a b\", submitter = \"a\" }\nexpect = \"hold\"",
    "`a b` is no store path"
)]
#[case::expect("given = { path = \"a\", submitter = \"a\" }\nexpect = \"held\"", "did you mean `hold`?")]
#[case::rule(
    "given = { path = \"a\", submitter = \"a\" }\nexpect = \"hold\"\nrule = \"everything els\"",
    "did you mean `everything else`?"
)]
#[case::code(
    "given = { path = \"a\", submitter = \"a\" }\nexpect = \"publish\"\ncode = \"x\"",
    "has no code"
)]
#[case::evidence(
    "given = { path = \"a\", submitter = \"a\", evidence = [\"derivations\"] }\nexpect = \"hold\"",
    "did you mean `derivation`?"
)]
#[case::unknown(
    "given = { path = \"a\", submitter = \"a\", unknown = [\"sistem\"] }\nexpect = \"hold\"",
    "did you mean `system`?"
)]
#[case::beside(
    "given = { path = \"a\", submitter = \"a\", evidence = [{ rebuilds = 1, says = \"same\" }] }\nexpect = \"hold\"",
    "`says` has no meaning beside `rebuilds`"
)]
fn broken_tests_are_told(#[case] test: &str, #[case] says: &str) {
    let text = format!("{}\n[[test]]\nname = \"t\"\n{test}\n", starting_policy("main"));
    let error = Policy::parse(&text, "f", "main").unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}
