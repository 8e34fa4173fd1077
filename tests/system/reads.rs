//! Public reads under load and in bad company: readers that take nothing or little, many at once, requests in one go; and
//! that what is answered is what lies in the cache's directory at that moment.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use pushgate_formats::Sha256;
use pushgate_gateway::config::Config;
use pushgate_tests::{
    forge::{Forge, Item, POLICY, random_hex},
    process::{Gateway, Web, wait_for},
};
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const MIB: usize = 1 << 20;
/// More than the sockets' buffers on both sides take.
const LARGE: usize = 48 * MIB;

/// A NAR's name with this number in it.
fn nar(number: u8) -> String {
    format!("nar/{}.nar.zst", Sha256([number; 32]).base32())
}

/// Bytes of which no two pieces are alike.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let next = std::iter::repeat_with(|| {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    });
    next.flatten().take(length).collect()
}

async fn forge(idle: u64, rate: u64) -> Forge {
    let mut config = Config::default();
    config.limits.download_idle = idle;
    config.limits.download_rate = rate;
    // on HTTP/2 it is this
    config.limits.header_timeout = idle;
    Forge::start_with(POLICY, config).await
}

/// Puts a file among the published ones. A gateway serves what lies there; how it came there is for other tests.
fn place(forge: &Forge, name: &str, contents: &[u8]) -> PathBuf {
    let file = forge.dir().join("blobs/main").join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, contents).unwrap();
    file
}

/// A file of zeros, which takes no place.
fn place_large(forge: &Forge, name: &str) {
    File::options().write(true).open(place(forge, name, b"")).unwrap().set_len(LARGE as u64).unwrap();
}

async fn ask(forge: &Forge, requests: &str) -> TcpStream {
    let mut socket = TcpStream::connect(forge.url.trim_start_matches("http://")).await.unwrap();
    socket.write_all(requests.as_bytes()).await.unwrap();
    socket
}

fn get(name: &str) -> String {
    format!("GET /main/{name} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// Reads to the end in pieces of this size with a pause after each; the bytes that came.
async fn drain(socket: &mut TcpStream, piece: usize, pause: Duration) -> usize {
    let (mut buffer, mut all) = (vec![0; piece], 0);
    while let Ok(n) = socket.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        all += n;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        if all > LARGE {
            break;
        }
    }
    all
}

/// Half a second is no reason to close, three are.
#[rstest]
#[case::a_short_pause(500, true)]
#[case::a_long_one(3500, false)]
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_takes_nothing_loses_his_connection(#[case] pause: u64, #[case] kept: bool) {
    let forge = forge(1, 0).await;
    place_large(&forge, &nar(1));
    let mut socket = ask(&forge, &get(&nar(1))).await;
    tokio::time::sleep(Duration::from_millis(pause)).await;
    let came = drain(&mut socket, MIB, Duration::ZERO).await;
    assert_eq!(came > LARGE, kept, "{came} of {LARGE} bytes came");
}

/// A reader of about 8 MB a second.
#[rstest]
#[case::faster_than_he_has_to_be(1 << 20, true)]
#[case::slower(64 << 20, false)]
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_takes_too_little_loses_his_connection(#[case] rate: u64, #[case] kept: bool) {
    let forge = forge(1, rate).await;
    place_large(&forge, &nar(1));
    let mut socket = ask(&forge, &get(&nar(1))).await;
    let came = drain(&mut socket, 128 << 10, Duration::from_millis(15)).await;
    assert_eq!(came > LARGE, kept, "{came} of {LARGE} bytes came");
}

/// On HTTP/2 such a reader answers pings and takes everything that is sent; only the window of his stream is closed.
#[rstest]
#[case::a_short_pause(500, true)]
#[case::a_long_one(3500, false)]
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_takes_nothing_ends_its_connection(#[case] pause: u64, #[case] kept: bool) {
    let forge = forge(1, 1).await;
    let contents = noise(1, LARGE / 4);
    place(&forge, &nar(1), &contents);
    let client = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .http2_initial_stream_window_size(64 << 10)
        .build()
        .unwrap();
    let url = format!("{}/main/{}", forge.url, nar(1));
    let answer = client.get(&url).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
    tokio::time::sleep(Duration::from_millis(pause)).await;
    let body = answer.bytes().await;
    assert_eq!(body.is_ok(), kept, "{:?}", body.err());
    if let Ok(body) = body {
        assert!(body == contents, "other bytes than the file's");
        // another connection, if need be
        tokio::time::sleep(Duration::from_millis(3500)).await;
        let again = client.get(&url).header("range", "bytes=5-9").send().await.unwrap();
        assert_eq!(again.bytes().await.unwrap(), contents[5..10]);
    }
}

/// They keep neither anybody from being served nor the gateway's memory.
#[test]
fn many_readers_who_take_nothing_hold_up_nobody() {
    const READERS: usize = 300;
    let gateway = Gateway::start();
    let web = Web::new();
    let info = gateway.url("/main/nix-cache-info");
    wait_for("the cache", || web.try_get(&info).filter(|answer| answer.status == 200));
    let name = nar(1);
    let file = gateway.public("main").join(&name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    File::create(&file).unwrap().set_len(LARGE as u64).unwrap();

    let before = gateway.memory_kib();
    let request = get(&name);
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let mut socket = std::net::TcpStream::connect(("127.0.0.1", gateway.port())).unwrap();
            socket.write_all(request.as_bytes()).unwrap();
            // the answer has begun
            socket.peek(&mut [0]).unwrap();
            socket
        })
        .collect();
    let began = Instant::now();
    for _ in 0..50 {
        assert_eq!(web.get(&info).status, 200);
    }
    assert_eq!(web.get(&gateway.url(&format!("/main/{name}"))).body.len(), LARGE);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let grown = gateway.memory_kib().saturating_sub(before);
    // a connection's own buffers, and nothing of the file
    assert!(grown < READERS as u64 * 64, "{grown} KiB for {READERS} readers");
    drop(readers);
}

