//! A gateway that is killed in the middle of things: whatever moment it was, nothing public is unlogged or half written,
//! nothing accepted is lost, and the push can be finished.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use pushgate_formats::{
    Sha256, StorePath,
    api::PathState,
    keys::PublicKey,
    log_leaf::{CHAIN_START, PublishLeaf, chain},
    narinfo::{Dialect, UnverifiedNarInfo},
    store_path::is_hash_part,
};
use pushgate_gateway::db::{Db, sqlite::Sqlite};
use pushgate_tests::process::{Gateway, Nix, Submitter, names, noise_file, read, wait_for};

/// Large files and small outputs that refer to them, in a closure of their own for each `n`.
fn load(nix: &Nix, n: u64) -> Vec<String> {
    let large = (0..3).map(|i| {
        let file = noise_file(nix.dir(), &format!("large-{n}-{i}"), n * 10 + i, (3 + 2 * i as usize) << 20);
        format!("(builtins.path {{ path = {}; name = \"large-{i}\"; }})", file.display())
    });
    let large = large.collect::<Vec<_>>().join(" ");
    nix.build(&format!(
        r#"
        let
          common = {{ system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin"; }};
          text = i: builtins.toFile "text-${{toString i}}" "number ${{toString i}} of {n}\n";
          some = derivation (common // {{
            name = "some"; texts = builtins.genList text 150;
            args = [ "-c" "printf '%s\\n' $texts $out > $out" ];
          }});
        in derivation (common // {{
          name = "load"; large = [ {large} ]; inherit some;
          args = [ "-c" "printf '%s\\n' $large $some > $out" ];
        }})"#
    ))
}

/// What is public in one cache must be whole, signed, closed under references and logged, at any moment.
fn check_public(public: &Path, cache: &str, key: &PublicKey, leaves: &[PublishLeaf]) -> BTreeSet<StorePath> {
    let mut published = BTreeSet::new();
    for name in names(public) {
        match name.rsplit_once('.') {
            Some((hash, "narinfo")) if is_hash_part(hash) => {}
            Some((hash, "ls")) if is_hash_part(hash) => {
                let listing: serde_json::Value = serde_json::from_slice(&read(&public.join(&name))).unwrap();
                assert_eq!(listing["version"], 1, "{name}");
                continue;
            }
            _ if name == "nix-cache-info" => {
                assert!(read(&public.join(&name)).starts_with(b"StoreDir: /nix/store\n"));
                continue;
            }
            _ if name == "nar" => continue,
            _ => panic!("`{name}` is public and has no business there"),
        }
        let text = read(&public.join(&name));
        let info = UnverifiedNarInfo::parse(&text, Dialect::Push).unwrap();
        assert_eq!(format!("{}.narinfo", info.path.hash_part()), name);
        assert!(info.is_signed_by(key), "{} is not signed by the cache", info.path);
        let file = read(&public.join(&info.url));
        assert_eq!(Some(Sha256::of(&file)), info.file_hash, "file of {}", info.path);
        assert_eq!(Some(file.len() as u64), info.file_size, "file of {}", info.path);
        let nar = zstd::decode_all(file.as_slice()).unwrap();
        assert_eq!(Sha256::of(&nar), info.nar_hash, "NAR of {}", info.path);
        assert_eq!(nar.len() as u64, info.nar_size, "NAR of {}", info.path);
        for reference in &info.references {
            let there = public.join(format!("{}.narinfo", reference.hash_part())).exists();
            assert!(there, "{} refers to {reference}, which isn't published", info.path);
        }
        let leaf = leaves.iter().find(|leaf| leaf.path == info.path);
        let leaf = leaf.unwrap_or_else(|| panic!("{} is public and not in the log", info.path));
        assert_eq!((leaf.cache.as_str(), leaf.nar_hash), (cache, info.nar_hash));
        assert_eq!((leaf.nar_size, Some(leaf.file_hash)), (info.nar_size, info.file_hash));
        assert!(leaf.references.iter().map(String::as_str).eq(info.references.iter().map(|r| r.base_name())));
        published.insert(info.path);
    }
    for name in names(&public.join("nar")) {
        // also those that nothing names yet are whole: their names are their hashes
        let hash = name.strip_suffix(".nar.zst").and_then(Sha256::from_base32);
        assert_eq!(hash, Some(Sha256::of(&read(&public.join("nar").join(&name)))), "{name}");
    }
    published
}

