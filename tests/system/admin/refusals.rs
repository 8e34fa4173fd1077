//! Acts that are refused: the stable code, and that nothing changed.

use pushgate_formats::{
    acts::{Act, Deed, MAX_REASON},
    api::Role,
    dsse::{self, Envelope},
};
use pushgate_gateway::{db::Role as DbRole, identities::Invite};
use pushgate_tests::forge::{Forge, Submitter, random_hex, sealed_act};
use rstest::rstest;

use super::*;

/// Bent before it is signed; unbent it is carried out.
#[rstest]
#[case::other_gateway(|a: &mut Act| a.gateway = random_hex(), 403, "audience-mismatch")]
#[case::expired(|a: &mut Act| { a.issued -= 700; a.expires -= 700 }, 403, "act-expired")]
#[case::future(|a: &mut Act| { a.issued += 400; a.expires += 400 }, 403, "act-from-future")]
#[case::valid_for_too_long(|a: &mut Act| a.expires = a.issued + 3601, 400, "act-malformed")]
#[case::version(|a: &mut Act| a.version = 2, 400, "act-malformed")]
#[case::short_nonce(|a: &mut Act| a.nonce = "abc".into(), 400, "act-malformed")]
#[case::nonce_of_other_digits(|a: &mut Act| a.nonce = "g".repeat(32), 400, "act-malformed")]
#[case::no_reason(|a: &mut Act| a.reason = " ".into(), 400, "reason-missing")]
#[case::long_reason(|a: &mut Act| a.reason = "x".repeat(MAX_REASON + 1), 400, "reason-too-long")]
#[case::name(|a: &mut Act| a.what = freeze("a b"), 400, "name-invalid")]
#[case::unknown(|a: &mut Act| a.what = freeze("nobody"), 404, "identity-unknown")]
#[case::unknown_unfreeze(|a: &mut Act| a.what = unfreeze("nobody"), 404, "identity-unknown")]
#[case::unknown_groups(
    |a: &mut Act| a.what = Deed::Groups { name: "nobody".into(), groups: vec![] }, 404, "identity-unknown"
)]
#[case::unknown_owner(
    |a: &mut Act| a.what = Deed::Owner { name: "nobody".into(), owner: None }, 404, "identity-unknown"
)]
#[case::unknown_tokens(
    |a: &mut Act| a.what = Deed::RevokeToken { name: "nobody".into(), token: None }, 404, "identity-unknown"
)]
#[case::unknown_token(
    |a: &mut Act| a.what = Deed::RevokeToken { name: "alice".into(), token: Some(Sha256::of(b"x")) },
    404, "not-found"
)]
#[case::unknown_key(|a: &mut Act| a.what = Deed::RevokeKey { key: key_name("nobody-1") }, 404, "not-found")]
#[case::rotation_of_unknown_key(|a: &mut Act| a.what = Deed::Rotate {
    key: key_name("nobody-1"),
    code: Sha256::of(b"x"),
    code_expires: a.expires,
    old_expires: a.expires,
    key_expires: None,
}, 404, "not-found")]
#[case::token_for_nobody(|a: &mut Act| a.what = Deed::MakeToken {
    name: "nobody".into(),
    cache: "main".into(),
    token: Sha256::of(b"x"),
    token_expires: None,
}, 404, "identity-unknown")]
// only submitters push
#[case::token_for_an_admin(|a: &mut Act| a.what = Deed::MakeToken {
    name: "ada".into(),
    cache: "main".into(),
    token: Sha256::of(b"x"),
    token_expires: None,
}, 404, "identity-unknown")]
#[case::token_for_no_cache(|a: &mut Act| a.what = Deed::MakeToken {
    name: "alice".into(),
    cache: "nowhere".into(),
    token: Sha256::of(b"x"),
    token_expires: None,
}, 404, "not-found")]
#[case::group(
    |a: &mut Act| a.what = Deed::Groups { name: "alice".into(), groups: vec!["a b".into()] },
    400, "group-invalid"
)]
#[case::owner(
    |a: &mut Act| a.what = Deed::Owner { name: "alice".into(), owner: Some("a\u{202e}b".into()) },
    400, "owner-invalid"
)]
#[case::invite_to_another_role(
    |a: &mut Act| a.what = invite("alice", Role::Admin, "x", a.expires), 409, "role-mismatch"
)]
#[case::last_admin_freezes_himself(|a: &mut Act| a.what = freeze("ada"), 409, "last-admin")]
#[tokio::test]
async fn bent(#[case] bend: fn(&mut Act), #[case] status: u16, #[case] code: &str) {
    let forge = Forge::start().await;
    let (ada, alice) = (forge.admin("ada").await, forge.submitter("alice").await);
    let before = Record::of(&forge).await;
    assert_eq!(refused(forge.act_with(&ada, freeze("alice"), bend).await), is(status, code));
    assert_eq!(Record::of(&forge).await, before);
    let item = source();
    forge.push(&forge.draft(&alice).item(&item)).await.assert_published(&item.path);
    forge.act(&ada, freeze("alice")).await.expect("it is good as it was");
}

