//! Measures how fast a gateway hands out leases: thousands of open jobs, and verifiers that ask for one after the other over
//! HTTP, each question signed. `scripts/bench --sets rebuilds` runs it; prints a table.

use std::{sync::Arc, time::Instant};

use pushgate_gateway::config::Config;
use pushgate_tests::forge::{Draft, Forge, Package, lease_query};

/// Fewer than the verifiers may have together.
const JOBS: usize = 1500;
/// Announced at once.
const PUSH: usize = 500;
/// Verifiers that ask at the same time.
const ASKING: usize = 32;

const POLICY: &str = "version = 1\ncache = \"main\"\n[[rule]]\nname = \"rebuilt\"\nmatch = {}\n\
     require = { all = [\"derivation\", { rebuilds = 1 }] }\n";

#[tokio::main]
async fn main() {
    let forge = Arc::new(Forge::start_with(POLICY, Config::default()).await);
    let alice = forge.submitter("alice").await;
    let mut derivations = Vec::new();
    for first in (0..JOBS).step_by(PUSH) {
        let mut draft = Draft::new(&forge.app.gateway_id, forge.app.clock.now(), &alice);
        for n in first..first + PUSH {
            let package = Package::new(&format!("package-{n}")).build();
            derivations.push(package.drv.clone());
            draft = draft.package(&package);
        }
        forge.push(&draft).await;
    }
    // each package's job comes once its claim was judged
    while forge.app.db.jobs_of("main", &derivations).await.expect("jobs").len() < JOBS {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let mut verifiers = Vec::new();
    for n in 0..ASKING {
        verifiers.push(forge.verifier(&format!("mill-{n}"), Some(&format!("miller-{n}"))).await);
    }
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for verifier in verifiers {
        let forge = forge.clone();
        tasks.spawn(async move {
            let mut leased = 0;
            while let Ok(Some(_)) = forge.ask_for_job(&verifier, &lease_query(), 0).await {
                leased += 1;
            }
            leased
        });
    }
    let leased: usize = tasks.join_all().await.into_iter().sum();
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(leased, JOBS);
    println!("| | | goal |\n|---|--:|--:|");
    println!("| leases a second, {ASKING} verifiers asking | {:.0} | 1000 |", leased as f64 / seconds);
}
