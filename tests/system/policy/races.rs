//! What is said while a judgement is under way: looking things up takes time, and what was answered meanwhile counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{extract::State, http::StatusCode};
use pushgate_formats::{acts::Deed, api::PathState};

use super::*;

/// An upstream that has nothing, and takes its time to say so.
struct Slow {
    url: String,
    asked: Arc<AtomicUsize>,
}

impl Slow {
    async fn start() -> Self {
        async fn answer(State(asked): State<Arc<AtomicUsize>>) -> StatusCode {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1500)).await;
            StatusCode::NOT_FOUND
        }
        let asked = Arc::new(AtomicUsize::new(0));
        let router = axum::Router::new().fallback(answer).with_state(asked.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, asked }
    }

    /// A policy that publishes what is proven, whatever the upstream says, and asks it all the same.
    fn policy(&self) -> String {
        let (url, key) = (&self.url, Submitter::new("upstream-1").key.public());
        format!(
            "version = 1\ncache = \"main\"\nclosure = \"self-contained\"\n[[upstream]]\nurl = \"{url}\"\nkey = \"{key}\"\n{}",
            rule("lib", r#"{ any = ["derivation", "upstream"] }"#)
        )
    }

    /// Resolves when a judgement waits for it.
    async fn is_asked(&self) {
        while self.asked.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn a_refusal_in_the_middle_of_a_judgement_counts() {
    let slow = Slow::start().await;
    let forge = start(&slow.policy()).await;
    let (alice, admin) = (forge.submitter("alice").await, forge.admin("ada").await);
    let lib = package("lib");
    let before = forge.snapshot().await;
    let draft = forge.draft(&alice).package(&lib);
    let refusing = async {
        slow.is_asked().await;
        forge.act(&admin, reject(&lib)).await.expect("a refusal")
    };
    let (mut push, done) = tokio::join!(forge.push(&draft), refusing);
    assert_eq!(done.changed, 1);
    forge.becomes(&mut push, lib.path(), PathState::Rejected, Some("refused-by-admin")).await;
    forge.assert_nothing_public(&before).await;
}

#[tokio::test]
async fn a_freeze_in_the_middle_of_a_judgement_counts() {
    let slow = Slow::start().await;
    let forge = start(&slow.policy()).await;
    let (alice, admin) = (forge.submitter("alice").await, forge.admin("ada").await);
    let lib = package("lib");
    let before = forge.snapshot().await;
    let draft = forge.draft(&alice).package(&lib);
    let freezing = async {
        slow.is_asked().await;
        forge.act(&admin, Deed::Freeze { name: "alice".into() }).await.expect("a freeze")
    };
    let (mut push, _) = tokio::join!(forge.push(&draft), freezing);
    forge.becomes(&mut push, lib.path(), PathState::Held, Some("identity-frozen")).await;
    forge.assert_nothing_public(&before).await;
}

#[tokio::test]
async fn a_policy_in_the_middle_of_a_judgement_decides() {
    let slow = Slow::start().await;
    let forge = start(&slow.policy()).await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    let before = forge.snapshot().await;
    let draft = forge.draft(&alice).package(&lib);
    let editing = async {
        slow.is_asked().await;
        let denied = "[[rule]]\nname = \"no lib\"\nmatch = { pname = \"lib\" }\ndeny = \"we have another\"\n";
        assert!(edit(&forge, &format!("{HEAD}{denied}{REST}")).await);
    };
    let (mut push, ()) = tokio::join!(forge.push(&draft), editing);
    forge.becomes(&mut push, lib.path(), PathState::Rejected, Some("not-permitted")).await;
    forge.assert_nothing_public(&before).await;
}
