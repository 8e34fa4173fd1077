use std::collections::BTreeMap;

use pushgate_formats::{NixHash, Sha256, StorePath, content_address::Method, derivation::FixedLeaf};
use rstest::rstest;

use super::*;
use crate::{
    facts::{
        Approval, Built, CiIdentity, Fact, Identity, Outcome, Provenance, Rebuild, Refusal, UpstreamFact,
        Voucher, Waiver,
    },
    starting_policy,
};

const NOW: u64 = 1_000_000;
const DAY: u64 = 86_400;
const HEAD: &str = "version = 1\ncache = \"main\"\n[groups]\ncore = [\"carol\", \"dave\", \"alice\"]\nci = \"enrolled\"\n\
                    [[upstream]]\nname = \"nixos\"\nurl = \"https://a\"\nkey = \"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=\"\n";
const EMPTY: &str = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

fn policy(rules: &str) -> Policy {
    Policy::parse(&format!("{HEAD}{rules}"), "main.toml", "main").unwrap_or_else(|error| panic!("{error}"))
}

/// A policy with one rule for everything.
fn requiring(require: &str) -> Policy {
    policy(&format!("[[rule]]\nname = \"r\"\nmatch = {{}}\nrequire = {require}\n"))
}

/// A claim by `alice` of owner `acme`, and what is known of it.
struct Given {
    path: StorePath,
    owner: Option<&'static str>,
    groups: Vec<String>,
    nar_size: u64,
    content_addressed: Fact<bool>,
    env: BTreeMap<String, String>,
    built: Fact<&'static str>,
    sources: Fact<Vec<FixedLeaf>>,
    evidence: Evidence,
    now: u64,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            path: path("hello-2.12"),
            owner: Some("acme"),
            groups: vec![],
            nar_size: 1,
            content_addressed: Fact::Known(false),
            env: BTreeMap::new(),
            built: Fact::Known("x86_64-linux"),
            sources: Fact::Known(vec![]),
            evidence: Evidence::only(Provenance::Derivation),
            now: NOW,
        }
    }
}

