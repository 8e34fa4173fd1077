//! Bytes that break readers, sent over the real HTTP interface. Each test asserts the exact code, that nothing became public
//! and that no blob, leaf or row was left, and that the same push with the right bytes is published.
//!
//! | what a hostile submitter sends | tests |
//! |---|---|
//! | NAR: unsorted, duplicate, empty, `.`, `..`, `/` or NUL names; case-hack names; name > 255, target > 4095; depth > 64; non-zero padding; unknown tags; length fields near 2^64 | `nar_malformed`; trailing bytes and cuts also in `attacks_claims::nars`; every byte of a NAR beside the parser |
//! | zstd bomb | `a_bomb_is_given_up_at_the_announced_size`, `attacks_resources::the_declared_size_bounds_what_is_decompressed` |
//! | window over the limit; truncated frame; wrong method; several frames where one is wrong | `compression_invalid`, `a_method_that_is_not_known`; also `attacks_claims::nars::compression_invalid` |
//! | xz bomb | `a_method_that_is_not_known`: this interface takes no xz |
//! | Content-Encoding on an upload | `encoding_unsupported` |
//! | chunked body that never ends | `a_record_that_never_ends`, `a_refused_record_that_never_ends`, `a_body_of_one_endless_frame`; in time: `attacks_limits::upload_too_long` |
//! | body slower than the minimum rate | `attacks_limits::upload_too_slow` |
//! | narinfo of stock Nix; files beside it for paths of others | with the interface for stock Nix; at the public prefix `nothing_is_written_to_the_public_prefix` |
//! | build log or diff with HTML, scripts, terminal escapes | there are none yet; words of a gateway: `words_of_a_server_do_not_steer_the_terminal` |
//! | announcement with 10^6 paths, 100 MB | `an_announcement_of_100_megabytes`, `attacks_claims::announcements::announcement_too_large` |
//! | announcement: deep JSON, duplicate paths | `attacks_claims::announcements::announcement_malformed_as_a_whole`, `::announcement_duplicate_path` |

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use pushgate_formats::{
    Sha256,
    api::{PathState, frame},
};
use pushgate_tests::forge::{Draft, Forge, Item, Package, Pushed, file_nar, framed, framed_as, random_hex};
use pushgate_tests::process;
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const MAGIC: &[u8] = b"nix-archive-1";

/// A field as it stands in a NAR.
fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(8), 0);
}

fn fields(all: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    all.iter().for_each(|one| field(&mut out, one));
    out
}

/// A directory of empty files with these names, in this order.
fn directory(names: &[&[u8]]) -> Vec<u8> {
    let mut all: Vec<&[u8]> = vec![MAGIC, b"(", b"type", b"directory"];
    for name in names {
        all.extend([
            b"entry",
            b"(",
            b"name",
            *name,
            b"node",
            b"(",
            b"type",
            b"regular",
            b"contents",
            b"",
            b")",
            b")",
        ] as [&[u8]; 12]);
    }
    all.push(b")");
    fields(&all)
}

fn link(target: &[u8]) -> Vec<u8> {
    fields(&[MAGIC, b"(", b"type", b"symlink", b"target", target, b")"])
}

fn nested(depth: usize) -> Vec<u8> {
    let mut all: Vec<&[u8]> = vec![MAGIC];
    for _ in 0..depth {
        all.extend([b"(", b"type", b"directory", b"entry", b"(", b"name", b"d", b"node"] as [&[u8]; 8]);
    }
    all.extend([b"(", b"type", b"regular", b"contents", b"", b")"] as [&[u8]; 6]);
    (0..depth).for_each(|_| all.extend([b")".as_slice(), b")"]));
    fields(&all)
}

/// These fields, and a length that nothing follows.
fn with_length(before: &[&[u8]], length: u64) -> Vec<u8> {
    let mut out = fields(before);
    out.extend(length.to_le_bytes());
    out.extend([b'x'; 64]);
    out
}

