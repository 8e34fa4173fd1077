//! Measures what policies cost a gateway: 100,000 held claims judged again after a reload, with pushes going on meanwhile;
//! the start with a million published paths. `scripts/bench --sets policy` runs it; prints JSON.
//!
//! What is held or published is put into the database by the seam that the gateway itself uses; the pushes that go on are
//! real ones, over HTTP.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use pushgate_formats::{Sha256, StorePath, api::PathState, log_leaf::PublishLeaf};
use pushgate_gateway::{
    app::App,
    clock::Clock,
    config::Config,
    db::{
        ClaimUpdate, Db, Judged, NewClaim, NewPublication, PublishedRow, PushAdded, PushKind, PushRow,
        sqlite::Sqlite,
    },
    push::decide::stored_outcome,
};
use pushgate_policies::{
    decide,
    facts::{Claim, Evidence, Fact, Identity, Moment, Provenance, Wait},
    record::{Outcome, Recorded},
};
use pushgate_tests::forge::{Forge, Item, Submitter, random_hex};

/// Claims of one push.
const CLAIMS: usize = 1000;
/// Published paths written at once.
const BATCH: usize = 10_000;

fn policy(rules: usize, approvals: usize) -> String {
    let mut text = String::from("version = 1\ncache = \"main\"\n[groups]\ncore = [\"bob\", \"carol\"]\n");
    for n in 0..rules.saturating_sub(2) {
        text.push_str(&format!(
            "[[rule]]\nname = \"package {n}\"\nmatch = {{ pname = [\"package{n}\", \"glob:tools{n}-*\"], system = \"x86_64-linux\" }}\n\
             require = {{ all = [\"derivation\", {{ any = [{{ rebuilds = 1 }}, {{ approvals = 1, from = \"core\" }}] }}] }}\n"
        ));
    }
    text.push_str(&format!(
        "[[rule]]\nname = \"contents\"\nmatch = {{ content-addressed = true }}\nrequire = \"content-address\"\n\
         [[rule]]\nname = \"rest\"\nmatch = {{}}\nrequire = {{ all = [\"derivation\", {{ approvals = {approvals}, from = \"core\" }}] }}\n"
    ));
    text
}

fn path(kind: &str, n: usize) -> StorePath {
    let digest = Sha256::of(format!("{kind} {n}").as_bytes());
    StorePath::from_digest(digest.0[..20].try_into().expect("20 bytes"), &format!("{kind}-1.{n}"))
        .expect("a path")
}

