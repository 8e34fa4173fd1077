//! Push tokens, signed read requests and invites in the wrong hands.

use pushgate_formats::{
    StorePath,
    api::{PathStatus, PushStatus, PushSummary, SignedRequest},
};
use pushgate_gateway::config::{Config, Limits};
use pushgate_tests::forge::{Forge, Item, POLICY, Submitter, framed, random_hex};
use rstest::rstest;

use super::{code, is, source};

#[tokio::test]
async fn forbidden_with_the_token_of_another_push() {
    let forge = Forge::start().await;
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    let (a, b) = (source(), source());
    let (draft_a, draft_b) = (forge.draft(&alice).item(&a), forge.draft(&mallory).item(&b));
    let push_a = forge.announce(&draft_a).await.unwrap();
    let push_b = forge.announce(&draft_b).await.unwrap();
    let before = forge.snapshot().await;
    let id = &push_a.status.push;
    let none = [] as [(&StorePath, &Vec<u8>); 0];
    for token in [push_b.token.as_str(), "", "AAAA", &push_a.token[1..], id] {
        let body = framed(&a.nar_hash, &a.nar, true);
        assert_eq!(code(forge.upload(id, token, body).await), is(403, "forbidden"), "{token}");
        assert_eq!(code(forge.send_derivations(id, token, none).await), is(403, "forbidden"));
        let asked = code(forge.status_by(id, token, "").await);
        assert!([is(403, "forbidden"), is(401, "unauthenticated")].contains(&asked), "{token}: {asked:?}");
    }
    // a push that there is not can't be told from another's
    let answer = forge.status_by(&"0".repeat(24), &push_b.token, "").await;
    assert_eq!(code(answer), is(403, "forbidden"));
    forge.assert_unchanged(&before).await;
    forge.complete(&draft_a, push_a).await.assert_published(&a.path);
    forge.complete(&draft_b, push_b).await.assert_published(&b.path);
}

#[tokio::test]
async fn forbidden_after_the_push_has_ended() {
    let forge = Forge::start().await;
    let item = source();
    let pushed = forge.push(&forge.draft(&forge.submitter("alice").await).item(&item)).await;
    pushed.assert_published(&item.path);
    let before = forge.snapshot().await;
    let (id, token) = (&pushed.announced.status.push, &pushed.announced.token);
    let body = framed(&item.nar_hash, &item.nar, true);
    assert_eq!(code(forge.upload(id, token, body).await), is(403, "forbidden"));
    let none = [] as [(&StorePath, &Vec<u8>); 0];
    assert_eq!(code(forge.send_derivations(id, token, none).await), is(403, "forbidden"));
    forge.assert_unchanged(&before).await;
    forge.status(&pushed.announced, "").await.expect("it can still be asked about");
}

/// A push that ran out takes nothing any more.
#[tokio::test]
async fn forbidden_after_the_push_ran_out() {
    let policy = format!("{POLICY}[limits]\nquarantine-ttl = \"1h\"\n");
    let forge = Forge::start_with(&policy, Config::default()).await;
    let item = source();
    let push = forge.announce(&forge.draft(&forge.submitter("alice").await).item(&item)).await.unwrap();
    let before = forge.snapshot().await;
    forge.clock.advance(3601);
    forge.sweep().await;
    let body = framed(&item.nar_hash, &item.nar, true);
    assert_eq!(code(forge.upload(&push.status.push, &push.token, body).await), is(403, "forbidden"));
    let status = forge.status(&push, "").await.unwrap();
    assert_eq!(status.paths[0].code.as_deref(), Some("push-expired"));
    forge.assert_unchanged(&before).await;
}

#[tokio::test]
async fn not_found_is_what_another_submitter_sees() {
    let forge = Forge::start().await;
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    let held = Item::text("held", b"", &[&source().path]);
    let pushed = forge.push(&forge.draft(&alice).item(&held)).await;
    pushed.assert_held(&held.path, "closure-open");
    let push = format!("/api/v1/pushes/{}", pushed.announced.status.push);
    let path = format!("/api/v1/caches/main/paths/{}", held.path.base_name());

    let own: PushStatus = forge.signed_get(&alice, &push, |_| {}).await.unwrap();
    assert_eq!(own.paths, pushed.status.paths);
    let own: PathStatus = forge.signed_get(&alice, &path, |_| {}).await.unwrap();
    assert_eq!(own, pushed.status.paths[0]);
    let own: Vec<PushSummary> = forge.signed_get(&alice, "/api/v1/pushes", |_| {}).await.unwrap();
    assert_eq!(own.len(), 1);

    assert_eq!(code(forge.signed_get::<PushStatus>(&mallory, &push, |_| {}).await), is(404, "not-found"));
    assert_eq!(code(forge.signed_get::<PathStatus>(&mallory, &path, |_| {}).await), is(404, "not-found"));
    let own: Vec<PushSummary> = forge.signed_get(&mallory, "/api/v1/pushes", |_| {}).await.unwrap();
    assert!(own.is_empty());
    let stranger = Submitter::new("stranger");
    assert_eq!(code(forge.signed_get::<PushStatus>(&stranger, &push, |_| {}).await), is(401, "key-unknown"));
    // the owner's name with another's key
    let named = Submitter::new(alice.key.name().as_str());
    let answer = forge.signed_get::<PushStatus>(&named, &push, |_| {}).await;
    assert_eq!(code(answer), is(401, "request-signature-invalid"));
    forge.revoke(&alice.key).await;
    assert_eq!(code(forge.signed_get::<PushStatus>(&alice, &push, |_| {}).await), is(403, "key-revoked"));
}

