use std::path::Path;

use clap::Parser;
use rstest::rstest;

use super::*;
use crate::cli::{Cli, Command, PolicyCommand};

const GOOD: &str = include_str!("../../../policies/examples/team.toml");

fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// Without the directory, whose name differs each time.
fn short(text: &str, dir: &Path) -> String {
    text.replace(&format!("{}/", dir.display()), "")
}

#[test]
fn a_directory_is_checked_file_by_file() {
    let broken = "version = 1\ncache = \"b\"\n[[rule]]\nname = \"r\"\nmatch = {}\nrequire = \"derivaton\"\n";
    let dir = dir(&[("a.toml", GOOD), ("b.toml", broken), ("notes.txt", "no policy")]);
    let report = check(&[dir.path().to_owned()], None).unwrap();
    assert_eq!(report.exit, Exit::Error);
    assert_eq!(
        short(&report.text(), dir.path()),
        "a.toml: ok, for the cache main: 4 rules, 12 tests\n\
         b.toml:6:11: unknown requirement `derivaton`; did you mean `derivation`?\n\
         \x20 |\n\
         6 | require = \"derivaton\"\n\
         \x20 |           ^^^^^^^^^^^\n\
         b.toml: refused: 1 error\n"
    );
    let json = crate::output::json(&report.files);
    assert!(json.contains("\"line\": 6") && json.contains("\"severity\": \"error\""), "{json}");
    assert_eq!(check(&[dir.path().join("a.toml")], None).unwrap().exit, Exit::Accepted);
}

#[test]
fn what_cannot_be_read_is_told() {
    let dir = dir(&[("c.toml", "\u{0}")]);
    let missing = dir.path().join("missing.toml");
    let report = check(std::slice::from_ref(&missing), None).unwrap();
    assert_eq!(report.exit, Exit::Error);
    assert!(report.text().contains("missing.toml: No such file"), "{}", report.text());
    fs::write(&missing, [0xff]).unwrap();
    assert!(check(&[missing], None).unwrap().text().contains("is not UTF-8"));
    fs::remove_file(dir.path().join("c.toml")).unwrap();
    fs::remove_file(dir.path().join("missing.toml")).unwrap();
    assert!(check(&[dir.path().to_owned()], None).unwrap_err().to_string().contains("has no policy files"));
}

#[test]
fn tests_that_fail_are_told_with_their_line() {
    let failing = GOOD.replace("expect = \"reject\"\ncode   = \"hold-expired\"", "expect = \"publish\"");
    let dir = dir(&[("a.toml", GOOD), ("b.toml", &failing)]);
    let report = test(&[dir.path().to_owned()]).unwrap();
    assert_eq!(report.exit, Exit::Error);
    let text = short(&report.text(), dir.path());
    assert!(text.starts_with("a.toml: 12 tests passed, 0 failed\nb.toml:"), "{text}");
    assert!(
        text.contains("`a hold ends after two weeks`: expected `publish`, but the policy says `reject`"),
        "{text}"
    );
    assert!(text.ends_with("b.toml: 11 tests passed, 1 failed\n"), "{text}");
    assert_eq!(test(&[dir.path().join("a.toml")]).unwrap().exit, Exit::Accepted);
}

fn question(dir: &Path, arguments: &[&str]) -> Question {
    let file = dir.join("a.toml").display().to_string();
    let words = [&["pushgate", "policy", "explain", "--policy", &file], arguments].concat();
    let Command::Policy(PolicyCommand::Explain(question)) = Cli::try_parse_from(words).unwrap().command
    else {
        panic!("not a question");
    };
    *question
}

#[rstest]
#[case(&["hello-2.12", "--submitter", "alice", "--evidence", "derivation"], "hold", Some("people"))]
#[case(&["hello-2.12", "--submitter", "alice", "--evidence", "derivation", "--evidence", "approvals=1@core"], "publish", Some("people"))]
#[case(&["hello-2.12", "--submitter", "r", "--group", "ci", "--evidence", "derivation"], "publish", Some("ci"))]
#[case(&["hello-2.12", "--submitter", "r"], "hold", None)]
#[case(&["hello-2.12", "--submitter", "r", "--size", "5 GiB"], "reject", None)]
fn a_claim_is_explained(#[case] arguments: &[&str], #[case] verdict: &str, #[case] rule: Option<&str>) {
    let dir = dir(&[("a.toml", GOOD)]);
    let question = question(dir.path(), arguments);
    let explanation = explain(&question, question.policy.as_deref().unwrap()).unwrap();
    assert_eq!((explanation.verdict.word(), explanation.rule.as_deref()), (verdict, rule));
}

#[rstest]
#[case(&["a b", "--submitter", "r"], "`a b` is neither a store path")]
#[case(&["a", "--submitter", "r", "--size", "5"], "`5` is not a size")]
#[case(&["a", "--submitter", "r", "--env", "X"], "`X` is not `NAME=VALUE`")]
#[case(&["a", "--submitter", "r", "--evidence", "derivations"], "did you mean `derivation`?")]
fn a_question_that_makes_no_sense(#[case] arguments: &[&str], #[case] says: &str) {
    let dir = dir(&[("a.toml", GOOD)]);
    let question = question(dir.path(), arguments);
    let error = explain(&question, question.policy.as_deref().unwrap()).unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}
