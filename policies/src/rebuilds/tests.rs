use pushgate_formats::StorePath;
use rstest::rstest;

use super::*;
use crate::{
    decide,
    facts::{Decision, Fact, Identity, Provenance, Waiver},
};

const NOW: u64 = 1_000_000;
const NAR: &[u8] = b"nar";

/// A policy with one rule for everything.
fn policy(more: &str, rule: &str) -> Policy {
    let text =
        format!("version = 1\ncache = \"main\"\n{more}\n[[rule]]\nname = \"r\"\nmatch = {{}}\n{rule}\n");
    Policy::parse(&text, "p", "main").unwrap_or_else(|error| panic!("{error}"))
}

/// The usual one: a derivation is enough, and two have to confirm.
fn usual() -> Policy {
    policy("", "require = \"derivation\"")
}

/// `OWNER WHAT BUILDS`, of a verifier called like its owner: what it got is `same`, `failed`, `differs` (from itself), `unknown`,
/// `claimed` (a mismatch with the claim's own hash, which makes no sense), or other contents by any other name. The owner `-` is none, and `acme` is the claim's own.
fn rebuild(text: &str) -> Rebuild {
    let [owner, what, builds] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
    let other = Some(Sha256::of(what.as_bytes()));
    let (outcome, nar_hash) = match what {
        "same" => (Outcome::Match, Some(Sha256::of(NAR))),
        "failed" => (Outcome::Failed, None),
        "differs" => (Outcome::Inconclusive, other),
        "unknown" => (Outcome::Mismatch, None),
        "claimed" => (Outcome::Mismatch, Some(Sha256::of(NAR))),
        _ => (Outcome::Mismatch, other),
    };
    Rebuild {
        verifier: owner.into(),
        owner: (owner != "-").then(|| owner.into()),
        outcome,
        inputs_rebuilt: false,
        nar_hash,
        builds: builds.parse().unwrap(),
    }
}

fn evidence(rebuilds: &[&str]) -> Evidence {
    let mut evidence = Evidence::only(Provenance::Derivation);
    evidence.rebuilds = rebuilds.iter().map(|text| rebuild(text)).collect();
    evidence
}

fn waived(mut evidence: Evidence) -> Evidence {
    let (by, word, reason) = ("root".into(), "rebuilds".into(), "r".into());
    evidence.waivers.push(Waiver { by, owner: Some("root".into()), word, until: None, reason });
    evidence
}

