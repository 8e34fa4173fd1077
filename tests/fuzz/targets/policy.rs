//! Policy files.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use pushgate_formats::{Sha256, StorePath};
use pushgate_fuzz::{assert_code, number};
use pushgate_policies::{
    Policy, decide, explain,
    facts::{
        Approval, Built, CiIdentity, Claim, Decision, Evidence, Fact, Identity, Moment, Outcome, Provenance,
        Rebuild, Refusal, UpstreamFact, UpstreamSays, Voucher, Waiver,
    },
    scenario::Expect,
};

/// Evidence by the bits of a number.
fn evidence(policy: &Policy, bits: u64) -> Evidence {
    let bit = |n: u32| bits >> n & 1 == 1;
    let some = |on: bool| on.then(|| "o".to_owned());
    let mut evidence = Evidence::only(match bits & 3 {
        0 => Provenance::Derivation,
        1 => Provenance::ContentAddress,
        2 => Provenance::ContentAddressWeak,
        _ => Provenance::Unproven { missing: vec![] },
    });
    let outcomes = [Outcome::Match, Outcome::Mismatch, Outcome::Inconclusive, Outcome::Failed];
    if bit(2) {
        let outcome = outcomes[(bits >> 3 & 3) as usize];
        evidence.rebuilds.push(Rebuild {
            verifier: "v".into(),
            owner: some(bit(5)),
            outcome,
            inputs_rebuilt: bit(6),
            nar_hash: bit(45).then(|| Sha256::of(if bit(46) { b"a" } else { b"b" })),
            builds: 1 + u32::from(bit(47)),
        });
    }
    if bit(7) {
        evidence.submitters.push(Voucher { submitter: "s".into(), owner: some(bit(8)) });
    }
    let until = bit(9).then_some(bits >> 40 & 1023);
    if bit(10) {
        let (by, reason) = ("alice".into(), "r".into());
        evidence.approvals.push(Approval {
            by,
            owner: some(bit(11)),
            groups: vec!["core".into()],
            until,
            reason,
        });
    }
    if bit(12) {
        let (by, word, reason) = ("alice".into(), "rebuilds".into(), "r".into());
        evidence.waivers.push(Waiver { by, owner: some(bit(13)), word, until, reason });
    }
    if bit(14) && bit(15) {
        evidence.refusal = Some(Refusal { by: "a".into(), until, reason: "r".into() });
    }
    if let (true, Some(upstream)) = (bit(16), policy.upstreams.first()) {
        let says = [
            UpstreamSays::Same,
            UpstreamSays::Other(Sha256::of(b"")),
            UpstreamSays::Absent,
            UpstreamSays::Unknown,
        ];
        let says = says[(bits >> 17 & 3) as usize].clone();
        evidence.upstreams.push(UpstreamFact { url: upstream.url.clone(), says });
    }
    if bit(19) {
        let (issuer, subject) = ("https://i/".into(), "s".into());
        evidence.ci.push(CiIdentity {
            issuer,
            subject,
            claims: BTreeMap::from([("ref".into(), "refs/heads/a".into())]),
        });
    }
    evidence.drawn = bit(20) && bit(21);
    evidence
}

/// Judges claims of all kinds by the policy.
fn judge(policy: &Policy, bits: u64) {
    let path = StorePath::from_base_name("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a-1").expect("a store path");
    let env: BTreeMap<String, String> =
        policy.needs().env.into_iter().map(|name| (name, "1".to_owned())).collect();
    let built =
        Built { derivation: &path, output: "out", system: "x86_64-linux", builder: "/bin/sh", env: &env };
    let groups = ["core".to_owned()];
    let evidence = evidence(policy, bits);
    let facts = [Fact::Known(bits >> 22 & 1 == 1), Fact::Absent, Fact::Unknown];
    for content_addressed in facts {
        for built in [Fact::Known(built), Fact::Absent, Fact::Unknown] {
            for nar_size in [1, policy.limits.nar_size, policy.limits.nar_size.saturating_add(1)] {
                let claim = Claim {
                    cache: &policy.cache,
                    path: &path,
                    nar_hash: Sha256::of(b"nar"),
                    nar_size,
                    submitter: Identity {
                        name: "alice",
                        owner: (bits >> 23 & 1 == 1).then_some("a"),
                        groups: &groups,
                    },
                    content_addressed,
                    built,
                    sources: built.map(|_| &[][..]),
                };
                let moment = Moment { now: bits >> 32 & 1023, announced: 0 };
                let decision = decide(policy, &claim, &evidence, moment);
                assert_eq!(decision, decide(policy, &claim, &evidence, moment));
                let explained = explain(policy, &claim, &evidence, moment);
                assert_eq!(
                    (explained.verdict, explained.rules.len()),
                    (Expect::of(&decision), policy.rules.len())
                );
                assert!(!explained.to_string().chars().any(|c| c.is_control() && c != '\n'));
                assert!(
                    nar_size <= policy.limits_for(&claim.submitter).nar_size
                        || matches!(decision, Decision::Reject { code: "nar-too-large", .. })
                );
                match decision {
                    Decision::Publish { rule, evidence } => {
                        assert!(!evidence.is_empty() && policy.rules.iter().any(|known| known.name == rule));
                    }
                    Decision::Hold { code, waits, until, again, .. } => {
                        assert_code(code);
                        assert!(!waits.is_empty() && waits.iter().all(|wait| !wait.to_string().is_empty()));
                        assert!([until, again].into_iter().flatten().all(|at| at > moment.now));
                    }
                    Decision::Reject { code, message, .. } => {
                        assert_code(code);
                        assert!(!message.is_empty());
                    }
                }
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let policy = match Policy::parse(text, "p.toml", "main") {
        Ok(policy) => policy,
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("p.toml:"), "{message}");
            assert!(message.chars().all(|c| c == '\n' || !c.is_control()), "{message:?}");
            return;
        }
    };
    assert_eq!(policy.cache, "main");
    assert!(Policy::parse(text, "p.toml", "other").is_err());
    // a file that was taken is whole: nothing is left open that more lines would end
    let longer = Policy::parse(&format!("{text}\n# end\n"), "p.toml", "main").expect("a comment more");
    assert_eq!(policy, Policy { digest: policy.digest, ..longer });

    // what is added to a time or kept as a signed number stays one
    let limits = &policy.limits;
    assert!(limits.quarantine_ttl <= 36_525 * 86_400);
    assert!(limits.nar_size.max(limits.quarantine_size) <= i64::MAX as u64);
    judge(&policy, number(data));
    policy.run_tests();
});
