use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::{rebuilds::OnAuditMismatch, starting_policy};

const RULE: &str = "[[rule]]\nname = \"r\"\nmatch = {}\nrequire = \"derivation\"\n";
const KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// A file with these lines before a rule for everything.
fn file(more: &str) -> String {
    format!("version = 1\ncache = \"main\"\n{more}\n{RULE}")
}

/// A file with this as its only rule, and groups and an upstream to refer to.
fn with_rule(rule: &str) -> String {
    format!(
        "version = 1\ncache = \"main\"\n[groups]\ncore = [\"alice\", \"bob\"]\nci = \"enrolled\"\n\
         [[upstream]]\nname = \"nixos\"\nurl = \"https://a\"\nkey = \"{KEY}\"\n[[rule]]\nname = \"r\"\n{rule}\n"
    )
}

fn parse(text: &str) -> Policy {
    Policy::parse(text, "main.toml", "main").unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn the_starting_policy_is_what_the_defaults_say() {
    let text = starting_policy("main");
    let checked = Policy::check(&text, Some("main"));
    assert_eq!(checked.problems, []);
    let policy = checked.policy.unwrap();
    assert_eq!(policy.limits, Limits::default());
    assert_eq!(policy.closure, Closure::Upstreams);
    assert_eq!(policy.upstreams[0].url, "https://cache.nixos.org");
    assert_eq!(policy.digest, Sha256::of(text.as_bytes()));
    assert_eq!(policy.needs(), Needs::default());
}

#[rstest]
#[case::unknown_field(
    "limit-s = 3",
    "main.toml:3:1: unknown field `limit-s` in the file; did you mean `limits`?"
)]
#[case::unknown_limit(
    "[limits]\nnar_size = \"1 B\"",
    "4:1: unknown field `nar_size` in `[limits]`; did you mean `nar-size`?"
)]
#[case::size("[limits]\nnar-size = \"4 GB\"", "`4 GB` is not a size")]
#[case::ttl("[limits]\nquarantine-ttl = \"x\"", "`x` is not a duration")]
#[case::key("[[upstream]]\nurl = \"https://a\"\nkey = \"a:b\"", "not 32 bytes")]
#[case::url(
    "[[upstream]]\nurl = \"file:///a\"\nkey = \"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=\"",
    "`file:///a` is not"
)]
#[case::no_key("[[upstream]]\nurl = \"https://a\"", "`[[upstream]]` has no `key`")]
#[case::closure("closure = \"upstream\"", "unknown word `upstream`; did you mean `upstreams`?")]
#[case::nobody("[groups]\nci = []", "the group `ci` names nobody; list its members, or write `\"enrolled\"`")]
#[case::group_word(
    "[groups]\nci = \"enroled\"",
    "a list of names, or `\"enrolled\"`, is expected here, not a text"
)]
#[case::group_in_group("[groups]\na = [\"@b\"]", "no `@group`")]
#[case::limit_of_nobody("[[limit]]\nnar-size = \"1 B\"", "`[[limit]]` has no `submitter`")]
#[case::limit_without_limits("[[limit]]\nsubmitter = \"a\"", "limits nothing")]
#[case::limit_table("[limit]\nsubmitter = \"a\"", "write `[[limit]]`")]
#[case::zero("[limits]\nuploads-at-once = 0", "a whole number of at least 1")]
#[case::confirm("[rebuilds]\nconfirm = 5", "at most 4 confirmations can be asked for")]
#[case::audits(
    "[rebuilds]\naudits-per-day = 5",
    "unknown field `audits-per-day` in `[rebuilds]`; did you mean `audit-per-day`?"
)]
#[case::audit_word(
    "[rebuilds]\non-audit-mismatch = \"withdrawn\"",
    "unknown word `withdrawn`; did you mean `withdraw`?"
)]
#[case::build_of_nobody("[[build]]\nat-once = 1", "`[[build]]` has no `submitter`")]
#[case::build_table("[build]\nsubmitter = \"a\"", "write `[[build]]`")]
#[case::build_field("[[build]]\nsubmitter = \"a\"\nper_day = 1", "did you mean `per-day`?")]
#[case::build_group("[[build]]\nsubmitter = \"@ci\"", "there is no group `ci`")]
#[case::build_glob("[[build]]\nsubmitter = \"ci-*\"", "unless the text starts with `glob:`")]
#[case::build_system("[[build]]\nsubmitter = \"a\"\nsystem = [\"linux\"]", "`linux` is no system")]
#[case::build_none("[[build]]\nsubmitter = \"a\"\nat-once = 0", "a whole number of at least 1")]
#[case::build_no_time("[[build]]\nsubmitter = \"a\"\ntime = \"0s\"", "no build ends in no time")]
#[case::retention("[retention]\nunused = 3", "a text is expected here, not a number")]
#[case::form("bad", "3:4: ")]
#[case::same_name(
    "[[rule]]\nname = \"r\"\nmatch = { pname = \"a\" }\ndeny = \"no\"",
    "two rules are called `r`"
)]
fn refused_with_what_is_wrong(#[case] more: &str, #[case] says: &str) {
    let error = Policy::parse(&file(more), "main.toml", "main").unwrap_err().to_string();
    assert!(error.starts_with("main.toml:") && error.contains(says), "{error}");
}