/// Heads, small files and parts of large ones in one go: each answer is whole, and nothing of one is in another.
#[tokio::test(flavor = "multi_thread")]
async fn requests_in_one_go_are_answered_in_their_order() {
    let forge = Forge::start().await;
    let files = [(nar(1), noise(1, 3 * MIB + 17)), (nar(2), noise(2, 2000)), (nar(3), noise(3, 700_001))];
    for (name, contents) in &files {
        place(&forge, name, contents);
    }
    let size = files[0].1.len();
    // file, range, whether only the head is asked for
    let asked = [
        (1, None, false),
        (0, None, false),
        (0, Some(1_000_000..size), true),
        (2, Some(3..700_000), false),
        (1, Some(0..1), false),
        (0, Some(size - 1..size), false),
        (0, Some(MIB - 1..2 * MIB + 1), false),
        (2, None, true),
        (2, None, false),
        (1, None, false),
    ];
    let (mut requests, mut expected) = (String::new(), Vec::new());
    for (n, (file, range, head)) in asked.iter().enumerate() {
        let (name, contents) = &files[*file];
        let method = if *head { "HEAD" } else { "GET" };
        let range = range.clone().inspect(|r| assert!(r.end > r.start));
        let last = if n + 1 == asked.len() { "Connection: close\r\n" } else { "" };
        let header = range.as_ref().map(|r| format!("Range: bytes={}-{}\r\n", r.start, r.end - 1));
        let header = header.unwrap_or_default();
        requests += &format!("{method} /main/{name} HTTP/1.1\r\nHost: x\r\n{header}{last}\r\n");
        let part = range.map_or(&contents[..], |range| &contents[range]);
        expected.push((part.len(), if *head { &[] } else { part }));
    }
    let mut socket = ask(&forge, &requests).await;
    let mut answers = Vec::new();
    socket.read_to_end(&mut answers).await.unwrap();
    let mut rest = &answers[..];
    for (n, (length, body)) in expected.into_iter().enumerate() {
        let end = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("answer {n}"));
        let head = String::from_utf8(rest[..end].to_vec()).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 20"), "{n}: {head}");
        assert!(head.contains(&format!("\r\ncontent-length: {length}")), "{n}: {head}");
        rest = &rest[end + 4..];
        assert!(rest.starts_with(body), "the body of answer {n}");
        rest = &rest[body.len()..];
    }
    assert!(rest.is_empty(), "{} bytes more", rest.len());
}

