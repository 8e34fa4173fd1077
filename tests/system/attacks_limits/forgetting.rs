//! What is forgotten when it ended long ago.

use super::*;

/// How many pushes a submitter is told of.
async fn statuses(forge: &Forge, by: &Submitter) -> usize {
    let list: Vec<serde_json::Value> = forge.signed_get(by, "/api/v1/pushes", |_| {}).await.unwrap();
    list.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_pushes_are_forgotten_and_evidence_stays() {
    let forge = forge(|config| config.limits.keep_ended = 86_400).await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    // one that published something, and was refused something
    let (good, bad) = (source(), source());
    let mut mixed = forge.draft(&alice).item(&good).item(&bad);
    mixed.nars.insert(bad.nar_hash, source().nar);
    let mixed = forge.push(&mixed).await;
    mixed.assert_published(&good.path);
    mixed.assert_rejected(&bad.path, "nar-hash-mismatch");
    // one that came to nothing, one that is in conflict, one that waits
    let mut nothing = forge.draft(&alice).item(&source());
    nothing.nars.values_mut().for_each(|nar| *nar = source().nar);
    forge.push(&nothing).await;
    let other = good.with_nar(source().nar);
    let conflict = forge.push(&forge.draft(&bob).item(&other)).await;
    conflict.assert_held(&good.path, "conflicts-with-published");
    let narinfo = forge.narinfo(&good.path).await;
    let leaves = forge.snapshot().await.leaves;
    let forget = async || {
        forge.sweep().await;
        pushgate_gateway::push::recover::forget(&forge.app).await.unwrap();
    };
    assert_eq!((statuses(&forge, &alice).await, statuses(&forge, &bob).await), (2, 1));

    // not before its time
    forge.clock.advance(pushgate_tests::forge::QUARANTINE_TTL + 3600);
    let waiting = source();
    let waits = forge.announce(&forge.draft(&alice).item(&waiting)).await.unwrap();
    forget().await;
    assert_eq!((statuses(&forge, &alice).await, statuses(&forge, &bob).await), (3, 1));
    forge.clock.advance(2 * 86_400);
    forget().await;
    // what came to nothing is gone
    assert_eq!((statuses(&forge, &alice).await, statuses(&forge, &bob).await), (2, 1));
    assert!(
        forge
            .app
            .db
            .push_by_digest(&pushgate_formats::Sha256::of(&nothing.sealed()))
            .await
            .unwrap()
            .is_none()
    );
    let claims = async |path: &StorePath| forge.app.db.claims_of_path("main", path).await.unwrap();
    assert_eq!(claims(&bad.path).await.len(), 0);
    // what was published, and what is in conflict with it, is there with the announcement that its signature is in
    let states: Vec<PathState> = claims(&good.path).await.iter().map(|claim| claim.state).collect();
    assert_eq!(states, [PathState::Rejected, PathState::Published]);
    for id in [&mixed.status.push, &conflict.status.push] {
        assert!(!forge.app.db.push(id).await.unwrap().expect("it is evidence").envelope.is_empty());
    }
    assert_eq!(forge.narinfo(&good.path).await, narinfo);
    assert_eq!(forge.snapshot().await.leaves, leaves);
    // it can be asked for, also by a gateway that has to read it again
    let waits_for = waits.status.push.clone();
    let forge = forge.restart().await;
    let status = forge.status(&mixed.announced, "").await.unwrap();
    let of = |path: &StorePath| status.paths.iter().find(|p| p.path == *path).unwrap().clone();
    assert_eq!(of(&good.path).state, PathState::Published);
    assert_eq!(of(&bad.path).code.as_deref(), Some("push-forgotten"));
    // invariant 3 holds as before
    let again = forge.push(&forge.draft(&alice).item(&other)).await;
    again.assert_held(&good.path, "conflicts-with-published");
    // and who waits still may
    assert_eq!(
        forge.status_by(&waits_for, &waits.token, "").await.unwrap().paths[0].state,
        PathState::Wanted
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn derivations_that_nobody_uses_are_forgotten() {
    let forge = forge(|config| config.limits.keep_ended = 86_400).await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let tool = Package::new("tool").build();
    let used = Package::new("used").input(&tool).build();
    let idle = Package::new("idle").build();
    let shared = Package::new("shared").build();
    published(&forge, &forge.draft(&alice).package(&used)).await;
    // derivations for paths that never come
    let never = |by: &Submitter, package: &Package| Draft {
        nars: Default::default(),
        ..forge.draft(by).package(package)
    };
    for (by, package) in [(&alice, &idle), (&alice, &shared), (&bob, &shared)] {
        let draft = never(by, package);
        let push = forge.announce(&draft).await.unwrap();
        forge.send_derivations(&push.status.push, &push.token, &draft.texts).await.unwrap();
    }
    let here = async |package: &Package| {
        !forge.app.db.derivations(std::slice::from_ref(&package.drv)).await.unwrap().is_empty()
    };
    let quota = async || forge.app.db.quarantine_bytes(1).await.unwrap();
    let first = quota().await;
    assert!(first > 0);
    let forget = async || {
        forge.sweep().await;
        pushgate_gateway::push::recover::forget(&forge.app).await.unwrap();
    };
    // bob uses his again in the meantime
    forge.clock.advance(7 * 86_400);
    forge.announce(&never(&bob, &shared)).await.unwrap();
    forge.clock.advance(2 * 86_400);
    forget().await;
    assert!(!here(&idle).await, "nobody uses it");
    assert!(here(&shared).await, "bob uses it");
    // what shows that a published path is right stays, with what that was made from, and counts for nobody
    assert!(here(&used).await && here(&tool).await);
    assert_eq!(quota().await, 0);
    let (_, budget) = forge.app.submitter(1, &quarantine(1)).await.unwrap();
    assert_eq!(budget.own.load(Relaxed), 0);
    // whoever needs one again sends it again
    forge.clock.advance(30 * 86_400);
    forget().await;
    assert!(!here(&shared).await && here(&used).await && here(&tool).await);
    published(&forge, &forge.draft(&alice).package(&shared)).await;
}