/// A claim as the policy sees it, proven by a derivation.
fn with_claim<T>(path: &StorePath, then: impl FnOnce(&Claim<'_>, &Evidence, Moment) -> T) -> T {
    let (derivation, none) = (path, Default::default());
    let claim = Claim {
        cache: "main",
        path,
        nar_hash: Sha256::of(path.base_name().as_bytes()),
        nar_size: 123_456,
        submitter: Identity { name: "alice", owner: Some("alice"), groups: &[] },
        content_addressed: Fact::Known(false),
        built: Fact::Known(pushgate_policies::facts::Built {
            derivation,
            output: "out",
            system: "x86_64-linux",
            builder: "/bin/sh",
            env: &none,
        }),
        sources: Fact::Unknown,
    };
    then(&claim, &Evidence::only(Provenance::Derivation), Moment { now: 1_000_000, announced: 1_000_000 })
}

/// Puts held claims into a gateway's database, each with its decision. Gives the id of the last push.
async fn hold(forge: &Forge, by: &Submitter, count: usize) -> String {
    let (app, now) = (&forge.app, forge.clock.now());
    let policy = app.caches.all()[0].policy();
    let key = app.db.key(&by.key.public().bytes()).await.expect("the database").expect("the key");
    let mut last = String::new();
    for first in (0..count).step_by(CLAIMS) {
        let paths: Vec<StorePath> = (first..(first + CLAIMS).min(count)).map(|n| path("held", n)).collect();
        let claims: Vec<NewClaim> = (paths.iter())
            .map(|path| NewClaim {
                path: path.clone(),
                nar_hash: Sha256::of(path.base_name().as_bytes()),
                deriver: None,
                state: PathState::Wanted,
            })
            .collect();
        let push = PushRow {
            id: random_hex()[..24].to_owned(),
            digest: Sha256::of(random_hex().as_bytes()),
            identity: key.identity,
            key: key.key.clone(),
            cache: "main".into(),
            nonce: random_hex(),
            kind: PushKind::Announcement,
            envelope: b"{}".to_vec(),
            created: now,
            expires: now + 86_400,
        };
        let PushAdded::Added(ids) = app.db.add_push(&push, &claims, &[]).await.expect("a push") else {
            panic!("the push isn't new")
        };
        let updates = ids.into_iter().zip(&paths).map(|(id, path)| {
            with_claim(path, |claim, evidence, _| {
                let moment = Moment { now, announced: now };
                let decision = decide(&policy, claim, evidence, moment);
                let pushgate_policies::facts::Decision::Hold { code, message, waits, .. } = &decision else {
                    panic!("{decision:?}")
                };
                let recorded = Recorded::of(claim, evidence, moment, &BTreeSet::new());
                ClaimUpdate {
                    id,
                    state: PathState::Held,
                    code: Some((*code).to_owned()),
                    message: Some(message.clone()),
                    waits: waits.iter().map(Wait::to_string).collect(),
                    waits_on: vec![],
                    decision: Some(stored_outcome(&policy, Outcome::of(&decision), &recorded)),
                    again: None,
                }
            })
        });
        let judged = Judged { cache: "main".into(), now, claims: updates.collect(), ..Judged::default() };
        app.db.commit(&judged).await.expect("the claims");
        last = push.id;
    }
    last
}

/// Pushes one path after the other; gives how long each took.
async fn pushing(forge: &Forge, by: &Submitter, stop: impl Fn() -> bool) -> Vec<Duration> {
    let mut took = vec![];
    while !stop() {
        let item = Item::source("plan", &random_hex());
        let started = Instant::now();
        forge.push(&forge.draft(by).item(&item)).await.assert_published(&item.path);
        took.push(started.elapsed());
    }
    took
}

fn middle(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let ms = |d: Option<&Duration>| d.map_or(0.0, |d| d.as_secs_f64() * 1e3);
    (ms(times.get(times.len() / 2)), ms(times.last()))
}

/// Seconds until all held claims are judged by an edited policy, and what pushes took meanwhile and else.
async fn reload(count: usize) -> serde_json::Value {
    let forge = Forge::start_with(&policy(20, 1), Config::default()).await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let last = hold(&forge, &alice, count).await;
    let mut results = serde_json::Map::new();
    let left = Instant::now() + Duration::from_secs(2);
    let idle = middle(pushing(&forge, &bob, || Instant::now() > left).await);
    for (what, text, code, waits) in [
        ("as before", policy(30, 1), "needs-approval", "1 approval from `core` (0 of 1)"),
        ("waiting for more", policy(30, 2), "needs-approval", "2 approvals from `core` (0 of 2)"),
        (
            "refused",
            policy(20, 1).replace(
                "require = { all = [\"derivation\", { approvals = 1, from = \"core\" }] }",
                "deny = \"no\"",
            ),
            "not-permitted",
            "",
        ),
    ] {
        std::fs::write(forge.dir().join("policies/main.toml"), text).expect("the policy");
        let done = AtomicBool::new(false);
        let started = Instant::now();
        let judged = async {
            assert!(forge.app.caches.reload_policies(forge.app.db.as_ref()).await.expect("the policies"));
            if what == "as before" {
                // nothing shows that it is over but that the next claim is waited for no more
                forge.app.caches.all()[0].judged_again().await;
            }
            loop {
                let claims = forge.app.db.claims(&last).await.expect("claims");
                let claim = claims.last().expect("a claim");
                if claim.code.as_deref() == Some(code)
                    && claim.waits.first().map_or("", String::as_str) == waits
                {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let took = started.elapsed();
            done.store(true, Relaxed);
            took
        };
        let (took, pushes) = tokio::join!(judged, pushing(&forge, &bob, || done.load(Relaxed)));
        let count = pushes.len();
        let (typical, longest) = middle(pushes);
        results.insert(
            what.to_owned(),
            serde_json::json!({ "seconds": took.as_secs_f64(), "pushes": count, "pushMs": typical, "longestPushMs": longest }),
        );
    }
    serde_json::json!({ "claims": count, "idlePushMs": idle.0, "longestIdlePushMs": idle.1, "edits": results })
}

/// Seconds that a gateway takes to open a data directory with so many published paths.
async fn start(count: usize) -> serde_json::Value {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir_all(dir.path().join("policies")).expect("policies");
    std::fs::write(dir.path().join("policies/main.toml"), policy(20, 1)).expect("the policy");
    let open = || async {
        let started = Instant::now();
        let app = App::open(dir.path(), Config::default(), Clock::default()).await.expect("a gateway");
        let took = started.elapsed();
        app.stop().await;
        took
    };
    let empty = open().await;
    let db: Arc<dyn Db> = Arc::new(Sqlite::open(&dir.path().join("gateway.db")).await.expect("the database"));
    for first in (0..count).step_by(BATCH) {
        let publications: Vec<NewPublication> =
            (first..(first + BATCH).min(count)).map(publication).collect();
        let paths: Vec<StorePath> = publications.iter().map(|p| p.row.path.clone()).collect();
        let judged = Judged { cache: "main".into(), now: 1_000_000, publications, ..Judged::default() };
        db.commit(&judged).await.expect("the publications");
        db.mark_visible("main", &paths).await.expect("visible");
    }
    drop(db);
    // once to have the log of the database merged, as a gateway that ran would have
    open().await;
    let full = open().await;
    serde_json::json!({ "paths": count, "seconds": full.as_secs_f64(), "emptySeconds": empty.as_secs_f64() })
}

fn publication(n: usize) -> NewPublication {
    let path = path("published", n);
    let nar_hash = Sha256::of(path.base_name().as_bytes());
    let leaf = PublishLeaf {
        cache: "main".into(),
        evidence: vec!["derivation".into()],
        file_hash: nar_hash,
        kind: "publish".into(),
        nar_hash,
        nar_size: 123_456,
        path: path.clone(),
        policy: nar_hash,
        references: vec![],
        rule: "rest".into(),
        submitter_key: "alice-1".into(),
        time: 1_000_000,
        v: 1,
    };
    let narinfo = format!(
        "StorePath: {path}\nURL: nar/{}.nar.zst\nCompression: zstd\nFileHash: {nar_hash}\nFileSize: 34567\nNarHash: {nar_hash}\n\
         NarSize: 123456\nReferences: \nSig: main-1:{}\nSig: alice-1:{}\n",
        nar_hash.base32(),
        "A".repeat(86),
        "B".repeat(86),
    );
    let row = PublishedRow { path, nar_hash, references: BTreeSet::new(), narinfo };
    NewPublication { row, leaf: leaf.to_bytes() }
}

#[tokio::main]
async fn main() {
    let number =
        |n: usize, default: usize| std::env::args().nth(n).map_or(default, |a| a.parse().expect("a number"));
    let report = serde_json::json!({
        "reload": reload(number(1, 100_000)).await,
        "start": start(number(2, 1_000_000)).await,
    });
    println!("{report:#}");
}