fn padded_with(byte: u8) -> Vec<u8> {
    let mut nar = file_nar(b"abc", false);
    // magic, `(`, `type`, `regular`, `contents`: 24 + 16 + 16 + 16 + 16 bytes, then the length and the contents
    nar[88 + 8 + 3] = byte;
    nar
}

const ENTRY: [&[u8]; 7] = [MAGIC, b"(", b"type", b"directory", b"entry", b"(", b"name"];

/// Announced with the hash and size that they have, for a path that any bytes would do for.
#[rstest]
#[case::unsorted(directory(&[b"b", b"a"]))]
#[case::unsorted_as_signed_bytes(directory(&[b"\xff", b"a"]))]
#[case::duplicate(directory(&[b"a", b"a"]))]
#[case::empty_name(directory(&[b""]))]
#[case::dot(directory(&[b"."]))]
#[case::dot_dot(directory(&[b".."]))]
#[case::slash(directory(&[b"a/../../b"]))]
#[case::nul(directory(&[b"a\0b"]))]
#[case::case_hack(directory(&[b"a", b"a~nix~case~hack~1"]))]
#[case::name_of_256(directory(&[&[b'n'; 256]]))]
#[case::target_of_4096(link(&[b't'; 4096]))]
#[case::target_with_nul(link(b"a\0b"))]
#[case::empty_target(link(b""))]
#[case::depth_of_65(nested(65))]
#[case::padding(padded_with(1))]
#[case::unknown_type(fields(&[MAGIC, b"(", b"type", b"fifo", b")"]))]
#[case::unknown_tag(fields(&[MAGIC, b"(", b"type", b"regular", b"mode", b"0777", b"contents", b"", b")"]))]
#[case::tag_twice(fields(&[MAGIC, b"(", b"type", b"regular", b"executable", b"", b"executable", b"", b"contents", b"", b")"]))]
#[case::magic(fields(&[b"nix-archive-2", b"(", b"type", b"regular", b"contents", b"", b")"]))]
#[case::length_of_a_tag(with_length(&[MAGIC], u64::MAX))]
#[case::length_that_rounds_up_to_0(with_length(&[MAGIC], u64::MAX - 6))]
#[case::length_of_a_name(with_length(&ENTRY, u64::MAX - 7))]
#[case::length_of_a_target(with_length(&[MAGIC, b"(", b"type", b"symlink", b"target"], 1 << 63))]
#[case::length_of_contents(with_length(&[MAGIC, b"(", b"type", b"regular", b"contents"], u64::MAX))]
#[case::length_of_contents_that_rounds_up_to_0(with_length(&[MAGIC, b"(", b"type", b"regular", b"contents"], u64::MAX - 6))]
#[tokio::test]
async fn nar_malformed(#[case] nar: Vec<u8>, #[values(false, true)] zstd: bool) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let package = Package::new("tool").build();
    let bad = package.out().with_nar(nar);
    let before = forge.snapshot().await;
    let mut draft = forge.draft(&alice).item(&bad).derivations(&package);
    draft.zstd = zstd;
    let pushed = forge.push(&draft).await;
    pushed.assert_rejected(&bad.path, "nar-malformed");
    let message = pushed.of(&bad.path).message.clone().unwrap();
    let offset =
        message.split_once("at byte ").and_then(|(_, rest)| rest.split_once(' ')?.0.parse::<u64>().ok());
    assert!(offset.is_some_and(|o| o <= bad.nar_size), "no offset in {message:?}");
    assert!(message.len() < 1000 && !message.contains(char::is_control), "{message:?}");
    forge.assert_unchanged(&before).await;
    published(&forge, &forge.draft(&alice).package(&package)).await;
}

