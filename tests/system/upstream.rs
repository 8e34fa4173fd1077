//! Caches that a policy trusts: what they have isn't sent and counts as served; what can't be found out is neither yes
//! nor no.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use pushgate_formats::api::PathState;
use pushgate_tests::process::{Gateway, Nix, Report, closed_port, names};

/// How a fake upstream answers.
#[derive(Clone)]
enum Manner {
    /// With the files of a directory.
    Files(PathBuf),
    /// With the same, each narinfo's signature spoilt.
    Spoilt(PathBuf),
    /// Takes connections, reads, and never answers.
    Silent,
    /// With this status, always.
    Status(u16),
}

/// A web server that counts what it is asked for. Ends with the test's process.
struct Fake {
    port: u16,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Fake {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(BTreeMap::new()));
        let counts = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (manner, counts) = (manner.clone(), counts.clone());
                std::thread::spawn(move || serve(stream, &manner, &counts));
            }
        });
        Self { port, asked }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How often each file was asked for.
    fn asked(&self) -> BTreeMap<String, usize> {
        self.asked.lock().unwrap().clone()
    }
}

/// Serves one connection.
fn serve(stream: TcpStream, manner: &Manner, asked: &Mutex<BTreeMap<String, usize>>) -> Option<()> {
    let mut out = stream.try_clone().ok()?;
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    loop {
        let request = lines.next()?;
        while !lines.next()?.is_empty() {}
        let file = request.split(' ').nth(1)?.trim_start_matches('/').to_owned();
        *asked.lock().unwrap().entry(file.clone()).or_default() += 1;
        let (status, body) = match manner {
            // the other side goes away in its own time
            Manner::Silent => return lines.next().map(|_| ()),
            Manner::Status(status) => (*status, vec![]),
            Manner::Files(dir) | Manner::Spoilt(dir) => match std::fs::read(dir.join(&file)) {
                Ok(body) if matches!(manner, Manner::Spoilt(_)) => {
                    let text = String::from_utf8(body).unwrap();
                    // a size is part of what is signed
                    (200, text.replace("NarSize: ", "NarSize: 1").into_bytes())
                }
                Ok(body) => (200, body),
                Err(_) => (404, vec![]),
            },
        };
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
        out.write_all(head.as_bytes()).ok()?;
        out.write_all(&body).ok()?;
    }
}

/// Lines of a policy that trust one upstream.
fn trusting(url: &str, key: &str) -> String {
    format!("[[upstream]]\nurl = \"{url}\"\nkey = \"{key}\"")
}

/// A chain of outputs, each with a text of its own: `lower`, `middle` and `upper` refer to each other in this order, `other`
/// to `lower` as well.
fn chain(nix: &Nix) -> Chain {
    let expression = r#"
        let
          d = name: inputs: derivation {
            inherit name inputs; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
            text = builtins.toFile "text-of-${name}" name;
            args = [ "-c" "echo $text $inputs > $out" ];
          };
          lower = d "lower" [ ];
          middle = d "middle" [ lower ];
        in [ lower middle (d "upper" [ middle lower ]) (d "other" [ lower ]) ]
    "#;
    let built = nix.build(expression);
    let [lower, middle, upper, other] = built.try_into().unwrap();
    Chain { lower: vec![lower], middle: vec![middle], upper: vec![upper], other: vec![other] }
}

struct Chain {
    lower: Vec<String>,
    middle: Vec<String>,
    upper: Vec<String>,
    other: Vec<String>,
}

/// A gateway that has published paths, to be somebody's upstream.
fn upstream_with(nix: &Nix, paths: &[String]) -> Gateway {
    let gateway = Gateway::start();
    gateway.enrol("upstream-builder", &[]).push(nix, paths);
    gateway
}

/// Fails unless these paths are in this state, and no others.
#[track_caller]
fn assert_in_state(report: &Report, state: PathState, paths: &[String]) {
    let (mut found, mut paths) = (report.in_state(state), paths.to_vec());
    found.sort();
    paths.sort();
    assert_eq!(found, paths, "{state:?}: {report:#?}");
}