fn with_claim<T>(act: impl FnOnce(&Claim<'_>, Moment) -> T) -> T {
    let path = StorePath::from_digest(&[7; 20], "hello-2.12").unwrap();
    let claim = Claim {
        cache: "main",
        path: &path,
        nar_hash: Sha256::of(NAR),
        nar_size: 1,
        submitter: Identity { name: "alice", owner: Some("acme"), groups: &[] },
        content_addressed: Fact::Known(false),
        built: Fact::Absent,
        sources: Fact::Absent,
    };
    act(&claim, Moment { now: NOW, announced: NOW })
}

fn standing(policy: &Policy, evidence: &Evidence) -> RebuildStanding {
    with_claim(|claim, moment| stands(policy, claim, evidence, moment))
}

fn decision(policy: &Policy, evidence: &Evidence) -> Decision {
    with_claim(|claim, moment| decide(policy, claim, evidence, moment))
}

fn code(policy: &Policy, evidence: &Evidence) -> String {
    match decision(policy, evidence) {
        Decision::Publish { evidence, .. } => format!("publish {}", evidence.join(",")),
        Decision::Hold { code, waits, .. } => {
            let waits: Vec<String> = waits.iter().map(ToString::to_string).collect();
            format!("hold {code}: {}", waits.join("; "))
        }
        Decision::Reject { code, .. } => format!("reject {code}"),
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Nothing => "nothing",
        Verdict::Unconfirmed => "unconfirmed",
        Verdict::Confirmed { got } if got == Sha256::of(b"x") => "confirmed x",
        Verdict::Confirmed { .. } => "confirmed",
        Verdict::Irreproducible => "irreproducible",
    }
}

#[rstest]
#[case::none(&[], "nothing", 0, "")]
#[case::same(&["b same 1"], "nothing", 0, "")]
#[case::failed(&["b failed 0"], "nothing", 0, "")]
#[case::a_mismatch_asks_for_a_second_build_and_two_more(&["b x 1"], "unconfirmed", 2, "b")]
#[case::after_the_second_build(&["b x 2"], "unconfirmed", 2, "")]
#[case::one_confirms(&["b x 2", "c x 1"], "unconfirmed", 1, "c")]
#[case::two_confirm(&["b x 2", "c x 1", "d x 1"], "confirmed x", 0, "")]
#[case::two_confirm_without_a_second_build(&["b x 1", "c x 1", "d x 1"], "unconfirmed", 0, "b,c,d")]
#[case::the_second_build_of_any_will_do(&["b x 1", "c x 2", "d x 1"], "confirmed x", 0, "")]
#[case::one_owner_confirms_once(&["b x 2", "c x 1", "c x 1"], "unconfirmed", 1, "c,c")]
#[case::who_failed_confirms_nothing(&["b x 2", "c x 2", "d failed 0"], "unconfirmed", 1, "")]
#[case::some_got_the_claims(&["b x 2", "c same 1", "d x 2"], "irreproducible", 0, "")]
#[case::all_who_were_asked_got_the_claims(&["b x 2", "c same 1", "d same 1"], "irreproducible", 0, "")]
#[case::not_before_they_are_in(&["b x 2", "c same 1"], "unconfirmed", 1, "")]
#[case::nor_before_the_second_build(&["b x 1", "c same 1", "d same 1"], "unconfirmed", 0, "b")]
#[case::different_from_each_other(&["b x 1", "c y 1"], "irreproducible", 0, "")]
#[case::different_from_itself(&["b differs 2"], "irreproducible", 0, "")]
#[case::different_from_itself_beside_others(&["b differs 2", "c same 1", "d same 1"], "irreproducible", 0, "")]
#[case::no_owner_warns(&["- x 1"], "unconfirmed", 2, "-")]
#[case::no_owner_confirms_nothing(&["- x 2", "b x 2", "c x 2"], "unconfirmed", 1, "")]
#[case::the_claims_own_warns(&["acme x 2"], "unconfirmed", 2, "")]
#[case::the_claims_own_confirms_nothing(&["b x 2", "c x 1", "acme x 1"], "unconfirmed", 1, "c,acme")]
#[case::no_owner_different_from_itself(&["- differs 2"], "unconfirmed", 2, "")]
#[case::a_warning_that_nobody_shares(&["- x 2", "b same 1", "c same 1"], "irreproducible", 0, "")]
#[case::a_warning_needs_its_second_build(&["- x 1", "b same 1", "c same 1"], "unconfirmed", 0, "-")]
#[case::the_claims_own_hash(&["b claimed 2", "c claimed 2", "d claimed 2"], "unconfirmed", 2, "")]
#[case::what_it_got_is_not_known(&["b unknown 2", "c unknown 2", "d unknown 2"], "unconfirmed", 2, "")]
fn verdicts(#[case] rebuilds: &[&str], #[case] verdict: &str, #[case] further: u32, #[case] again: &str) {
    let standing = standing(&usual(), &evidence(rebuilds));
    let found = (word(standing.verdict), standing.further, standing.again.join(","));
    assert_eq!(found, (verdict, further, again.to_owned()));
}

/// The order in which verifiers report changes nothing.
#[rstest]
#[case(&["b x 2", "c x 1", "d x 1"])]
#[case(&["b x 2", "c same 1", "d same 1"])]
#[case(&["- x 2", "b x 1", "c same 1"])]
fn in_any_order(#[case] rebuilds: &[&str]) {
    let first = standing(&usual(), &evidence(rebuilds));
    let mut turned = rebuilds.to_vec();
    for _ in rebuilds {
        turned.rotate_left(1);
        let standing = standing(&usual(), &evidence(&turned));
        assert_eq!((standing.verdict, standing.further), (first.verdict, first.further));
    }
}

#[rstest]
#[case::none(0, &["b x 1"], "unconfirmed", 0)]
#[case::none_after_the_second_build(0, &["b x 2"], "confirmed x", 0)]
#[case::none_and_a_match(0, &["b x 2", "c same 1"], "irreproducible", 0)]
#[case::somebody_looks_at_a_warning(0, &["- x 2"], "unconfirmed", 1)]
#[case::four(4, &["b x 2", "c x 1", "d x 1", "e x 1"], "unconfirmed", 1)]
#[case::four_of_four(4, &["b x 2", "c x 1", "d x 1", "e x 1", "f x 1"], "confirmed x", 0)]
fn as_many_confirm_as_the_policy_says(
    #[case] confirm: u32,
    #[case] rebuilds: &[&str],
    #[case] verdict: &str,
    #[case] further: u32,
) {
    let policy = policy(&format!("rebuilds.confirm = {confirm}"), "require = \"derivation\"");
    let standing = standing(&policy, &evidence(rebuilds));
    assert_eq!((word(standing.verdict), standing.further), (verdict, further));
}

#[rstest]
#[case::one("{ rebuilds = 1 }", &[], 1)]
#[case::two("{ rebuilds = 2 }", &["b same 1"], 1)]
#[case::met("{ rebuilds = 1 }", &["b same 1"], 0)]
#[case::another_after_a_failure("{ rebuilds = 1 }", &["b failed 0"], 1)]
#[case::own("{ rebuilds = 1 }", &["acme same 1"], 1)]
#[case::no_owner("{ rebuilds = 1 }", &["- same 1"], 1)]
#[case::one_owner_twice("{ rebuilds = 2 }", &["b same 1", "b same 1"], 1)]
#[case::all("{ all = [\"derivation\", { rebuilds = 1 }, { rebuilds = 3 }] }", &[], 3)]
#[case::beside_what_nobody_builds("{ all = [{ rebuilds = 2 }, { submitters = 2 }] }", &[], 2)]
#[case::any("{ any = [{ submitters = 2 }, { rebuilds = 2 }] }", &[], 2)]
#[case::the_fewest_of_any("{ any = [{ rebuilds = 3 }, { rebuilds = 2 }] }", &[], 2)]
#[case::what_rebuilds_alone_meet("{ any = [{ all = [{ rebuilds = 1 }, { submitters = 2 }] }, { rebuilds = 2 }] }", &[], 2)]
#[case::what_they_meet_in_part("{ any = [{ all = [{ rebuilds = 1 }, { submitters = 2 }] }, { submitters = 2 }] }", &[], 1)]
#[case::any_is_met("{ any = [\"derivation\", { rebuilds = 2 }] }", &[], 0)]
#[case::at_least("{ at-least = 2, of = [\"derivation\", { rebuilds = 3 }, { rebuilds = 1 }] }", &[], 1)]
#[case::at_least_both("{ at-least = 2, of = [{ submitters = 2 }, { rebuilds = 3 }, { rebuilds = 1 }] }", &[], 3)]
#[case::other("{ submitters = 2 }", &[], 0)]
#[case::the_more_of_need_and_confirmation("{ rebuilds = 1 }", &["b x 1"], 2)]
fn what_the_rule_needs(#[case] require: &str, #[case] rebuilds: &[&str], #[case] further: u32) {
    let policy = policy("", &format!("require = {require}"));
    assert_eq!(standing(&policy, &evidence(rebuilds)).further, further);
}

#[rstest]
#[case::asked("{ rebuilds = { n = 1, inputs = \"rebuilt\" } }", true)]
#[case::not_asked("{ rebuilds = 1 }", false)]
#[case::one_part("{ all = [{ rebuilds = 1 }, { rebuilds = { n = 1, inputs = \"rebuilt\" } }] }", true)]
#[case::the_part_that_is_chosen(
    "{ any = [{ rebuilds = 1 }, { rebuilds = { n = 2, inputs = \"rebuilt\" } }] }",
    false
)]
fn rebuilt_inputs(#[case] require: &str, #[case] wanted: bool) {
    let policy = policy("", &format!("require = {require}"));
    assert_eq!(standing(&policy, &evidence(&[])).inputs_rebuilt, wanted);
    // one without them is no use, and another is needed
    let standing = standing(&policy, &evidence(&["b same 1"]));
    assert_eq!((standing.further, standing.inputs_rebuilt), (u32::from(wanted), wanted));
}