/// Form and signature of the envelope.
#[tokio::test]
async fn envelopes() {
    let forge = Forge::start().await;
    let (ada, alice) = (forge.admin("ada").await, forge.submitter("alice").await);
    let before = Record::of(&forge).await;
    let act = forge.draft_act(freeze("alice"));
    let payload = serde_json::to_vec(&act).unwrap();
    let good = Envelope::seal(dsse::ACT, &payload, &ada.key);
    let json = |envelope: &Envelope| serde_json::to_vec(envelope).unwrap();
    let unsigned = Envelope { signatures: vec![], ..good.clone() };
    let twice =
        Envelope { signatures: [good.signatures.clone(), good.signatures.clone()].concat(), ..good.clone() };
    // what is signed as a read request, or as an announcement, is no act
    let as_request = Envelope::seal(dsse::REQUEST, &payload, &ada.key);
    let relabelled = Envelope { payload_type: dsse::ACT.into(), ..as_request.clone() };
    let other_payload =
        Envelope { payload: Envelope::seal(dsse::ACT, b"{}", &ada.key).payload, ..good.clone() };
    let impostor = Submitter::new(ada.key.name().as_str());
    let named_ada = Envelope::seal(dsse::ACT, &payload, &impostor.key);
    let mut by_alice = Envelope::seal(dsse::ACT, &payload, &alice.key);
    by_alice.signatures[0].keyid = ada.key.name().to_string();
    let stranger = Envelope::seal(dsse::ACT, &payload, &Submitter::new("stranger").key);
    for (body, status, code) in [
        (b"[]".to_vec(), 400, "act-malformed"),
        (vec![b' '; (64 << 10) + 1], 413, "act-malformed"),
        (json(&unsigned), 400, "signature-missing"),
        (json(&twice), 400, "act-malformed"),
        (json(&as_request), 400, "act-malformed"),
        (json(&relabelled), 403, "signature-invalid"),
        (json(&other_payload), 403, "signature-invalid"),
        (json(&named_ada), 403, "signature-invalid"),
        (json(&by_alice), 403, "signature-invalid"),
        (json(&stranger), 403, "key-unknown"),
    ] {
        let answer = forge.act_raw(body.clone()).await;
        assert_eq!(refused(answer), is(status, code), "{}", body.escape_ascii().to_string().len());
    }
    // nor is an act an announcement or an enrolment
    assert_eq!(refused(forge.announce_raw("main", json(&good)).await), is(400, "announcement-malformed"));
    assert_eq!(refused(forge.enrol_with(&good).await), is(400, "enrolment-malformed"));
    assert_eq!(Record::of(&forge).await, before);
    forge.act_raw(json(&good)).await.expect("as it should be");
}

/// Who may not.
#[tokio::test]
async fn people() {
    let forge = Forge::start().await;
    let ada = forge.admin("ada").await;
    let role = |name: &str, role| Invite { role, ..Forge::invitation(name) };
    let alice = forge.submitter("alice").await;
    let victor = forge.submitter_by(role("victor", DbRole::Verifier)).await;
    let (frozen, revoked) = (forge.admin("frozen").await, forge.admin("revoked").await);
    let expires = Some(forge.clock.now() + 100);
    let expired = forge.submitter_by(Invite { key_expires: expires, ..role("expired", DbRole::Admin) }).await;
    forge.act(&expired, Deed::Groups { name: "alice".into(), groups: vec![] }).await.expect("still good");
    forge.clock.advance(100);
    forge.act(&ada, freeze("frozen")).await.unwrap();
    forge.act(&ada, Deed::RevokeKey { key: revoked.key.name().clone() }).await.unwrap();
    let before = Record::of(&forge).await;
    for (by, code) in [
        (&alice, "forbidden"),
        (&victor, "forbidden"),
        (&frozen, "identity-frozen"),
        (&revoked, "key-revoked"),
        (&expired, "key-expired"),
    ] {
        for deed in [
            freeze("alice"),
            unfreeze("frozen"),
            invite("mallory", Role::Admin, &random_hex(), forge.clock.now() + 100),
            Deed::Owner { name: "alice".into(), owner: Some("me".into()) },
            Deed::Groups { name: "alice".into(), groups: vec!["core".into()] },
            Deed::RevokeKey { key: ada.key.name().clone() },
            Deed::RevokeToken { name: "alice".into(), token: None },
        ] {
            assert_eq!(refused(forge.act(by, deed.clone()).await), is(403, code), "{deed:?}");
        }
        for path in ["identities", "tokens", "events?after=0"] {
            let answer: Result<serde_json::Value, _> =
                forge.signed_get(by, &format!("/api/v1/admin/{path}"), |_| {}).await;
            assert_eq!(refused(answer), is(403, code), "{path}");
        }
    }
    assert_eq!(Record::of(&forge).await, before);
}

