//! What somebody without a key tries at the HTTP edge: silence, slowness, large bodies, questions without end. Each test
//! shows that others are served meanwhile, or what is refused, and that the same done right is taken.

use std::time::{Duration, Instant};

use pushgate_formats::{
    StorePath,
    api::PathState,
    dsse::{self, Envelope},
};
use pushgate_gateway::config::Config;
use pushgate_tests::forge::{Forge, Item, POLICY, Submitter, random_hex};
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// The header time-out of these tests.
const PATIENCE: Duration = Duration::from_secs(1);

async fn forge(change: impl FnOnce(&mut Config)) -> Forge {
    let mut config = Config::default();
    config.limits.header_timeout = PATIENCE.as_secs();
    change(&mut config);
    Forge::start_with(POLICY, config).await
}

async fn socket(forge: &Forge, sent: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(forge.url.trim_start_matches("http://")).await.unwrap();
    socket.write_all(sent).await.unwrap();
    socket
}

/// Reads until the gateway closes; how long that took.
async fn closed(socket: &mut TcpStream) -> Duration {
    let began = Instant::now();
    let mut rest = Vec::new();
    let end = tokio::time::timeout(5 * PATIENCE, socket.read_to_end(&mut rest)).await;
    // closed is closed, with or without a reset
    let _ = end.expect("the gateway closes the connection");
    began.elapsed()
}

#[rstest]
#[case::silent(b"")]
#[case::perhaps_http2(b"PRI * HT")]
#[case::half_a_header(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")]
#[case::between_requests(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")]
#[case::http2_that_answers_no_ping(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")]
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_sends_nothing_more_is_closed(#[case] sent: &[u8]) {
    let forge = forge(|_| {}).await;
    let mut socket = socket(&forge, sent).await;
    let took = closed(&mut socket).await;
    assert!(took > PATIENCE / 2, "{took:?}");
}

/// An answer that takes longer than a header may is not cut off.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_may_take_longer_than_a_header() {
    let forge = forge(|_| {}).await;
    let draft = forge.draft(&forge.submitter("alice").await).item(&Item::source("source", &random_hex()));
    let announced = forge.announce(&draft).await.unwrap();
    let began = Instant::now();
    forge.status(&announced, "?wait=2").await.expect("an answer");
    assert!(began.elapsed() > PATIENCE);
    let pushed = forge.complete(&draft, announced).await;
    pushed.status.paths.iter().for_each(|p| assert_eq!(p.state, PathState::Published, "{p:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_do_not_keep_their_places() {
    let forge = forge(|config| config.limits.connections = 2).await;
    let _silent = [socket(&forge, b"").await, socket(&forge, b"").await];
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    let request = forge.http.get(format!("{}/healthz", forge.url)).timeout(4 * PATIENCE);
    let answer = request.send().await.expect("a place becomes free");
    assert_eq!(answer.status().as_u16(), 200);
    let took = began.elapsed();
    // there were two places only
    assert!(took > PATIENCE / 2 && took < 3 * PATIENCE, "{took:?}");
}

/// Stopping doesn't wait for those who say nothing.
#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_do_not_delay_a_stop() {
    let forge = forge(|config| config.limits.header_timeout = 60).await;
    let _silent = socket(&forge, b"").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    let forge = forge.restart().await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(forge.http.get(format!("{}/healthz", forge.url)).send().await.is_ok());
}

/// A request that says that a body comes, and sends none of it.
fn without_body(path: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n").into_bytes()
}

/// Whoever has his turn and sends nothing loses it; before that, no further body is read.
#[rstest]
#[case::announcements("/api/v1/caches/main/pushes", 1)]
#[case::questions("/api/v1/caches/main/missing", 4)]
#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_read_a_few_at_once(#[case] path: &str, #[case] places: usize) {
    let forge = forge(|config| config.limits.announcements = 1).await;
    let draft = forge.draft(&forge.submitter("alice").await).item(&Item::source("source", &random_hex()));
    let mut silent = Vec::new();
    for _ in 0..places {
        silent.push(socket(&forge, &without_body(path)).await);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let url = format!("{}{path}", forge.url);
    let body = if places == 1 { draft.sealed() } else { br#"{"paths":[]}"#.to_vec() };
    let ask = || forge.http.post(&url).body(body.clone());
    assert!(ask().timeout(Duration::from_secs(1)).send().await.is_err(), "every place is taken");
    // the body had 10 seconds to begin
    let answer = ask().timeout(Duration::from_secs(15)).send().await.expect("a place becomes free");
    assert_eq!(answer.status().as_u16(), 200);
    for mut socket in silent {
        let mut answer = vec![0; 12];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 408");
    }
}

/// A payload is parsed only if an enrolled key signed it: what is wrong with it is told to nobody else.
#[tokio::test]
async fn a_payload_is_not_parsed_before_its_signature_is_checked() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let before = forge.snapshot().await;
    let refused = async |envelope: &Envelope| {
        let raw = serde_json::to_vec(envelope).unwrap();
        let refused = forge.announce_raw("main", raw).await.expect_err("it should be refused");
        (refused.status, refused.code)
    };
    let is = |status: u16, code: &str| (status, code.to_owned());
    let malformed = |by: &Submitter| Envelope::seal(dsse::ANNOUNCEMENT, b"{ no JSON", &by.key);
    let stranger = malformed(&Submitter::new("stranger"));
    assert_eq!(refused(&stranger).await, is(403, "key-unknown"));
    let mut forged = malformed(&Submitter::new("stranger"));
    forged.signatures[0].keyid = alice.key.name().to_string();
    assert_eq!(refused(&forged).await, is(403, "signature-invalid"));
    let unsigned = Envelope { signatures: vec![], ..malformed(&alice) };
    assert_eq!(refused(&unsigned).await, is(400, "signature-missing"));
    // to her it is told
    assert_eq!(refused(&malformed(&alice)).await, is(400, "announcement-malformed"));
    forge.assert_unchanged(&before).await;
    let item = Item::source("source", &random_hex());
    forge.push(&forge.draft(&alice).item(&item)).await.assert_published(&item.path);
}

