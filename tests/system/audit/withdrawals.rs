//! A path that is no longer served: what that means for everything else, and that it holds over faults and restarts.

use pushgate_formats::api::PathState;
use pushgate_tests::{
    faults::{At, Fault, Kind},
    forge::StockUser,
};
use rstest::rstest;

use super::*;

const WITHDRAW: &str = "audit-per-day = 24\non-audit-mismatch = \"withdraw\"";

/// Publishes a package, and has it withdrawn after others refer to it.
async fn withdrawn(forge: &Forge, alice: &Submitter, lib: &Package, users: &[&Package]) -> Item {
    publish(forge, alice, &[lib]).await;
    let verifiers = three(forge).await;
    let job = drawn(forge, &verifiers[0]).await.expect("an audit");
    publish(forge, alice, users).await;
    let got = other(lib);
    agree_on(forge, &verifiers, job, &got).await;
    over(forge).await;
    got
}

#[tokio::test]
async fn what_is_withdrawn_counts_for_nothing_any_more() {
    let forge = start(WITHDRAW).await;
    let alice = forge.stock_user("alice").await;
    let (lib, bob) = (package("lib"), forge.submitter("bob").await);
    let tool = user("tool", &lib);
    let top = user("top", &tool);
    let StockUser { submitter: by, .. } = &alice;
    let got = withdrawn(&forge, by, &lib, &[&tool, &top]).await;
    let leaves = forge.app.db.leaf_count("main").await.unwrap();
    assert!(forge.narinfo(lib.path()).await.is_none());
    let incident = why(&forge, by, lib.path()).await.published.unwrap().incident.expect("an incident");
    assert!(incident.withdrawn);
    // named, directly or not, and not withdrawn with it
    let mut dependants = vec![tool.path().clone(), top.path().clone()];
    dependants.sort();
    let mut found = incident.dependants.clone();
    found.sort();
    assert_eq!(found, dependants);
    for package in [&tool, &top] {
        assert!(forge.narinfo(package.path()).await.is_some());
    }
    assert_eq!(events(&forge, "audit-mismatch").await.len(), 1);

    // a judgement that found it published before that is out of date
    assert!(forge.app.db.outdated("main", 0, &[]).await.unwrap());

    // not for those who ask what to send
    assert_eq!(forge.missing(&[lib.out()]).await.missing, [lib.path().clone()]);
    let url = format!("{}/main/push/{}.narinfo", forge.url, lib.path().hash_part());
    let answer = forge.http.get(url).header("authorization", alice.authorization()).send().await.unwrap();
    assert_eq!(answer.status(), 404);
    // the same again waits for a person, other contents are a conflict: the pair stays what it was
    let mut same = forge.push(&forge.draft(&bob).package(&lib)).await;
    same.assert_held(lib.path(), "withdrawn");
    assert!(same.announced.status.wanted.is_empty(), "its bytes are of no use");
    assert_eq!(same.of(lib.path()).waits_for, ["person"]);
    let differs = forge.push(&forge.draft(&bob).derivations(&lib).item(&got)).await;
    differs.assert_held(lib.path(), "conflicts-with-published");
    // nor for the closure of others, nor as what something is built from
    let later = user("later", &lib);
    let closed = forge.push(&forge.draft(&bob).package(&later)).await;
    closed.assert_held(later.path(), "closure-open");
    let cache = forge.app.caches.all().remove(0);
    let plan = pushgate_gateway::push::rebuild::inputs::plan(&forge.app, &cache, None, &tool.drv);
    assert!(format!("{:?}", plan.await.unwrap()).starts_with("Lacks"));
    assert!(forge.narinfo(later.path()).await.is_none() && forge.narinfo(lib.path()).await.is_none());
    assert_eq!(forge.app.db.leaf_count("main").await.unwrap(), leaves);

    // a crash after the rows: the file is still there at the next start
    let file = forge.dir().join(format!("blobs/main/{}.narinfo", lib.path().hash_part()));
    std::fs::write(&file, "left by a crash").unwrap();
    let forge = forge.restart().await;
    assert!(forge.narinfo(lib.path()).await.is_none());
    forge.becomes(&mut same, lib.path(), PathState::Held, Some("withdrawn")).await;
    // a person's no ends it
    let admin = forge.admin("ada").await;
    let (path, nar_hash) = (lib.path().clone(), lib.out().nar_hash);
    let no = pushgate_formats::acts::Deed::Reject { cache: "main".into(), path, nar_hash, until: None };
    forge.act(&admin, no).await.expect("a refusal");
    forge.becomes(&mut same, lib.path(), PathState::Rejected, Some("refused-by-admin")).await;
    assert!(forge.narinfo(lib.path()).await.is_none());
}

/// Whichever write fails, and whether it was stored or not: in the end it is withdrawn, once.
#[rstest]
#[case::rows_lost("add_incident", Kind::NotStored)]
#[case::rows_stored("add_incident", Kind::Stored)]
#[case::file_stays("withdraw", Kind::NotStored)]
#[case::file_goes("withdraw", Kind::Stored)]
#[case::outcome_lost("end_audit", Kind::NotStored)]
#[case::outcome_stored("end_audit", Kind::Stored)]
#[tokio::test]
async fn a_fault_at_the_withdrawal_leaves_nothing_half_done(#[case] write: &'static str, #[case] kind: Kind) {
    let fault = Fault { at: At::Call(write, 0), kind };
    let (forge, faults) = Forge::start_faulty(&policy(WITHDRAW, ""), fault).await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    publish(&forge, &alice, &[&lib]).await;
    let verifiers = three(&forge).await;
    let job = drawn(&forge, &verifiers[0]).await.expect("an audit");
    let (got, [first, second, third]) = (other(&lib), &verifiers);
    first.report(&forge, &job, &got).await;
    for verifier in [first, second, third] {
        let job = verifier.job(&forge).await;
        verifier.report(&forge, &job, &got).await;
    }
    until(async || faults.has_struck()).await;
    // the next looks mend it
    tokio::time::sleep(Duration::from_millis(100)).await;
    look(&forge).await;
    look(&forge).await;
    assert!(forge.app.db.open_audits("main").await.unwrap().is_empty());
    assert!(forge.narinfo(lib.path()).await.is_none());
    assert_eq!(events(&forge, "audit-mismatch").await.len(), 1);
    assert!(why(&forge, &alice, lib.path()).await.published.unwrap().incident.unwrap().withdrawn);
    let id = forge.app.db.key_named(alice.key.name()).await.unwrap().unwrap().identity;
    assert_eq!(forge.app.db.mismatches_of(id).await.unwrap().1, 1);
}