/// A signed read request is good for one gateway, method and path, and for a short time.
#[rstest]
#[case::method(|r: &mut SignedRequest| r.method = "POST".into(), 401, "request-signature-invalid")]
#[case::path(|r: &mut SignedRequest| r.path = "/api/v1/pushes/1".into(), 401, "request-signature-invalid")]
#[case::query(|r: &mut SignedRequest| r.path.push_str("?wait=1"), 401, "request-signature-invalid")]
#[case::gateway(|r: &mut SignedRequest| r.gateway = random_hex(), 403, "audience-mismatch")]
#[case::expired(
    |r: &mut SignedRequest| { r.issued -= 100; r.expires -= 100 }, 401, "request-signature-invalid"
)]
#[case::too_long(|r: &mut SignedRequest| r.expires = r.issued + 301, 401, "request-signature-invalid")]
#[case::from_the_future(
    |r: &mut SignedRequest| { r.issued += 400; r.expires += 400 }, 401, "request-signature-invalid"
)]
#[tokio::test]
async fn request_signature_invalid(
    #[case] bend: fn(&mut SignedRequest),
    #[case] status: u16,
    #[case] expected: &str,
) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let answer = forge.signed_get::<Vec<PushSummary>>(&alice, "/api/v1/pushes", bend).await;
    assert_eq!(code(answer), is(status, expected));
    forge.signed_get::<Vec<PushSummary>>(&alice, "/api/v1/pushes", |_| {}).await.expect("as it should be");
}

#[tokio::test]
async fn invite_invalid() {
    let forge = Forge::start().await;
    let invite = forge.invite(Forge::invitation("alice")).await;
    forge.enrol(&Submitter::new("alice-1").key, &invite).await.expect("the first use");
    let keys = forge.app.db.keys().await.unwrap().len();

    let used = forge.enrol(&Submitter::new("alice-2").key, &invite).await;
    let guessed = forge.enrol(&Submitter::new("alice-3").key, &random_hex()).await;
    let empty = forge.enrol(&Submitter::new("alice-4").key, "").await;
    let late = forge.invite(Forge::invitation("bob")).await;
    forge.clock.advance(3600);
    let expired = forge.enrol(&Submitter::new("bob-1").key, &late).await;
    // one who has no invite doesn't learn which names and keys there are
    let taken = forge.enrol(&Submitter::new("alice-1").key, "guessed").await;
    let answers = [used, guessed, empty, expired, taken];
    for answer in &answers {
        // told apart, they would say which codes there were
        assert_eq!(answer, &answers[0]);
    }
    assert_eq!(code(answers[0].clone()), is(403, "invite-invalid"));
    assert_eq!(forge.app.db.keys().await.unwrap().len(), keys);
}

#[tokio::test]
async fn invite_attempts() {
    let limits = Limits { invite_attempts: 3, ..Limits::default() };
    let forge = Forge::start_with(POLICY, Config { limits, ..Config::default() }).await;
    // attempts are counted by the minute: begin with one
    forge.clock.advance(60 - forge.clock.now() % 60);
    let invite = forge.invite(Forge::invitation("alice")).await;
    let alice = Submitter::new("alice-1");
    for _ in 0..3 {
        assert_eq!(code(forge.enrol(&alice.key, &random_hex()).await), is(403, "invite-invalid"));
    }
    assert_eq!(code(forge.enrol(&alice.key, &random_hex()).await), is(429, "invite-attempts"));
    assert!(forge.app.db.keys().await.unwrap().is_empty());
    // whoever guesses can't keep out those who were invited
    forge.enrol(&alice.key, &invite).await.expect("a good invite is good over the limit too");
    forge.clock.advance(60);
    assert_eq!(code(forge.enrol(&alice.key, &random_hex()).await), is(403, "invite-invalid"));
}
