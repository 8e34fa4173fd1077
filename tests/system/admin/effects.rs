//! What each act does.

use pushgate_formats::{
    acts::Deed,
    api::{PathState, PushSummary, Role},
};
use pushgate_gateway::db::EnrolledKey;
use pushgate_tests::forge::{Forge, StockUser, Submitter, random_hex, sealed_act};

use super::*;

async fn key(forge: &Forge, submitter: &Submitter) -> EnrolledKey {
    forge.app.db.key_named(submitter.key.name()).await.unwrap().expect("an enrolled key")
}

#[tokio::test]
async fn an_invite_lets_one_key_in() {
    let forge = Forge::start().await;
    let ada = forge.admin("ada").await;
    let (code, until) = (random_hex(), forge.clock.now() + 100);
    let done = forge.act(&ada, invite("alice", Role::Submitter, &code, until)).await.unwrap();
    assert_eq!(done.changed, 1);
    let alice = Submitter::new("alice-1");
    let enrolled = forge.enrol(&alice.key, &code).await.expect("the invite is good");
    assert_eq!((enrolled.submitter.as_str(), enrolled.role.as_str()), ("alice", "submitter"));
    assert_eq!(refused(forge.enrol(&Submitter::new("alice-2").key, &code).await), is(403, "invite-invalid"));
    let item = source();
    forge.push(&forge.draft(&alice).item(&item)).await.assert_published(&item.path);

    let info = forge.identity(&ada, "alice").await;
    assert_eq!((info.role, info.frozen, info.tokens), (Role::Submitter, false, 0));
    assert_eq!((info.owner.as_deref(), info.groups), (Some("alice@example.org"), vec!["core".to_owned()]));
    assert_eq!(info.keys.len(), 1);
    assert_eq!(info.keys[0].key, alice.key.public().to_string());
    assert!(info.last_push.is_some());

    // one that runs out
    let code = random_hex();
    forge.act(&ada, invite("bob", Role::Submitter, &code, forge.clock.now() + 10)).await.unwrap();
    forge.clock.advance(10);
    assert_eq!(refused(forge.enrol(&Submitter::new("bob-1").key, &code).await), is(403, "invite-invalid"));
}

#[tokio::test]
async fn an_admin_makes_another() {
    let forge = Forge::start().await;
    let ada = forge.admin("ada").await;
    let (code, until) = (random_hex(), forge.clock.now() + 100);
    forge.act(&ada, invite("grace", Role::Admin, &code, until)).await.unwrap();
    let grace = Submitter::new("grace-1");
    forge.enrol(&grace.key, &code).await.unwrap();
    forge.submitter("alice").await;
    forge.act(&grace, freeze("alice")).await.expect("an admin like the first");
    let events = forge.events(&grace).await;
    let last = events.last().unwrap();
    assert_eq!((last.who.as_str(), last.kind.as_str()), ("grace", "freeze"));
    assert_eq!((last.subject.as_deref(), last.key.as_deref()), (Some("alice"), Some("grace-1")));
    assert_eq!(last.why, "a test wants it");
}

/// A code for a known name adds a key; whose it is, and whom he vouches for, stays.
#[tokio::test]
async fn an_invite_for_a_known_name_adds_a_key() {
    let forge = Forge::start().await;
    let (ada, alice) = (forge.admin("ada").await, forge.submitter("alice").await);
    let (code, until) = (random_hex(), forge.clock.now() + 100);
    forge.act(&ada, invite("alice", Role::Submitter, &code, until)).await.unwrap();
    let second = Submitter::new("alice-second");
    forge.enrol(&second.key, &code).await.unwrap();
    assert_eq!(key(&forge, &alice).await.identity, key(&forge, &second).await.identity);
    let info = forge.identity(&ada, "alice").await;
    assert_eq!((info.keys.len(), info.owner.as_deref(), info.groups.len()), (2, Some("alice"), 0));
}

