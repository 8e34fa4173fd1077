//! Evidence that comes by itself: other submitters, upstreams.

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};

use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use pushgate_formats::{StorePath, api::PathState, keys::SecretKey, narinfo::fingerprint};
use pushgate_tests::forge::Submitter;

use super::*;

fn two_submitters() -> String {
    format!("{HEAD}{}", rule("lib", r#"{ all = ["derivation", { submitters = 2 }] }"#))
}

/// Owners count, not identities; and only who has sent the bytes.
#[tokio::test]
async fn submitters_are_counted_by_owner() {
    let forge = start(&two_submitters()).await;
    let alice = owned(&forge, "alice", Some("alice")).await;
    let laptop = owned(&forge, "alice-laptop", Some("alice")).await;
    let nobody = owned(&forge, "nobody", None).await;
    let bob = owned(&forge, "bob", Some("bob")).await;
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut first = forge.push(&forge.draft(&alice).package(&lib)).await;
    first.assert_held(lib.path(), "needs-submitters");
    assert_eq!(first.of(lib.path()).waits_for, ["2 submitters (1 of 2)"]);
    for other in [&laptop, &nobody] {
        forge.push(&forge.draft(other).package(&lib)).await.assert_held(lib.path(), "needs-submitters");
    }
    // he says the same, and hasn't sent it
    let said = forge.announce(&forge.draft(&bob).package(&lib)).await.expect("an announcement");
    assert_eq!(said.status.wanted, [lib.out().nar_hash]);
    stays(&forge, &mut first, lib.path(), PathState::Held, Some("needs-submitters")).await;
    forge.assert_nothing_public(&before).await;
    forge.complete(&forge.draft(&bob).package(&lib), said).await.assert_published(lib.path());
    forge.becomes(&mut first, lib.path(), PathState::Published, None).await;
    forge.assert_published_only(&before, &[lib.path()]).await;
}

/// A second submitter with other contents is a conflict, and no second.
#[tokio::test]
async fn submitters_have_to_say_the_same() {
    let forge = start(&two_submitters()).await;
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    let lib = package("lib");
    let evil = lib.out_mentioning("evil", &[]);
    let before = forge.snapshot().await;
    forge.push(&forge.draft(&alice).package(&lib)).await.assert_held(lib.path(), "needs-submitters");
    let second = forge.push(&forge.draft(&mallory).item(&evil).derivations(&lib)).await;
    second.assert_held(lib.path(), "conflicts-with-claim");
    forge.assert_nothing_public(&before).await;
}

/// A cache that serves one narinfo, signed, or answers with a status.
struct Upstream {
    url: String,
    status: Arc<AtomicU16>,
}

impl Upstream {
    async fn serving(path: &StorePath, item: &pushgate_tests::forge::Item, key: &SecretKey) -> Self {
        let said = fingerprint(path, &item.nar_hash, item.nar.len() as u64, &Default::default());
        let signature = key.sign(said.as_bytes());
        let text = format!(
            "StorePath: {path}\nURL: nar/x.nar\nCompression: none\nNarHash: {}\nNarSize: {}\nReferences: \nSig: {signature}\n",
            item.nar_hash,
            item.nar.len(),
        );
        let status = Arc::new(AtomicU16::new(200));
        let state = (status.clone(), format!("{}.narinfo", path.hash_part()), text);
        async fn answer(
            State((status, name, text)): State<(Arc<AtomicU16>, String, String)>,
            Path(file): Path<String>,
        ) -> Response {
            let status = StatusCode::from_u16(status.load(Ordering::Relaxed)).unwrap();
            match (status, file == name) {
                (StatusCode::OK, true) => text.into_response(),
                (StatusCode::OK, false) => StatusCode::NOT_FOUND.into_response(),
                (status, _) => status.into_response(),
            }
        }
        let router = axum::Router::new().route("/{file}", axum::routing::get(answer)).with_state(state);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, status }
    }

    fn policy(&self, key: &SecretKey) -> String {
        let (url, key) = (&self.url, key.public());
        format!(
            "version = 1\ncache = \"main\"\nclosure = \"self-contained\"\n[[upstream]]\nurl = \"{url}\"\nkey = \"{key}\"\n{}",
            rule("lib", r#"{ all = ["derivation", "upstream"] }"#)
        )
    }
}

#[tokio::test]
async fn an_upstream_with_the_same_hash_satisfies() {
    let key = Submitter::new("upstream-1").key;
    let (lib, other, evil) = (package("lib"), package("lib"), package("lib"));
    let has = Upstream::serving(lib.path(), lib.out(), &key).await;
    let forge = start(&has.policy(&key)).await;
    let alice = forge.submitter("alice").await;
    let before = forge.snapshot().await;
    forge.push(&forge.draft(&alice).package(&lib)).await.assert_published(lib.path());
    // one that it hasn't
    let push = forge.push(&forge.draft(&alice).package(&other)).await;
    push.assert_held(other.path(), "needs-upstream");
    forge.assert_published_only(&before, &[lib.path()]).await;
    // its word counts by the pinned key alone
    let liar = Upstream::serving(evil.path(), evil.out(), &Submitter::new("upstream-1").key).await;
    assert!(edit(&forge, &liar.policy(&key)).await);
    let push = forge.push(&forge.draft(&alice).package(&evil)).await;
    push.assert_held(evil.path(), "needs-upstream");
    forge.assert_published_only(&before, &[lib.path()]).await;
}

#[tokio::test]
async fn an_upstream_with_another_hash_is_a_conflict() {
    let key = Submitter::new("upstream-1").key;
    let lib = package("lib");
    let has = Upstream::serving(lib.path(), &lib.out_mentioning("theirs", &[]), &key).await;
    let forge = start(&has.policy(&key)).await;
    let alice = forge.submitter("alice").await;
    let before = forge.snapshot().await;
    let push = forge.push(&forge.draft(&alice).package(&lib)).await;
    push.assert_held(lib.path(), "conflicts-with-upstream");
    forge.assert_nothing_public(&before).await;
}

/// A fault is neither yes nor no, and is asked again.
#[tokio::test]
async fn an_upstream_that_cannot_be_asked_says_nothing() {
    let key = Submitter::new("upstream-1").key;
    let lib = package("lib");
    let has = Upstream::serving(lib.path(), lib.out(), &key).await;
    has.status.store(500, Ordering::Relaxed);
    let forge = start(&has.policy(&key)).await;
    let alice = forge.submitter("alice").await;
    let before = forge.snapshot().await;
    let mut push = forge.push(&forge.draft(&alice).package(&lib)).await;
    push.assert_held(lib.path(), "needs-upstream");
    has.status.store(200, Ordering::Relaxed);
    // it is left alone for a while
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-upstream")).await;
    forge.assert_nothing_public(&before).await;
    forge.clock.advance(62);
    pushgate_gateway::push::recover::judge_due(&forge.app).await.unwrap();
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
}

/// What a claim is to be looked at again for stands through an edit that has another rule ask the same.
#[tokio::test]
async fn an_upstream_is_asked_again_after_an_edit_too() {
    let key = Submitter::new("upstream-1").key;
    let lib = package("lib");
    let has = Upstream::serving(lib.path(), lib.out(), &key).await;
    has.status.store(500, Ordering::Relaxed);
    let forge = start(&has.policy(&key)).await;
    let alice = forge.submitter("alice").await;
    let mut push = forge.push(&forge.draft(&alice).package(&lib)).await;
    push.assert_held(lib.path(), "needs-upstream");
    // the enrolments are looked at, which has the push judged
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    forge.app.sessions.forget(&push.announced.status.push);
    assert!(edit(&forge, &has.policy(&key).replace("for lib", "for the lib")).await);
    forge.app.caches.all()[0].judged_again().await;
    has.status.store(200, Ordering::Relaxed);
    forge.clock.advance(62);
    pushgate_gateway::push::recover::judge_due(&forge.app).await.unwrap();
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
}

/// Whoever claims what another has sent learns nothing of it by asking why.
#[tokio::test]
async fn why_tells_nobody_what_others_have_sent() {
    let forge = start(&two_submitters()).await;
    let (alice, mallory, admin) =
        (forge.submitter("alice").await, forge.submitter("mallory").await, forge.admin("ada").await);
    let lib = package("lib");
    forge.push(&forge.draft(&alice).package(&lib)).await.assert_held(lib.path(), "needs-submitters");
    forge.announce(&forge.draft(&mallory).package(&lib)).await.expect("an announcement");
    let target = format!("/api/v1/caches/main/paths/{}/why", lib.path().base_name());
    let told = async |by: &Submitter| -> Vec<String> {
        let why: pushgate_policies::review::Why = forge.signed_get(by, &target, |_| {}).await.expect("why");
        why.claims.iter().flat_map(|one| &one.claim.evidence).map(|e| e.by.clone()).collect()
    };
    assert_eq!(told(&mallory).await, [] as [&str; 0]);
    assert_eq!(told(&alice).await, ["alice"]);
    assert_eq!(told(&admin).await, ["alice", "alice"]);
}