/// What is in one closure and not in the other.
fn without(nix: &Nix, paths: &[String], less: &[String]) -> Vec<String> {
    let less = nix.closure(less);
    nix.closure(paths).into_iter().filter(|path| !less.contains(path)).collect()
}

#[test]
fn what_an_upstream_has_is_not_sent_and_counts_as_served() {
    let nix = Nix::builder();
    let chain = chain(&nix);
    let above = upstream_with(&nix, &chain.middle);
    let gateway = Gateway::with_policy(&trusting(&above.cache_url("main"), &above.key("main")));
    let alice = gateway.enrol("alice", &[]);
    let report = alice.push(&nix, &chain.upper);
    assert_in_state(&report, PathState::Upstream, &nix.closure(&chain.middle));
    let new = without(&nix, &chain.upper, &chain.middle);
    assert_in_state(&report, PathState::Published, &new);
    assert_eq!((report.sent.nars, new.len()), (2, 2));
    assert_eq!(report.notices, [""; 0]);
    assert_eq!(gateway.metric("pushgate_nars_taken_total"), 2);
    let narinfos = names(&gateway.public("main")).iter().filter(|n| n.ends_with(".narinfo")).count();
    assert_eq!(narinfos, 2);

    // again: the root is published, so nothing is announced
    let again = alice.push(&nix, &chain.upper);
    assert_in_state(&again, PathState::Published, &chain.upper);
    assert_eq!(again.pushes, [""; 0]);

    let both = Nix::consumer(
        &[gateway.cache_url("main"), above.cache_url("main")],
        &[gateway.key("main"), above.key("main")],
    );
    both.fetch(&chain.upper).ended_with(0);
    both.assert_has_all_of(&nix, &chain.upper);
    // what the gateway publishes isn't whole without the upstream
    let one = Nix::consumer(&[gateway.cache_url("main")], &[gateway.key("main")]);
    assert_ne!(one.fetch(&chain.upper).code, Some(0));
}

#[test]
fn an_upstream_is_asked_once() {
    let nix = Nix::builder();
    let chain = chain(&nix);
    let above = upstream_with(&nix, &chain.lower);
    let fake = Fake::start(Manner::Files(above.public("main")));
    let mut gateway = Gateway::with_policy(&trusting(&fake.url(), &above.key("main")));
    let alice = gateway.enrol("alice", &[]);

    let first = alice.push(&nix, &chain.middle);
    assert_in_state(&first, PathState::Upstream, &nix.closure(&chain.lower));
    let asked = fake.asked();
    // every path of the closure, and each once
    let narinfos = |paths: &[String]| -> BTreeMap<String, usize> {
        paths.iter().map(|path| (format!("{}.narinfo", &path[11..43]), 1)).collect()
    };
    assert_eq!(asked, narinfos(&nix.closure(&chain.middle)));

    // what it has, and what it hasn't, is remembered
    let second = alice.push(&nix, &[chain.upper.clone(), chain.other.clone()].concat());
    assert_in_state(&second, PathState::Upstream, &nix.closure(&chain.lower));
    let all = [chain.upper.clone(), chain.other.clone()].concat();
    let asked_now = fake.asked();
    assert_eq!(asked_now, narinfos(&nix.closure(&all)));

    // what it has also over a restart, and even while the upstream is away
    gateway.stop();
    gateway.add_cache("second");
    gateway.set_policy("second", &trusting(&fake.url(), &above.key("main")));
    gateway.restart();
    let third = alice.push_ending_with(0, &nix, &chain.other, &["--cache", "second"]);
    assert_in_state(&third, PathState::Upstream, &nix.closure(&chain.lower));
    let asked_then = fake.asked();
    for path in nix.closure(&chain.lower) {
        let file = format!("{}.narinfo", &path[11..43]);
        assert_eq!(asked_then[&file], 1, "{path}");
    }
}

#[test]
fn only_the_pinned_key_counts() {
    let nix = Nix::builder();
    let chain = chain(&nix);
    let above = upstream_with(&nix, &chain.middle);
    let other = Gateway::start();
    let spoilt = Fake::start(Manner::Spoilt(above.public("main")));
    let whole = nix.closure(&chain.upper);
    for (url, key) in [
        // another key than the one that signed
        (above.cache_url("main"), other.key("main")),
        // the right key's signature over something else
        (spoilt.url(), above.key("main")),
    ] {
        let gateway = Gateway::with_policy(&trusting(&url, &key));
        let report = gateway.enrol("alice", &[]).push(&nix, &chain.upper);
        assert_in_state(&report, PathState::Published, &whole);
        assert_eq!(report.sent.nars as usize, whole.len());
    }
    assert_eq!(spoilt.asked().len(), whole.len());
}

