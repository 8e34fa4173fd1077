//! What is drawn, when, and what is due.

use std::collections::BTreeSet;

use pushgate_formats::{api::PathState, jobs::Purpose};

use super::*;

const DAY: u64 = 86_400;

#[tokio::test]
async fn a_published_path_is_built_again_and_matches() {
    let forge = start("audit-per-day = 24").await;
    let alice = forge.submitter("alice").await;
    let (lib, source) = (package("lib"), Item::source("source", &random_hex()));
    let tool = user("tool", &lib);
    publish(&forge, &alice, &[&lib, &tool]).await;
    // nothing that a verifier could build
    forge.push(&forge.draft(&alice).item(&source)).await.assert_published(&source.path);
    let before = forge.snapshot().await;
    let kiln = Verifier::enrol(&forge, "kiln").await;
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let job = drawn(&forge, &kiln).await.expect("an audit");
        assert_eq!(job.purpose, Purpose::Audit);
        let built = if job.derivation == lib.drv { &lib } else { &tool };
        assert!(seen.insert(job.derivation.clone()), "{} was audited already", job.derivation);
        assert!(kiln.report(&forge, &job, built.out()).await.wanted.is_empty());
        over(&forge).await;
        forge.clock.advance(3601);
    }
    assert_eq!(seen, BTreeSet::from([lib.drv.clone(), tool.drv.clone()]));
    forge.assert_nothing_public(&before).await;
    assert_eq!(why(&forge, &alice, lib.path()).await.published.expect("it is published").incident, None);
    assert!(events(&forge, "audit-mismatch").await.is_empty());
    assert!(events(&forge, "audit-inconclusive").await.is_empty());
    // each rests for a month, whoever would build it, after which the same verifier may look again
    let oven = Verifier::enrol(&forge, "oven").await;
    for verifier in [&kiln, &oven] {
        assert!(drawn(&forge, verifier).await.is_none());
    }
    forge.clock.advance(29 * DAY);
    assert!(drawn(&forge, &kiln).await.is_none());
    forge.clock.advance(DAY);
    assert!(drawn(&forge, &kiln).await.is_some());
}

#[tokio::test]
async fn no_more_are_drawn_than_the_policy_says() {
    let forge = start("audit-per-day = 2").await;
    let alice = forge.submitter("alice").await;
    let packages: Vec<Package> = (0..4).map(|n| package(&format!("lib-{n}"))).collect();
    publish(&forge, &alice, &packages.iter().collect::<Vec<_>>()).await;
    let kiln = Verifier::enrol(&forge, "kiln").await;
    let builds = async |what: &str| {
        let job = drawn(&forge, &kiln).await;
        if let Some(job) = &job {
            let built = packages.iter().find(|p| p.drv == job.derivation).expect(what);
            kiln.report(&forge, job, built.out()).await;
            over(&forge).await;
        }
        job.is_some()
    };
    assert!(builds("the first, at once").await);
    assert!(!builds("nothing").await);
    forge.clock.advance(DAY / 2 - 60);
    assert!(!builds("nothing yet").await);
    forge.clock.advance(120);
    assert!(builds("the second").await);
    forge.clock.advance(DAY / 2 - 180);
    assert!(!builds("no third within a day").await);
    forge.clock.advance(180);
    assert!(builds("the first of the next day").await);
}