#[rstest]
#[case("", "the file has no `version`")]
#[case("version = 2\ncache = \"main\"\n", "this program reads version 1")]
#[case("version = 1\ncache = \"other\"\n", "for the cache `other`")]
#[case("version = 1\n", "the file has no `cache`")]
#[case("version = 1\ncache = \"main\"\n", "no `[[rule]]`, so that nothing could ever be published")]
fn refused_as_a_whole(#[case] text: &str, #[case] says: &str) {
    let error = Policy::parse(text, "main.toml", "main").unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}

#[rstest]
#[case::no_match("require = \"derivation\"", "one for everything says `match = {}`")]
#[case::neither("match = {}", "add `require = …` or `deny = \"REASON\"`")]
#[case::both("match = {}\nrequire = \"derivation\"\ndeny = \"x\"", "either `require` or `deny`")]
#[case::field(
    "match = { pnam = \"a\" }\nrequire = \"derivation\"",
    "unknown field `pnam` in `match`; did you mean `pname`?"
)]
#[case::word(
    "match = {}\nrequire = \"derivaton\"",
    "unknown requirement `derivaton`; did you mean `derivation`?"
)]
#[case::number("match = {}\nrequire = \"rebuilds\"", "`rebuilds` says how many or which")]
#[case::list("match = {}\nrequire = [\"derivation\"]", "{ all = […] }")]
#[case::several(
    "match = {}\nrequire = { rebuilds = 1, submitters = 2 }",
    "{ all = [{ rebuilds = … }, { submitters = … }] }"
)]
#[case::misspelt(
    "match = {}\nrequire = { rebuild = 1 }",
    "unknown field `rebuild` in a requirement; did you mean `rebuilds`?"
)]
#[case::empty("match = {}\nrequire = { all = [] }", "the list of requirements is empty")]
#[case::no_table("match = {}\nrequire = {}", "names no requirement")]
#[case::nothing_in_any(
    "match = {}\nrequire = { any = [\"nothing\", \"derivation\"] }",
    "`nothing` stands alone"
)]
#[case::at_least(
    "match = {}\nrequire = { at-least = 3, of = [\"derivation\", { rebuilds = 1 }] }",
    "3 of 2 can't be met"
)]
#[case::from("match = {}\nrequire = { approvals = 1 }", "say whose")]
#[case::stray_from(
    "match = {}\nrequire = { rebuilds = 1, from = \"core\" }",
    "`from` has no meaning beside `rebuilds`"
)]
#[case::too_few("match = {}\nrequire = { approvals = 3, from = \"core\" }", "the group `core` has 2 members")]
#[case::unknown_group(
    "match = { submitter = \"@coer\" }\nrequire = \"derivation\"",
    "no group `coer`; did you mean `core`?"
)]
#[case::unknown_from(
    "match = {}\nrequire = { approvals = 1, from = \"x\" }",
    "no group `x`; there is `ci`, `core`"
)]
#[case::upstream("match = {}\nrequire = { upstream = \"nixo\" }", "did you mean `nixos`?")]
#[case::glob(
    "match = { pname = \"a*\" }\nrequire = \"derivation\"",
    "stand for themselves unless the text starts with `glob:`"
)]
#[case::versioned(
    "match = { pname = \"glibc-2.40\" }\nrequire = \"derivation\"",
    "write `pname = \"glibc\", version = \"2.40\"`"
)]
#[case::system("match = { system = \"linux\" }\nrequire = \"derivation\"", "like `x86_64-linux`")]
#[case::size_text(
    "match = { size = \">= 1 GiB\" }\nrequire = \"derivation\"",
    "`size`, such as `{ min = \"1 GiB\" }`,"
)]
#[case::size_order(
    "match = { size = { min = \"2 B\", max = \"1 B\" } }\nrequire = \"derivation\"",
    "`min` is larger than `max`"
)]
#[case::not_all("match = { not = {} }\nrequire = \"derivation\"", "never matches")]
#[case::rate("match = {}\nrequire = \"derivation\"\nsample = { rate = 5 }", "from 0 to 1")]
#[case::on_mismatch(
    "match = {}\nrequire = \"derivation\"\non-mismatch = \"hold_key\"",
    "did you mean `hold-key`?"
)]
#[case::deny_hold("match = {}\ndeny = \"x\"\nhold = \"1d\"", "no use for `hold`")]
#[case::anybody(
    "match = {}\nrequire = { sigstore = { issuer = \"https://t\" } }",
    "anybody can have an identity"
)]
#[case::no_issuer("match = {}\nrequire = { sigstore = { subject = \"x\" } }", "`sigstore` has no `issuer`")]
#[case::url_match(
    "match = { sources = { every = { url = \"glob:https://a.b/**\" } } }\nrequire = \"derivation\"",
    "the submitter's word"
)]
#[case::url_or(
    "match = { sources = { every = { url = \"glob:https://a.b/**\" } } }\nrequire = { any = [\"derivation\", { sources = [{ url = \"glob:https://a.b/**\" }] }] }",
    "the submitter's word"
)]
#[case::any_hash(
    "match = { sources = { any = { hash = \"sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\" } } }\nrequire = \"derivation\"",
    "add a source as he likes"
)]
#[case::not_hash(
    "match = { not = { sources = { every = { hash = \"sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\" } } } }\nrequire = \"derivation\"",
    "the submitter's word"
)]
#[case::open_host(
    "match = {}\nrequire = { sources = [{ url = \"glob:https://**\" }] }",
    "leaves the host open"
)]
fn rules_refused_with_what_is_wrong(#[case] rule: &str, #[case] says: &str) {
    let text = with_rule(rule);
    let error = Policy::parse(&text, "main.toml", "main").unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}

