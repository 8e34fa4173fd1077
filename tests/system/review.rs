//! People who decide about claims, by the commands that they have: what each does, what is refused and leaves everything as
//! it was, and what a changed policy would have decided.

mod deciding;
mod refusals;
mod replay;

use pushgate_formats::{StorePath, api::PathState};
use pushgate_gateway::{db::Role, identities::Invite};
use pushgate_tests::{
    forge::{Forge, Item, Package, Pushed, Submitter, random_hex},
    process::{Ran, Submitter as Person},
};
use serde_json::Value;

/// What isn't addressed by its contents waits for somebody of `core`.
const POLICY: &str = r#"version = 1
cache = "main"
[groups]
core = ["bob"]
[[rule]]
name = "contents"
match = { content-addressed = true }
require = "content-address"
[[rule]]
name = "looked at"
match = {}
require = { all = ["derivation", { approvals = 1, from = "core" }] }
"#;

/// A gateway, somebody who pushes, and people with the real command.
struct Stage {
    forge: Forge,
    /// Pushes.
    alice: Submitter,
    /// The same with the command.
    alices: Person,
    /// Of `core`.
    bob: Person,
    /// An admin.
    ada: Person,
}

impl Stage {
    async fn set(policy: &str) -> Self {
        let forge = Forge::start_with(policy, Default::default()).await;
        let alice = forge.submitter("alice").await;
        let alices = person(&forge, "alice", Role::Submitter).await;
        let bob = person(&forge, "bob", Role::Submitter).await;
        let ada = person(&forge, "ada", Role::Admin).await;
        Self { forge, alice, alices, bob, ada }
    }

    /// A package of Alice's that is held.
    async fn held(&self, name: &str, code: &str) -> (Package, Pushed) {
        let package = Package::new(name).build();
        let pushed = self.forge.push(&self.forge.draft(&self.alice).package(&package)).await;
        pushed.assert_held(package.path(), code);
        (package, pushed)
    }

    async fn becomes(&self, pushed: &mut Pushed, path: &StorePath, state: PathState, code: Option<&str>) {
        self.forge.becomes(pushed, path, state, code).await;
    }
}

/// Somebody who joined with the real command.
async fn person(forge: &Forge, name: &str, role: Role) -> Person {
    let code = forge.invite(Invite { role, ..Forge::invitation(name) }).await;
    let person = Person::stranger();
    run(&person, &format!("join {} --invite {code} --name {name}-1", forge.url)).ended_with(0);
    person
}

/// Runs the command while the gateway, in this process, answers.
fn run(who: &Person, args: &str) -> Ran {
    let args: Vec<&str> = args.split(' ').collect();
    tokio::task::block_in_place(|| who.run(&args))
}

fn json(ran: Ran) -> Value {
    let ran = ran.ended_with(0);
    serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e} in {}", ran.out))
}

/// Without what differs from run to run: times, and how long ago they were.
fn steady(text: &str) -> String {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let word = |word: &str| {
        let bare = word.trim_end_matches([',', ':', ')']);
        let rest = &word[bare.len()..];
        if bare.len() == 10 && bare.split('-').all(digits) {
            format!("DATE{rest}")
        } else if bare.ends_with('Z') && bare.trim_end_matches('Z').split(':').all(digits) {
            format!("TIME{rest}")
        } else if bare.starts_with("alice-") {
            "alice-KEY".to_owned()
        } else {
            word.to_owned()
        }
    };
    let line = |line: &str| {
        let words: Vec<String> = line.split(' ').map(word).collect();
        let mut out = words.clone();
        for (n, pair) in words.windows(3).enumerate() {
            let number = pair[0].trim_start_matches('(');
            if digits(number) && pair[1] == "s" && pair[2].starts_with("ago") {
                out[n] = pair[0].replace(number, "N");
            }
        }
        out.join(" ").trim_end().to_owned() + "\n"
    };
    text.lines().map(line).collect()
}

fn source() -> Item {
    Item::source("source", &random_hex())
}
