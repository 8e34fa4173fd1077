//! What follows where rebuilds differ from what is published.

use pushgate_formats::review::Differences;

use super::*;

#[tokio::test]
async fn a_mismatch_that_others_confirm_is_an_incident() {
    let forge = start("audit-per-day = 24").await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    publish(&forge, &alice, &[&lib]).await;
    let verifiers = three(&forge).await;
    let job = drawn(&forge, &verifiers[0]).await.expect("an audit");
    let tool = user("tool", &lib);
    publish(&forge, &alice, &[&tool]).await;
    let before = forge.snapshot().await;
    let (got, [kiln, oven, smith]) = (other(&lib), &verifiers);

    // by itself it says nothing: the same verifier builds again, and two others
    let taken = kiln.report(&forge, &job, &got).await;
    assert_eq!(taken.wanted, [got.nar_hash]);
    let (again, second, third) = (kiln.job(&forge).await, oven.job(&forge).await, smith.job(&forge).await);
    for job in [&again, &second, &third] {
        assert_eq!(job.derivation, lib.drv);
    }
    oven.report(&forge, &second, &got).await;
    smith.report(&forge, &third, &got).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(events(&forge, "audit-mismatch").await.is_empty(), "the first hasn't built twice");
    assert_eq!(why(&forge, &alice, lib.path()).await.published.unwrap().incident, None);
    let reputation = |all: std::collections::HashMap<i64, pushgate_gateway::db::Reputation>, id| {
        all.get(&id).is_some_and(|known| known.mismatched)
    };
    let id = forge.app.db.key_named(alice.key.name()).await.unwrap().unwrap().identity;
    assert!(!reputation(forge.app.db.reputations(&[id]).await.unwrap(), id));

    kiln.report(&forge, &again, &got).await;
    over(&forge).await;
    let found = events(&forge, "audit-mismatch").await;
    let [event] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((event.path.as_ref(), event.subject.as_deref()), (Some(lib.path()), Some("alice")));
    for word in [lib.out().nar_hash.to_string(), got.nar_hash.to_string(), "`forge`, `kiln`, `oven`".into()] {
        assert!(event.detail.contains(&word), "{word} is missing: {}", event.detail);
    }
    assert!(event.detail.contains("1 published paths refer to it: mark"), "{}", event.detail);
    let incident = why(&forge, &alice, lib.path()).await.published.unwrap().incident.expect("an incident");
    assert_eq!((incident.rebuilt, incident.withdrawn), (got.nar_hash, false));
    assert_eq!(incident.verifiers, ["forge", "kiln", "oven"]);
    assert_eq!(incident.dependants, [tool.path().clone()]);
    // whose claim it was: his reputation falls
    assert!(reputation(forge.app.db.reputations(&[id]).await.unwrap(), id));
    // what differs can be looked at
    let target = format!("/api/v1/caches/main/paths/{}/differences", lib.path().base_name());
    let found: Differences = forge.signed_get(&alice, &target, |_| {}).await.expect("differences");
    let [difference] = found.differences.as_slice() else { panic!("{found:?}") };
    assert_eq!((difference.claimed, difference.rebuilt), (lib.out().nar_hash, got.nar_hash));
    assert!(difference.report.is_some());
    // marked, and nothing else: it stays, and whoever refers to it is published
    forge.assert_nothing_public(&before).await;
    publish(&forge, &alice, &[&user("later", &lib)]).await;
    // once, however often it is looked at
    look(&forge).await;
    assert_eq!(events(&forge, "audit-mismatch").await.len(), 1);
}

#[tokio::test]
async fn verifiers_that_disagree_prove_nothing() {
    let forge = start("audit-per-day = 24\non-audit-mismatch = \"withdraw\"").await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    publish(&forge, &alice, &[&lib]).await;
    let before = forge.snapshot().await;
    let verifiers = three(&forge).await;
    let [kiln, oven, _] = &verifiers;
    let job = drawn(&forge, kiln).await.expect("an audit");
    kiln.report(&forge, &job, &other(&lib)).await;
    // what is published, this time: it differs from itself
    let again = kiln.job(&forge).await;
    kiln.report(&forge, &again, lib.out()).await;
    over(&forge).await;
    let found = events(&forge, "audit-inconclusive").await;
    assert_eq!(found.iter().map(|event| event.path.as_ref()).collect::<Vec<_>>(), [Some(lib.path())]);
    assert!(events(&forge, "audit-mismatch").await.is_empty());
    assert_eq!(why(&forge, &alice, lib.path()).await.published.unwrap().incident, None);
    let id = forge.app.db.key_named(alice.key.name()).await.unwrap().unwrap().identity;
    assert_eq!(forge.app.db.mismatches_of(id).await.unwrap(), (None, 0));
    forge.assert_nothing_public(&before).await;
    // those who were asked to confirm it are still free to; it changes nothing
    if let Some(job) = oven.lease(&forge, 0).await {
        oven.report(&forge, &job, &other(&lib)).await;
    }
    forge.assert_nothing_public(&before).await;
}

/// Two verifiers of which nobody else confirms: it is given up, and said so.
#[tokio::test]
async fn what_nobody_confirms_is_given_up_in_the_end() {
    let forge = start("audit-per-day = 24").await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    publish(&forge, &alice, &[&lib]).await;
    let kiln = Verifier::enrol(&forge, "kiln").await;
    let job = drawn(&forge, &kiln).await.expect("an audit");
    let got = other(&lib);
    kiln.report(&forge, &job, &got).await;
    let again = kiln.job(&forge).await;
    kiln.report(&forge, &again, &got).await;
    forge.clock.advance(6 * 86_400);
    look(&forge).await;
    assert_eq!(forge.app.db.open_audits("main").await.unwrap().len(), 1);
    forge.clock.advance(86_400);
    look(&forge).await;
    over(&forge).await;
    assert_eq!(events(&forge, "audit-inconclusive").await.len(), 1);
    assert!(events(&forge, "audit-mismatch").await.is_empty());
    assert!(kiln.lease(&forge, 0).await.is_none());
}
