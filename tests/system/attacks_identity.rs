//! What a hostile submitter tries with keys, signatures, replays, tokens and invites. Each test asserts the stable code,
//! that nothing changed, and that the same thing done right is taken.
//!
//! Elsewhere: tokens at the routes of admins are in `access`, which walks all routes with every caller; what is frozen by an
//! admin, and acts that are replayed or meant for another gateway, are in `admin`.

mod replay;
mod tokens;

use base64::{Engine, engine::general_purpose::STANDARD};
use pushgate_formats::{
    Sha256, StorePath,
    api::{AnnouncedPath, PathState, PushSummary},
    dsse::{self, Envelope},
    keys::SecretKey,
};
use pushgate_gateway::{db::Role, identities::Invite};
use pushgate_tests::forge::{Draft, Forge, Item, Refused, Submitter, framed, random_hex};
use rstest::rstest;

fn code<T: std::fmt::Debug>(answer: Result<T, Refused>) -> (u16, String) {
    let refused = answer.expect_err("it should be refused");
    (refused.status, refused.code)
}

fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

fn source() -> Item {
    Item::source("source", &random_hex())
}

/// The draft is refused with this code and leaves nothing; without the change it is published.
async fn refused_but_for(forge: &Forge, good: Draft, bad: Vec<u8>, expected: (u16, &str)) -> Refused {
    let before = forge.snapshot().await;
    let refused = forge.announce_raw("main", bad).await.expect_err("it should be refused");
    assert_eq!((refused.status, refused.code.as_str()), expected, "{refused:?}");
    forge.assert_unchanged(&before).await;
    let pushed = forge.push(&good).await;
    pushed.status.paths.iter().for_each(|p| assert_eq!(p.state, PathState::Published, "{p:?}"));
    refused
}

#[tokio::test]
async fn signature_missing() {
    let forge = Forge::start().await;
    let good = forge.draft(&forge.submitter("alice").await).item(&source());
    let bad = Envelope { signatures: vec![], ..good.envelope() };
    refused_but_for(&forge, good, serde_json::to_vec(&bad).unwrap(), (400, "signature-missing")).await;
}

#[tokio::test]
async fn signature_missing_of_a_path() {
    let forge = Forge::start().await;
    let good = forge.draft(&forge.submitter("alice").await).item(&source());
    let bad = good.sealed_after(|body| {
        body["paths"][0].as_object_mut().unwrap().remove("signature");
    });
    refused_but_for(&forge, good, bad, (400, "announcement-malformed")).await;
}

#[rstest]
#[case::flipped(|envelope: &mut Envelope, _: &Draft| {
    let mut bytes = STANDARD.decode(&envelope.signatures[0].sig).unwrap();
    bytes[3] ^= 1;
    envelope.signatures[0].sig = STANDARD.encode(bytes);
})]
#[case::of_another_payload(|envelope: &mut Envelope, good: &Draft| {
    let other = good.clone().with(|body| body.expires += 1).envelope();
    envelope.payload = other.payload;
})]
#[case::too_short(|envelope: &mut Envelope, _: &Draft| envelope.signatures[0].sig = "AAAA".into())]
#[case::by_an_unenrolled_key_of_the_same_name(|envelope: &mut Envelope, good: &Draft| {
    let key = Submitter::new(good.key.name().as_str());
    *envelope = Draft { key: key.key, ..good.clone() }.envelope();
})]
// what is signed as a read request must not do as an announcement
#[case::under_another_payload_type(|envelope: &mut Envelope, good: &Draft| {
    let payload = STANDARD.decode(&envelope.payload).unwrap();
    envelope.signatures = Envelope::seal(dsse::REQUEST, &payload, &good.key).signatures;
})]
#[tokio::test]
async fn signature_invalid(#[case] bend: fn(&mut Envelope, &Draft)) {
    let forge = Forge::start().await;
    let good = forge.draft(&forge.submitter("alice").await).item(&source());
    let mut bad = good.envelope();
    bend(&mut bad, &good);
    refused_but_for(&forge, good, serde_json::to_vec(&bad).unwrap(), (403, "signature-invalid")).await;
}