#[tokio::test]
async fn groups_and_owner_are_set() {
    let forge = Forge::start().await;
    let (ada, alice) = (forge.admin("ada").await, forge.submitter("alice").await);
    let groups = |groups: &[&str]| Deed::Groups {
        name: "alice".into(),
        groups: groups.iter().map(|g| (*g).to_owned()).collect(),
    };
    assert_eq!(forge.act(&ada, groups(&["core", "ci"])).await.unwrap().changed, 1);
    assert_eq!(forge.act(&ada, groups(&["core", "ci"])).await.unwrap().changed, 0);
    assert_eq!(forge.identity(&ada, "alice").await.groups, ["core", "ci"]);
    forge.act(&ada, groups(&[])).await.unwrap();
    assert!(forge.identity(&ada, "alice").await.groups.is_empty());

    let owner = |owner: Option<&str>| Deed::Owner { name: "alice".into(), owner: owner.map(str::to_owned) };
    forge.act(&ada, owner(Some("team@example.org"))).await.unwrap();
    assert_eq!(key(&forge, &alice).await.owner.as_deref(), Some("team@example.org"));
    assert_eq!(forge.act(&ada, owner(None)).await.unwrap().changed, 1);
    assert_eq!(key(&forge, &alice).await.owner, None);
}

/// Announcing, sending and publishing all stop, and go on where they stopped.
#[tokio::test]
async fn freezing_holds_everything_until_it_ends() {
    let forge = Forge::start().await;
    let (ada, alice, bob) =
        (forge.admin("ada").await, forge.submitter("alice").await, forge.submitter("bob").await);
    let (needed, waiting) = pair();
    let mut held = forge.push(&forge.draft(&alice).item(&waiting)).await;
    held.assert_held(&waiting.path, "closure-open");
    let late = source();
    let begun_draft = forge.draft(&alice).item(&late);
    let begun = forge.announce(&begun_draft).await.unwrap();

    forge.act(&ada, freeze("alice")).await.unwrap();
    // judged again without anything else happening
    forge.becomes(&mut held, &waiting.path, PathState::Held, Some("identity-frozen")).await;
    let before = forge.snapshot().await;
    assert_eq!(
        refused(forge.announce(&forge.draft(&alice).item(&source())).await),
        is(403, "identity-frozen")
    );
    let body = pushgate_tests::forge::framed(&late.nar_hash, &late.nar, true);
    assert_eq!(
        refused(forge.upload(&begun.status.push, &begun.token, body).await),
        is(403, "identity-frozen")
    );
    forge.assert_unchanged(&before).await;
    // what he waited for comes, from somebody else
    forge.push(&forge.draft(&bob).item(&needed)).await.assert_published(&needed.path);
    forge.becomes(&mut held, &waiting.path, PathState::Held, Some("identity-frozen")).await;
    forge.assert_published_only(&before, &[&needed.path]).await;
    // he may still see why
    let own: Vec<PushSummary> = forge.signed_get(&alice, "/api/v1/pushes", |_| {}).await.unwrap();
    assert_eq!(own.len(), 2);
    assert!(forge.identity(&ada, "alice").await.frozen);

    forge.act(&ada, unfreeze("alice")).await.unwrap();
    forge.becomes(&mut held, &waiting.path, PathState::Published, None).await;
    forge.complete(&begun_draft, begun).await.assert_published(&late.path);
    assert!(!forge.identity(&ada, "alice").await.frozen);
    assert_eq!(forge.act(&ada, unfreeze("alice")).await.unwrap().changed, 0);
}