/// Never other bytes in place of those that are gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_becomes_shorter_ends_the_answer() {
    let forge = Forge::start().await;
    let contents = noise(1, LARGE);
    let file = place(&forge, &nar(1), &contents);
    let mut socket = ask(&forge, &get(&nar(1))).await;
    let mut answer = vec![0; 4096];
    socket.read_exact(&mut answer).await.unwrap();
    File::options().write(true).open(file).unwrap().set_len(4096).unwrap();
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest).await;
    answer.extend(rest);
    let body = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let body = &answer[body..];
    assert!(body.len() < LARGE, "the answer was whole");
    // what was in the socket when the file was cut may have been taken from it
    let of_it = body.iter().zip(&contents).all(|(came, was)| came == was || *came == 0);
    assert!(of_it && body[..2048] == contents[..2048], "bytes of something else");
    // and the gateway goes on
    place(&forge, &nar(2), b"another");
    assert_eq!(forge.public(&nar(2)).await.unwrap(), b"another");
}

/// No answer is remembered: a path is there as soon as its push says so, and gone as soon as its file is.
#[tokio::test(flavor = "multi_thread")]
async fn answers_are_what_lies_in_the_directory_now() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    for _ in 0..20 {
        let item = Item::source("source", &random_hex());
        let name = format!("{}.narinfo", item.path.hash_part());
        let url = format!("{}/main/{name}", forge.url);
        let ask = async || {
            let answer = forge.http.get(&url).send().await.unwrap();
            let tag = answer.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
            (answer.status().as_u16(), tag, answer.bytes().await.unwrap())
        };
        for _ in 0..3 {
            assert_eq!(ask().await.0, 404);
        }
        forge.push(&forge.draft(&alice).item(&item)).await.assert_published(&item.path);
        let (status, tag, text) = ask().await;
        assert_eq!(status, 200);
        let file = forge.dir().join("blobs/main").join(&name);
        assert_eq!(text, fs::read(&file).unwrap());
        // put in its place, as publishing does
        let new = file.with_extension("new");
        fs::write(&new, "Another: text\n").unwrap();
        fs::rename(&new, &file).unwrap();
        let (status, other, text) = ask().await;
        assert_eq!((status, &text[..]), (200, &b"Another: text\n"[..]));
        assert_ne!(other, tag);
        fs::remove_file(&file).unwrap();
        assert_eq!(ask().await.0, 404);
    }
}

/// Sizes around those at which a file is sent in another way or in one piece more.
#[tokio::test(flavor = "multi_thread")]
async fn every_size_comes_whole() {
    let forge = Forge::start().await;
    let two = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for (n, size) in [0, 1, 16 << 10, 32 << 10, 64 << 10, 256 << 10, MIB, 2 * MIB].into_iter().enumerate() {
        for (m, size) in [size.max(1) - 1, size, size + 1].into_iter().enumerate() {
            let name = nar((n * 3 + m) as u8);
            let contents = noise(size as u64, size);
            let file = place(&forge, &name, &contents);
            // not in memory where the file system forgets it
            let opened = File::open(&file).unwrap();
            opened.sync_all().unwrap();
            assert_eq!(opened.read_at(&mut [0], size as u64).unwrap(), 0);
            for client in [&forge.http, &two] {
                let url = format!("{}/main/{name}", forge.url);
                let answer = client.get(url).send().await.unwrap();
                assert_eq!(answer.status().as_u16(), 200);
                assert!(answer.bytes().await.unwrap() == contents, "a file of {size} bytes");
            }
        }
    }
}