impl Given {
    fn proven(provenance: Provenance) -> Self {
        Self { evidence: Evidence::only(provenance), ..Self::default() }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn judge(&self, policy: &Policy) -> Decision {
        let derivation = path("hello-2.12.drv");
        let sources = match &self.sources {
            Fact::Known(leaves) => Fact::Known(leaves.as_slice()),
            Fact::Absent => Fact::Absent,
            Fact::Unknown => Fact::Unknown,
        };
        let built = self.built.map(|system| Built {
            derivation: &derivation,
            output: "out",
            system,
            builder: "/bin/sh",
            env: &self.env,
        });
        let claim = Claim {
            cache: "main",
            path: &self.path,
            nar_hash: Sha256::of(b"nar"),
            nar_size: self.nar_size,
            submitter: Identity { name: "alice", owner: self.owner, groups: &self.groups },
            content_addressed: self.content_addressed,
            built,
            sources,
        };
        decide(policy, &claim, &self.evidence, Moment { now: self.now, announced: NOW })
    }

    fn code(&self, policy: &Policy) -> String {
        code(&self.judge(policy))
    }
}

/// `publish a,b`, or `hold CODE` or `reject CODE`.
fn code(decision: &Decision) -> String {
    match decision {
        Decision::Publish { evidence, .. } => format!("publish {}", evidence.join(",")),
        Decision::Hold { code, .. } => format!("hold {code}"),
        Decision::Reject { code, .. } => format!("reject {code}"),
    }
}

fn path(name: &str) -> StorePath {
    StorePath::from_digest(&[7; 20], name).unwrap()
}

fn rebuild(owner: Option<&str>, outcome: Outcome) -> Rebuild {
    let (verifier, owner) = ("v".into(), owner.map(Into::into));
    Rebuild { verifier, owner, outcome, inputs_rebuilt: false, nar_hash: None, builds: 1 }
}

fn voucher(owner: Option<&str>) -> Voucher {
    Voucher { submitter: "s".into(), owner: owner.map(Into::into) }
}

fn approval(by: &str, owner: Option<&str>, until: Option<u64>) -> Approval {
    Approval { by: by.into(), owner: owner.map(Into::into), groups: vec![], until, reason: "looked".into() }
}

fn waiver(owner: Option<&str>, until: Option<u64>) -> Waiver {
    let (by, word) = ("root".into(), "rebuilds".into());
    Waiver { by, owner: owner.map(Into::into), word, until, reason: "never the same".into() }
}

fn waits(decision: &Decision) -> Vec<String> {
    match decision {
        Decision::Hold { waits, .. } => waits.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[case(Provenance::Derivation, Fact::Known(false), "publish derivation")]
#[case(Provenance::ContentAddress, Fact::Known(true), "publish content-address")]
#[case(Provenance::ContentAddressWeak, Fact::Known(true), "hold content-address-weak")]
#[case(Provenance::Unproven { missing: vec![] }, Fact::Unknown, "hold needs-derivation")]
#[case(Provenance::Unproven { missing: vec![path("a.drv")] }, Fact::Unknown, "hold needs-derivation")]
#[case(Provenance::Unproven { missing: vec![] }, Fact::Known(false), "hold needs-derivation")]
fn the_starting_policy(
    #[case] provenance: Provenance,
    #[case] content_addressed: Fact<bool>,
    #[case] wanted: &str,
) {
    let policy = Policy::parse(&starting_policy("main"), "main.toml", "main").unwrap();
    let given = Given { content_addressed, ..Given::proven(provenance.clone()) };
    assert_eq!(given.code(&policy), wanted);
    if let Provenance::Unproven { missing } = provenance {
        let waited = missing.first().map_or("derivation".to_owned(), StorePath::absolute);
        assert_eq!(waits(&given.judge(&policy)), [waited]);
    }
    assert_eq!(given.with(|g| g.nar_size = (4 << 30) + 1).code(&policy), "reject nar-too-large");
}

#[rstest]
#[case::nothing("\"nothing\"", "publish nothing")]
#[case::derivation("\"derivation\"", "publish derivation")]
#[case::content("\"content-address\"", "hold needs-content-address")]
#[case::upstream("\"upstream\"", "hold needs-upstream")]
#[case::rebuilds("{ rebuilds = 1 }", "hold needs-rebuild")]
#[case::submitters("{ submitters = 2 }", "hold needs-submitters")]
#[case::approvals("{ approvals = 1, from = \"core\" }", "hold needs-approval")]
#[case::sigstore("{ sigstore = { issuer = \"https://t/\", subject = \"s\" } }", "hold needs-sigstore")]
#[case::any("{ any = [{ rebuilds = 1 }, \"derivation\"] }", "publish derivation")]
#[case::all(
    "{ all = [{ approvals = 1, from = \"core\" }, \"derivation\", { rebuilds = 1 }] }",
    "hold needs-rebuild"
)]
#[case::too_few(
    "{ at-least = 2, of = [\"derivation\", { rebuilds = 1 }, \"upstream\"] }",
    "hold needs-upstream"
)]
#[case::enough("{ at-least = 1, of = [\"derivation\", { rebuilds = 1 }] }", "publish derivation")]
fn a_claim_with_a_derivation_and_nothing_else(#[case] require: &str, #[case] wanted: &str) {
    assert_eq!(Given::default().code(&requiring(require)), wanted);
}

#[test]
fn waits_say_what_would_do() {
    let given = Given::default();
    let of = |require| waits(&given.judge(&requiring(require)));
    assert_eq!(
        of(
            "{ all = [\"derivation\", { any = [{ rebuilds = 1 }, { submitters = 2 }] }, { approvals = 1, from = \"core\" }] }"
        ),
        ["1 rebuild (0 of 1) or 2 submitters (0 of 2)", "1 approval from `core` (0 of 1)"]
    );
    assert_eq!(
        of("{ at-least = 3, of = [\"derivation\", { rebuilds = 2 }, { submitters = 2 }, \"upstream\"] }"),
        ["2 of 2 rebuilds (0 of 2), 2 submitters (0 of 2), any upstream"]
    );
    // where all that is left is needed there is nothing to choose
    assert_eq!(of("{ at-least = 2, of = [\"derivation\", { rebuilds = 2 }] }"), ["2 rebuilds (0 of 2)"]);
}

