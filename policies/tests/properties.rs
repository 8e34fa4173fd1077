//! What holds of every policy, claim and evidence.

use std::collections::BTreeMap;

use proptest::{collection::vec, option, prelude::*, sample::select};
use pushgate_formats::{NixHash, Sha256, StorePath, content_address::Method, derivation::FixedLeaf};
use pushgate_policies::{
    Policy, decide, explain,
    facts::{
        Approval, Built, CiIdentity, Claim, Decision, Evidence, Fact, Identity, Moment, Outcome, Provenance,
        Rebuild, Refusal, UpstreamFact, UpstreamSays, Voucher, Waiver,
    },
    matching::Found,
    rebuilds::{RebuildStanding, Verdict, stands},
    scenario::Expect,
};

const HEAD: &str = "version = 1\ncache = \"main\"\n[groups]\ncore = [\"alice\", \"carol\", \"dave\"]\nci = \"enrolled\"\n\
                    [[upstream]]\nname = \"up\"\nurl = \"https://a\"\nkey = \"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=\"\n";
const EMPTY: &str = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
const NOW: u64 = 1_000;

fn one(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(texts).prop_map(str::to_owned)
}

fn condition() -> impl Strategy<Value = String> {
    one(&[
        "pname = \"a\"",
        "pname = { not = [\"a\", \"b\"] }",
        "version = \"glob:1*\"",
        "system = \"x86_64-linux\"",
        "output = { not = \"out\" }",
        "submitter = [\"alice\", \"@ci\"]",
        "group = \"core\"",
        "owner = { not = \"acme\" }",
        "content-addressed = true",
        "content-addressed = false",
        "size = { min = \"10 B\" }",
        "env.A = \"1\"",
        "env.A = { not = \"1\" }",
        "builder = \"/bin/sh\"",
        "sources = { every = { hash = \"sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\" } }",
        "not = { system = \"x86_64-linux\", pname = \"a\" }",
        "not = { not = { env.A = \"1\" } }",
    ])
}

fn requirement() -> impl Strategy<Value = String> {
    let leaf = one(&[
        "\"derivation\"",
        "\"content-address\"",
        "\"content-address-weak\"",
        "\"upstream\"",
        "{ rebuilds = 1 }",
        "{ rebuilds = { n = 2, inputs = \"rebuilt\" } }",
        "{ submitters = 2 }",
        "{ approvals = 1, from = \"core\" }",
        "{ approvals = 2, from = \"ci\" }",
        "{ sigstore = { issuer = \"https://i/\", subject = \"s\" } }",
        "{ sources = [{ url = \"glob:https://a.b/**\" }] }",
    ]);
    leaf.prop_recursive(3, 12, 3, |inner| {
        let parts = vec(inner, 1..4).prop_map(|parts| (parts.len(), parts.join(", ")));
        (parts, 0..4usize).prop_map(|((length, parts), kind)| match kind {
            0 => format!("{{ all = [{parts}] }}"),
            1 => format!("{{ any = [{parts}] }}"),
            n => format!("{{ at-least = {}, of = [{parts}] }}", n.min(length)),
        })
    })
}

fn then() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => (requirement(), option::of(1..40u64)).prop_map(|(requirement, hold)| {
            let hold = hold.map(|seconds| format!("hold = \"{}s\"\n", seconds * 10)).unwrap_or_default();
            format!("require = {requirement}\n{hold}")
        }),
        1 => Just("require = \"nothing\"\n".to_owned()),
        1 => Just("deny = \"no\"\n".to_owned()),
    ]
}

/// Rules that a file takes: of those that could never decide none is left.
fn policy() -> impl Strategy<Value = Policy> {
    vec((vec(condition(), 0..3), then()), 1..5).prop_filter_map("a rule never decides", |rules| {
        let mut text = HEAD.to_owned();
        for (i, (conditions, then)) in rules.iter().enumerate() {
            text.push_str(&format!(
                "[[rule]]\nname = \"r{i}\"\nmatch = {{ {} }}\n{then}",
                conditions.join(", ")
            ));
        }
        Policy::parse(&text, "p", "main").ok()
    })
}

