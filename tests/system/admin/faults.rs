//! A fault at the one write of an act: failed and not stored, failed but stored, killed before and after it. The same
//! envelope again is answered in the end, and was carried out once.

use std::sync::Arc;

use pushgate_formats::acts::ActDone;
use pushgate_gateway::clock::Clock;
use pushgate_tests::{
    faults::{After, At, Fault, Kind, Life, OwnPushes},
    forge::{Forge, sealed_act},
};
use rstest::rstest;

use super::*;

#[rstest]
#[case(Kind::NotStored)]
#[case(Kind::Stored)]
#[case(Kind::KilledBefore)]
#[case(Kind::KilledAfter)]
#[tokio::test]
async fn an_act_is_carried_out_whole_or_not_at_all(#[case] kind: Kind) {
    let forge = Forge::start().await;
    let ada = forge.admin("ada").await;
    forge.submitter("alice").await;
    let body = sealed_act(&forge.draft_act(freeze("alice")), &ada.key);
    let recorded = forge.app.db.events(Some(0), None, 100).await.unwrap().len();
    let dir = forge.stop().await;

    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
    let nobody = || Arc::new(OwnPushes::new(http.clone(), vec![], After::GoOn));
    let fault = Fault { at: At::Call("act", 0), kind };
    let (faults, life) = Life::begin(dir.path(), &Clock::default(), Some(fault), nobody()).await;
    let Ok(mut life) = life else { panic!("it starts") };
    let send = async |url: &str| {
        let answer = http.post(format!("{url}/api/v1/acts")).body(body.clone()).send().await.unwrap();
        (answer.status().as_u16(), answer.bytes().await.unwrap())
    };
    if kind.kills() {
        tokio::select! {
            answer = send(&life.url) => panic!("the dead answer: {answer:?}"),
            () = faults.death() => life.bury(),
        }
        let (_, next) = Life::begin(dir.path(), &Clock::default(), None, nobody()).await;
        let Ok(next) = next else { panic!("it starts again") };
        life = next;
    } else {
        assert_eq!(send(&life.url).await.0, 503);
    }
    assert!(faults.has_struck());
    // before anybody tries again: both or neither
    let stored = matches!(kind, Kind::Stored | Kind::KilledAfter);
    let state = async |life: &Life| {
        let events = life.app.db.events(Some(0), None, 100).await.unwrap().len() - recorded;
        let identities = life.app.db.identities().await.unwrap();
        (events, identities.iter().any(|i| i.name == "alice" && i.frozen))
    };
    assert_eq!(state(&life).await, (usize::from(stored), stored));
    let first = send(&life.url).await;
    assert_eq!((first.0, send(&life.url).await), (200, first.clone()));
    let done: ActDone = serde_json::from_slice(&first.1).unwrap();
    assert_eq!(done.changed, 1, "the answer of the first time");
    assert_eq!(state(&life).await, (1, true));
    assert!(life.stop().await);
}
