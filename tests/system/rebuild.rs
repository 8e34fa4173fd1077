//! Rebuilds: what is held until verifiers got the same, what they are told and given, whom the gateway believes, and what
//! follows where they differ. Verifiers and packages are forged; each refusal also asserts what did not become public and
//! that no rebuild counts.

mod attestations;
mod chains;
mod faults;
mod leases;
mod matches;
mod mismatches;
mod upstreams;
mod view;
mod votes;

use pushgate_formats::{StorePath, api::PathState};
use pushgate_gateway::{config::Config, db::RebuildRow, identities::Invite};
use pushgate_tests::forge::{Forge, Item, Package, PackageBuilder, Pushed, Refused, Submitter, random_hex};

/// The head of a policy, and the rule for what its contents speak for.
const HEAD: &str = r#"version = 1
cache = "main"
closure = "self-contained"
[[rule]]
name = "contents"
match = { content-addressed = true }
require = "content-address"
"#;

/// Everything else is proven by its derivation and needs this of verifiers; lines of the rule may follow.
fn rebuilt(what: &str, more: &str) -> String {
    format!(
        "{HEAD}[[rule]]\nname = \"rest\"\nmatch = {{}}\nrequire = {{ all = [\"derivation\", {{ rebuilds = {what} }}] }}\n{more}"
    )
}

async fn start(policy: &str) -> Forge {
    Forge::start_with(policy, Config::default()).await
}

/// A package that nobody has seen, called `name-1.0`.
fn begin(name: &str) -> PackageBuilder {
    Package::new(&format!("{name}-1.0")).contents(&random_hex()).env("salt", &random_hex())
}

fn package(name: &str) -> Package {
    begin(name).build()
}

/// Other contents of the package.
fn other(package: &Package, contents: &str) -> Item {
    package.out_mentioning(contents, &[])
}

/// Enrols a submitter with this owner.
async fn owned(forge: &Forge, name: &str, owner: Option<&str>) -> Submitter {
    let owner = owner.map(str::to_owned);
    forge.submitter_by(Invite { owner, ..Forge::invitation(name) }).await
}

/// Pushes a package that is held until somebody has built it too.
async fn held(forge: &Forge, by: &Submitter, package: &Package) -> Pushed {
    let push = forge.push(&forge.draft(by).package(package)).await;
    push.assert_held(package.path(), "needs-rebuild");
    push
}

/// Rebuilds that count.
async fn rows(forge: &Forge, path: &StorePath) -> Vec<RebuildRow> {
    forge.app.db.rebuilds("main", std::slice::from_ref(path)).await.expect("the rebuilds")
}

/// The jobs of a derivation, by state and code.
async fn jobs(forge: &Forge, package: &Package) -> Vec<(String, Option<String>)> {
    let rows = forge.app.db.jobs_of("main", std::slice::from_ref(&package.drv)).await.expect("the jobs");
    rows.into_iter().map(|job| (job.state.as_str().to_owned(), job.code)).collect()
}

/// Waits until the derivation has jobs in these states, in the order that they were asked for.
async fn jobs_become(forge: &Forge, package: &Package, states: &[&str]) {
    for _ in 0..200 {
        let found: Vec<String> = jobs(forge, package).await.into_iter().map(|(state, _)| state).collect();
        if found == states {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("expected {states:?}, there are {:?}", jobs(forge, package).await);
}

/// The claim stays as it is for a while.
async fn stays(forge: &Forge, push: &mut Pushed, path: &StorePath, state: PathState, code: Option<&str>) {
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    forge.becomes(push, path, state, code).await;
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Refused>, status: u16, code: &str) -> Refused {
    let error = result.expect_err(code);
    assert_eq!((error.status, error.code.as_str()), (status, code), "{error:?}");
    error
}

/// Events of a kind, as stored.
async fn events(forge: &Forge, kind: &str) -> Vec<String> {
    let rows = forge.app.db.events(Some(0), None, 1000).await.expect("the events");
    rows.into_iter()
        .map(|row| row.event)
        .filter(|event| event.kind == kind)
        .map(|event| event.detail)
        .collect()
}
