//! Published paths that are looked at again, and what follows where verifiers agree on something else, through a real gateway.

mod drawing;
mod incidents;
mod verifier;
mod withdrawals;

use std::time::Duration;

use pushgate_formats::{StorePath, acts::Event, jobs::Job};
use pushgate_gateway::{config::Config, push::rebuild::audit};
use pushgate_policies::review::Why;
use pushgate_tests::forge::{Forge, Item, POLICY, Package, Submitter, random_hex};

use verifier::Verifier;

/// The usual policy with these rebuilds, and rules before the others.
fn policy(rebuilds: &str, rules: &str) -> String {
    POLICY.replacen("[[rule]]", &format!("[rebuilds]\n{rebuilds}\n{rules}\n[[rule]]"), 1)
}

async fn start(rebuilds: &str) -> Forge {
    Forge::start_with(&policy(rebuilds, ""), Config::default()).await
}

/// A package that nobody has seen, called `name-1.0`.
fn package(name: &str) -> Package {
    Package::new(&format!("{name}-1.0")).contents(&random_hex()).env("salt", &random_hex()).build()
}

/// One that is built from another and refers to it.
fn user(name: &str, of: &Package) -> Package {
    Package::new(&format!("{name}-1.0")).input(of).mention(of.path()).contents(&random_hex()).build()
}

/// What somebody gets who builds something else.
fn other(package: &Package) -> Item {
    package.out_mentioning(&format!("something else {}", random_hex()), &[])
}

async fn publish(forge: &Forge, by: &Submitter, packages: &[&Package]) {
    for package in packages {
        forge.push(&forge.draft(by).package(package)).await.assert_published(package.path());
    }
}

/// What the gateway does now and then, now.
async fn look(forge: &Forge) {
    audit::look(&forge.app).await.expect("a look");
}

/// Has a verifier wait for work and the gateway look for some.
async fn drawn(forge: &Forge, verifier: &Verifier) -> Option<Job> {
    // a verifier that waits for work may get it before the test looks
    match verifier.lease(forge, 0).await {
        None => {
            look(forge).await;
            verifier.lease(forge, 0).await
        }
        job => job,
    }
}

/// Waits until this is so.
async fn until(is_so: impl AsyncFn() -> bool) {
    for _ in 0..200 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it doesn't come");
}

/// Waits until no audit is under way any more.
async fn over(forge: &Forge) {
    until(async || forge.app.db.open_audits("main").await.unwrap().is_empty()).await;
}

async fn events(forge: &Forge, kind: &str) -> Vec<Event> {
    let admin = forge.admin(&format!("admin-{}", &random_hex()[..8])).await;
    forge.events(&admin).await.into_iter().filter(|event| event.kind == kind).collect()
}

async fn why(forge: &Forge, by: &Submitter, path: &StorePath) -> Why {
    let target = format!("/api/v1/caches/main/paths/{}/why", path.base_name());
    forge.signed_get(by, &target, |_| {}).await.expect("why")
}

/// Three verifiers of different owners.
async fn three(forge: &Forge) -> [Verifier; 3] {
    [
        Verifier::enrol(forge, "kiln").await,
        Verifier::enrol(forge, "oven").await,
        Verifier::enrol(forge, "forge").await,
    ]
}

/// The first of them gets something else for a drawn path, twice, and the others the same.
async fn agree_on(forge: &Forge, verifiers: &[Verifier; 3], job: Job, item: &Item) {
    let [first, second, third] = verifiers;
    first.report(forge, &job, item).await;
    let again = first.job(forge).await;
    assert_eq!(again.derivation, job.derivation);
    first.report(forge, &again, item).await;
    for verifier in [second, third] {
        let job = verifier.job(forge).await;
        assert_eq!(job.derivation, again.derivation);
        verifier.report(forge, &job, item).await;
    }
}