/// Nobody vouches for himself.
#[rstest]
#[case::other(&[Some("b")], "publish rebuilds")]
#[case::own(&[Some("acme")], "hold needs-rebuild")]
#[case::none(&[None], "hold needs-rebuild")]
#[case::an_owner_called_like_the_submitter(&[Some("alice")], "publish rebuilds")]
fn rebuilds_of_others_count(#[case] owners: &[Option<&str>], #[case] wanted: &str) {
    let given = Given::default()
        .with(|g| g.evidence.rebuilds = owners.iter().map(|o| rebuild(*o, Outcome::Match)).collect());
    assert_eq!(given.code(&requiring("{ rebuilds = 1 }")), wanted);
}

#[rstest]
#[case::two(&[Some("b"), Some("c")], "publish rebuilds")]
#[case::one_twice(&[Some("b"), Some("b")], "hold needs-rebuild")]
#[case::the_claimants_name(&[Some("b"), Some("alice")], "hold needs-rebuild")]
fn each_owner_counts_once_and_a_name_stands_for_a_missing_owner(
    #[case] owners: &[Option<&str>],
    #[case] wanted: &str,
) {
    let given = Given { owner: None, ..Given::default() }
        .with(|g| g.evidence.rebuilds = owners.iter().map(|o| rebuild(*o, Outcome::Match)).collect());
    assert_eq!(given.code(&requiring("{ rebuilds = 2 }")), wanted);
}

#[rstest]
#[case::with_owner(Some("acme"), &[Some("acme"), Some("b")], "publish submitters")]
#[case::second_identity(Some("acme"), &[Some("acme"), Some("acme"), None], "hold needs-submitters")]
#[case::without_owner(None, &[None, Some("b")], "hold needs-submitters")]
#[case::two_others(None, &[None, Some("b"), Some("c")], "publish submitters")]
#[case::himself_named_as_owner(None, &[None, Some("alice"), Some("c")], "hold needs-submitters")]
fn submitters_count_by_owner(
    #[case] owner: Option<&'static str>,
    #[case] owners: &[Option<&str>],
    #[case] wanted: &str,
) {
    let given = Given { owner, ..Given::default() }
        .with(|g| g.evidence.submitters = owners.iter().map(|o| voucher(*o)).collect());
    assert_eq!(given.code(&requiring("{ submitters = 2 }")), wanted);
}

#[rstest]
#[case::carol(approval("carol", Some("c"), None), "publish approvals")]
#[case::not_in_the_group(approval("mallory", Some("m"), None), "hold needs-approval")]
#[case::own(approval("alice", Some("acme"), None), "hold needs-approval")]
#[case::no_owner(approval("carol", None, None), "hold needs-approval")]
#[case::runs(approval("carol", Some("c"), Some(NOW + 1)), "publish approvals")]
#[case::run_out(approval("carol", Some("c"), Some(NOW)), "hold needs-approval")]
fn approvals(#[case] approval: Approval, #[case] wanted: &str) {
    let given = Given::default().with(|g| g.evidence.approvals = vec![approval]);
    assert_eq!(given.code(&requiring("{ approvals = 1, from = \"core\" }")), wanted);
}

#[test]
fn a_group_given_at_enrolment_counts_where_the_file_says_so() {
    let policy = requiring("{ approvals = 1, from = \"ci\" }");
    let mut approval = approval("carol", Some("c"), None);
    approval.groups = vec!["ci".into()];
    let given = Given::default().with(|g| g.evidence.approvals = vec![approval.clone()]);
    assert_eq!(given.code(&policy), "publish approvals");
    // the file lists who is in `core`
    approval.groups = vec!["core".into()];
    approval.by = "mallory".into();
    let given = Given::default().with(|g| g.evidence.approvals = vec![approval]);
    assert_eq!(given.code(&requiring("{ approvals = 1, from = \"core\" }")), "hold needs-approval");
}

#[rstest]
#[case::mismatch(Outcome::Mismatch, "hold rebuild-mismatch")]
#[case::inconclusive(Outcome::Inconclusive, "hold rebuild-inconclusive")]
#[case::failed(Outcome::Failed, "hold needs-rebuild")]
fn rebuilds_that_do_not_match(#[case] outcome: Outcome, #[case] wanted: &str) {
    let policy = requiring("{ rebuilds = 1 }");
    let given = Given::default().with(|g| g.evidence.rebuilds = vec![rebuild(Some("b"), outcome)]);
    assert_eq!(given.code(&policy), wanted);
    // one that fits beside it settles a failure only
    let beside = |g: &mut Given| {
        g.evidence.rebuilds = vec![rebuild(Some("b"), outcome), rebuild(Some("c"), Outcome::Match)]
    };
    let given = Given::default().with(beside);
    let settled = if outcome == Outcome::Failed { "publish rebuilds" } else { wanted };
    assert_eq!(given.code(&policy), settled);
}