#[tokio::test]
async fn nothing_is_drawn_while_there_is_other_work_or_nobody_to_do_it() {
    let busy = "[[rule]]\nname = \"busy\"\nmatch = { pname = \"busy\" }\nrequire = { rebuilds = 1 }\n";
    let forge = Forge::start_with(&policy("audit-per-day = 24", busy), Config::default()).await;
    let alice = forge.submitter("alice").await;
    let (lib, busy) = (package("lib"), package("busy"));
    publish(&forge, &alice, &[&lib]).await;
    // no verifier has asked for work yet
    look(&forge).await;
    assert!(forge.app.db.open_audits("main").await.unwrap().is_empty());
    let kiln = Verifier::enrol(&forge, "kiln").await;
    assert!(kiln.lease(&forge, 0).await.is_none());
    let mut push = forge.push(&forge.draft(&alice).package(&busy)).await;
    push.assert_held(busy.path(), "needs-rebuild");
    until(async || !forge.app.db.is_idle().await.unwrap()).await;
    look(&forge).await;
    assert!(forge.app.db.open_audits("main").await.unwrap().is_empty());
    // with that done it is time
    let job = kiln.job(&forge).await;
    assert_eq!((job.purpose, &job.derivation), (Purpose::Rebuild, &busy.drv));
    kiln.report(&forge, &job, busy.out()).await;
    forge.becomes(&mut push, busy.path(), PathState::Published, None).await;
    let job = drawn(&forge, &kiln).await.expect("an audit");
    // its own work of a moment ago it isn't given again
    assert_eq!((job.purpose, &job.derivation), (Purpose::Audit, &lib.drv));
    // one at a time
    publish(&forge, &alice, &[&package("spare")]).await;
    forge.clock.advance(3601);
    kiln.lease(&forge, 0).await;
    look(&forge).await;
    assert_eq!(forge.app.db.open_audits("main").await.unwrap().len(), 1);
}

#[tokio::test]
async fn without_the_policys_word_nothing_is_drawn() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    publish(&forge, &alice, &[&package("lib")]).await;
    let kiln = Verifier::enrol(&forge, "kiln").await;
    assert!(drawn(&forge, &kiln).await.is_none());
}

/// What needs inputs that only a submitter has is passed over.
#[tokio::test]
async fn what_isnt_public_helps_no_audit() {
    let forge = start("audit-per-day = 24").await;
    let alice = forge.submitter("alice").await;
    let source = Item::source("source", &random_hex());
    let lib = Package::new("lib-1.0").source(&source).contents(&random_hex()).build();
    publish(&forge, &alice, &[&lib]).await;
    let kiln = Verifier::enrol(&forge, "kiln").await;
    assert!(drawn(&forge, &kiln).await.is_none());
    // the same once its source is published
    forge.push(&forge.draft(&alice).item(&source)).await.assert_published(&source.path);
    let job = drawn(&forge, &kiln).await.expect("an audit");
    assert_eq!(job.derivation, lib.drv);
}

/// A key that claimed something wrong: what it published lately is built again, whatever the daily number.
#[tokio::test]
async fn recent_paths_are_due_after_a_claims_mismatch() {
    // rejected: with its key held, what the claim is held for depends on when it's looked at
    let looked_at = r#"[[rule]]
name = "looked at"
match = { pname = "wrong" }
require = { rebuilds = 1 }
on-mismatch = "reject"
"#;
    let forge = Forge::start_with(&policy("", looked_at), Config::default()).await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let (old, recent, shared) = (package("old"), package("recent"), package("shared"));
    publish(&forge, &alice, &[&old]).await;
    forge.clock.advance(31 * DAY);
    publish(&forge, &alice, &[&recent]).await;
    // somebody else's, which alice has pushed too
    publish(&forge, &bob, &[&shared]).await;
    forge.push(&forge.draft(&alice).item(shared.out())).await.assert_published(shared.path());
    let verifiers = three(&forge).await;
    assert!(drawn(&forge, &verifiers[0]).await.is_none());
    let wrong = package("wrong");
    let mut push = forge.push(&forge.draft(&alice).package(&wrong)).await;
    push.assert_held(wrong.path(), "needs-rebuild");
    let job = verifiers[0].job(&forge).await;
    assert_eq!(job.purpose, Purpose::Rebuild);
    agree_on(&forge, &verifiers, job, &other(&wrong)).await;
    forge.becomes(&mut push, wrong.path(), PathState::Rejected, Some("rebuild-mismatch")).await;
    until(async || !forge.app.db.open_audits("main").await.unwrap().is_empty()).await;
    let job = drawn(&forge, &verifiers[0]).await.expect("an audit that is due");
    assert_eq!((job.purpose, &job.derivation), (Purpose::Audit, &recent.drv));
    verifiers[0].report(&forge, &job, recent.out()).await;
    over(&forge).await;
    assert!(drawn(&forge, &verifiers[0]).await.is_none());
}
