//! Announcements: the envelope, its payload, and the gateway's checks on both. The input is taken for an envelope as sent,
//! and for the payload of an envelope that an enrolled key has sealed.

#![no_main]

use std::{collections::HashSet, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use libfuzzer_sys::fuzz_target;
use pushgate_formats::{
    api,
    dsse::{self, Envelope},
    keys::SecretKey,
    narinfo::fingerprint,
};
use pushgate_fuzz::{
    assert_code, assert_message,
    db::{EnrolledKey, Role},
    key, number,
    push::{
        announce::{AnnounceError, Announcement, Sealed},
        signature::{self, SignatureError},
    },
};

static KEY: LazyLock<SecretKey> = LazyLock::new(key);

fn good<T>(result: Result<T, AnnounceError>) -> Option<T> {
    result
        .inspect_err(|error| {
            assert_code(error.code());
            assert_message(error);
        })
        .ok()
}

fn sealed(payload: &[u8]) -> Vec<u8> {
    serde_json::to_vec(&Envelope::seal(dsse::ANNOUNCEMENT, payload, &KEY)).expect("plain data")
}

/// Bounds and order that later stages rely on.
fn assert_sound(announcement: &Announcement) {
    let claims = announcement.claims();
    assert!((1..=api::MAX_PATHS).contains(&claims.len()));
    let hashes: HashSet<&str> = claims.iter().map(|c| c.path.hash_part()).collect();
    assert_eq!(hashes.len(), claims.len());
    for claim in claims {
        assert!(claim.nar_size > 0 && claim.references.len() <= api::MAX_REFERENCES);
        assert!(claim.deriver.as_ref().is_none_or(|d| d.is_derivation()));
    }
    assert!(announcement.derivations().iter().all(|d| d.is_derivation()));
    let nonce = announcement.nonce();
    assert!((16..=64).contains(&nonce.len()));
    assert!(nonce.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
}

/// The gateway's checks, for keys in every state and around the times that are announced.
fn check(announcement: &Announcement, pick: u64) {
    let (gateway, cache) = ("g", "main");
    let enrolled = EnrolledKey {
        key: KEY.public(),
        identity: 1,
        identity_name: "fuzz".into(),
        role: if pick & 1 == 0 { Role::Submitter } else { Role::Verifier },
        owner: None,
        frozen: pick & 6 == 6,
        caches: (pick & 24 == 24).then(|| vec!["other".into()]),
        expires: (pick & 96 == 96).then_some(pick),
        revoked: (pick & 384 == 384).then_some(pick),
    };
    let (issued, expires) = (announcement.issued(), announcement.expires());
    for now in [0, 1, issued.saturating_sub(api::CLOCK_SKEW + 1), issued, expires, u64::MAX] {
        match signature::check(&enrolled, gateway, cache, now, announcement) {
            Ok(()) => {
                assert_eq!(announcement.audience().gateway, gateway);
                assert_eq!(announcement.audience().cache, cache);
                assert!(issued <= now.saturating_add(api::CLOCK_SKEW) && expires > now);
                assert!(expires.saturating_sub(issued) <= api::MAX_VALIDITY);
                assert!(enrolled.role == Role::Submitter && !enrolled.frozen && enrolled.revoked.is_none());
                assert!(enrolled.caches.is_none() && enrolled.expires.is_none_or(|e| e > now));
            }
            Err(error) => {
                assert_code(error.code());
                assert_message(&error);
            }
        }
    }
}

/// Signs every claim of an announcement, seals it, and expects it to be taken for what it is, and no change of it.
fn honest(mut body: api::Announcement, pick: u64) {
    for path in &mut body.paths {
        let references = path.references.iter().cloned().collect();
        let print = fingerprint(&path.path, &path.nar_hash, path.nar_size, &references);
        path.signature = KEY.sign(print.as_bytes());
    }
    let payload = serde_json::to_vec(&body).expect("plain data");
    let raw = sealed(&payload);
    let Some(announcement) = good(Announcement::parse(raw.clone())) else { return };
    assert_sound(&announcement);
    check(&announcement, pick);
    let claims = signature::verify(&announcement, &KEY.public()).expect("signed by the key");
    assert_eq!(claims.len(), body.paths.len());
    for (claim, path) in claims.iter().zip(&body.paths) {
        let claim = claim.claim();
        assert_eq!((&claim.path, claim.nar_hash, claim.nar_size), (&path.path, path.nar_hash, path.nar_size));
        assert!(claim.references.iter().eq(&path.references));
    }
    // the same in other bytes isn't what was signed
    let mut envelope: Envelope = serde_json::from_slice(&raw).expect("an envelope");
    envelope.payload = STANDARD.encode([&payload[..], b" "].concat());
    let spaced = good(Announcement::parse(serde_json::to_vec(&envelope).expect("plain data")));
    let refused = signature::verify(&spaced.expect("the same announcement"), &KEY.public());
    assert!(matches!(refused, Err(SignatureError::Invalid(_))));
    // one byte of what is sent is another
    let mut bent = raw;
    let at = (pick >> 8) as usize % bent.len();
    bent[at] ^= (1 + (pick >> 56) % 127) as u8;
    if let Some(parsed) = good(Announcement::parse(bent.clone()))
        && signature::verify(&parsed, &KEY.public()).is_ok()
    {
        // only the key's name in the envelope isn't signed
        let bent: Envelope = serde_json::from_slice(&bent).expect("it was parsed");
        assert_eq!(bent.unverified_payload(dsse::ANNOUNCEMENT), Ok(payload));
    }
    // and one claim is another
    if let Some(path) = body.paths.first_mut() {
        path.nar_size ^= 1;
        let raw = sealed(&serde_json::to_vec(&body).expect("plain data"));
        if let Some(lie) = good(Announcement::parse(raw)) {
            let refused = signature::verify(&lie, &KEY.public());
            assert!(matches!(refused, Err(SignatureError::Fingerprint { .. })));
        }
    }
}

fuzz_target!(|data: &[u8]| {
    if let Some(sealed) = good(Sealed::parse(data.to_vec())) {
        assert!(sealed.verify(&KEY.public()).is_err() || sealed.keyid().len() < data.len());
        good(sealed.open()).iter().for_each(assert_sound);
    }
    let sealed = good(Sealed::parse(sealed(data))).expect("an envelope around any bytes");
    signature::verify_envelope(&sealed, &KEY.public()).expect("sealed by the key");
    if let Some(announcement) = good(sealed.open()) {
        assert_sound(&announcement);
        check(&announcement, number(data));
        // the claims' own signatures are anything
        let _ = signature::verify(&announcement, &KEY.public());
        let body: api::Announcement = serde_json::from_slice(data).expect("it was parsed");
        let again = serde_json::to_vec(&body).expect("plain data");
        assert_eq!(serde_json::from_slice::<api::Announcement>(&again).expect("printed"), body);
        honest(body, number(data));
    }
});