/// The leaves of a cache's log; fails unless they are a chain, each path once.
fn leaves(database: &Path, cache: &str) -> Vec<PublishLeaf> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rows = runtime.block_on(async {
        let db = Sqlite::open(database).await.unwrap();
        db.leaves(cache, 0, 1_000_000).await.unwrap()
    });
    let (mut hash, mut seen) = (CHAIN_START, BTreeSet::new());
    let check = |(number, (seq, body, stored)): (usize, (u64, Vec<u8>, Sha256))| {
        assert_eq!(seq, number as u64, "a leaf is missing");
        hash = chain(&hash, &body);
        assert_eq!(stored, hash, "the chain is broken at {seq}");
        let leaf: PublishLeaf = serde_json::from_slice(&body).unwrap();
        assert_eq!(leaf.to_bytes(), body, "leaf {seq} isn't canonical");
        assert!(seen.insert(leaf.path.clone()), "{} is logged twice", leaf.path);
        leaf
    };
    rows.into_iter().enumerate().map(check).collect()
}

/// Checks one cache of a gateway that was just killed. Its database is copied first: opening one repairs it, and that is
/// left to the gateway.
fn check_dead(gateway: &Gateway, cache: &str) {
    let copy = tempfile::tempdir().unwrap();
    for file in ["gateway.db", "gateway.db-wal"] {
        let from = gateway.data().join(file);
        if from.exists() {
            fs::copy(from, copy.path().join(file)).unwrap();
        }
    }
    let leaves = leaves(&copy.path().join("gateway.db"), cache);
    check_public(&gateway.public(cache), cache, &key(gateway, cache), &leaves);
}

/// The cache's key from its file: a gateway that is dead can't be asked.
fn key(gateway: &Gateway, cache: &str) -> PublicKey {
    let text = read(&gateway.data().join(format!("keys/{cache}.secret")));
    pushgate_formats::keys::SecretKey::parse(&String::from_utf8(text).unwrap()).unwrap().public()
}

/// Checks one cache of a gateway that runs: also that what the log says is public.
fn check_alive(gateway: &Gateway, cache: &str) -> BTreeSet<StorePath> {
    let before = leaves(&gateway.data().join("gateway.db"), cache);
    let logged: BTreeSet<StorePath> = before.iter().map(|leaf| leaf.path.clone()).collect();
    // what is logged while we look becomes public a moment later: only what was logged before must be there
    wait_for("what is logged to be public", || {
        let there = |p: &StorePath| gateway.public(cache).join(format!("{}.narinfo", p.hash_part())).exists();
        logged.iter().all(there).then_some(())
    });
    let after = leaves(&gateway.data().join("gateway.db"), cache);
    assert_eq!(before, after[..before.len()], "the log was rewritten");
    let published = check_public(&gateway.public(cache), cache, &key(gateway, cache), &after);
    assert!(published.is_superset(&logged));
    published
}

/// A moment at which the gateway is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So many bytes have come.
    Received(u64),
    /// So many NARs are in their public places; narinfos may not be.
    Placed(usize),
    /// So many narinfos are public; others may not be.
    Revealed(usize),
}

impl Moment {
    fn has_come(self, gateway: &Gateway, cache: &str) -> bool {
        let public = gateway.public(cache);
        match self {
            Self::Received(bytes) => received(gateway) >= bytes,
            Self::Placed(count) => names(&public.join("nar")).len() >= count,
            Self::Revealed(count) => {
                names(&public).iter().filter(|n| n.ends_with(".narinfo")).count() >= count
            }
        }
    }
}

