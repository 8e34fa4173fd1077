//! Narinfos, as submitters send them and as upstreams serve them.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pushgate_formats::{
    keys::SecretKey,
    narinfo::{Dialect, UnverifiedNarInfo, fingerprint},
};
use pushgate_fuzz::{assert_code, assert_message, key};

static KEY: LazyLock<SecretKey> = LazyLock::new(key);

fn parse(raw: &[u8], dialect: Dialect) -> Option<UnverifiedNarInfo> {
    match UnverifiedNarInfo::parse(raw, dialect) {
        Ok(info) => Some(info),
        Err(error) => {
            assert_code(error.code());
            assert_message(&error);
            None
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let pushed = parse(data, Dialect::Push);
    let served = parse(data, Dialect::Upstream);
    if let Some(info) = &pushed {
        assert_eq!(info.print().as_bytes(), data, "a push is what Nix prints, byte for byte");
        assert_eq!(pushed, served, "what a submitter may send, an upstream may serve, with the same meaning");
    }
    let Some(mut info) = served else { return };
    // whatever the form, what was understood has one spelling, and that says the same
    let printed = info.print();
    assert_eq!(parse(printed.as_bytes(), Dialect::Push).as_ref(), Some(&info), "{printed}");
    let signed = info.fingerprint();
    assert_eq!(signed, fingerprint(&info.path, &info.nar_hash, info.nar_size, &info.references));
    assert!(!signed.contains(['\n', '\r', '\0']));
    assert!(signed.starts_with("1;/nix/store/"));
    assert_eq!(signed.split(';').count(), 5);

    let public = KEY.public();
    assert!(!info.is_signed_by(&public), "nobody has signed it yet");
    info.signatures.truncate(3);
    info.signatures.push(KEY.sign(signed.as_bytes()));
    let again = parse(info.print().as_bytes(), Dialect::Push).expect("it was printed");
    assert!(again.is_signed_by(&public));
    info.nar_size = info.nar_size.wrapping_add(1).max(1);
    assert!(!info.is_signed_by(&public), "the size is signed");
});