#[rstest]
#[case::before(&[], 1, "hold needs-rebuild: 1 rebuild (0 of 1)")]
#[case::same(&["b same 1"], 0, "publish derivation,rebuilds")]
#[case::another_is_asked_after_a_failure(&["b failed 0"], 1, "hold needs-rebuild: 1 rebuild (0 of 1)")]
fn a_drawn_claim_is_held_until_its_outcome(
    #[case] rebuilds: &[&str],
    #[case] further: u32,
    #[case] wanted: &str,
) {
    let mut evidence = evidence(rebuilds);
    evidence.drawn = true;
    assert_eq!(standing(&usual(), &evidence).further, further);
    assert_eq!(code(&usual(), &evidence), wanted);
}

#[rstest]
#[case::unconfirmed(
    &["b x 1"],
    "hold rebuild-mismatch: 2 confirmations of the mismatch (0 of 2); a second build by `b`; person"
)]
#[case::one_in(&["b x 2", "c same 1"], "hold rebuild-mismatch: 2 confirmations of the mismatch (1 of 2); person")]
#[case::all_but_the_second_build(&["b x 1", "c same 1", "d same 1"], "hold rebuild-mismatch: a second build by `b`; person")]
#[case::confirmed(&["b x 2", "c x 1", "d x 1"], "hold rebuild-mismatch: person")]
#[case::irreproducible(&["b differs 2", "c same 1"], "hold rebuild-inconclusive: person")]
fn what_contradicts_a_claim_holds_it(#[case] rebuilds: &[&str], #[case] wanted: &str) {
    for require in ["\"derivation\"", "{ rebuilds = 1 }", "{ any = [\"derivation\", { rebuilds = 1 }] }"] {
        assert_eq!(code(&policy("", &format!("require = {require}")), &evidence(rebuilds)), wanted);
    }
}