/// What is at the bounds, and not beyond, is taken.
#[rstest]
#[case::name_of_255(directory(&[&[b'n'; 255]]))]
#[case::target_of_4095(link(&[b't'; 4095]))]
#[case::depth_of_64(nested(63))]
#[case::odd_names(directory(&[b"\x01", b"...", b"A", b"a", b"\xff"]))]
#[tokio::test]
async fn nars_at_the_bounds_are_taken(#[case] nar: Vec<u8>) {
    let forge = Forge::start().await;
    let package = Package::new("tool").build();
    let item = package.out().with_nar(nar);
    published(&forge, &forge.draft(&forge.submitter("alice").await).item(&item).derivations(&package)).await;
}

async fn published(forge: &Forge, draft: &Draft) {
    let pushed = forge.push(draft).await;
    assert!(pushed.status.paths.iter().all(|p| p.state == PathState::Published), "{:?}", pushed.status);
}

fn source() -> Item {
    Item::source("source", &random_hex())
}

/// These compressed bytes are refused; nothing is left of them, and the right ones are taken afterwards.
async fn refused(item: &Item, packed: &[u8], code: &str) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let push = forge.announce(&forge.draft(&alice).item(item)).await.unwrap();
    let before = forge.snapshot().await;
    let body = framed_as(&item.nar_hash, frame::ZSTD, packed);
    let uploaded = forge.upload(&push.status.push, &push.token, body).await.unwrap();
    assert_eq!(uploaded.nars[0].error.as_ref().unwrap().code, code);
    let status = forge.status(&push, "").await.unwrap();
    assert_eq!((status.paths[0].state, status.paths[0].code.as_deref()), (PathState::Rejected, Some(code)));
    forge.assert_unchanged(&before).await;
    published(&forge, &forge.draft(&alice).item(item)).await;
}

/// A thousand times as large as announced, in few bytes.
#[tokio::test]
async fn a_bomb_is_given_up_at_the_announced_size() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
    assert!(bomb.len() < 16 << 10);
    refused(&source(), &bomb, "nar-too-large").await;
}

fn with_window(log: u32) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(log).unwrap();
    encoder.write_all(&file_nar(b"large window", false)).unwrap();
    encoder.finish().unwrap()
}

fn two_frames(nar: &[u8], bend: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (one, two) = nar.split_at(nar.len() / 2);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(two).unwrap();
    let mut second = encoder.finish().unwrap();
    bend(&mut second);
    [zstd::bulk::compress(one, 1).unwrap(), second].concat()
}

#[rstest]
#[case::window(|_: &[u8]| with_window(24))]
#[case::window_of_4_gib(|_: &[u8]| {
    // magic; no content size, no single segment; window: 2^31 and more
    vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x01, 0x00, 0x00]
})]
#[case::truncated(|nar: &[u8]| {
    let mut frame = zstd::bulk::compress(nar, 1).unwrap();
    frame.truncate(frame.len() - 1);
    frame
})]
#[case::second_frame_truncated(|nar: &[u8]| two_frames(nar, |frame| frame.truncate(frame.len() - 1)))]
#[case::second_frame_damaged(|nar: &[u8]| two_frames(nar, |frame| *frame.last_mut().unwrap() ^= 1))]
#[case::second_frame_is_none(|nar: &[u8]| two_frames(nar, |frame| frame[0] ^= 1))]
#[case::skippable_frame(|nar: &[u8]| {
    [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &zstd::bulk::compress(nar, 1).unwrap()].concat()
})]
#[case::bytes_after(|nar: &[u8]| [&zstd::bulk::compress(nar, 1).unwrap()[..], b"tail"].concat())]
#[case::xz(|_: &[u8]| b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46".to_vec())]
#[case::gzip(|_: &[u8]| b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec())]
#[tokio::test]
async fn compression_invalid(#[case] packed: fn(&[u8]) -> Vec<u8>) {
    let item = source();
    refused(&item, &packed(&item.nar), "compression-invalid").await;
}

/// The same two frames, whole, are taken.
#[tokio::test]
async fn several_good_frames_are_taken() {
    let forge = Forge::start().await;
    let item = source();
    let draft = forge.draft(&forge.submitter("alice").await).item(&item);
    let push = forge.announce(&draft).await.unwrap();
    let body = framed_as(&item.nar_hash, frame::ZSTD, &two_frames(&item.nar, |_| {}));
    forge.upload(&push.status.push, &push.token, body).await.unwrap();
    forge.complete(&draft, push).await.assert_published(&item.path);
}