#[test]
fn all_that_is_wrong_is_told_with_its_place() {
    let text = "version = 1\ncache = \"main\"\nclosur = \"x\"\n\n[[rule]]\nname = \"a\"\nmatch = { pname = \"x\", sistem = \"y\" }\nrequire = { all = [\"derivation\", \"rebuild\"] }\n";
    let error = Policy::parse(text, "main.toml", "main").unwrap_err();
    assert_eq!(
        error.to_string(),
        "main.toml:3:1: unknown field `closur` in the file; did you mean `closure`?\n\
         \x20 |\n\
         3 | closur = \"x\"\n\
         \x20 | ^^^^^^\n\
         main.toml:7:24: unknown field `sistem` in `match`; did you mean `system`?\n\
         \x20 |\n\
         7 | match = { pname = \"x\", sistem = \"y\" }\n\
         \x20 |                        ^^^^^^\n\
         main.toml:8:34: `rebuilds` says how many or which: `{ rebuilds = … }`\n\
         \x20 |\n\
         8 | require = { all = [\"derivation\", \"rebuild\"] }\n\
         \x20 |                                  ^^^^^^^^^"
            .replace(
                "`rebuilds` says how many or which: `{ rebuilds = … }`",
                "unknown requirement `rebuild`; did you mean `rebuilds`?"
            )
    );
}