#[rstest]
#[case("reject", OnMismatch::Reject, "reject rebuild-mismatch")]
#[case("hold-key", OnMismatch::HoldKey, "hold rebuild-mismatch: person")]
#[case("freeze", OnMismatch::Freeze, "hold rebuild-mismatch: person")]
fn the_rule_says_what_follows(#[case] word: &str, #[case] on_mismatch: OnMismatch, #[case] wanted: &str) {
    let policy = policy("", &format!("require = \"derivation\"\non-mismatch = \"{word}\""));
    let confirmed = evidence(&["b x 2", "c x 1", "d x 1"]);
    assert_eq!(standing(&policy, &confirmed).on_mismatch, Some(on_mismatch));
    assert_eq!(code(&policy, &confirmed), wanted);
    // only from one that is confirmed
    assert!(code(&policy, &evidence(&["b x 2"])).starts_with("hold rebuild-mismatch"));
    assert!(
        code(&policy, &evidence(&["b x 2", "c same 1", "d x 1"])).starts_with("hold rebuild-inconclusive")
    );
}

/// Rules aren't asked: one that would reject the claim today has no say in what is published.
#[rstest]
#[case::nothing(&["a same 1"], "nothing", 0, &[])]
#[case::first(&["a x 1"], "unconfirmed", 2, &["a"])]
#[case::built_again(&["a x 2"], "unconfirmed", 2, &[])]
#[case::confirmed(&["a x 2", "b x 1", "c x 1"], "confirmed x", 0, &[])]
#[case::of_the_submitters_owner(&["acme x 2", "b x 1", "c x 1"], "confirmed x", 0, &[])]
#[case::without_owner(&["- x 2", "b same 1"], "unconfirmed", 1, &[])]
#[case::one_got_it(&["a x 2", "b same 1", "c x 1"], "irreproducible", 0, &[])]
fn what_is_published_is_judged_by_its_rebuilds_alone(
    #[case] rebuilds: &[&str],
    #[case] verdict: &str,
    #[case] further: u32,
    #[case] again: &[&str],
) {
    let policy = policy("", "deny = \"no more\"");
    let found = with_claim(|claim, moment| {
        let nobody = Identity { name: "", owner: None, groups: &[] };
        audited(&policy, &Claim { submitter: nobody, ..*claim }, &evidence(rebuilds), moment)
    });
    assert_eq!((word(found.verdict), found.further), (verdict, further));
    assert_eq!(found.again, again);
}