/// Output, system, environment.
type HowBuilt = (&'static str, &'static str, BTreeMap<String, String>);

/// What a claim says, with each fact known, absent or unknown.
#[derive(Debug, Clone)]
struct Facts {
    path: StorePath,
    size: u64,
    owner: Option<&'static str>,
    groups: Vec<String>,
    content_addressed: Fact<bool>,
    built: Fact<HowBuilt>,
    sources: Fact<Vec<FixedLeaf>>,
    moment: Moment,
}

impl Facts {
    fn claim<T>(&self, act: impl FnOnce(&Claim<'_>) -> T) -> T {
        let built = match &self.built {
            Fact::Known((output, system, env)) => {
                Fact::Known(Built { derivation: &self.path, output, system, builder: "/bin/sh", env })
            }
            Fact::Absent => Fact::Absent,
            Fact::Unknown => Fact::Unknown,
        };
        let sources = match &self.sources {
            Fact::Known(leaves) => Fact::Known(leaves.as_slice()),
            Fact::Absent => Fact::Absent,
            Fact::Unknown => Fact::Unknown,
        };
        act(&Claim {
            cache: "main",
            path: &self.path,
            nar_hash: Sha256::of(b"nar"),
            nar_size: self.size,
            submitter: Identity { name: "alice", owner: self.owner, groups: &self.groups },
            content_addressed: self.content_addressed,
            built,
            sources,
        })
    }

    fn judge(&self, policy: &Policy, evidence: &Evidence) -> Decision {
        self.claim(|claim| decide(policy, claim, evidence, self.moment))
    }

    fn stands(&self, policy: &Policy, evidence: &Evidence) -> RebuildStanding {
        self.claim(|claim| stands(policy, claim, evidence, self.moment))
    }
}

fn known<T: Clone + std::fmt::Debug + 'static>(
    value: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Fact<T>> {
    prop_oneof![3 => value.prop_map(Fact::Known), 1 => Just(Fact::Absent)].boxed()
}

fn built() -> BoxedStrategy<Fact<HowBuilt>> {
    let env = option::of(select(&["1", "2"][..]))
        .prop_map(|value| value.map(|value| ("A".to_owned(), value.to_owned())).into_iter().collect());
    known((select(&["out", "dev"][..]), select(&["x86_64-linux", "aarch64-linux"][..]), env))
}

fn sources() -> BoxedStrategy<Fact<Vec<FixedLeaf>>> {
    let leaf =
        (select(&["https://a.b/c", "https://evil/"][..]), any::<bool>()).prop_map(|(url, empty)| FixedLeaf {
            path: StorePath::from_digest(&[3; 20], "src").unwrap(),
            method: Method::Flat,
            hash: if empty { NixHash::parse(EMPTY).unwrap() } else { Sha256::of(b"other").into() },
            urls: vec![url.to_owned()],
        });
    known(vec(leaf, 0..3))
}

fn facts() -> impl Strategy<Value = Facts> {
    (
        select(&["a-1", "a-2", "b-1", "c"][..]),
        select(&[1, 10, 11 << 30][..]),
        select(&[None, Some("acme"), Some("other")][..]),
        select(vec![vec![], vec!["ci"], vec!["core"]]),
        known(any::<bool>()),
        built(),
        sources(),
        0..500u64,
    )
        .prop_map(|(name, size, owner, groups, content_addressed, built, sources, waited)| Facts {
            path: StorePath::from_digest(&[7; 20], name).unwrap(),
            size,
            owner,
            groups: groups.into_iter().map(str::to_owned).collect(),
            content_addressed,
            built,
            sources,
            moment: Moment { now: NOW, announced: NOW - waited },
        })
}

fn owner() -> impl Strategy<Value = Option<String>> {
    select(&[None, Some("acme"), Some("alice"), Some("o1"), Some("o2")][..])
        .prop_map(|o| o.map(str::to_owned))
}

fn until() -> impl Strategy<Value = Option<u64>> {
    option::of(NOW - 20..NOW + 200)
}

fn provenance() -> impl Strategy<Value = Provenance> {
    prop_oneof![
        3 => Just(Provenance::Derivation),
        1 => Just(Provenance::ContentAddress),
        1 => Just(Provenance::ContentAddressWeak),
        1 => Just(Provenance::Unproven { missing: vec![] }),
    ]
}

fn rebuild(outcomes: &'static [Outcome]) -> impl Strategy<Value = Rebuild> {
    (owner(), select(outcomes), any::<bool>(), option::of(select(&[b"x", b"y"][..])), 1..3u32).prop_map(
        |(owner, outcome, inputs_rebuilt, got, builds)| Rebuild {
            verifier: "v".into(),
            owner,
            outcome,
            inputs_rebuilt,
            nar_hash: got.map(|bytes| Sha256::of(bytes)),
            builds,
        },
    )
}

fn approval() -> impl Strategy<Value = Approval> {
    (select(&["alice", "carol", "dave", "eve"][..]), owner(), any::<bool>(), until()).prop_map(
        |(by, owner, ci, until)| Approval {
            by: by.into(),
            owner,
            groups: if ci { vec!["ci".into()] } else { vec![] },
            until,
            reason: "r".into(),
        },
    )
}

fn waiver() -> impl Strategy<Value = Waiver> {
    (owner(), until(), select(&["rebuilds", "derivation"][..])).prop_map(|(owner, until, word)| Waiver {
        by: "w".into(),
        owner,
        word: word.into(),
        until,
        reason: "r".into(),
    })
}

fn upstream() -> impl Strategy<Value = UpstreamFact> {
    let says = vec![
        UpstreamSays::Same,
        UpstreamSays::Other(Sha256([1; 32])),
        UpstreamSays::Absent,
        UpstreamSays::Unknown,
    ];
    select(says).prop_map(|says| UpstreamFact { url: "https://a".into(), says })
}

fn ci() -> CiIdentity {
    CiIdentity { issuer: "https://i/".into(), subject: "s".into(), claims: BTreeMap::new() }
}

const OUTCOMES: &[Outcome] = &[
    Outcome::Match,
    Outcome::Match,
    Outcome::Match,
    Outcome::Mismatch,
    Outcome::Inconclusive,
    Outcome::Failed,
];

fn evidence() -> impl Strategy<Value = Evidence> {
    (
        provenance(),
        option::weighted(0.3, upstream()),
        vec(rebuild(OUTCOMES), 0..3),
        vec(owner(), 0..3),
        vec(approval(), 0..3),
        vec(waiver(), 0..2),
        option::weighted(0.05, until()),
        (any::<bool>(), any::<bool>(), any::<bool>()),
    )
        .prop_map(
            |(
                provenance,
                upstream,
                rebuilds,
                vouchers,
                approvals,
                waivers,
                refusal,
                (has_ci, fetched, drawn),
            )| {
                let mut evidence = Evidence::only(provenance);
                evidence.upstreams.extend(upstream);
                evidence.rebuilds = rebuilds;
                evidence.submitters =
                    vouchers.into_iter().map(|owner| Voucher { submitter: "s".into(), owner }).collect();
                evidence.approvals = approvals;
                evidence.waivers = waivers;
                evidence.refusal = refusal.map(|until| Refusal { by: "a".into(), until, reason: "r".into() });
                evidence.ci = if has_ci { vec![ci()] } else { vec![] };
                evidence.fetched =
                    if fetched { vec![("https://a.b/c".into(), EMPTY.into())] } else { vec![] };
                evidence.drawn = drawn;
                evidence
            },
        )
}

/// More that speaks for a claim.
fn favour() -> impl Strategy<Value = Evidence> {
    (rebuild(&[Outcome::Match]), owner(), approval(), waiver(), any::<[bool; 7]>()).prop_map(
        |(rebuild, owner, approval, waiver, which)| {
            let mut more = Evidence::only(Provenance::Unproven { missing: vec![] });
            let [a, b, c, d, e, f, g] = which;
            more.rebuilds.extend(a.then_some(rebuild));
            more.submitters.extend(b.then_some(Voucher { submitter: "s2".into(), owner }));
            more.approvals.extend(c.then_some(approval));
            more.waivers.extend(d.then_some(waiver));
            more.ci.extend(e.then(ci));
            more.fetched.extend(f.then(|| ("https://a.b/c".to_owned(), EMPTY.to_owned())));
            more.upstreams
                .extend(g.then(|| UpstreamFact { url: "https://a".into(), says: UpstreamSays::Same }));
            more
        },
    )
}

fn with(mut evidence: Evidence, more: Evidence) -> Evidence {
    // a second answer of the same upstream takes the place of one that told nothing
    evidence
        .upstreams
        .retain(|upstream| more.upstreams.is_empty() || matches!(upstream.says, UpstreamSays::Other(_)));
    evidence.upstreams.extend(more.upstreams);
    evidence.rebuilds.extend(more.rebuilds);
    evidence.submitters.extend(more.submitters);
    evidence.approvals.extend(more.approvals);
    evidence.waivers.extend(more.waivers);
    evidence.ci.extend(more.ci);
    evidence.fetched.extend(more.fetched);
    evidence
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Total and pure; explained by what it decides.
    #[test]
    fn the_same_arguments_have_the_same_answer(policy in policy(), facts in facts(), evidence in evidence()) {
        let decision = facts.judge(&policy, &evidence);
        prop_assert_eq!(&decision, &facts.judge(&policy, &evidence));
        let explained = facts.claim(|claim| explain(&policy, claim, &evidence, facts.moment));
        prop_assert_eq!(explained.verdict, Expect::of(&decision));
        match decision {
            Decision::Publish { evidence, .. } => prop_assert!(!evidence.is_empty()),
            Decision::Hold { waits, .. } => prop_assert!(!waits.is_empty()),
            Decision::Reject { .. } => {}
        }
    }

    #[test]
    fn more_that_speaks_for_a_claim_holds_nothing_back(policy in policy(), facts in facts(), evidence in evidence(), more in favour()) {
        if let Decision::Publish { rule, .. } = facts.judge(&policy, &evidence) {
            let more = facts.judge(&policy, &with(evidence, more));
            prop_assert!(matches!(&more, Decision::Publish { rule: now, .. } if *now == rule), "{:?}", more);
        }
    }

    /// And what isn't drawn any more or hashes by a better algorithm isn't either.
    #[test]
    fn less_to_ask_for_holds_nothing_back(policy in policy(), facts in facts(), evidence in evidence()) {
        if matches!(facts.judge(&policy, &evidence), Decision::Publish { .. }) {
            let better = match evidence.provenance {
                Provenance::ContentAddressWeak => Provenance::ContentAddress,
                Provenance::Unproven { .. } => Provenance::Derivation,
                ref same => same.clone(),
            };
            let easier = Evidence { drawn: false, refusal: None, provenance: better, ..evidence };
            let easier = facts.judge(&policy, &easier);
            prop_assert!(matches!(easier, Decision::Publish { .. }), "{:?}", easier);
        }
    }

    /// A decision that is made without a fact is made whatever the fact is.
    #[test]
    fn a_fact_withheld_leads_nowhere_else(
        policy in policy(),
        facts in facts(),
        evidence in evidence(),
        content_addressed in known(any::<bool>()),
        built in built(),
        sources in sources(),
        which in 1..8u8,
    ) {
        let mut withheld = facts.clone();
        let mut told = facts;
        if which & 1 != 0 {
            withheld.content_addressed = Fact::Unknown;
            told.content_addressed = content_addressed;
        }
        if which & 2 != 0 {
            withheld.built = Fact::Unknown;
            told.built = built;
        }
        if which & 4 != 0 {
            withheld.sources = Fact::Unknown;
            told.sources = sources;
        }
        let decision = withheld.judge(&policy, &evidence);
        match decision {
            Decision::Hold { .. } => {}
            // stricter, not laxer: the requirement's own facts weren't there in time
            Decision::Reject { code: "hold-expired", .. } => {}
            Decision::Reject { .. } => prop_assert_eq!(decision, told.judge(&policy, &evidence)),
            // the words may be more, where more of what an `any` names is met
            Decision::Publish { rule, .. } => {
                let told = told.judge(&policy, &evidence);
                prop_assert!(matches!(&told, Decision::Publish { rule: now, .. } if *now == rule), "{:?}", told);
            }
        }
    }

    /// The first rule that matches decides, and what comes after it changes nothing.
    #[test]
    fn the_order_of_rules_is_respected(policy in policy(), facts in facts(), evidence in evidence()) {
        let found = facts.claim(|claim| policy.find(claim));
        let mut fewer = policy.clone();
        match found {
            Found::Rule(i) | Found::Unknown(i) => {
                fewer.rules.truncate(i + 1);
                prop_assert_eq!(facts.judge(&fewer, &evidence), facts.judge(&policy, &evidence));
                fewer.rules.truncate(i);
                prop_assert_eq!(facts.claim(|claim| fewer.find(claim)), Found::Nothing);
            }
            Found::Nothing => {
                let decision = facts.judge(&policy, &evidence);
                prop_assert!(matches!(decision, Decision::Reject { .. }), "{:?}", decision);
            }
        }
    }

    /// Nothing changes before the moment that a hold names, and it names none where nothing ever does.
    #[test]
    fn time_alone_changes_nothing_before_it_is_said_to(policy in policy(), facts in facts(), evidence in evidence(), later in 0..1000u64) {
        let decision = facts.judge(&policy, &evidence);
        if let Decision::Hold { again, until, .. } = &decision {
            let (again, until) = (*again, *until);
            prop_assert!(again.is_none_or(|again| again > NOW) && until.is_none_or(|until| again.is_some_and(|again| again <= until)));
            if again.is_none_or(|again| NOW + later < again) {
                let then = Facts { moment: Moment { now: NOW + later, ..facts.moment }, ..facts };
                let then = then.judge(&policy, &Evidence { refusal: None, ..evidence });
                prop_assert_eq!(then, decision);
            }
        }
    }

    /// Nobody is asked for what is published, and when those who are asked agree with the claim, nobody else is.
    #[test]
    fn as_many_are_asked_as_are_needed(policy in policy(), facts in facts(), mut evidence in evidence()) {
        let standing = facts.stands(&policy, &evidence);
        if let Decision::Publish { .. } = facts.judge(&policy, &evidence) {
            prop_assert!(standing.further == 0 && standing.again.is_empty(), "{:?}", standing);
        }
        evidence.rebuilds.extend((0..standing.further).map(|i| Rebuild {
            verifier: format!("asked-{i}"),
            owner: Some(format!("asked-owner-{i}")),
            outcome: Outcome::Match,
            inputs_rebuilt: true,
            nar_hash: Some(Sha256::of(b"nar")),
            builds: 1,
        }));
        let after = facts.stands(&policy, &evidence);
        prop_assert_eq!(after.further, 0);
        // a match never makes a mismatch out of nothing, nor one that is confirmed
        let confirmed = matches!(after.verdict, Verdict::Confirmed { .. });
        prop_assert!(standing.further == 0 || !confirmed);
        prop_assert!(standing.verdict != Verdict::Nothing || after.verdict == Verdict::Nothing);
    }
}