#[tokio::test]
async fn signature_invalid_by_another_submitters_key() {
    let forge = Forge::start().await;
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    let good = forge.draft(&alice).item(&source());
    let mut bad = forge.draft(&mallory).item(&source()).envelope();
    bad.signatures[0].keyid = alice.key.name().to_string();
    refused_but_for(&forge, good, serde_json::to_vec(&bad).unwrap(), (403, "signature-invalid")).await;
}

/// The fingerprint's signature is over what was announced before it was bent. Once alone, once as one of many: those
/// are verified in a batch.
#[rstest]
#[case::path(|p: &mut AnnouncedPath| p.path = source().path)]
#[case::nar_hash(|p: &mut AnnouncedPath| p.nar_hash = Sha256([1; 32]))]
#[case::nar_size(|p: &mut AnnouncedPath| p.nar_size += 8)]
#[case::references(|p: &mut AnnouncedPath| p.references.push(source().path))]
#[case::flipped(|p: &mut AnnouncedPath| p.signature.bytes[40] ^= 1)]
#[case::by_another_key(|p: &mut AnnouncedPath| p.signature = Submitter::new("x").key.sign(b"1;"))]
#[tokio::test]
async fn signature_invalid_over_a_fingerprint(
    #[case] bend: fn(&mut AnnouncedPath),
    #[values(0, 6)] others: u32,
) {
    let forge = Forge::start().await;
    let mut good = forge.draft(&forge.submitter("alice").await);
    for _ in 0..others {
        good = good.item(&source());
    }
    let good = good.item(&source());
    let bad = good.clone().with_last(bend);
    let named = bad.body.paths.last().unwrap().path.absolute();
    let refused = refused_but_for(&forge, good, bad.sealed(), (403, "signature-invalid")).await;
    assert_eq!(refused.path, Some(named));
}

/// The name in a fingerprint's signature is the submitter's words: the one that is published is the enrolled one.
#[tokio::test]
async fn the_name_in_a_signature_is_not_believed() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let item = source();
    let cache_key = forge.app.caches.all()[0].public_key();
    let draft = forge.draft(&alice).item(&item).with_last(|p| p.signature.name = cache_key.name().clone());
    forge.push(&draft).await.assert_published(&item.path);
    let narinfo = forge.narinfo(&item.path).await.unwrap();
    let names: Vec<&str> =
        narinfo.lines().filter_map(|l| l.strip_prefix("Sig: ")?.split_once(':')).map(|(n, _)| n).collect();
    assert_eq!(names.len(), 2);
    for name in [cache_key.name(), alice.key.name()] {
        assert_eq!(names.iter().filter(|n| **n == name.as_str()).count(), 1, "{narinfo}");
    }
}

#[tokio::test]
async fn key_unknown() {
    let forge = Forge::start().await;
    let good = forge.draft(&forge.submitter("alice").await).item(&source());
    let stranger = forge.draft(&Submitter::new("stranger")).item(&source());
    refused_but_for(&forge, good, stranger.sealed(), (403, "key-unknown")).await;
}

/// A right signature under a name that isn't the key's own: names are not searched through.
#[tokio::test]
async fn key_unknown_by_its_name() {
    let forge = Forge::start().await;
    let good = forge.draft(&forge.submitter("alice").await).item(&source());
    let mut bad = good.envelope();
    bad.signatures[0].keyid = "alice\u{202e}\n-1".into();
    let refused =
        refused_but_for(&forge, good, serde_json::to_vec(&bad).unwrap(), (403, "key-unknown")).await;
    assert!(refused.message.is_ascii() && !refused.message.contains('\n'), "{refused:?}");
}

/// An enrolment that is refused uses up no invite and enrols nobody.
async fn enrolment_refused(forge: &Forge, key: &SecretKey, expected: (u16, &str)) {
    let code_of_invite = forge.invite(Forge::invitation("mallory")).await;
    let before = forge.app.db.keys().await.unwrap().len();
    assert_eq!(code(forge.enrol(key, &code_of_invite).await), is(expected.0, expected.1));
    assert_eq!(forge.app.db.keys().await.unwrap().len(), before);
    let fresh = Submitter::new(&random_hex());
    forge.enrol(&fresh.key, &code_of_invite).await.expect("the invite is still good for another key");
    let item = source();
    forge.push(&forge.draft(&fresh).item(&item)).await.assert_published(&item.path);
}

