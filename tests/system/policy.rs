//! Policy files decide: holds, evidence, people, changed policies, through a real gateway. Each refusal also asserts what
//! did not become public.

mod changes;
mod conflicts;
mod evidence;
mod people;
mod races;
mod rules;

use pushgate_formats::{
    StorePath,
    acts::{ActDone, Deed},
    api::PathState,
    review::{Conflict, HeldClaims},
};
use pushgate_gateway::{config::Config, identities::Invite};
use pushgate_policies::review::RecordedDecisions;
use pushgate_tests::forge::{Forge, Package, Pushed, Refused, Submitter, random_hex};

/// The head of a policy and the rule for what its contents speak for; rules of the test follow.
const HEAD: &str = r#"version = 1
cache = "main"
[groups]
core = ["bob", "carol", "alice"]
[[rule]]
name = "contents"
match = { content-addressed = true }
require = "content-address"
"#;

/// A rule for everything that is left.
const REST: &str = "[[rule]]\nname = \"rest\"\nmatch = {}\nrequire = \"derivation\"\n";

/// A rule for one package name.
fn rule(pname: &str, require: &str) -> String {
    format!("[[rule]]\nname = \"for {pname}\"\nmatch = {{ pname = \"{pname}\" }}\nrequire = {require}\n")
}

/// A rule for `lib`: proven, and looked at by one of the core group.
fn looked_at() -> String {
    format!("{HEAD}{}{REST}", rule("lib", r#"{ all = ["derivation", { approvals = 1, from = "core" }] }"#))
}

async fn start(policy: &str) -> Forge {
    Forge::start_with(policy, Config::default()).await
}

/// Puts a policy file in place and has it taken up; gives whether it came into force.
async fn edit(forge: &Forge, policy: &str) -> bool {
    std::fs::write(forge.dir().join("policies/main.toml"), policy).unwrap();
    let before = forge.app.caches.all()[0].policy().digest;
    forge.app.caches.reload_policies(forge.app.db.as_ref()).await.unwrap();
    before != forge.app.caches.all()[0].policy().digest
}

/// A package that nobody has seen, called `name-1.0`.
fn package(name: &str) -> Package {
    Package::new(&format!("{name}-1.0")).contents(&random_hex()).env("salt", &random_hex()).build()
}

/// Enrols somebody with this owner.
async fn owned(forge: &Forge, name: &str, owner: Option<&str>) -> Submitter {
    let owner = owner.map(str::to_owned);
    forge.submitter_by(Invite { owner, ..Forge::invitation(name) }).await
}

fn approve(package: &Package, until: Option<u64>) -> Deed {
    let (path, nar_hash) = (package.path().clone(), package.out().nar_hash);
    Deed::Approve { cache: "main".into(), path, nar_hash, until }
}

fn reject(package: &Package) -> Deed {
    let (path, nar_hash) = (package.path().clone(), package.out().nar_hash);
    Deed::Reject { cache: "main".into(), path, nar_hash, until: None }
}

#[track_caller]
fn refused(result: Result<ActDone, Refused>, status: u16, code: &str) {
    let error = result.expect_err(code);
    assert_eq!((error.status, error.code.as_str()), (status, code), "{error:?}");
}

/// What is held, as an admin sees it.
async fn held(forge: &Forge, by: &Submitter) -> HeldClaims {
    forge.signed_get(by, "/api/v1/caches/main/held", |_| {}).await.expect("what is held")
}

async fn conflicts(forge: &Forge, by: &Submitter) -> Vec<Conflict> {
    forge.signed_get(by, "/api/v1/caches/main/conflicts", |_| {}).await.expect("conflicts")
}

async fn decisions(forge: &Forge, by: &Submitter) -> RecordedDecisions {
    forge.signed_get(by, "/api/v1/caches/main/decisions", |_| {}).await.expect("decisions")
}

/// The claim stays as it is for a while: nothing is under way that would change it.
async fn stays(forge: &Forge, push: &mut Pushed, path: &StorePath, state: PathState, code: Option<&str>) {
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    forge.becomes(push, path, state, code).await;
}