/// What can't be unframed ends the upload; what came whole before it is kept.
#[rstest]
#[case::xz(2)]
#[case::any_other(255)]
#[tokio::test]
async fn a_method_that_is_not_known(#[case] method: u8) {
    let forge = Forge::start().await;
    let (good, bad) = (source(), source());
    let draft = forge.draft(&forge.submitter("alice").await).item(&good).item(&bad);
    let push = forge.announce(&draft).await.unwrap();
    let before = forge.snapshot().await;
    let mut body = framed(&good.nar_hash, &good.nar, true);
    body.extend(framed_as(&bad.nar_hash, method, &bad.nar));
    let refused = forge.upload(&push.status.push, &push.token, body).await.unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (400, "upload-malformed"), "{refused:?}");
    let status = forge.status(&push, "").await.unwrap();
    let mut pushed = Pushed { announced: push, derivations: None, uploaded: None, status };
    forge.becomes(&mut pushed, &good.path, PathState::Published, None).await;
    forge.assert_published_only(&before, &[&good.path]).await;
    assert_eq!(pushed.of(&bad.path).state, PathState::Wanted);
    forge.complete(&draft, pushed.announced).await.assert_published(&bad.path);
}

#[rstest]
#[tokio::test]
async fn encoding_unsupported(#[values("gzip", "zstd", "identity", "br, br")] encoding: &str) {
    let forge = Forge::start().await;
    let item = source();
    let draft = forge.draft(&forge.submitter("alice").await).item(&item);
    let before = forge.snapshot().await;
    let encoded = async |path: String, token: Option<&str>, body: Vec<u8>| {
        let request =
            forge.http.post(format!("{}/api/v1/{path}", forge.url)).header("content-encoding", encoding);
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let answer = request.body(body).send().await.unwrap();
        let status = answer.status().as_u16();
        let body: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        (status, body["error"]["code"].as_str().unwrap().to_owned())
    };
    let expected = (415, "encoding-unsupported".to_owned());
    assert_eq!(encoded("caches/main/pushes".into(), None, draft.sealed()).await, expected);
    let push = forge.announce(&draft).await.unwrap();
    let body = framed(&item.nar_hash, &item.nar, true);
    let token = Some(push.token.as_str());
    assert_eq!(encoded(format!("pushes/{}/nars", push.status.push), token, body).await, expected);
    assert_eq!(encoded(format!("pushes/{}/derivations", push.status.push), token, vec![]).await, expected);
    forge.assert_unchanged(&before).await;
    forge.complete(&draft, push).await.assert_published(&item.path);
}

