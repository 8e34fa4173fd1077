//! Verifiers and gateways that go away in the middle of a build: all is built in the end, counted once, and nothing is left.

use std::{
    collections::BTreeSet,
    io,
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pushgate_tests::process::{SMALL, Verifier, wait_for};

use super::{REBUILT, Stage, logged, policy, rebuilds};

/// Takes some seconds, and says so in its processes' command lines.
const SLOW: &str = r#"run "slow" "echo begun; sleep 6.125; echo done > $out" {}"#;

/// Builders of [`SLOW`] among a verifier's processes.
fn builders(verifier: &Verifier) -> BTreeSet<u32> {
    let sleeps = |id: &u32| {
        std::fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| line.ends_with(b"sleep\x006.125\0"))
    };
    verifier.processes().into_iter().filter(sleeps).collect()
}

fn wait_for_builder(verifier: &Verifier) {
    wait_for("a build under way", || (!builders(verifier).is_empty()).then_some(()));
}

/// Every path is logged once and was rebuilt once.
fn assert_once(stage: &Stage, path: &str) {
    assert_eq!(rebuilds(&stage.gateway, path), 1);
    assert_eq!(logged(&stage.gateway).iter().filter(|logged| *logged == path).count(), 1);
}

#[test]
fn a_verifier_that_is_killed_leaves_nothing_and_its_work_to_others() {
    let stage = Stage::set(&policy(REBUILT, ""));
    let slow = stage.build(SLOW);
    stage.push_held(&slow);
    let mut first = Verifier::start(&stage.gateway, "kiln", "kiln-operator");
    wait_for_builder(&first);
    first.kill9();
    // the build doesn't outlive it, though nobody is there to end it
    wait_for("the end of what was built", || first.processes().is_empty().then_some(()));
    assert_eq!(first.jobs().len(), 1);

    let second = Verifier::start(&stage.gateway, "oven", "oven-operator");
    stage.wait_public(&slow);
    assert_eq!((first.began("slow"), second.began("slow")), (1, 1));
    assert_once(&stage, &slow);
    second.idle();
    // what was left of its directory goes with its next start
    first.restart();
    first.idle();
    assert!(first.is_alive());
}

#[test]
fn a_gateway_that_is_killed_takes_results_of_leases_that_it_gave_before() {
    let mut stage = Stage::set(&policy(REBUILT, ""));
    let slow = stage.build(SLOW);
    stage.push_held(&slow);
    let verifier = Verifier::start(&stage.gateway, "kiln", "kiln-operator");
    wait_for_builder(&verifier);
    stage.gateway.kill();
    stage.gateway.restart();
    assert!(!builders(&verifier).is_empty(), "the build was given up with the gateway");
    stage.wait_public(&slow);
    assert_eq!(verifier.began("slow"), 1);
    assert_once(&stage, &slow);

    // and gives more
    let next = stage.build(r#"run "next" "echo next > $out" {}"#);
    stage.alice.push(&stage.nix, std::slice::from_ref(&next));
    stage.wait_public(&next);
    assert_once(&stage, &next);
    verifier.idle();
}

#[test]
fn a_verifier_that_cannot_reach_its_gateway_reports_later() {
    let stage = Stage::set(&policy(REBUILT, ""));
    let wire = Wire::to(stage.gateway.port());
    let slow = stage.build(SLOW);
    stage.push_held(&slow);
    let mut verifier = Verifier::start_with(&stage.gateway, &wire.url(), "kiln", "kiln-operator", SMALL);
    wait_for_builder(&verifier);
    wire.cut(true);
    let cut = Instant::now();
    let next = stage.build(r#"run "next" "echo next > $out" {}"#);
    stage.push_held(&next);
    // past the end of the build
    wait_for("the build's end", || builders(&verifier).is_empty().then_some(()));
    wait_for("some time without a gateway", || (cut.elapsed() > Duration::from_secs(10)).then_some(()));
    assert_eq!(rebuilds(&stage.gateway, &slow), 0);
    wire.cut(false);
    for path in [&slow, &next] {
        stage.wait_public(path);
        assert_once(&stage, path);
    }
    assert_eq!((verifier.began("slow"), verifier.began("next")), (1, 1));
    verifier.idle();
    assert!(verifier.is_alive());
}

/// A way to a port of this machine that can be cut. Ends with the test's process.
struct Wire {
    port: u16,
    cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cut, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(vec![])));
        let (is_cut, ends) = (cut.clone(), open.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if !is_cut.load(Ordering::SeqCst) {
                    // a server that is away is as good as a wire that is cut
                    let _ = pass(client, server, &ends);
                }
            }
        });
        Self { port, cut, open }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Lets nothing through any more, or everything again.
    fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pass(client: TcpStream, server: u16, open: &Mutex<Vec<TcpStream>>) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", server))?;
    open.lock().unwrap().extend([client.try_clone()?, server.try_clone()?]);
    for (mut from, mut to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    Ok(())
}