#[rstest]
#[case::all("{}", "{ pname = \"a\" }", true)]
#[case::same("{ pname = \"a\" }", "{ pname = \"a\", version = \"1\" }", true)]
#[case::longer_list("{ pname = [\"a\", \"b\"] }", "{ pname = \"b\" }", true)]
#[case::glob("{ pname = \"glob:a*\" }", "{ pname = [\"ab\", \"ac\"] }", true)]
#[case::not_fewer("{ pname = { not = \"a\" } }", "{ pname = { not = [\"a\", \"b\"] } }", true)]
#[case::size("{ size = { min = \"1 B\" } }", "{ size = { min = \"2 B\", max = \"3 B\" } }", true)]
#[case::not("{ not = { pname = \"a\", version = \"1\" } }", "{ not = { pname = \"a\" } }", true)]
#[case::person("{ submitter = [\"@core\", \"x\"] }", "{ group = \"core\" }", true)]
#[case::narrower("{ pname = \"a\", version = \"1\" }", "{ pname = \"a\" }", false)]
#[case::other_field("{ pname = \"a\" }", "{ version = \"a\" }", false)]
#[case::shorter_list("{ pname = \"b\" }", "{ pname = [\"a\", \"b\"] }", false)]
#[case::not_more("{ pname = { not = [\"a\", \"b\"] } }", "{ pname = { not = \"a\" } }", false)]
#[case::wider_size("{ size = { min = \"2 B\" } }", "{ size = { min = \"1 B\" } }", false)]
#[case::not_narrower("{ not = { pname = \"a\" } }", "{ not = { pname = \"a\", version = \"1\" } }", false)]
#[case::everything("{ pname = \"a\" }", "{}", false)]
fn a_rule_that_never_decides_is_told(#[case] first: &str, #[case] second: &str, #[case] dead: bool) {
    let text = format!(
        "version = 1\ncache = \"main\"\ngroups.core = [\"a\"]\n[[rule]]\nname = \"first\"\nmatch = {first}\nrequire = \"derivation\"\n\
         [[rule]]\nname = \"second\"\nmatch = {second}\ndeny = \"no\"\n"
    );
    match Policy::parse(&text, "main.toml", "main") {
        Ok(_) => assert!(!dead),
        Err(error) => {
            let says = "the rule `second` never decides: the earlier rule `first` takes all";
            assert!(dead && error.to_string().contains(says), "{error}");
        }
    }
}

#[test]
fn warnings_do_not_stop_a_file() {
    let text = with_rule("match = {}\nrequire = \"derivation\"\nlimits = { nar-size = \"5 GiB\" }");
    let checked = Policy::check(&text, Some("main"));
    assert!(checked.policy.is_some());
    assert_eq!(checked.problems.len(), 1);
    assert!(checked.problems[0].message.contains("no submitter may send so much"));
    assert!(
        checked.problems[0].render("f").starts_with("f:14:23: warning: "),
        "{}",
        checked.problems[0].render("f")
    );
}

#[test]
fn what_rules_look_at_is_needed_and_nothing_else() {
    let needs = |rule: &str| parse(&with_rule(rule)).needs();
    assert_eq!(
        needs("match = { pname = \"a\", content-addressed = false }\nrequire = \"derivation\""),
        Needs::default()
    );
    let all = needs(
        "match = { env.CI = \"1\", not = { sources = { every = { hash = \"sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\" } } } }\n\
         require = { all = [\"upstream\", { rebuilds = 1 }, { submitters = 2 }, { approvals = 1, from = \"core\" }, { sources = [{ url = \"https://a/b\" }] }] }",
    );
    assert_eq!(
        all,
        Needs {
            env: BTreeSet::from(["CI".into()]),
            built: true,
            sources: true,
            upstreams: vec!["https://a".into()],
            rebuilds: true,
            submitters: true,
            approvals: true,
            sigstore: false,
            fetches: true,
        }
    );
}