/// Bytes in quarantine, whole or not.
fn received(gateway: &Gateway) -> u64 {
    let quarantine = gateway.data().join("blobs/quarantine");
    let files = ["tmp", "packs"].iter().filter_map(|dir| fs::read_dir(quarantine.join(dir)).ok()).flatten();
    files.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

/// Pushes, kills the gateway at that moment, starts it again. The client is killed too, or left to find the gateway again.
/// False where the push was over before.
fn strike(
    gateway: &mut Gateway,
    alice: &Submitter,
    nix: &Nix,
    cache: &str,
    built: &[String],
    at: Moment,
    kill_client: bool,
) -> bool {
    let mut push = alice.spawn(nix, &["push", "--json", "--cache", cache, &built[0]]);
    wait_for("the moment to come", || (at.has_come(gateway, cache) || push.has_ended()).then_some(()));
    let struck = !push.has_ended();
    gateway.kill();
    check_dead(gateway, cache);
    let half_written = names(&temporary(gateway));
    if kill_client {
        push.kill();
        gateway.restart();
    } else {
        gateway.restart();
        push.finish().ended_with(0);
    }
    // what it writes now, going on with what it has, bears other names
    let left = names(&temporary(gateway));
    assert!(!left.iter().any(|name| half_written.contains(name)), "{half_written:?} {left:?}");
    check_alive(gateway, cache);
    struck
}

/// Where files are while they are written.
fn temporary(gateway: &Gateway) -> PathBuf {
    gateway.data().join("blobs/quarantine/tmp")
}

#[test]
fn killed_at_any_moment_the_push_can_be_finished_and_nothing_public_is_unlogged() {
    let kills: usize = std::env::var("PUSHGATE_KILLS").map_or(12, |n| n.parse().expect("a number"));
    let nix = Nix::builder();
    let mut gateway = Gateway::start();
    let alice = gateway.enrol("alice", &[]);
    let mib = 1 << 20;
    let moments = [
        Moment::Received(1),
        Moment::Received(2 * mib),
        Moment::Placed(1),
        Moment::Received(4 * mib),
        Moment::Revealed(1),
        Moment::Received(6 * mib),
        Moment::Placed(60),
        Moment::Received(9 * mib),
        Moment::Revealed(40),
        Moment::Received(13 * mib),
        Moment::Placed(140),
        Moment::Revealed(150),
    ];
    let (mut killed, mut struck, mut round) = (0, 0, 0);
    while killed < kills {
        round += 1;
        let cache = format!("round-{round}");
        gateway.add_cache(&cache);
        let built = load(&nix, round);
        // several kills to a push: what an earlier crash left is there when the next comes
        for _ in 0..3.min(kills - killed) {
            let mut at = moments[killed % moments.len()];
            if killed >= moments.len()
                && let Moment::Received(bytes) = &mut at
            {
                // further rounds come at other moments
                *bytes = (*bytes + killed as u64 * 777_777) % (14 * mib);
            }
            let kill_client = killed % 4 != 1;
            struck += usize::from(strike(&mut gateway, &alice, &nix, &cache, &built, at, kill_client));
            killed += 1;
        }
        let report = alice.push_ending_with(0, &nix, &built, &["--cache", &cache]);
        let all = nix.closure(&built);
        // only the root is told of where it had been published before the kill
        let told = report.in_state(PathState::Published);
        assert!(built.iter().all(|root| told.contains(root)), "{report:#?}");
        let published: BTreeSet<String> =
            check_alive(&gateway, &cache).iter().map(StorePath::absolute).collect();
        assert_eq!(published, all.iter().cloned().collect());
        if round == 1 {
            let consumer = Nix::consumer(&[gateway.cache_url(&cache)], &[gateway.key(&cache)]);
            consumer.fetch(&built).ended_with(0);
            consumer.assert_has_all_of(&nix, &built);
        }
    }
    eprintln!("{killed} kills, {struck} of them in the middle of a push");
    // where most came too late this test would show nothing
    assert!(struck * 2 >= killed, "only {struck} of {killed} kills came in the middle of a push");
    // pushes that were given up don't wait for bytes of what is published now, nor keep any
    gateway.stop();
    gateway.restart();
    wait_for("the quarantine to be empty", || (received(&gateway) == 0).then_some(()));
    let over = |line: &String| line.ends_with(" published") && !line.contains(',');
    wait_for("every push to be over", || alice.run(&["status"]).lines().iter().all(over).then_some(()));
}

#[test]
fn asked_to_stop_in_the_middle_of_a_push_it_loses_nothing() {
    let nix = Nix::builder();
    let built = load(&nix, 99);
    let mut gateway = Gateway::start();
    let alice = gateway.enrol("alice", &[]);
    let mut push = alice.spawn(&nix, &["push", "--json", &built[0]]);
    wait_for("bytes to come", || {
        assert!(!push.has_ended(), "the push was over before its bytes came");
        Moment::Received(1 << 20).has_come(&gateway, "main").then_some(())
    });
    // ends by itself, with success, when the uploads under way are taken
    gateway.stop();
    assert_eq!(names(&temporary(&gateway)), [""; 0]);
    let leaves = leaves(&gateway.data().join("gateway.db"), "main");
    check_public(&gateway.public("main"), "main", &key(&gateway, "main"), &leaves);
    // what is published already isn't in quarantine any more
    let nars = gateway.public("main").join("nar");
    let public: u64 = names(&nars).iter().map(|name| fs::metadata(nars.join(name)).unwrap().len()).sum();
    let kept = received(&gateway) + public;
    assert!(kept >= 1 << 20, "{kept} bytes are left of those that had come");
    gateway.restart();
    push.finish().ended_with(0);
    let all: BTreeSet<String> = nix.closure(&built).into_iter().collect();
    let published: BTreeSet<String> = check_alive(&gateway, "main").iter().map(StorePath::absolute).collect();
    assert_eq!(published, all);
    let consumer = Nix::consumer(&[gateway.cache_url("main")], &[gateway.key("main")]);
    consumer.fetch(&built).ended_with(0);
    consumer.assert_has_all_of(&nix, &built);
}
