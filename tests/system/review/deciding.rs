//! What each command does.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_published_when_somebody_approves() {
    let stage = Stage::set(POLICY).await;
    let before = stage.forge.snapshot().await;
    let (package, mut pushed) = stage.held("tool", "needs-approval").await;
    let path = package.path().clone();
    insta::assert_snapshot!("held_list", steady(&run(&stage.bob, "admin held list").ended_with(0).out));
    let seen = run(&stage.bob, &format!("admin held list --path {path}")).ended_with(0).out;
    insta::assert_snapshot!("held_list_path", steady(&seen));
    for who in [&stage.alices, &stage.bob, &stage.ada] {
        let why = run(who, &format!("why {path}")).ended_with(0).out;
        insta::assert_snapshot!("why_held", steady(&why));
    }
    stage.forge.assert_nothing_public(&before).await;

    let approved = run(&stage.bob, &format!("admin held approve {path} --reason read-it --until 30d"));
    insta::assert_snapshot!("approved", steady(&approved.ended_with(0).out));
    stage.becomes(&mut pushed, &path, PathState::Published, None).await;
    stage.forge.assert_published_only(&before, &[&path]).await;
    let why = run(&stage.alices, &format!("why {path}")).ended_with(0).out;
    insta::assert_snapshot!("why_published", steady(&why));
    let none = run(&stage.bob, "admin held list").ended_with(0);
    assert_eq!((none.out.as_str(), none.err.as_str()), ("", "nothing is held\n"));

    // by the words of its claim alone there was nothing to be seen of another's
    let other = person(&stage.forge, "carol", Role::Submitter).await;
    let why = json(run(&other, &format!("why {path} --json")));
    assert_eq!(
        (why["published"]["rule"].as_str(), why["claims"].as_array().map(Vec::len)),
        (Some("looked at"), Some(0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_for_programs() {
    let stage = Stage::set(POLICY).await;
    let (package, mut pushed) = stage.held("tool", "needs-approval").await;
    let path = package.path().clone();
    let hash = package.out().nar_hash;
    let claim: Value = serde_json::from_str(&run(&stage.ada, "admin held list --json").line()).unwrap();
    let of_path: Value =
        serde_json::from_str(&run(&stage.ada, &format!("admin held list --json --path {path}")).line())
            .unwrap();
    assert_eq!(claim, of_path);
    assert_eq!(claim["path"], path.absolute());
    assert_eq!((claim["submitter"].as_str(), claim["owner"].as_str()), (Some("alice"), Some("alice")));
    assert_eq!(claim["narSize"].as_u64(), Some(package.out().nar_size));
    assert_eq!((claim["state"].as_str(), claim["code"].as_str()), (Some("held"), Some("needs-approval")));
    assert_eq!(claim["waitsFor"][0], "1 approval from `core` (0 of 1)");
    assert_eq!(claim["decided"]["rule"], "looked at");
    let why = json(run(&stage.alices, &format!("why {path} --json")));
    let mut claims = why["claims"].clone();
    // beside what is in the list, what each rule makes of it
    let explained = claims[0].as_object_mut().unwrap().remove("explanation").unwrap();
    assert_eq!(explained["rules"].as_array().map(Vec::len), Some(2));
    assert_eq!((&claims[0], why.get("published")), (&claim, None));

    let approve = format!("admin held approve {path} --nar-hash {hash} --reason fine --json");
    let done = json(run(&stage.bob, &approve));
    assert!(done["event"].is_u64() && done["changed"] == 1, "{done}");
    assert_eq!(
        (done["path"].as_str(), done["claims"][0]["state"].as_str()),
        (Some(path.absolute().as_str()), Some("published"))
    );
    stage.becomes(&mut pushed, &path, PathState::Published, None).await;
    let why = json(run(&stage.ada, &format!("why {path} --json")));
    assert_eq!(why["published"]["evidence"], serde_json::json!(["approvals", "derivation"]));
    let said = &why["claims"][0]["evidence"][0];
    assert_eq!(
        (said["kind"].as_str(), said["by"].as_str(), said["reason"].as_str()),
        (Some("approval"), Some("bob"), Some("fine"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_rejected() {
    let stage = Stage::set(POLICY).await;
    let before = stage.forge.snapshot().await;
    let (package, mut pushed) = stage.held("tool", "needs-approval").await;
    let path = package.path().clone();
    // by the policy in force there, and what the gateway knows of the claim
    let explained = run(&stage.alices, &format!("policy explain {path}")).ended_with(0).out;
    assert!(
        explained.starts_with("hold ") && explained.contains("missing: 1 approval from `core`"),
        "{explained}"
    );
    let nobodys = Package::new("another").build();
    run(&stage.alices, &format!("policy explain {}", nobodys.path())).ended_with(1);
    run(&stage.alices, &format!("policy explain {path} --system x86_64-linux")).ended_with(2);
    let said = run(&stage.ada, &format!("admin held reject {path} --reason no-source-for-it"));
    insta::assert_snapshot!("rejected", steady(&said.ended_with(0).out));
    stage.becomes(&mut pushed, &path, PathState::Rejected, Some("refused-by-admin")).await;
    let why = run(&stage.alices, &format!("why {path}")).ended_with(3).out;
    insta::assert_snapshot!("why_rejected", steady(&why));
    stage.forge.assert_nothing_public(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_goes_without_a_rebuild() {
    let policy = POLICY.replace("{ approvals = 1, from = \"core\" }", "{ rebuilds = 1 }");
    let stage = Stage::set(&policy).await;
    let (package, mut pushed) = stage.held("tool", "needs-rebuild").await;
    let path = package.path().clone();
    let said = run(&stage.ada, &format!("admin held waive {path} --reason it-writes-the-time"));
    insta::assert_snapshot!("waived", steady(&said.ended_with(0).out));
    stage.becomes(&mut pushed, &path, PathState::Published, None).await;
}

/// Two that differ are shown side by side, and an admin says which one stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_settled() {
    let stage = Stage::set(pushgate_tests::forge::POLICY).await;
    let forge = &stage.forge;
    let mallory = forge.submitter("mallory").await;
    // both wait for a path that isn't there
    let missing = Item::source("source", "what both refer to");
    let package = Package::new("tool").source(&missing).mention(&missing.path).build();
    let other = package.out_mentioning("other", &[&missing.path]);
    let path = package.path().clone();
    let mut first = forge.push(&forge.draft(&stage.alice).package(&package)).await;
    first.assert_held(&path, "closure-open");
    let mut second = forge.push(&forge.draft(&mallory).item(&other).derivations(&package)).await;
    second.assert_held(&path, "conflicts-with-claim");

    let listed = run(&stage.ada, "admin conflict list").ended_with(0).out;
    insta::assert_snapshot!("conflict_list", steady(&listed));
    let documents = json(run(&stage.ada, "admin conflict list --json"));
    assert_eq!(documents.as_array().map(Vec::len), Some(1));
    let claims = documents[0]["claims"].as_array().unwrap();
    let whose: Vec<_> = claims.iter().map(|c| c["submitter"].as_str().unwrap()).collect();
    assert_eq!((whose, documents[0].get("published")), (vec!["mallory", "alice"], None));
    // of several, one has to say which
    let several = run(&stage.ada, &format!("admin held approve {path} --reason x")).ended_with(1);
    for hash in [package.out().nar_hash, other.nar_hash] {
        assert!(
            several.err.contains(&format!("`{hash}` by")) && several.err.contains("--nar-hash"),
            "{}",
            several.err
        );
    }

    let settle =
        format!("admin conflict settle {path} --nar-hash {} --reason hers-is-right", package.out().nar_hash);
    insta::assert_snapshot!("settled", steady(&run(&stage.ada, &settle).ended_with(0).out));
    stage.becomes(&mut second, &path, PathState::Rejected, Some("conflict-settled")).await;
    stage.becomes(&mut first, &path, PathState::Held, Some("closure-open")).await;
    let none = run(&stage.ada, "admin conflict list").ended_with(0);
    assert_eq!((none.out.as_str(), none.err.as_str()), ("", "nothing is in conflict\n"));
    forge.push(&forge.draft(&stage.alice).item(&missing)).await.assert_published(&missing.path);
    stage.becomes(&mut first, &path, PathState::Published, None).await;
}

/// What is published stays; an admin can say that it is right, which ends the claims of others.
#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_with_what_is_published() {
    let stage = Stage::set(pushgate_tests::forge::POLICY).await;
    let forge = &stage.forge;
    let mallory = forge.submitter("mallory").await;
    let package = Package::new("tool").build();
    let other = package.out_mentioning("other", &[]);
    let path = package.path().clone();
    forge.push(&forge.draft(&stage.alice).package(&package)).await.assert_published(&path);
    let published = forge.snapshot().await;
    let mut second = forge.push(&forge.draft(&mallory).item(&other).derivations(&package)).await;
    second.assert_held(&path, "conflicts-with-published");
    let why = run(&stage.ada, &format!("why {path}")).ended_with(0).out;
    insta::assert_snapshot!("why_in_conflict_with_published", steady(&why));
    let settle = |hash| format!("admin conflict settle {path} --nar-hash {hash} --reason x");
    let refused = run(&stage.ada, &settle(other.nar_hash)).ended_with(1).err;
    assert!(refused.contains("[already-published]"), "{refused}");
    run(&stage.ada, &settle(package.out().nar_hash)).ended_with(0);
    stage.becomes(&mut second, &path, PathState::Rejected, Some("conflict-settled")).await;
    forge.assert_published_only(&published, &[]).await;
}

/// Somebody who makes hundreds of conflicts hides none.
#[tokio::test(flavor = "multi_thread")]
async fn every_conflict_is_listed() {
    let stage = Stage::set(pushgate_tests::forge::POLICY).await;
    let forge = &stage.forge;
    let mallory = forge.submitter("mallory").await;
    let items: Vec<Item> = (0..205).map(|_| source()).collect();
    let good = items.iter().fold(forge.draft(&stage.alice), |draft, item| draft.item(item));
    forge.push(&good).await.assert_published(&items[204].path);
    let other = pushgate_tests::forge::file_nar(b"other", false);
    let bad = items.iter().map(|item| item.with_nar(other.clone()));
    let bad = bad.fold(forge.draft(&mallory), |draft, item| draft.item(&item));
    forge.announce(&bad).await.expect("an announcement");
    let listed = json(run(&stage.ada, "admin conflict list --json"));
    let mut paths: Vec<&str> =
        listed.as_array().unwrap().iter().map(|c| c["path"].as_str().unwrap()).collect();
    paths.dedup();
    assert_eq!(paths.len(), 205);
}
