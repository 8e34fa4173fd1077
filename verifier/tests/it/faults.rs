//! The verifier killed, the gateway away, the job not wanted any more.

use std::time::Duration;

use pushgate_formats::jobs::JobResult;
use rustix::process::Signal;

use crate::{
    gateway::Gateway,
    store::Store,
    verifier::{Verifier, runs, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_midst_it_leaves_nothing() {
    let (store, gateway) = (Store::new(), Gateway::start().await);
    let (job, view) = store.job(&store.script("slow", "(sleep 92929292 &); sleep 92929292"));
    gateway.queue(job, view);
    let mut verifier = Verifier::running(&gateway).await;
    until("the build runs", || runs("92929292")).await;
    verifier.signal(Signal::KILL);
    assert!(!verifier.ended().await);
    until("the build is gone with it", || !runs("92929292")).await;
    assert_eq!(verifier.jobs().len(), 1, "the directory waits for the next start");

    let (job, view) = store.job(&store.script("good", "echo > $out"));
    let id = job.job.clone();
    gateway.queue(job, view);
    verifier.start(&["--once"]);
    assert!(matches!(gateway.result(&id).await, JobResult::Built { .. }));
    assert!(verifier.ended().await);
    assert!(verifier.jobs().is_empty(), "{:?}", verifier.jobs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_away_for_a_while_gets_everything() {
    let (store, gateway) = (Store::new(), Gateway::start().await);
    let (job, view) = store.job(&store.script("a", "echo one; sleep 4; echo two; echo > $out"));
    let id = job.job.clone();
    gateway.queue(job, view);
    let mut verifier = Verifier::joined(&gateway).await;
    verifier.start(&["--once"]);
    gateway.wait("the log's beginning", |kept| kept.logs.get(&id).map(drop)).await;
    gateway.away(true);
    // the build ends and the lease runs out meanwhile
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(gateway.kept().results.is_empty());
    gateway.away(false);
    let JobResult::Built { outputs, .. } = gateway.result(&id).await else { panic!("failed") };
    assert_eq!(gateway.log(&id), "one\ntwo\n");
    gateway.wait("the NAR", |kept| kept.nars.get(&outputs[0].nar_hash).map(drop)).await;
    assert!(verifier.ended().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_nobody_needs_any_more_is_dropped() {
    let (store, gateway) = (Store::new(), Gateway::start().await);
    let (job, view) = store.job(&store.script("slow", "sleep 93939393"));
    let id = job.job.clone();
    gateway.queue(job, view);
    let verifier = Verifier::running(&gateway).await;
    until("the build runs", || runs("93939393")).await;
    gateway.kept().cancelled.insert(id.clone());
    until("the build has ended", || !runs("93939393")).await;
    verifier.idle().await;
    // a lease that the gateway has forgotten is the same
    let (job, view) = store.job(&store.script("slow2", "sleep 93939394"));
    let lost = job.job.clone();
    gateway.queue(job, view);
    until("the build runs", || runs("93939394")).await;
    gateway.kept().tokens.insert(lost.clone(), "another".into());
    until("the build has ended", || !runs("93939394")).await;

    let (job, view) = store.job(&store.script("good", "echo > $out"));
    let good = job.job.clone();
    gateway.queue(job, view);
    assert!(matches!(gateway.result(&good).await, JobResult::Built { .. }));
    let kept = gateway.kept();
    assert!(!kept.results.contains_key(&id) && !kept.results.contains_key(&lost));
}