#[rstest]
#[case::other(Some("root"), None, "publish waiver")]
#[case::own(Some("acme"), None, "hold rebuild-mismatch")]
#[case::no_owner(None, None, "hold rebuild-mismatch")]
#[case::run_out(Some("root"), Some(NOW), "hold rebuild-mismatch")]
fn waivers(#[case] owner: Option<&str>, #[case] until: Option<u64>, #[case] wanted: &str) {
    let given = Given::default().with(|g| {
        g.evidence.rebuilds = vec![rebuild(Some("b"), Outcome::Mismatch)];
        g.evidence.waivers = vec![waiver(owner, until)];
    });
    assert_eq!(given.code(&requiring("{ rebuilds = 1 }")), wanted);
}

#[test]
fn a_drawn_claim_needs_a_rebuild_too() {
    let policy = requiring("\"derivation\"");
    let given = Given::default().with(|g| g.evidence.drawn = true);
    assert_eq!(given.code(&policy), "hold needs-rebuild");
    let given = given.with(|g| g.evidence.rebuilds = vec![rebuild(Some("b"), Outcome::Match)]);
    assert_eq!(given.code(&policy), "publish derivation,rebuilds");
}

#[test]
fn inputs_have_to_be_rebuilt_where_the_rule_says_so() {
    let policy = requiring("{ rebuilds = { n = 1, inputs = \"rebuilt\" } }");
    let mut matching = rebuild(Some("b"), Outcome::Match);
    let given = Given::default().with(|g| g.evidence.rebuilds = vec![matching.clone()]);
    assert_eq!(waits(&given.judge(&policy)), ["1 rebuild with rebuilt inputs (0 of 1)"]);
    matching.inputs_rebuilt = true;
    let given = given.with(|g| g.evidence.rebuilds = vec![matching]);
    assert_eq!(given.code(&policy), "publish rebuilds");
}

#[rstest]
#[case::same(UpstreamSays::Same, "publish upstream")]
#[case::other(UpstreamSays::Other(Sha256([1; 32])), "hold conflicts-with-upstream")]
#[case::absent(UpstreamSays::Absent, "hold needs-upstream")]
#[case::unknown(UpstreamSays::Unknown, "hold needs-upstream")]
fn upstreams(#[case] says: UpstreamSays, #[case] wanted: &str) {
    let conflict = matches!(says, UpstreamSays::Other(_));
    let given = Given::default()
        .with(|g| g.evidence.upstreams = vec![UpstreamFact { url: "https://a".into(), says }]);
    for require in ["\"upstream\"", "{ upstream = \"nixos\" }", "{ upstream = \"https://a/\" }"] {
        assert_eq!(given.code(&requiring(require)), wanted);
    }
    // no rule publishes what an upstream has otherwise
    let derivation = if conflict { wanted } else { "publish derivation" };
    assert_eq!(given.code(&requiring("\"derivation\"")), derivation);
}

#[test]
fn ci_identities() {
    let policy = requiring(
        "{ sigstore = { issuer = \"https://token.actions.githubusercontent.com\", repository = \"o/r\", ref = [\"refs/heads/main\", \"glob:refs/tags/*\"] } }",
    );
    let with = |repository: &str, reference: &str| {
        let claims = [("repository", repository), ("ref", reference)];
        let identity = CiIdentity {
            issuer: "https://token.actions.githubusercontent.com".into(),
            subject: "x".into(),
            claims: claims.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        };
        Given::default().with(|g| g.evidence.ci = vec![identity]).code(&policy)
    };
    assert_eq!(with("o/r", "refs/heads/main"), "publish sigstore");
    assert_eq!(with("o/r", "refs/tags/v1"), "publish sigstore");
    assert_eq!(with("o/r", "refs/heads/evil"), "hold needs-sigstore");
    assert_eq!(with("evil/r", "refs/heads/main"), "hold needs-sigstore");
}

fn leaf(url: &str, hash: &str) -> FixedLeaf {
    let hash = NixHash::parse(hash).unwrap();
    FixedLeaf { path: path("src"), method: Method::Flat, hash, urls: vec![url.into()] }
}