#[test]
fn a_rejection_names_path_hashes_and_verifiers() {
    let policy = policy("", "require = \"derivation\"\non-mismatch = \"reject\"");
    let Decision::Reject { rule, message, .. } = decision(&policy, &evidence(&["b x 2", "c x 1", "d x 1"]))
    else {
        panic!()
    };
    let path = StorePath::from_digest(&[7; 20], "hello-2.12").unwrap();
    let wanted = format!(
        "`{path}` was claimed with the NAR hash `{}`, but its derivation yields `{}`: so found `b`, `c`, `d`",
        Sha256::of(NAR),
        Sha256::of(b"x")
    );
    assert_eq!((rule.as_deref(), message), (Some("r"), wanted));
}

#[rstest]
#[case::unconfirmed(&["b x 1"], "publish waiver")]
#[case::irreproducible(&["b differs 2"], "publish waiver")]
#[case::confirmed(&["b x 2", "c x 1", "d x 1"], "hold rebuild-mismatch: person")]
fn a_waiver_passes_over_what_is_open_and_not_over_what_is_confirmed(
    #[case] rebuilds: &[&str],
    #[case] wanted: &str,
) {
    let policy = policy("", "require = { rebuilds = 2 }");
    let open = evidence(rebuilds);
    let waived = waived(open.clone());
    assert_eq!(code(&policy, &waived), wanted);
    let standing_ = standing(&policy, &waived);
    assert_eq!((standing_.further, standing_.again), (0, vec![]));
    assert_eq!(standing_.verdict, standing(&policy, &open).verdict);
}

#[test]
fn nobody_is_asked_about_what_is_rejected() {
    let denying = policy("", "deny = \"no\"");
    let found = standing(&denying, &evidence(&["b x 1"]));
    assert_eq!((found.further, found.again, found.on_mismatch), (0, vec![], None));
}

/// As decisions of before said it.
#[test]
fn a_rebuild_without_hash_and_number_still_reads() {
    let old = r#"{"verifier":"b","owner":"b","outcome":"match","inputs-rebuilt":false}"#;
    let read: Rebuild = serde_json::from_str(old).unwrap();
    assert_eq!(read, Rebuild { nar_hash: None, ..rebuild("b same 1") });
    assert_eq!(
        standing(
            &policy("", "require = { rebuilds = 1 }"),
            &Evidence { rebuilds: vec![read], ..evidence(&[]) }
        )
        .further,
        0
    );
    let new = rebuild("b x 2");
    assert_eq!(serde_json::from_str::<Rebuild>(&serde_json::to_string(&new).unwrap()).unwrap(), new);
}