#[test]
fn limits_come_from_the_first_table_that_has_them() {
    let policy = parse(&file(
        "[groups]\nci = \"enrolled\"\n[limits]\nnar-size = \"1 GiB\"\npaths-per-push = 10\n\
         [[limit]]\nsubmitter = [\"@ci\", \"glob:big-*\"]\nnar-size = \"2 GiB\"\n\
         [[limit]]\nsubmitter = \"big-1\"\nnar-size = \"3 GiB\"\nbytes-per-day = \"5 GiB\"\n",
    ));
    let limits =
        |name, groups: &[String]| policy.limits_for(&crate::facts::Identity { name, owner: None, groups });
    let of = |limits: Limits| {
        (limits.nar_size >> 30, limits.paths_per_push, limits.bytes_per_day.map(|b| b >> 30))
    };
    assert_eq!(of(limits("alice", &[])), (1, Some(10), None));
    assert_eq!(of(limits("alice", &["ci".into()])), (2, Some(10), None));
    assert_eq!(of(limits("big-1", &[])), (2, Some(10), Some(5)));
}

#[test]
fn the_first_table_that_is_for_him_says_what_he_may_have_built() {
    let policy = parse(&file(
        "[groups]\nci = \"enrolled\"\n\
         [[build]]\nsubmitter = [\"@ci\", \"glob:big-*\"]\nsystem = [\"x86_64-linux\", \"glob:*-darwin\"]\nat-once = 100\n\
         [[build]]\nsubmitter = [\"alice\", \"big-1\"]\nper-day = 3\ntime = \"1h\"\nlog = \"1 MiB\"\n",
    ));
    let of = |name, groups: &[String]| {
        let build = policy.builds_for(&crate::facts::Identity { name, owner: None, groups })?;
        Some((build.at_once, build.per_day, build.time, build.log, build.takes("aarch64-linux")))
    };
    let ci = Some((100, 500, 4 * 3600, 8 << 20, false));
    assert_eq!((of("runner", &["ci".into()]), of("big-1", &[])), (ci, ci));
    assert_eq!(of("alice", &[]), Some((16, 3, 3600, 1 << 20, true)));
    assert!(policy.builds[0].takes("x86_64-linux") && policy.builds[0].takes("aarch64-darwin"));
    // nobody else, and nobody at all where no table is
    assert_eq!(of("runner", &[]), None);
    assert_eq!(parse(&file("")).builds, []);
}

#[test]
fn what_is_rebuilt_beside_what_rules_require() {
    let (default, mark) = (crate::Rebuilds::default(), OnAuditMismatch::Mark);
    assert_eq!(parse(&file("")).rebuilds, default);
    assert_eq!((default.confirm, default.audit_per_day, default.on_audit_mismatch), (2, 0, mark));
    let text = "[rebuilds]\nconfirm = 0\naudit-per-day = 9\non-audit-mismatch = \"withdraw\"";
    let wanted =
        crate::Rebuilds { confirm: 0, audit_per_day: 9, on_audit_mismatch: OnAuditMismatch::Withdraw };
    assert_eq!(parse(&file(text)).rebuilds, wanted);
}