#[test]
fn a_url_is_met_by_the_admins_hash_or_an_attested_fetch_only() {
    let by_hash =
        requiring(&format!("{{ sources = [{{ url = \"https://gnu.org/a\", hash = \"{EMPTY}\" }}] }}"));
    let by_url = requiring("{ sources = [{ url = \"glob:https://gnu.org/**\" }] }");
    let given =
        |url: &str, hash: &str| Given::default().with(|g| g.sources = Fact::Known(vec![leaf(url, hash)]));
    let other = Sha256::of(b"evil").to_string();
    assert_eq!(given("https://evil/a", EMPTY).code(&by_hash), "publish sources");
    assert_eq!(given("https://gnu.org/a", &other).code(&by_hash), "hold needs-sources");
    // the trusted host beside the hash of other contents
    let claimed = given("https://gnu.org/a", &other);
    assert_eq!(claimed.code(&by_url), "hold needs-sources");
    assert!(waits(&claimed.judge(&by_url))[0].starts_with("an attested fetch of `https://gnu.org/a`"));
    let fetched = |hash: &str| {
        let fetch = ("https://gnu.org/a".to_owned(), hash.to_owned());
        given("https://gnu.org/a", EMPTY).with(|g| g.evidence.fetched = vec![fetch]).code(&by_url)
    };
    assert_eq!(fetched(EMPTY), "publish sources");
    assert_eq!(fetched("sha256-other"), "hold needs-sources");
    assert_eq!(Given::default().with(|g| g.sources = Fact::Unknown).code(&by_url), "hold needs-derivation");
    assert_eq!(Given::default().with(|g| g.sources = Fact::Absent).code(&by_url), "hold needs-sources");
}

#[test]
fn a_fact_that_is_not_known_stops_the_search() {
    let policy = policy(
        "[[rule]]\nname = \"darwin\"\nmatch = { system = \"aarch64-darwin\" }\nrequire = { rebuilds = 2 }\n\
         [[rule]]\nname = \"rest\"\nmatch = {}\nrequire = \"nothing\"\n",
    );
    let given = |built| Given { built, ..Given::default() };
    assert_eq!(given(Fact::Known("x86_64-linux")).code(&policy), "publish nothing");
    assert_eq!(given(Fact::Known("aarch64-darwin")).code(&policy), "hold needs-rebuild");
    assert_eq!(given(Fact::Absent).code(&policy), "publish nothing");
    assert_eq!(given(Fact::Unknown).code(&policy), "hold needs-derivation");
}

/// A condition that fails settles a rule, whatever isn't known of the others.
#[test]
fn a_rule_that_surely_fails_does_not_stop_the_search() {
    let policy = policy(
        "[[rule]]\nname = \"darwin\"\nmatch = { pname = \"glibc\", system = \"aarch64-darwin\" }\nrequire = { rebuilds = 2 }\n\
         [[rule]]\nname = \"rest\"\nmatch = {}\nrequire = \"derivation\"\n",
    );
    let given = Given { built: Fact::Unknown, ..Given::default() };
    assert_eq!(given.code(&policy), "publish derivation");
    let given = Given { path: path("glibc-2.40-evil"), ..given };
    assert_eq!(given.code(&policy), "hold needs-derivation");
}

#[rstest]
#[case::pname("pname = \"hello\"", true)]
#[case::no_pname("pname = \"hell\"", false)]
#[case::version("version = \"glob:2.*\"", true)]
#[case::not_version("version = { not = \"2.12\" }", false)]
#[case::output("output = \"out\"", true)]
#[case::system("system = [\"x86_64-linux\", \"aarch64-linux\"]", true)]
#[case::submitter("submitter = \"alice\"", true)]
#[case::group_of_the_file("submitter = \"@core\"", true)]
#[case::group_of_enrolment("group = \"ci\"", true)]
#[case::not_group("group = { not = [\"ci\"] }", false)]
#[case::owner("owner = \"acme\"", true)]
#[case::cache("cache = \"other\"", false)]
#[case::content_addressed("content-addressed = false", true)]
#[case::size("size = { min = \"1 B\", max = \"1 B\" }", true)]
#[case::size_over("size = { min = \"2 B\" }", false)]
#[case::env("env.CI = \"1\"", true)]
#[case::env_absent("env.FOO = \"1\"", false)]
#[case::env_absent_not("env.FOO = { not = \"1\" }", true)]
#[case::builder("builder = \"/bin/sh\"", true)]
#[case::not("not = { pname = \"hello\", version = \"1\" }", true)]
#[case::not_all("not = { pname = \"hello\", version = \"2.12\" }", false)]
#[case::both("pname = \"hello\", owner = \"other\"", false)]
fn matches(#[case] fields: &str, #[case] wanted: bool) {
    let policy =
        policy(&format!("[[rule]]\nname = \"r\"\nmatch = {{ {fields} }}\nrequire = \"derivation\"\n"));
    let given = Given::default().with(|g| {
        g.groups = vec!["ci".into()];
        g.env = [("CI".to_owned(), "1".to_owned())].into();
    });
    assert_eq!(given.code(&policy), if wanted { "publish derivation" } else { "reject not-permitted" });
}