#[tokio::test]
async fn key_name_reserved_by_a_cache() {
    let forge = Forge::start().await;
    let name = forge.app.caches.all()[0].public_key().name().to_string();
    enrolment_refused(&forge, &Submitter::new(&name).key, (409, "key-name-reserved")).await;
}

#[tokio::test]
async fn key_name_reserved_by_another_submitter() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let name = alice.key.name().as_str();
    enrolment_refused(&forge, &Submitter::new(name).key, (409, "key-name-reserved")).await;
    // also after it was revoked: what it signed keeps its meaning
    forge.revoke(&alice.key).await;
    enrolment_refused(&forge, &Submitter::new(name).key, (409, "key-name-reserved")).await;
}

/// Keys are known by their bytes: a second name would let one owner pass for two.
#[tokio::test]
async fn key_enrolled_under_another_name() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let text = alice.key.to_file_text();
    let (_, digits) = text.split_once(':').unwrap();
    let renamed = SecretKey::parse(&format!("another-name:{digits}")).unwrap();
    enrolment_refused(&forge, &renamed, (409, "key-enrolled")).await;
    let secret = std::fs::read_to_string(forge.dir().join("keys/main.secret")).unwrap();
    let (_, digits) = secret.split_once(':').unwrap();
    let renamed = SecretKey::parse(&format!("another-name:{digits}")).unwrap();
    enrolment_refused(&forge, &renamed, (409, "key-enrolled")).await;
}

/// Every message has a valid signature under the neutral element: its holder would be anybody.
#[tokio::test]
async fn key_weak() {
    let forge = Forge::start().await;
    let mut neutral = [0u8; 32];
    neutral[0] = 1;
    let mut sig = [0u8; 64];
    sig[0] = 1;
    let invite = forge.invite(Forge::invitation("mallory")).await;
    let payload = format!(r#"{{"code":"{invite}","key":"weak:{}"}}"#, STANDARD.encode(neutral));
    let mut envelope = Envelope::seal(dsse::ENROLMENT, payload.as_bytes(), &Submitter::new("weak").key);
    envelope.signatures[0].sig = STANDARD.encode(sig);
    assert_eq!(code(forge.enrol_with(&envelope).await), is(400, "enrolment-malformed"));
    assert!(forge.app.db.keys().await.unwrap().is_empty());
    forge.enrol(&Submitter::new("weak").key, &invite).await.expect("the invite is unused");
}

/// Enrolling a key whose secret half somebody else has would let one be held for the other.
#[tokio::test]
async fn key_of_somebody_else() {
    let forge = Forge::start().await;
    let (victim, mallory) = (Submitter::new("victim"), Submitter::new("mallory"));
    let invite = forge.invite(Forge::invitation("mallory")).await;
    let payload = format!(r#"{{"code":"{invite}","key":"{}"}}"#, victim.key.public());
    let envelope = Envelope::seal(dsse::ENROLMENT, payload.as_bytes(), &mallory.key);
    assert_eq!(code(forge.enrol_with(&envelope).await), is(403, "signature-invalid"));
    assert!(forge.app.db.keys().await.unwrap().is_empty());
    forge.enrol(&victim.key, &invite).await.expect("the invite is unused");
}

#[tokio::test]
async fn key_revoked_before_the_announcement() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    forge.revoke(&alice.key).await;
    let good = forge.draft(&bob).item(&source());
    let bad = forge.draft(&alice).item(&source());
    refused_but_for(&forge, good, bad.sealed(), (403, "key-revoked")).await;
    // the other key of the same identity goes on
    let second = forge.submitter_by(Forge::invitation("alice")).await;
    let item = source();
    forge.push(&forge.draft(&second).item(&item)).await.assert_published(&item.path);
}

#[tokio::test]
async fn key_revoked_between_announcement_and_upload() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let item = source();
    let draft = forge.draft(&alice).item(&item);
    let push = forge.announce(&draft).await.unwrap();
    let before = forge.snapshot().await;
    forge.revoke(&alice.key).await;
    let body = framed(&item.nar_hash, &item.nar, true);
    let answer = forge.upload(&push.status.push, &push.token, body).await;
    assert_eq!(code(answer), is(403, "key-revoked"));
    let none = [] as [(&StorePath, &Vec<u8>); 0];
    let answer = forge.send_derivations(&push.status.push, &push.token, none).await;
    assert_eq!(code(answer), is(403, "key-revoked"));
    // nor does the same envelope give the push again
    assert_eq!(code(forge.announce(&draft).await), is(403, "key-revoked"));
    forge.assert_unchanged(&before).await;
    forge.push(&forge.draft(&bob).item(&item)).await.assert_published(&item.path);
}

