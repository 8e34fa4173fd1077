//! A gateway that is killed in the middle of things: whatever moment it was, nothing public is unlogged or half written,
//! nothing accepted is lost, and the push can be finished.

use std::{collections::BTreeSet, fs, time::Instant};

use pushgate_formats::{StorePath, api::PathState};
use pushgate_tests::{
    invariants::{Books, check_names, check_public, temporary},
    process::{Gateway, Nix, Running, Submitter, names, noise_file, wait_for},
};

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

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The books of a gateway that runs.
fn books(gateway: &Gateway, cache: &str) -> Books {
    wait(Books::read(&gateway.data().join("gateway.db"), cache))
}

/// Checks one cache of a gateway that was just killed.
fn check_dead(gateway: &Gateway, cache: &str) {
    let books = wait(Books::read_dead(&gateway.data(), cache));
    check_public(&gateway.data(), cache, &books);
}

/// Checks one cache of a gateway that runs: also that what the log says is public.
fn check_alive(gateway: &Gateway, cache: &str) -> BTreeSet<StorePath> {
    let before = books(gateway, cache);
    let logged = before.paths();
    // what is logged while we look becomes public a moment later: only what was logged before must be there
    wait_for("what is logged to be public", || {
        let there = |p: &StorePath| gateway.public(cache).join(format!("{}.narinfo", p.hash_part())).exists();
        logged.iter().all(there).then_some(())
    });
    // what becomes public while we look is looked at with books that have it
    let public = names(&gateway.public(cache));
    let after = books(gateway, cache);
    assert_eq!(before.leaves, after.leaves[..before.leaves.len()], "the log was rewritten");
    let published = check_names(&gateway.data(), cache, &after, &public);
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
    let half_written = names(&temporary(&gateway.data()));
    if kill_client {
        push.kill();
        gateway.restart();
    } else {
        gateway.restart();
        push.finish().ended_with(0);
    }
    // what it writes now, going on with what it has, bears other names
    let left = names(&temporary(&gateway.data()));
    assert!(!left.iter().any(|name| half_written.contains(name)), "{half_written:?} {left:?}");
    check_alive(gateway, cache);
    struck
}

#[test]
fn killed_at_any_moment_the_push_can_be_finished_and_nothing_public_is_unlogged() {
    let kills = 12;
    let nix = Nix::builder();
    let mut gateway = Gateway::start();
    let alice = gateway.enrol("alice", &[]);
    let mib = 1 << 20;
    // each at its own; random ones are the next test's
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
            let at = moments[killed % moments.len()];
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
    assert_eq!(names(&temporary(&gateway.data())), [""; 0]);
    check_public(&gateway.data(), "main", &books(&gateway, "main"));
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

/// Random numbers from a seed, so that a run can be repeated as far as other processes allow (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % most
    }
}

/// A submitter who pushes one closure until it is pushed, whatever happens to his client or to the gateway.
struct Pusher<'a> {
    submitter: Submitter,
    nix: &'a Nix,
    root: String,
    cache: String,
    running: Option<Running>,
}

impl Pusher<'_> {
    fn begin(&mut self, cache: &str) {
        self.cache = cache.to_owned();
        self.running =
            Some(self.submitter.spawn(self.nix, &["push", "--json", "--cache", &self.cache, &self.root]));
    }

    /// Whether the push is done. A client that gave up, since it found no gateway for too long, is started again.
    fn is_done(&mut self) -> bool {
        let Some(running) = &mut self.running else { return true };
        if !running.has_ended() {
            return false;
        }
        let ran = self.running.take().expect("it was there").finish();
        match ran.code {
            Some(0) => true,
            // a path that is refused would be a fault of this test's or of the gateway's: no crash may cause it
            Some(1) => {
                eprintln!("a client gave up: {}", ran.err.lines().last().unwrap_or_default());
                self.begin(&self.cache.clone());
                false
            }
            _ => {
                ran.ended_with(0);
                true
            }
        }
    }
}

#[test]
fn killed_at_random_moments_under_a_load_of_pushes() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let kills = number("PUSHGATE_KILLS").unwrap_or(15);
    let seed = number("PUSHGATE_SEED").unwrap_or_else(|| {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).unwrap();
        u64::from(u32::from_le_bytes(bytes))
    });
    eprintln!("PUSHGATE_SEED={seed}");
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let nix = Nix::builder();
    let mut gateway = Gateway::start();
    let roots: Vec<String> = (0..3).map(|n| load(&nix, 1000 + n).remove(0)).collect();
    // the first two push the same
    let mut pushers: Vec<Pusher> = ["alice", "bob", "carol", "dave"]
        .into_iter()
        .zip([&roots[0], &roots[0], &roots[1], &roots[2]])
        .map(|(name, root)| Pusher {
            submitter: gateway.enrol(name, &[]),
            nix: &nix,
            root: root.clone(),
            cache: String::new(),
            running: None,
        })
        .collect();
    let all: BTreeSet<String> = nix.closure(&roots).into_iter().collect();
    let (mut killed, mut clients, mut round) = (0, 0, 0);
    let mut moments = vec![];
    while killed < kills {
        round += 1;
        let cache = format!("random-{round}");
        gateway.add_cache(&cache);
        pushers.iter_mut().for_each(|pusher| pusher.begin(&cache));
        loop {
            let (start, moment) = (Instant::now(), random.below(1_500));
            let mut done = false;
            wait_for("a random moment", || {
                done = pushers.iter_mut().all(Pusher::is_done);
                (done || start.elapsed().as_millis() as u64 >= moment).then_some(())
            });
            if done {
                break;
            }
            if killed == kills {
                continue;
            }
            gateway.kill();
            killed += 1;
            moments.push(names(&gateway.public(&cache)).len());
            check_dead(&gateway, &cache);
            let half_written = names(&temporary(&gateway.data()));
            if random.below(4) == 0 {
                let victim = &mut pushers[random.below(4) as usize];
                if let Some(running) = victim.running.take() {
                    running.kill();
                    clients += 1;
                    victim.begin(&cache);
                }
            }
            gateway.restart();
            let left = names(&temporary(&gateway.data()));
            assert!(!left.iter().any(|name| half_written.contains(name)), "{half_written:?} {left:?}");
            check_alive(&gateway, &cache);
        }
        // a client is content with a path that is held until what it refers to, of another push, is published
        let mut missing = BTreeSet::new();
        let complete = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("publication of all", || {
                let published = check_alive(&gateway, &cache).iter().map(StorePath::absolute).collect();
                missing = &all - &published;
                missing.is_empty().then_some(())
            });
        }));
        assert!(complete.is_ok(), "in round {round} these never come: {missing:?}");
    }
    eprintln!(
        "{killed} kills, {clients} of clients too, {round} rounds; public files at each kill: {moments:?}"
    );
    // pushes that were given up are over as well, and nothing is left of them
    gateway.stop();
    gateway.restart();
    wait_for("the quarantine to be empty", || (received(&gateway) == 0).then_some(()));
    for round in 1..=round {
        let cache = format!("random-{round}");
        wait_for("every claim to be over", || books(&gateway, &cache).open_claims().is_empty().then_some(()));
    }
}