/// Sends a chunked body for as long as it is taken, at most so many bytes; gives those sent and the answer.
async fn endless(
    forge: &Forge,
    path: &str,
    token: Option<&str>,
    begin: Vec<u8>,
    more: &[u8],
    most: usize,
) -> (usize, String) {
    let mut socket = TcpStream::connect(forge.url.trim_start_matches("http://")).await.unwrap();
    let authorization = token.map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
    let head = format!(
        "POST /api/v1/{path} HTTP/1.1\r\nHost: x\r\n{authorization}Transfer-Encoding: chunked\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let (mut read, mut write) = socket.split();
    let sent = AtomicUsize::new(0);
    let sending = async {
        let mut next: &[u8] = &begin;
        while sent.load(Relaxed) < most {
            let chunk = [format!("{:x}\r\n", next.len()).as_bytes(), next, b"\r\n"].concat();
            if write.write_all(&chunk).await.is_err() {
                return;
            }
            sent.fetch_add(next.len(), Relaxed);
            next = more;
        }
    };
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while let Ok(n) = read.read(&mut buffer).await
            && n > 0
        {
            answer.extend_from_slice(&buffer[..n]);
            if answer.windows(4).any(|w| w == b"}}\r\n" || w.starts_with(b"}}")) {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = async { sending.await; std::future::pending::<()>().await } => {}
        () = tokio::time::sleep(std::time::Duration::from_secs(60)) => panic!("no answer after {} bytes", sent.load(Relaxed)),
    }
    (sent.load(Relaxed), String::from_utf8_lossy(&answer).into_owned())
}

/// A record that was refused is read over, but not without end.
#[rstest]
#[case::not_wanted(true)]
#[case::refused_on_the_way(false)]
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_that_never_ends(#[case] stranger: bool) {
    let policy = format!("{}[limits]\nnar-size = \"1 MiB\"\n", pushgate_tests::forge::POLICY);
    let forge = Forge::start_with(&policy, Default::default()).await;
    let item = source();
    let draft = forge.draft(&forge.submitter("alice").await).item(&item);
    let push = forge.announce(&draft).await.unwrap();
    let before = forge.snapshot().await;
    let hash = if stranger { Sha256([7; 32]) } else { item.nar_hash };
    let mut begin = hash.0.to_vec();
    begin.push(frame::NONE);
    let chunk = [&(64u32 << 10).to_le_bytes()[..], &vec![b'x'; 64 << 10]].concat();
    let path = format!("pushes/{}/nars", push.status.push);
    let (sent, answer) = endless(&forge, &path, Some(&push.token), begin, &chunk, 256 << 20).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("upload-malformed"), "{answer}");
    // some lie in buffers on the way
    assert!(sent < 64 << 20, "{sent} bytes were taken");
    forge.assert_unchanged(&before).await;
    assert_eq!(forge.app.uploads.taken(), 0);
    if stranger {
        forge.complete(&draft, push).await.assert_published(&item.path);
    }
}

/// The announced size ends a record of which nothing is wrong but that it doesn't end.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_never_ends() {
    let policy = format!("{}[limits]\nnar-size = \"1 MiB\"\n", pushgate_tests::forge::POLICY);
    let forge = Forge::start_with(&policy, Default::default()).await;
    let alice = forge.submitter("alice").await;
    let mut item = Item::source("source", &"x".repeat(1000));
    // the largest that may be announced, and a NAR of one file that goes on and on
    item.nar_size = 1 << 20;
    let draft = forge.draft(&alice).item(&item);
    let push = forge.announce(&draft).await.unwrap();
    let before = forge.snapshot().await;
    let mut begin = item.nar_hash.0.to_vec();
    begin.push(frame::NONE);
    let head = with_length(&[MAGIC, b"(", b"type", b"regular", b"contents"], 1 << 40);
    begin.extend((head.len() as u32).to_le_bytes());
    begin.extend(head);
    let chunk = [&(64u32 << 10).to_le_bytes()[..], &vec![b'x'; 64 << 10]].concat();
    let path = format!("pushes/{}/nars", push.status.push);
    let (_, answer) = endless(&forge, &path, Some(&push.token), begin, &chunk, 256 << 20).await;
    assert!(answer.contains("upload-malformed"), "{answer}");
    let status = forge.status(&push, "").await.unwrap();
    assert_eq!(status.paths[0].code.as_deref(), Some("nar-too-large"));
    forge.assert_unchanged(&before).await;
    published(&forge, &forge.draft(&alice).item(&source())).await;
}

