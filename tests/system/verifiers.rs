//! Rebuilds and builds as their operators and users see them: real verifiers build in their sandboxes, with the toolset of
//! tests/toolset. They need root, for the sandbox.

mod builds;
mod chain;
mod honest;
mod lies;
mod losses;
mod probes;
mod sample;
mod sources;

use std::fs;

use pushgate_formats::{Sha256, api::PathState};
use pushgate_tests::{
    invariants::Books,
    process::{Gateway, Nix, Submitter, Web, toolset, wait_for},
};
use serde_json::Value;
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

/// Everything but what hashes to its contents needs a rebuild.
const REBUILT: &str = "require = { all = [\"derivation\", { rebuilds = 1 }] }";

/// A policy that publishes the toolset as it comes, and all the rest by a rule with these lines. `more` are lines of the
/// whole file and tables.
fn policy(rest: &str, more: &str) -> String {
    format!(
        r#"version = 1
cache = "main"
{more}
[[rule]]
name = "contents"
match = {{ content-addressed = true }}
require = "content-address"
[[rule]]
name = "toolset"
match = {{ pname = "tools" }}
require = "derivation"
[[rule]]
name = "rest"
match = {{}}
{rest}
"#
    )
}

/// A gateway, a submitter `alice` with an owner, and her store with the toolset.
struct Stage {
    gateway: Gateway,
    alice: Submitter,
    nix: Nix,
}

impl Stage {
    /// With a policy file that publishes the toolset, and the toolset published.
    fn set(policy: &str) -> Self {
        Self::set_with(policy, "")
    }

    /// The same with the gateway's configuration.
    fn set_with(policy: &str, config: &str) -> Self {
        let stage = Self::bare(policy, config);
        let tools = stage.build("tools");
        let report = stage.alice.push(&stage.nix, std::slice::from_ref(&tools));
        assert_eq!(report.of(&tools).state, PathState::Published, "{report:#?}");
        stage
    }

    /// With nothing published.
    fn bare(policy: &str, config: &str) -> Self {
        let gateway = Gateway::with_policy_file(policy, config);
        let alice = gateway.enrol("alice", &["--owner", "alice"]);
        Self { gateway, alice, nix: Nix::builder() }
    }

    /// What a script with the toolset makes, in the submitter's store.
    #[track_caller]
    fn build(&self, expression: &str) -> String {
        self.nix.build(&toolset(expression)).remove(0)
    }

    /// Pushes one path, and makes sure that it isn't published yet.
    #[track_caller]
    fn push_held(&self, path: &str) {
        let report = self.alice.push(&self.nix, &[path.to_owned()]);
        assert_eq!(report.of(path).state, PathState::Held, "{report:#?}");
        assert!(!is_public(&self.gateway, path));
    }

    /// Waits until a claim of the submitter's is in this state for this reason.
    #[track_caller]
    fn wait_claim(&self, path: &str, state: &str, code: &str) -> Value {
        wait_claim(&self.alice, path, state, code)
    }

    fn wait_public(&self, path: &str) {
        wait_public(&self.gateway, path);
    }

    /// Somebody who decides.
    fn admin(&self) -> Submitter {
        self.gateway.enrol("ada", &["--role", "admin", "--owner", "ada"])
    }
}

/// What `why` says of the newest claim that its asker sees.
fn claim(who: &Submitter, path: &str) -> Option<Value> {
    let ran = who.run(&["why", "--json", path]);
    assert!(matches!(ran.code, Some(0 | 3)), "{ran:#?}");
    let all: Value = serde_json::from_str(&ran.out).unwrap();
    all["claims"].get(0).cloned()
}

#[track_caller]
fn wait_claim(who: &Submitter, path: &str, state: &str, code: &str) -> Value {
    let mut last = None;
    let is_so = |claim: &Value| claim["state"] == state && claim["code"] == code;
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("a claim's state", || {
            last = claim(who, path);
            last.clone().filter(is_so)
        })
    }));
    found.unwrap_or_else(|_| panic!("{path} isn't {state} for {code}, but {last:#?}"))
}

fn hash_part(path: &str) -> &str {
    &path["/nix/store/".len()..][..32]
}

fn is_public(gateway: &Gateway, path: &str) -> bool {
    let url = gateway.cache_url("main") + "/" + hash_part(path) + ".narinfo";
    Web::new().get(&url).status.is_success()
}

#[track_caller]
fn wait_public(gateway: &Gateway, path: &str) {
    wait_for("a published path", || is_public(gateway, path).then_some(()));
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// What an SQL query that counts finds in the gateway's database.
fn count(gateway: &Gateway, query: &'static str, path: &str) -> i64 {
    let options = SqliteConnectOptions::new().filename(gateway.data().join("gateway.db"));
    wait(async {
        let mut db = SqliteConnection::connect_with(&options).await.unwrap();
        let name = path.trim_start_matches("/nix/store/");
        sqlx::query_scalar(query).bind(name).fetch_one(&mut db).await.unwrap()
    })
}

/// How many rebuilds of a path were reported.
fn rebuilds(gateway: &Gateway, path: &str) -> i64 {
    count(gateway, "SELECT count(*) FROM rebuilds WHERE path = ?", path)
}

/// The paths of the log, in order; each is there once.
fn logged(gateway: &Gateway) -> Vec<String> {
    let books = wait(Books::read(&gateway.data().join("gateway.db"), "main"));
    books.leaves.iter().map(|leaf| leaf.path.absolute()).collect()
}

/// Changes the contents of a path in a store, as somebody would who owns the store.
fn tamper(nix: &Nix, path: &str, file: &str, contents: &str) {
    let (real, references) = (nix.physical(path), nix.query(&["--references"], &[path.to_owned()]));
    let deriver = nix.query(&["--deriver"], &[path.to_owned()]).remove(0);
    let target = if file.is_empty() { real.clone() } else { real.join(file) };
    nix.run("chmod", &["-R", "u+w", real.to_str().unwrap()]).ended_with(0);
    fs::write(&target, contents).unwrap();
    nix.run("chmod", &["-R", "a-w", real.to_str().unwrap()]).ended_with(0);
    let nar = nix.dump(path);
    // path, hash, size, deriver, count of references, references
    let mut info = vec![path.to_owned(), Sha256::of(&nar).hex(), nar.len().to_string(), deriver];
    info.push(references.len().to_string());
    info.extend(references);
    fs::write(nix.dir().join("info"), info.join("\n") + "\n").unwrap();
    // unlike `--register-validity` this doesn't look for the files where they would be without a root directory
    nix.run("sh", &["-c", "nix-store --load-db < info"]).ended_with(0);
    assert_eq!(nix.hashes(&[path.to_owned()])[path], Sha256::of(&nar).to_string());
    assert_eq!(nix.dump(path), nar);
}
