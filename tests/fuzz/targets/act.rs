//! Acts: the payload that a person has signed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pushgate_formats::{
    acts::{Act, MAX_GROUPS, MAX_REASON},
    api::MAX_VALIDITY,
};
use pushgate_fuzz::{assert_code, assert_message};

fuzz_target!(|data: &[u8]| {
    let act = match Act::parse(data) {
        Ok(act) => act,
        Err(error) => {
            assert_code(error.code());
            assert_message(&error);
            return;
        }
    };
    // what those who carry it out rely on
    assert!(act.reason.len() <= MAX_REASON);
    assert!(!act.what.needs_reason() || !act.reason.trim().is_empty());
    assert!(act.expires.saturating_sub(act.issued) <= MAX_VALIDITY);
    assert!((16..=64).contains(&act.nonce.len()) && act.nonce.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_code(act.what.kind());
    // it has one meaning, however it was written
    let printed = serde_json::to_vec(&act).expect("plain data");
    assert_eq!(Act::parse(&printed).as_ref(), Ok(&act));
    let value: serde_json::Value = serde_json::from_slice(&printed).expect("JSON");
    assert_eq!(value["what"]["act"], act.what.kind());
    for name in ["name", "owner"] {
        if let Some(text) = value["what"][name].as_str() {
            assert!(text.bytes().all(|b| b.is_ascii_graphic()) && (1..=100).contains(&text.len()));
        }
    }
    assert!(value["what"]["groups"].as_array().is_none_or(|groups| groups.len() <= MAX_GROUPS));
});