/// The bytes are here and the claim waits for its reference; when that comes, the key is not good any more.
#[rstest]
#[case::in_memory(false)]
#[case::over_a_restart(true)]
#[tokio::test]
async fn key_revoked_between_upload_and_publication(#[case] restart: bool) {
    let mut forge = Forge::start().await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let (a, b) = (source(), source());
    let [users, control] = [(&a, "user"), (&b, "control")]
        .map(|(item, name)| Item::text(name, item.path.absolute().as_bytes(), &[&item.path]));
    let mut held = forge.push(&forge.draft(&alice).item(&users)).await;
    held.assert_held(&users.path, "closure-open");
    let mut other = forge.push(&forge.draft(&bob).item(&control)).await;
    other.assert_held(&control.path, "closure-open");
    let before = forge.snapshot().await;
    forge.revoke(&alice.key).await;
    if restart {
        forge = forge.restart().await;
    }
    forge.push(&forge.draft(&bob).item(&a).item(&b)).await.assert_published(&a.path);
    forge.becomes(&mut other, &control.path, PathState::Published, None).await;
    forge.becomes(&mut held, &users.path, PathState::Rejected, Some("key-revoked")).await;
    forge.assert_published_only(&before, &[&a.path, &b.path, &control.path]).await;
    assert!(forge.snapshot().await.packs.is_empty());
}

#[tokio::test]
async fn key_expired() {
    let forge = Forge::start().await;
    let expires = Some(forge.clock.now() + 1000);
    let alice = forge.submitter_by(Invite { key_expires: expires, ..Forge::invitation("alice") }).await;
    let bob = forge.submitter("bob").await;
    let item = source();
    forge.push(&forge.draft(&alice).item(&item)).await.assert_published(&item.path);
    let late = source();
    let draft = forge.draft(&alice).item(&late).with(|body| body.expires = body.issued + 3600);
    let push = forge.announce(&draft).await.unwrap();
    forge.clock.advance(1000);
    let before = forge.snapshot().await;
    let body = framed(&late.nar_hash, &late.nar, true);
    assert_eq!(code(forge.upload(&push.status.push, &push.token, body).await), is(403, "key-expired"));
    let answer = forge.signed_get::<Vec<PushSummary>>(&alice, "/api/v1/pushes", |_| {}).await;
    assert_eq!(code(answer), is(403, "key-expired"));
    forge.assert_unchanged(&before).await;
    let good = forge.draft(&bob).item(&source());
    let bad = forge.draft(&alice).item(&source());
    refused_but_for(&forge, good, bad.sealed(), (403, "key-expired")).await;
}

#[tokio::test]
async fn key_not_for_cache() {
    let forge = Forge::start().await;
    forge.add_cache("other").await;
    let caches = Some(vec!["other".to_owned()]);
    let alice = forge.submitter_by(Invite { caches, ..Forge::invitation("alice") }).await;
    let bad = forge.draft(&alice).item(&source());
    let good = forge.draft(&forge.submitter("bob").await).item(&source());
    refused_but_for(&forge, good, bad.sealed(), (403, "key-not-for-cache")).await;
    let here = bad.with(|body| body.audience.cache = "other".into());
    forge.announce_raw("other", here.sealed()).await.expect("its own cache takes it");
}

/// Only submitters push.
#[rstest]
#[case(Role::Verifier)]
#[case(Role::Admin)]
#[tokio::test]
async fn key_of_another_role(#[case] role: Role) {
    let forge = Forge::start().await;
    let other = forge.submitter_by(Invite { role, ..Forge::invitation("other") }).await;
    let good = forge.draft(&forge.submitter("alice").await).item(&source());
    let bad = forge.draft(&other).item(&source());
    refused_but_for(&forge, good, bad.sealed(), (403, "forbidden")).await;
    let answer = forge.signed_get::<Vec<PushSummary>>(&other, "/api/v1/pushes", |_| {}).await;
    assert_eq!(code(answer), is(403, "forbidden"));
}