/// Another act with a nonce that was used, and the same act in other bytes.
#[tokio::test]
async fn nonces_are_used_once() {
    let forge = Forge::start().await;
    let (ada, grace) = (forge.admin("ada").await, forge.admin("grace").await);
    forge.submitter("alice").await;
    let first = forge.draft_act(freeze("alice"));
    forge.act_raw(sealed_act(&first, &ada.key)).await.unwrap();
    forge.act(&ada, unfreeze("alice")).await.unwrap();
    let before = Record::of(&forge).await;
    let other = forge.act_with(&ada, freeze("alice"), |a| a.nonce = first.nonce.to_ascii_uppercase()).await;
    assert_eq!(refused(other), is(409, "nonce-reused"));
    let mut spaced = b" ".to_vec();
    spaced.extend(sealed_act(&first, &ada.key));
    assert_eq!(refused(forge.act_raw(spaced).await), is(409, "nonce-reused"));
    // the very same bytes are answered, and do nothing
    forge.act_raw(sealed_act(&first, &ada.key)).await.unwrap();
    assert_eq!(Record::of(&forge).await, before);
    // nonces are each key's own
    forge.act_with(&grace, freeze("alice"), |a| a.nonce.clone_from(&first.nonce)).await.unwrap();
}

/// Somebody who saw an act can't have it again once it was undone and its time is over, or before.
#[tokio::test]
async fn replayed_acts_do_nothing() {
    let forge = Forge::start().await;
    let ada = forge.admin("ada").await;
    forge.submitter("alice").await;
    let body = sealed_act(&forge.draft_act(freeze("alice")), &ada.key);
    forge.act_raw(body.clone()).await.unwrap();
    forge.act(&ada, unfreeze("alice")).await.unwrap();
    for _ in 0..2 {
        let before = Record::of(&forge).await;
        forge.act_raw(body.clone()).await.expect("answered as at first");
        assert_eq!(Record::of(&forge).await, before);
        assert!(!forge.identity(&ada, "alice").await.frozen);
        forge.clock.advance(3600);
    }
}

#[tokio::test]
async fn somebody_stays_who_can_act() {
    let forge = Forge::start().await;
    let ada = forge.admin("ada").await;
    let revoke = |by: &Submitter| Deed::RevokeKey { key: by.key.name().clone() };
    let rotate = |by: &Submitter, until: u64| Deed::Rotate {
        key: by.key.name().clone(),
        code: Sha256::of(random_hex().as_bytes()),
        code_expires: until,
        old_expires: until,
        key_expires: None,
    };
    let later = forge.clock.now() + 1000;
    let before = Record::of(&forge).await;
    for deed in [freeze("ada"), revoke(&ada), rotate(&ada, later)] {
        assert_eq!(refused(forge.act(&ada, deed).await), is(409, "last-admin"));
    }
    assert_eq!(Record::of(&forge).await, before);
    // an admin who can't act is none; nor is one whose key runs out before the rotated one
    let grace = forge.admin("grace").await;
    forge.act(&ada, freeze("grace")).await.unwrap();
    assert_eq!(refused(forge.act(&ada, revoke(&ada)).await), is(409, "last-admin"));
    forge.act(&ada, unfreeze("grace")).await.unwrap();
    forge.act(&ada, rotate(&grace, later)).await.expect("ada is there");
    assert_eq!(refused(forge.act(&ada, rotate(&ada, later)).await), is(409, "last-admin"));
    forge.act(&ada, rotate(&ada, later - 500)).await.expect("grace is there for longer");
    forge.act(&grace, revoke(&ada)).await.expect("grace is there");
    assert_eq!(refused(forge.act(&ada, freeze("grace")).await), is(403, "key-revoked"));
    assert_eq!(refused(forge.act(&grace, freeze("grace")).await), is(409, "last-admin"));
}

/// Two admins stop each other at once: one is left.
#[tokio::test]
async fn two_admins_at_once() {
    for _ in 0..10 {
        let forge = Forge::start().await;
        let (ada, grace) = (forge.admin("ada").await, forge.admin("grace").await);
        let answers = tokio::join!(forge.act(&ada, freeze("grace")), forge.act(&grace, freeze("ada")));
        let done = [&answers.0, &answers.1].into_iter().filter(|a| a.is_ok()).count();
        assert_eq!(done, 1, "{answers:?}");
        let left = if answers.0.is_ok() { &ada } else { &grace };
        let frozen = forge.app.db.identities().await.unwrap().iter().filter(|i| i.frozen).count();
        assert_eq!(frozen, 1);
        forge.events(left).await;
    }
}

#[tokio::test]
async fn hashes_are_used_once() {
    let forge = Forge::start().await;
    let ada = forge.admin("ada").await;
    forge.submitter("alice").await;
    let until = forge.clock.now() + 100;
    let token = |name: &str| Deed::MakeToken {
        name: name.into(),
        cache: "main".into(),
        token: Sha256::of(b"token"),
        token_expires: None,
    };
    forge.act(&ada, invite("bob", Role::Submitter, "code", until)).await.unwrap();
    forge.act(&ada, token("alice")).await.unwrap();
    let before = Record::of(&forge).await;
    for deed in [invite("eve", Role::Admin, "code", until), token("alice")] {
        assert_eq!(refused(forge.act(&ada, deed).await), is(409, "code-used"));
    }
    assert_eq!(Record::of(&forge).await, before);
}
