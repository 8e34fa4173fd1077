//! What is refused, with its stable code, and that it leaves everything as it was.

use super::*;

/// All that words about claims could change.
async fn record(stage: &Stage, path: &StorePath) -> String {
    let db = &stage.forge.app.db;
    let evidence = db.evidence("main", std::slice::from_ref(path)).await.unwrap();
    let events = db.events(Some(0), None, 1000).await.unwrap().len();
    let claims = db.claims_shown("main", std::slice::from_ref(path)).await.unwrap();
    format!("{evidence:?} {events} {claims:?} {:?}", stage.forge.snapshot().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_and_what_is_not_there() {
    let stage = Stage::set(POLICY).await;
    let (package, _) = stage.held("tool", "needs-approval").await;
    let path = package.path().clone();
    let unknown = Item::source("nothing", "that anybody claims").path;
    let (hash, wrong) = (package.out().nar_hash, pushgate_formats::Sha256::of(b"wrong"));
    let eve = person(&stage.forge, "eve", Role::Submitter).await;
    let before = record(&stage, &path).await;
    for (who, args, said) in [
        // neither an admin nor asked for approvals
        (&eve, "admin held list".to_owned(), "[forbidden]"),
        (&eve, "admin conflict list".to_owned(), "[forbidden]"),
        (&eve, format!("admin held approve {path} --reason x"), "[forbidden]"),
        (&stage.alices, format!("admin held approve {path} --nar-hash {hash} --reason x"), "[forbidden]"),
        // asked for approvals, and not an admin
        (&stage.bob, format!("admin held reject {path} --reason x"), "[forbidden]"),
        (&stage.bob, format!("admin held waive {path} --reason x"), "[forbidden]"),
        (&stage.bob, format!("admin conflict settle {path} --nar-hash {hash} --reason x"), "[forbidden]"),
        // contents that nobody claims, and a path that nobody claims
        (&stage.ada, format!("admin held approve {path} --nar-hash {wrong} --reason x"), "[claim-unknown]"),
        (&stage.ada, format!("admin held reject {path} --nar-hash {wrong} --reason x"), "[claim-unknown]"),
        (
            &stage.ada,
            format!("admin conflict settle {path} --nar-hash {wrong} --reason x"),
            "[claim-unknown]",
        ),
        (&stage.ada, format!("admin held approve {unknown} --reason x"), "no open claim of"),
        (&stage.ada, format!("admin held approve {unknown} --nar-hash {hash} --reason x"), "[claim-unknown]"),
        (&stage.ada, format!("admin held approve {path} --reason x --cache nowhere"), "no cache `nowhere`"),
        // over already
        (&stage.ada, format!("admin held approve {path} --reason x --until 1970-01-02"), "[act-malformed]"),
        // what isn't one's own isn't there
        (&eve, format!("why {path}"), "[not-found]"),
        (&stage.ada, format!("why {unknown}"), "[not-found]"),
        (&stage.ada, "why ./nothing".to_owned(), "nothing"),
    ] {
        let ran = run(who, &args).ended_with(1);
        assert!(ran.err.contains(said), "{args}: {}", ran.err);
    }
    for args in [
        format!("admin held approve {path}"),
        format!("admin held reject {path} --reason="),
        format!("admin held approve {path} --reason x --until soon"),
        format!("admin conflict settle {path} --reason x"),
        "why".to_owned(),
    ] {
        run(&stage.ada, &args).ended_with(2);
    }
    assert_eq!(record(&stage, &path).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_stays() {
    let stage = Stage::set(POLICY).await;
    let item = source();
    stage.forge.push(&stage.forge.draft(&stage.alice).item(&item)).await.assert_published(&item.path);
    let (path, hash) = (&item.path, item.nar_hash);
    let before = record(&stage, path).await;
    for (args, said) in [
        (format!("admin held approve {path} --reason x"), "is published in `main` with NAR hash"),
        (format!("admin held reject {path} --nar-hash {hash} --reason x"), "[already-published]"),
        (format!("admin held waive {path} --reason x"), "there is nothing to decide any more"),
    ] {
        let ran = run(&stage.ada, &args).ended_with(1);
        assert!(ran.err.contains(said), "{args}: {}", ran.err);
    }
    assert_eq!(record(&stage, path).await, before);
}

/// An approval that the policy doesn't count is kept, and changes nothing: an admin isn't of `core` by being one.
#[tokio::test(flavor = "multi_thread")]
async fn an_approval_that_does_not_count() {
    let stage = Stage::set(POLICY).await;
    let before = stage.forge.snapshot().await;
    let (package, pushed) = stage.held("tool", "needs-approval").await;
    let path = package.path().clone();
    let said = run(&stage.ada, &format!("admin held approve {path} --reason x")).ended_with(0).out;
    assert!(said.contains("is held now, waits for 1 approval from `core` (0 of 1)"), "{said}");
    let status = stage.forge.status(&pushed.announced, "").await.unwrap();
    assert_eq!(status.paths, pushed.status.paths);
    stage.forge.assert_nothing_public(&before).await;
}