#[test]
fn an_upstream_that_cannot_be_asked_is_neither_yes_nor_no_and_said_once() {
    let nix = Nix::builder();
    let chain = chain(&nix);
    let key = Gateway::start().key("main");
    let silent = Fake::start(Manner::Silent);
    let broken = Fake::start(Manner::Status(500));
    let whole = nix.closure(&chain.upper);
    for url in [format!("http://127.0.0.1:{}", closed_port()), silent.url(), broken.url()] {
        let gateway = Gateway::with_policy(&trusting(&url, &key));
        let alice = gateway.enrol("alice", &[]);
        let report = alice.push(&nix, &chain.upper);
        assert_in_state(&report, PathState::Published, &whole);
        let [notice] = report.notices.as_slice() else { panic!("{:#?}", report.notices) };
        assert!(notice.contains(&format!("the upstream `{url}` can't be asked")), "{notice}");
        // the same in words, once, beside the result
        let ran = alice.run_on(&nix, &["push", &chain.other[0]]).ended_with(0);
        assert_eq!(ran.err.matches("can't be asked").count(), 1, "{}", ran.err);
        assert!(ran.err.starts_with("note: the upstream"), "{}", ran.err);
    }
    // left alone after the first fault: not asked for every path, nor again at once
    assert!(broken.asked().values().sum::<usize>() <= 64, "{:?}", broken.asked());
    assert!(broken.asked().values().all(|n| *n == 1), "{:?}", broken.asked());
}

#[test]
fn one_upstream_that_is_away_does_not_hide_another() {
    let nix = Nix::builder();
    let chain = chain(&nix);
    let above = upstream_with(&nix, &chain.middle);
    let away = format!("http://127.0.0.1:{}", closed_port());
    let both = format!(
        "{}\n{}",
        trusting(&away, &above.key("main")),
        trusting(&above.cache_url("main"), &above.key("main"))
    );
    let gateway = Gateway::with_policy(&both);
    let report = gateway.enrol("alice", &[]).push(&nix, &chain.upper);
    assert_in_state(&report, PathState::Upstream, &nix.closure(&chain.middle));
    assert_in_state(&report, PathState::Published, &without(&nix, &chain.upper, &chain.middle));
    assert_eq!(report.notices.len(), 1, "{:#?}", report.notices);
}

#[test]
fn a_self_contained_cache_does_not_even_ask() {
    let nix = Nix::builder();
    let chain = chain(&nix);
    let above = upstream_with(&nix, &chain.middle);
    let fake = Fake::start(Manner::Files(above.public("main")));
    let gateway = Gateway::with_policy(&format!(
        "closure = \"self-contained\"\n{}",
        trusting(&fake.url(), &above.key("main"))
    ));
    let report = gateway.enrol("alice", &[]).push(&nix, &chain.upper);
    assert_in_state(&report, PathState::Published, &nix.closure(&chain.upper));
    assert!(fake.asked().is_empty(), "{:?}", fake.asked());
    let consumer = Nix::consumer(&[gateway.cache_url("main")], &[gateway.key("main")]);
    consumer.fetch(&chain.upper).ended_with(0);
    consumer.assert_has_all_of(&nix, &chain.upper);
}

/// The fake serves what a directory holds, as the tests above rely on.
#[test]
fn stock_nix_fetches_through_the_fake() {
    let nix = Nix::builder();
    let chain = chain(&nix);
    let above = upstream_with(&nix, &chain.upper);
    let dir: &Path = &above.public("main");
    let fake = Fake::start(Manner::Files(dir.to_owned()));
    let consumer = Nix::consumer(&[fake.url()], &[above.key("main")]);
    consumer.fetch(&chain.upper).ended_with(0);
    consumer.assert_has_all_of(&nix, &chain.upper);
}