#[tokio::test]
async fn a_frozen_submitter_stays_so_over_a_restart() {
    let mut forge = Forge::start().await;
    let (ada, alice, bob) =
        (forge.admin("ada").await, forge.submitter("alice").await, forge.submitter("bob").await);
    let (needed, waiting) = pair();
    let mut held = forge.push(&forge.draft(&alice).item(&waiting)).await;
    forge.act(&ada, freeze("alice")).await.unwrap();
    forge = forge.restart().await;
    forge.push(&forge.draft(&bob).item(&needed)).await.assert_published(&needed.path);
    forge.becomes(&mut held, &waiting.path, PathState::Held, Some("identity-frozen")).await;
    forge.act(&ada, unfreeze("alice")).await.unwrap();
    forge.becomes(&mut held, &waiting.path, PathState::Published, None).await;
}

#[tokio::test]
async fn a_revoked_key_ends_its_pushes_and_tokens() {
    let forge = Forge::start().await;
    let (ada, alice) = (forge.admin("ada").await, forge.stock_user("alice").await);
    let (_, waiting) = pair();
    let mut held = forge.push(&forge.draft(&alice.submitter).item(&waiting)).await;
    let before = forge.snapshot().await;
    let deed = Deed::RevokeKey { key: alice.submitter.key.name().clone() };
    assert_eq!(forge.act(&ada, deed.clone()).await.unwrap().changed, 1);
    forge.becomes(&mut held, &waiting.path, PathState::Rejected, Some("key-revoked")).await;
    assert_eq!(refused(forge.put(&alice, "debuginfo/00.debug", "{}").await), is(401, "token-revoked"));
    forge.assert_nothing_public(&before).await;
    let info = forge.identity(&ada, "alice").await;
    let revoked = info.keys[0].revoked;
    assert!(revoked.is_some() && info.tokens == 0);
    // once is enough, and the time stays
    forge.clock.advance(5);
    assert_eq!(forge.act(&ada, deed).await.unwrap().changed, 0);
    assert_eq!(forge.identity(&ada, "alice").await.keys[0].revoked, revoked);
    let last = forge.events(&ada).await.pop().unwrap();
    assert_eq!((last.kind.as_str(), last.subject.as_deref()), ("revoke-key", Some("alice")));
    assert!(last.detail.contains(alice.submitter.key.name().as_str()), "{}", last.detail);
}

/// The old key is good until the grace is over, the new one from the start, and both are of one identity.
#[tokio::test]
async fn a_key_is_rotated() {
    let forge = Forge::start().await;
    let (ada, old) = (forge.admin("ada").await, forge.submitter("alice").await);
    let (code, now) = (random_hex(), forge.clock.now());
    let rotate = |old_expires| Deed::Rotate {
        key: old.key.name().clone(),
        code: Sha256::of(code.as_bytes()),
        code_expires: now + 1000,
        old_expires,
        key_expires: Some(now + 9000),
    };
    forge.act(&ada, rotate(now + 500)).await.unwrap();
    let new = Submitter::new("alice-new");
    forge.enrol(&new.key, &code).await.unwrap();
    assert_eq!(key(&forge, &old).await.identity, key(&forge, &new).await.identity);
    assert_eq!(key(&forge, &new).await.expires, Some(now + 9000));
    assert_eq!(key(&forge, &new).await.owner.as_deref(), Some("alice"));
    for by in [&old, &new] {
        let item = source();
        forge.push(&forge.draft(by).item(&item)).await.assert_published(&item.path);
    }
    // another rotation doesn't give it more time
    let later = Deed::Rotate {
        key: old.key.name().clone(),
        code: Sha256::of(b"another"),
        code_expires: now + 1000,
        old_expires: now + 5000,
        key_expires: None,
    };
    assert_eq!(forge.act(&ada, later).await.unwrap().changed, 0);
    assert_eq!(key(&forge, &old).await.expires, Some(now + 500));
    forge.clock.advance(500);
    assert_eq!(refused(forge.announce(&forge.draft(&old).item(&source())).await), is(403, "key-expired"));
    let item = source();
    forge.push(&forge.draft(&new).item(&item)).await.assert_published(&item.path);
}