#[rstest]
#[case::every("every = { hash = \"HASH\" }", true)]
#[case::other(
    "every = { hash = \"sha256:0000000000000000000000000000000000000000000000000000000000000000\" }",
    false
)]
#[case::any("any = { url = \"https://gnu.org/a\" }", true)]
#[case::both("any = { url = \"https://gnu.org/a\", hash = \"HASH\" }", true)]
fn sources_match(#[case] fields: &str, #[case] wanted: bool) {
    let fields = fields.replace("HASH", EMPTY);
    let policy = policy(&format!(
        "[[rule]]\nname = \"r\"\nmatch = {{ sources = {{ {fields} }} }}\ndeny = \"no\"\n\
         [[rule]]\nname = \"rest\"\nmatch = {{}}\nrequire = \"derivation\"\n"
    ));
    let given = |sources| Given { sources, ..Given::default() }.code(&policy);
    let denied = if wanted { "reject not-permitted" } else { "publish derivation" };
    assert_eq!(given(Fact::Known(vec![leaf("https://gnu.org/a", EMPTY)])), denied);
    // none is not every
    assert_eq!(given(Fact::Known(vec![])), "publish derivation");
    assert_eq!(given(Fact::Unknown), "hold needs-derivation");
}

#[test]
fn refusals_and_denials() {
    let given = Given::default().with(|g| {
        g.evidence.refusal = Some(Refusal { by: "root".into(), until: None, reason: "malware".into() });
    });
    let policy_ = requiring("\"nothing\"");
    let Decision::Reject { code: "refused-by-admin", message, .. } = given.judge(&policy_) else { panic!() };
    assert!(message.contains("malware"), "{message}");
    let given = given.with(|g| g.evidence.refusal.as_mut().unwrap().until = Some(NOW));
    assert_eq!(given.code(&policy_), "publish nothing");

    let denying = policy("[[rule]]\nname = \"no\"\nmatch = {}\ndeny = \"not here\"\n");
    let Decision::Reject { rule, code: "not-permitted", message } = Given::default().judge(&denying) else {
        panic!()
    };
    assert!(rule.as_deref() == Some("no") && message.contains("not here"));
}

#[test]
fn a_rule_narrows_the_size() {
    let policy = policy(
        "[[rule]]\nname = \"r\"\nmatch = {}\nrequire = \"derivation\"\nlimits = { nar-size = \"10 B\" }\n",
    );
    assert_eq!(Given { nar_size: 10, ..Given::default() }.code(&policy), "publish derivation");
    assert_eq!(Given { nar_size: 11, ..Given::default() }.code(&policy), "reject nar-too-large");
}

#[test]
fn a_hold_ends_and_says_when_to_look_again() {
    let policy = policy(
        "[[rule]]\nname = \"r\"\nmatch = {}\nrequire = { approvals = 2, from = \"core\" }\nhold = \"2d\"\n",
    );
    let given = Given::default();
    let Decision::Hold { until, again, rule, .. } = given.judge(&policy) else { panic!() };
    assert_eq!((until, again, rule.as_deref()), (Some(NOW + 2 * DAY), Some(NOW + 2 * DAY), Some("r")));
    let given = given.with(|g| g.evidence.approvals = vec![approval("carol", Some("c"), Some(NOW + DAY))]);
    let Decision::Hold { again, waits, .. } = given.judge(&policy) else { panic!() };
    assert_eq!((again, waits[0].to_string().as_str()), (Some(NOW + DAY), "2 approvals from `core` (1 of 2)"));
    let given = Given { now: NOW + 2 * DAY, ..given };
    assert_eq!(given.code(&policy), "reject hold-expired");
}