/// The URL of an upstream that answers everything with this status, after a while.
async fn upstream(status: u16, after: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while socket.read(&mut request).await.is_ok_and(|n| n > 0) {
                    tokio::time::sleep(after).await;
                    let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                    if socket.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

/// Asks the upstream for these paths, as one push does; gives the notices.
async fn ask(forge: &Forge, url: &str, paths: &[StorePath]) -> Vec<String> {
    let key = Submitter::new("upstream").key.public();
    let policy = format!("{POLICY}[[upstream]]\nurl = \"{url}\"\nkey = \"{key}\"\n");
    std::fs::write(forge.dir().join("policies/main.toml"), policy).unwrap();
    assert!(forge.app.caches.reload_policies(forge.app.db.as_ref()).await.unwrap());
    let policy = forge.app.caches.all()[0].policy();
    forge.app.upstreams.ask(forge.app.db.as_ref(), &policy.upstreams, paths).await.unwrap().notices
}

fn paths(count: usize) -> Vec<StorePath> {
    (0..count).map(|n| StorePath::parse(&format!("/nix/store/{n:032}-x")).unwrap()).collect()
}

/// One push that asks for more than fits into its time must not take the upstream from everybody for a minute.
#[tokio::test(flavor = "multi_thread")]
async fn many_questions_do_not_set_an_upstream_resting() {
    let forge = Forge::start().await;
    let slow = upstream(404, Duration::from_millis(500)).await;
    let notices = ask(&forge, &slow, &paths(2000)).await;
    assert!(notices.len() == 1 && notices[0].contains("was not asked for all"), "{notices:?}");
    let other = vec![StorePath::parse("/nix/store/zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-x").unwrap()];
    assert_eq!(ask(&forge, &slow, &other).await, [""; 0]);

    // a fault does: it is told the next one without being asked
    let broken = upstream(500, Duration::ZERO).await;
    for _ in 0..2 {
        let notices = ask(&forge, &broken, &other).await;
        assert!(notices.len() == 1 && notices[0].contains("it answered 500"), "{notices:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_asks_a_bounded_number_of_questions() {
    let forge = Forge::start().await;
    // the first fault ends it at once
    let broken = upstream(500, Duration::ZERO).await;
    let most = 20_000;
    for (count, told) in [(most + 3, true), (most, false)] {
        // resting ones aren't asked at all
        let notices = ask(&forge, &format!("{broken}/{count}"), &paths(count)).await;
        assert_eq!(notices.iter().any(|n| n.contains("`3` paths")), told, "{notices:?}");
    }
}

/// Where the policy lies and what stands in it is the admin's business.
#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_the_cache_alone() {
    let forge = Forge::start().await;
    let policy = forge.dir().join("policies/main.toml");
    std::fs::write(&policy, "secret-plan = 1\n").unwrap();
    forge.app.caches.reload_policies(forge.app.db.as_ref()).await.unwrap();
    let text = async || {
        let answer = forge.http.get(format!("{}/readyz", forge.url)).send().await.unwrap();
        serde_json::from_str::<serde_json::Value>(&answer.text().await.unwrap()).unwrap()
    };
    let expected = |problems: serde_json::Value| serde_json::json!({ "database": true, "blobs": true, "policyProblems": problems });
    assert_eq!(text().await, expected(serde_json::json!(["main"])));
    std::fs::write(&policy, POLICY).unwrap();
    forge.app.caches.reload_policies(forge.app.db.as_ref()).await.unwrap();
    assert_eq!(text().await, expected(serde_json::json!([])));
}
