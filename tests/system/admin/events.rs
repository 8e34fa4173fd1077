//! Events: what is recorded, how it is read, and that it stays.

use std::time::{Duration, Instant};

use pushgate_formats::acts::{Deed, Event, Events};
use pushgate_gateway::db::NewEvent;
use pushgate_tests::forge::{Forge, Submitter};

use super::*;

async fn page(forge: &Forge, by: &Submitter, query: &str) -> Vec<Event> {
    let page: Result<Events, _> = forge.signed_get(by, &format!("/api/v1/admin/events{query}"), |_| {}).await;
    page.expect("a page").events
}

#[tokio::test]
async fn everything_that_people_do_is_on_record() {
    let forge = Forge::start().await;
    let (ada, alice) = (forge.admin("ada").await, forge.submitter("alice").await);
    forge.token("alice").await;
    forge.act(&ada, Deed::Groups { name: "alice".into(), groups: vec!["core".into()] }).await.unwrap();
    forge.act(&ada, freeze("alice")).await.unwrap();
    forge.revoke(&alice.key).await;
    let events = forge.events(&ada).await;
    let said: Vec<_> = events
        .iter()
        .map(|e| (e.who.as_str(), e.kind.as_str(), e.subject.as_deref().unwrap_or(""), e.why.as_str()))
        .collect();
    assert_eq!(
        said,
        [
            ("gateway host", "invite", "ada", ""),
            ("ada", "enrolled", "ada", ""),
            ("gateway host", "invite", "alice", ""),
            ("alice", "enrolled", "alice", ""),
            ("gateway host", "make-token", "alice", ""),
            ("ada", "groups", "alice", "a test wants it"),
            ("ada", "freeze", "alice", "a test wants it"),
            ("gateway host", "revoke-key", "alice", ""),
        ]
    );
    assert!(events.windows(2).all(|pair| pair[0].id < pair[1].id && pair[0].time <= pair[1].time));
    assert_eq!(events[0].detail, "as admin, owner ada");
    assert_eq!(events[5].detail, "core");
    assert_eq!(events[3].key.as_deref(), Some(alice.key.name().as_str()));
    // what was signed is kept with it, and can be checked again
    let rows = forge.app.db.events(Some(0), None, 100).await.unwrap();
    let envelope = rows[6].event.envelope.as_ref().expect("the envelope");
    let envelope: pushgate_formats::dsse::Envelope = serde_json::from_slice(envelope).unwrap();
    let payload = envelope.unverified_payload(pushgate_formats::dsse::ACT).unwrap();
    envelope.verify(&payload, &ada.key.public()).unwrap();
    assert_eq!(rows[6].event.envelope.is_some(), rows[0].event.envelope.is_none());
}

/// The invite, and the key that came by it: the answer was lost, and the same key asks again.
#[tokio::test]
async fn an_enrolment_is_one_event() {
    let forge = Forge::start().await;
    let ada = forge.admin("ada").await;
    let code = forge.invite(Forge::invitation("alice")).await;
    let alice = Submitter::new("alice-1");
    forge.enrol(&alice.key, &code).await.unwrap();
    let before = forge.events(&ada).await.len();
    forge.enrol(&alice.key, &code).await.unwrap();
    assert_eq!(refused(forge.enrol(&Submitter::new("alice-2").key, &code).await), is(403, "invite-invalid"));
    assert_eq!(forge.events(&ada).await.len(), before);
}

#[tokio::test]
async fn pages() {
    let forge = Forge::start().await;
    let ada = forge.admin("ada").await;
    for n in 0..1100u64 {
        let cache = if n % 2 == 0 { "main" } else { "second" };
        let event = NewEvent { cache: Some(cache.into()), ..NewEvent::new(n, "gateway", "test") };
        forge.app.event(&event).await.unwrap();
    }
    let all = page(&forge, &ada, "?after=0").await;
    assert_eq!(all.len(), 1000, "a page");
    let rest = page(&forge, &ada, &format!("?after={}", all[999].id)).await;
    assert_eq!((rest.len(), rest[0].id), (102, all[999].id + 1));
    let newest = page(&forge, &ada, "").await;
    assert_eq!((newest.len(), newest[99].id), (100, rest[101].id));
    assert!(newest.is_sorted_by_key(|e| e.id));
    let second = page(&forge, &ada, "?after=0&cache=second").await;
    assert_eq!(second.len(), 550);
    assert!(second.iter().all(|e| e.cache.as_deref() == Some("second")));
    assert_eq!(page(&forge, &ada, "?cache=second").await.last().unwrap().id, second[549].id);
    assert!(page(&forge, &ada, "?cache=third").await.is_empty());
    assert!(page(&forge, &ada, "?after=18446744073709551615").await.is_empty());
    for query in ["?after=x", "?after=-1", "?wait=x"] {
        let url = format!("/api/v1/admin/events{query}");
        let answer: Result<Events, _> = forge.signed_get(&ada, &url, |_| {}).await;
        assert_eq!(refused(answer), is(400, "query-malformed"), "{query}");
    }
}

/// Whoever waits is told at once, and of what he asked for only.
#[tokio::test]
async fn waiting_ends_with_the_next_event() {
    let forge = Forge::start().await;
    let ada = forge.admin("ada").await;
    let last = forge.events(&ada).await.pop().unwrap().id;
    let query = format!("?after={last}&wait=30");
    let elsewhere = format!("?after={last}&wait=30&cache=main");
    let began = Instant::now();
    let (waited, elsewhere, done) =
        tokio::join!(page(&forge, &ada, &query), page(&forge, &ada, &elsewhere), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let done = forge.act(&ada, Deed::Groups { name: "ada".into(), groups: vec![] }).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            let event = NewEvent { cache: Some("main".into()), ..NewEvent::new(1, "gateway", "test") };
            forge.app.event(&event).await.unwrap();
            done
        });
    assert!(began.elapsed() < Duration::from_secs(20), "nobody waited for the end of the time");
    assert_eq!((waited.len(), waited[0].id), (1, done.event));
    assert_eq!((elsewhere.len(), elsewhere[0].kind.as_str()), (1, "test"));
    // nothing comes: the answer does
    let last = elsewhere[0].id;
    assert!(page(&forge, &ada, &format!("?after={last}&wait=1")).await.is_empty());
}

/// Not even the gateway's own database lets one be changed.
#[tokio::test]
async fn events_stay_as_they_were() {
    let forge = Forge::start().await;
    let ada = forge.admin("ada").await;
    let before = forge.events(&ada).await;
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(forge.dir().join("gateway.db"));
    let pool = sqlx::SqlitePool::connect_with(file).await.unwrap();
    for statement in [
        "UPDATE events SET why = 'other' WHERE id = 1",
        "DELETE FROM events",
        "DELETE FROM events WHERE id = 2",
    ] {
        let error = sqlx::query(statement).execute(&pool).await.unwrap_err().to_string();
        assert!(error.contains("events are never"), "{statement}: {error}");
    }
    assert_eq!(forge.events(&ada).await, before);
}
