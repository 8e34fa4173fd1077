//! Policy files.

#![no_main]

use std::fmt::Write;

use libfuzzer_sys::fuzz_target;
use pushgate_formats::StorePath;
use pushgate_fuzz::assert_code;
use pushgate_policies::{Claim, Closure, Decision, Evidence, Policy, PolicyError, Provenance, decide};

/// The policy as a file.
fn print(policy: &Policy) -> String {
    let text = |value: &str| toml::Value::from(value).to_string();
    let closure = match policy.closure {
        Closure::Upstreams => "upstreams",
        Closure::SelfContained => "self-contained",
    };
    let limits = &policy.limits;
    let mut out = format!(
        "version = 1\ncache = {}\nclosure = \"{closure}\"\n[limits]\nnar-size = \"{} B\"\n\
         quarantine-ttl = \"{} s\"\nquarantine-size = \"{} B\"\n",
        text(&policy.cache),
        limits.nar_size,
        limits.quarantine_ttl,
        limits.quarantine_size
    );
    for upstream in &policy.upstreams {
        let (url, key) = (text(&upstream.url), text(&upstream.key.to_string()));
        let _ = write!(out, "[[upstream]]\nurl = {url}\nkey = {key}\n");
    }
    out
}

fn same_but_digest(a: &Policy, b: &Policy) {
    assert_eq!(a, &Policy { digest: a.digest, ..b.clone() });
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let policy = match Policy::parse(text, "p.toml", "main") {
        Ok(policy) => policy,
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("p.toml: "), "{message}");
            return;
        }
    };
    assert_eq!(policy.cache, "main");
    assert!(matches!(Policy::parse(text, "p.toml", "other"), Err(PolicyError::Cache { .. })));
    // a file that was taken is whole: nothing is left open that more lines would end
    let longer = Policy::parse(&format!("{text}\n# end\n"), "p.toml", "main").expect("a comment more");
    same_but_digest(&policy, &longer);
    let printed = print(&policy);
    let again = Policy::parse(&printed, "p.toml", "main").unwrap_or_else(|e| panic!("{e}: {printed}"));
    same_but_digest(&policy, &again);

    // what is added to a time or kept as a signed number stays one
    let limits = &policy.limits;
    assert!(limits.quarantine_ttl <= 36_525 * 86_400);
    assert!(limits.nar_size.max(limits.quarantine_size) <= i64::MAX as u64);

    let path = StorePath::from_base_name("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a").expect("a store path");
    for nar_size in [1, policy.limits.nar_size, policy.limits.nar_size.saturating_add(1)] {
        for provenance in [
            Provenance::Derivation,
            Provenance::ContentAddress,
            Provenance::ContentAddressWeak,
            Provenance::Unproven { missing: vec![] },
        ] {
            let too_large = nar_size > policy.limits.nar_size;
            match decide(&policy, &Claim { path: &path, nar_size }, &Evidence { provenance }) {
                Decision::Reject { code, .. } => {
                    assert_code(code);
                    assert!(too_large);
                }
                Decision::Hold { code, .. } => {
                    assert_code(code);
                    assert!(!too_large);
                }
                Decision::Publish { evidence, .. } => assert!(!too_large && !evidence.is_empty()),
            }
        }
    }
});