/// zstd blocks that hold nothing: the NAR never grows, what is stored would.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_one_endless_frame() {
    let policy = format!("{}[limits]\nnar-size = \"1 MiB\"\n", pushgate_tests::forge::POLICY);
    let forge = Forge::start_with(&policy, Default::default()).await;
    let alice = forge.submitter("alice").await;
    let item = source();
    let push = forge.announce(&forge.draft(&alice).item(&item)).await.unwrap();
    let before = forge.snapshot().await;
    let mut begin = item.nar_hash.0.to_vec();
    begin.push(frame::ZSTD);
    // a frame's head: magic, no content size, window of 1 MiB
    let head = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x50];
    begin.extend((head.len() as u32).to_le_bytes());
    begin.extend(head);
    // raw blocks of no bytes, none of them the last
    let blocks = [0u8; 3].repeat(20 << 10);
    let chunk = [&(blocks.len() as u32).to_le_bytes()[..], &blocks].concat();
    let path = format!("pushes/{}/nars", push.status.push);
    let (_, answer) = endless(&forge, &path, Some(&push.token), begin, &chunk, 256 << 20).await;
    assert!(answer.contains("upload-malformed"), "{answer}");
    let status = forge.status(&push, "").await.unwrap();
    assert_eq!(status.paths[0].code.as_deref(), Some("nar-too-large"), "{status:?}");
    forge.assert_unchanged(&before).await;
    published(&forge, &forge.draft(&alice).item(&source())).await;
}

/// No more of it is read than an announcement may have, whatever its paths are.
#[tokio::test(flavor = "multi_thread")]
async fn an_announcement_of_100_megabytes() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let before = forge.snapshot().await;
    let path = br#"{"path":"/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a"},"#;
    // a million of them
    let (sent, answer) =
        endless(&forge, "caches/main/pushes", None, br#"{"paths":["#.to_vec(), &path.repeat(1000), 100 << 20)
            .await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("announcement-too-large"), "{answer}");
    assert!(sent < 64 << 20, "{sent} bytes were taken");
    forge.assert_unchanged(&before).await;
    published(&forge, &forge.draft(&alice).item(&source())).await;
}

/// Nobody writes below a cache but the gateway itself, whatever the file is called.
#[tokio::test]
async fn nothing_is_written_to_the_public_prefix() {
    let forge = Forge::start().await;
    let item = source();
    published(&forge, &forge.draft(&forge.submitter("alice").await).item(&item)).await;
    let before = forge.snapshot().await;
    let hash = item.path.hash_part();
    for file in [
        format!("{hash}.narinfo"),
        format!("{hash}.ls"),
        format!("log/{}", item.path.base_name()),
        "debuginfo/0123456789abcdef0123456789abcdef01234567".to_owned(),
        "realisations/sha256:00!out.doi".to_owned(),
        "build-trace-v2/x.doi".to_owned(),
        "nar/x.nar".to_owned(),
        "nix-cache-info".to_owned(),
    ] {
        for method in
            [reqwest::Method::PUT, reqwest::Method::POST, reqwest::Method::DELETE, reqwest::Method::PATCH]
        {
            let url = format!("{}/main/{file}", forge.url);
            let answer = forge.http.request(method.clone(), &url).body("x").send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 405, "{method} {file}");
            assert!(answer.text().await.unwrap().contains("method-not-allowed"));
        }
    }
    forge.assert_unchanged(&before).await;
}

/// A gateway that isn't one may say anything: nothing of it is acted upon by a terminal.
#[test]
fn words_of_a_server_do_not_steer_the_terminal() {
    use std::{io::Read, net::TcpListener};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let _ = socket.read(&mut [0; 4096]);
            count.fetch_add(1, Relaxed);
            let evil = r"\u001b]0;owned\u0007\u001b[2J\u009b31m\r\nerror: all is well\u202e <script>alert(1)</script>";
            let body = format!(r#"{{"error":{{"code":"{evil}","message":"{evil}","path":"{evil}"}}}}"#);
            let head = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\n";
            let _ = write!(socket, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    let somebody = process::Submitter::stranger();
    let ran = somebody.run(&["join", &url, "--invite", "x", "--name", "x-1"]).ended_with(1);
    assert!(
        seen.load(Relaxed) > 0 && ran.err.contains("owned") && ran.err.contains("<script>"),
        "{}",
        ran.err
    );
    for text in [&ran.out, &ran.err] {
        let bad = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(bad, None, "{text:?}");
        // nor does it begin a line of its own
        assert!(!text.lines().any(|line| line.starts_with("error: all is well")), "{text:?}");
    }
}