#[tokio::test]
async fn tokens_are_made_listed_and_revoked() {
    let forge = Forge::start().await;
    forge.add_cache("second").await;
    let (ada, alice) = (forge.admin("ada").await, forge.submitter("alice").await);
    let make = |token: &str, cache: &str, token_expires| Deed::MakeToken {
        name: "alice".into(),
        cache: cache.into(),
        token: Sha256::of(token.as_bytes()),
        token_expires,
    };
    let user =
        |token: &str| StockUser { submitter: alice.clone(), login: "alice".into(), token: token.to_owned() };
    let put = async |token: &str| forge.put(&user(token), "debuginfo/00.debug", "{}").await;
    let soon = Some(forge.clock.now() + 50);
    let tokens: Vec<String> = (0..4).map(|_| random_hex()).collect();
    for (token, expires) in tokens[..3].iter().zip([None, None, soon]) {
        forge.act(&ada, make(token, "main", expires)).await.unwrap();
        put(token).await.expect("the token is good");
    }
    forge.act(&ada, make(&tokens[3], "second", None)).await.unwrap();
    assert_eq!(refused(put(&tokens[3]).await), is(401, "token-not-for-cache"));
    assert_eq!(forge.identity(&ada, "alice").await.tokens, 4);
    forge.clock.advance(50);
    assert_eq!(refused(put(&tokens[2]).await), is(401, "token-expired"));
    assert_eq!(forge.identity(&ada, "alice").await.tokens, 3);

    let revoke = |token: Option<&str>| Deed::RevokeToken {
        name: "alice".into(),
        token: token.map(|t| Sha256::of(t.as_bytes())),
    };
    assert_eq!(forge.act(&ada, revoke(Some(&tokens[0]))).await.unwrap().changed, 1);
    assert_eq!(refused(put(&tokens[0]).await), is(401, "token-revoked"));
    put(&tokens[1]).await.expect("the others stay");
    assert!(forge.act(&ada, revoke(None)).await.unwrap().changed >= 2);
    assert_eq!(refused(put(&tokens[1]).await), is(401, "token-revoked"));
    assert_eq!(forge.identity(&ada, "alice").await.tokens, 0);
    let listed: Vec<pushgate_formats::acts::TokenInfo> =
        forge.signed_get(&ada, "/api/v1/admin/tokens?name=alice", |_| {}).await.unwrap();
    assert!(listed.iter().all(|t| t.name == "alice" && (t.revoked.is_some() || t.expires.is_some())));
    let none: Vec<pushgate_formats::acts::TokenInfo> =
        forge.signed_get(&ada, "/api/v1/admin/tokens?name=nobody", |_| {}).await.unwrap();
    assert!(none.is_empty());
}

/// The answer got lost, and the client sends the same bytes again; perhaps many times at once, perhaps much later.
#[tokio::test]
async fn the_same_envelope_is_one_act() {
    let mut forge = Forge::start().await;
    let ada = forge.admin("ada").await;
    let code = random_hex();
    let act = forge.draft_act(invite("alice", Role::Submitter, &code, forge.clock.now() + 10_000));
    let body = sealed_act(&act, &ada.key);
    let before = forge.events(&ada).await.len();
    let answers = futures_util::future::join_all((0..8).map(|_| forge.act_raw(body.clone()))).await;
    let first = answers[0].clone().unwrap();
    assert!(answers.iter().all(|answer| *answer == Ok(first.clone())), "{answers:?}");
    forge.clock.advance(4000);
    forge = forge.restart().await;
    assert_eq!(forge.act_raw(body.clone()).await, Ok(first), "also after its time");
    assert_eq!(forge.events(&ada).await.len(), before + 1);
    forge.enrol(&Submitter::new("alice-1").key, &code).await.expect("the invite is there, once");
    // and its repetition lets nobody else in
    forge.act_raw(body).await.unwrap();
    assert_eq!(refused(forge.enrol(&Submitter::new("alice-2").key, &code).await), is(403, "invite-invalid"));
}