#[test]
fn what_nobody_enrolled_could_do_is_warned_of() {
    let text = with_rule(
        "match = {}\nrequire = { all = [{ rebuilds = 2 }, { submitters = 2 }, { approvals = 1, from = \"core\" }] }",
    );
    let who = |name: &str, owner: &str, groups: &[&str], is_verifier| EnrolledIdentity {
        name: name.into(),
        owner: (!owner.is_empty()).then(|| owner.into()),
        groups: groups.iter().map(|group| (*group).into()).collect(),
        is_verifier,
    };
    let mut enrolled = Enrolled {
        identities: vec![who("alice", "", &[], false), who("v1", "o", &[], true), who("v2", "o", &[], true)],
    };
    let messages = |enrolled: &Enrolled| -> Vec<String> {
        let checked = Policy::check_with(&text, None, Some(enrolled));
        assert!(checked.policy.is_some());
        checked.problems.iter().map(|problem| problem.message.clone()).collect()
    };
    let found = messages(&enrolled);
    let says = [
        "nobody is enrolled as `bob`, in the group `core`",
        "the group `ci` names nobody who is enrolled",
        "nobody enrolled could meet `2 rebuilds` of the rule `r`: the verifiers that are enrolled have 1 different owners",
        "`2 submitters`",
        "`1 approval from `core``",
    ];
    assert_eq!(found.len(), says.len(), "{found:?}");
    assert!(found.iter().zip(says).all(|(found, says)| found.contains(says)), "{found:?}");
    enrolled.identities.extend([
        who("bob", "b", &["ci"], false),
        who("carol", "c", &[], false),
        who("v3", "p", &[], true),
    ]);
    assert_eq!(messages(&enrolled), [""; 0]);
    assert_eq!(Policy::check(&text, None).problems, []);
}

proptest! {
    /// Every head that a file can hold, printed by hand, is read as what it is.
    #[test]
    fn what_is_written_is_read(
        numbers in any::<[u32; 3]>(),
        units in (0..5usize, 0..5usize),
        closed: bool,
        upstreams in proptest::collection::btree_set("[a-z]{1,9}(/[a-z]{1,5})?", 0..4),
        slash in "/?",
        spaces in " {0,3}",
    ) {
        let sizes = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1u64 << 40)];
        let times = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("w", 604_800u64)];
        let (size, time) = (sizes[units.0], times[units.1]);
        let [nar, ttl, all] = numbers;
        // as large as they may be, and no larger
        let nar = if size.0 == "TiB" { nar >> 9 } else { nar };
        let ttl = u64::from(ttl) % (crate::units::MAX_DURATION / time.1 + 1);
        let closure = if closed { "self-contained" } else { "upstreams" };
        let mut text = format!(
            "closure = \"{closure}\"\n[limits]\nnar-size = \"{nar}{spaces}{}\"\n\
             quarantine-ttl = \"{ttl}{spaces}{}\"\nquarantine-size = \"{all} B\"\n",
            size.0, time.0
        );
        for host in &upstreams {
            text.push_str(&format!("[[upstream]]\nurl = \"https://{host}{slash}\"\nkey = \"{KEY}\"\n"));
        }
        let policy = Policy::parse(&file(&text), "main.toml", "main").unwrap();
        let limits = Limits {
            nar_size: u64::from(nar) * size.1,
            quarantine_ttl: ttl * time.1,
            quarantine_size: u64::from(all),
            ..Limits::default()
        };
        prop_assert_eq!(&policy.limits, &limits);
        prop_assert_eq!(policy.closure == Closure::SelfContained, closed);
        let found: Vec<&str> = policy.upstreams.iter().map(|u| u.url.as_str()).collect();
        let wanted: Vec<String> = upstreams.iter().map(|host| format!("https://{host}")).collect();
        prop_assert_eq!(found, wanted);
        prop_assert!(policy.upstreams.iter().all(|u| u.key.to_string() == KEY));
    }

    #[test]
    fn any_text_is_read_or_refused_with_the_file_s_name(
        text in "(version = 1\n)?(cache = \"main\"\n)?\\PC{0,40}(\n\\[\\[?[a-z]{0,8}\\]?\\]?\n)?\\PC{0,40}",
    ) {
        if let Err(error) = Policy::parse(&text, "main.toml", "main") {
            prop_assert!(error.to_string().starts_with("main.toml:"));
        }
    }
}
