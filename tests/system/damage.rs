//! One wrong byte, or the end missing, anywhere in what a small push sends. Whatever comes of it: the answer has a stable
//! code, or the damage was harmless and the outcome is the honest one; and nothing is public but honest bytes.
//!
//! By default some of the places and changes are tried; with `PUSHGATE_DAMAGE=all` every byte and more of its changes.

use pushgate_formats::{
    Sha256,
    api::{Announced, PathState, frame},
    narinfo::{Dialect, UnverifiedNarInfo},
};
use pushgate_tests::forge::{Draft, Forge, Item, Package, framed, framed_as, packed_derivations};
use rstest::rstest;

/// Every code that damage may be answered with.
const CODES: [&str; 19] = [
    "announcement-malformed",
    "signature-missing",
    "signature-invalid",
    "key-unknown",
    "upload-malformed",
    "nar-not-wanted",
    "nar-aborted",
    "nar-hash-mismatch",
    "nar-malformed",
    "nar-trailing-bytes",
    "nar-too-large",
    "compression-invalid",
    "derivations-malformed",
    "derivations-too-large",
    "derivation-malformed",
    "derivation-mismatch",
    "derivation-not-announced",
    "derivation-not-canonical",
    "derivation-path-mismatch",
];

/// Places in a body of this length and what is changed there.
fn changes(length: usize, every: usize) -> impl Iterator<Item = (usize, u8)> {
    let all = std::env::var_os("PUSHGATE_DAMAGE").is_some_and(|value| value == "all");
    // one bit, the case of a letter, the highest bit, all bits
    let each = (0..length).flat_map(|at| [1, 0x20, 0x80, 0xff].map(|by| (at, by)));
    each.step_by(if all { 1 } else { every })
}

#[track_caller]
fn assert_code(code: &str) {
    assert!(CODES.contains(&code), "`{code}` is not a code for damage");
}

/// What is public of a path is what its item is.
async fn assert_honest(forge: &Forge, item: &Item) {
    let text = forge.narinfo(&item.path).await.expect("a narinfo");
    let info = UnverifiedNarInfo::parse(text.as_bytes(), Dialect::Push).expect("a narinfo");
    assert_eq!((info.nar_hash, info.nar_size), (item.nar_hash, item.nar_size));
    assert_eq!((&info.path, &info.references, &info.deriver), (&item.path, &item.references, &item.deriver));
    let file = forge.public(&info.url).await.expect("the NAR");
    assert_eq!((info.file_hash, info.file_size), (Some(Sha256::of(&file)), Some(file.len() as u64)));
    let nar = match info.compression.as_str() {
        "none" => file,
        "zstd" => zstd::stream::decode_all(&file[..]).expect("zstd"),
        other => panic!("compression `{other}`"),
    };
    assert_eq!(nar, item.nar);
}

/// Ends a push that has one path after a damaged body: it is settled, or an honest body settles it.
async fn settled(forge: &Forge, draft: &Draft, push: Announced, item: &Item) -> bool {
    let status = forge.status(&push, "").await.expect("the status");
    let state = match status.paths[0].state {
        // nothing of the damage sticks to the push
        PathState::Wanted => {
            let now = Announced { status, token: push.token.clone() };
            let pushed = forge.complete(draft, now).await;
            pushed.assert_published(&item.path);
            PathState::Published
        }
        PathState::Rejected => PathState::Rejected,
        _ => forge.status(&push, "?wait=20").await.expect("the status").paths[0].state,
    };
    match state {
        PathState::Published => assert_honest(forge, item).await,
        PathState::Rejected => {
            let status = forge.status(&push, "").await.expect("the status");
            assert_code(status.paths[0].code.as_deref().expect("a reason"));
            assert_eq!(forge.narinfo(&item.path).await, None);
        }
        other => panic!("{other:?} after all was sent: {:?}", forge.status(&push, "").await),
    }
    state == PathState::Published
}

/// Everything in an announcement is signed, but for the key's name, which must be right.
#[tokio::test]
async fn announcements() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let package = Package::new("tool").build();
    let draft = forge.draft(&alice).package(&package);
    let sealed = draft.sealed();
    let before = forge.snapshot().await;
    for (at, by) in changes(sealed.len(), 11) {
        let mut bent = sealed.clone();
        bent[at] ^= by;
        let refused = forge.announce_raw("main", bent).await;
        match refused {
            Ok(_) => panic!("byte {at} changed by {by:#04x} is taken"),
            Err(refused) => assert_code(&refused.code),
        }
    }
    for end in (0..sealed.len()).step_by(7) {
        let refused = forge.announce_raw("main", sealed[..end].to_vec()).await.expect_err("a refusal");
        assert_eq!(refused.code, "announcement-malformed", "cut at byte {end}");
    }
    forge.assert_unchanged(&before).await;
    // and the honest one still counts as the first
    forge.push(&draft).await.assert_published(package.path());
    assert_honest(&forge, package.out()).await;
    forge.assert_published_only(&before, &[package.path()]).await;
}

/// A derivation whose text is another is refused with what it should have proved; a body that can't be read is as if it had
/// not come.
#[tokio::test]
async fn derivations() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let before = forge.snapshot().await;
    let package = |n: usize| {
        // other contents too: bytes that are here already aren't asked for again
        let n = n.to_string();
        let input = Package::new("input").env("n", &n).build();
        Package::new("tool").input(&input).contents(&n).build()
    };
    let length = packed_derivations(package(0).closure.iter().map(|(path, text)| (path, text))).len();
    let mut public = Vec::new();
    for (n, (at, by)) in changes(length, 13).enumerate() {
        let package = package(n);
        let draft = forge.draft(&alice).package(&package);
        let push = forge.announce(&draft).await.expect("an honest announcement");
        let mut body = packed_derivations(package.closure.iter().map(|(path, text)| (path, text)));
        let at = at.min(body.len() - 1);
        body[at] ^= by;
        match forge.send_derivations_raw(&push.status.push, &push.token, body).await {
            Ok(taken) => taken.refused.iter().for_each(|error| assert_code(&error.code)),
            Err(refused) => assert_code(&refused.code),
        }
        if settled(&forge, &draft, push, package.out()).await {
            public.push(package.path().clone());
        }
    }
    assert!(!public.is_empty());
    forge.assert_published_only(&before, &public.iter().collect::<Vec<_>>()).await;
}

/// Derivations whose end is missing are as if they had not come.
#[tokio::test]
async fn derivations_cut_short() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let package = Package::new("tool").build();
    let draft = forge.draft(&alice).package(&package);
    let push = forge.announce(&draft).await.expect("an honest announcement");
    let body = packed_derivations(&draft.texts);
    let before = forge.snapshot().await;
    for end in 0..body.len() {
        let sent = forge.send_derivations_raw(&push.status.push, &push.token, body[..end].to_vec()).await;
        assert_eq!(sent.expect_err("a refusal").code, "derivations-malformed", "cut at byte {end}");
    }
    forge.assert_unchanged(&before).await;
    forge.complete(&draft, push).await.assert_published(package.path());
    assert_honest(&forge, package.out()).await;
}

#[rstest]
#[tokio::test]
async fn nars(#[values(false, true)] zstd: bool) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let before = forge.snapshot().await;
    // text that has something to compress
    let item = |n: usize| Item::source("source", &format!("{n:06} {}", "more of the same ".repeat(9)));
    let length = framed(&item(0).nar_hash, &item(0).nar, zstd).len();
    let mut public = Vec::new();
    for (n, (at, by)) in changes(length, 9).enumerate() {
        let item = item(n);
        let draft = forge.draft(&alice).item(&item);
        let push = forge.announce(&draft).await.expect("an honest announcement");
        let mut body = framed(&item.nar_hash, &item.nar, zstd);
        let at = at.min(body.len() - 1);
        body[at] ^= by;
        match forge.upload(&push.status.push, &push.token, body).await {
            Ok(uploaded) => {
                uploaded.nars.iter().filter_map(|nar| nar.error.as_ref()).for_each(|e| assert_code(&e.code));
            }
            Err(refused) => assert_code(&refused.code),
        }
        if settled(&forge, &draft, push, &item).await {
            public.push(item.path.clone());
        }
    }
    assert!(!public.is_empty());
    forge.assert_published_only(&before, &public.iter().collect::<Vec<_>>()).await;
}

/// An upload that ends early, at any byte: nothing of it is kept, and the push goes on as if it had not come.
#[rstest]
#[tokio::test]
async fn uploads_cut_short(#[values(false, true)] zstd: bool) {
    let forge = Forge::start().await;
    let item = Item::source("source", "contents");
    let draft = forge.draft(&forge.submitter("alice").await).item(&item);
    let push = forge.announce(&draft).await.expect("an honest announcement");
    let body = framed(&item.nar_hash, &item.nar, zstd);
    let before = forge.snapshot().await;
    for end in 1..body.len() {
        let sent = forge.upload(&push.status.push, &push.token, body[..end].to_vec()).await;
        assert_eq!(sent.expect_err("a refusal").code, "upload-malformed", "cut at byte {end}");
    }
    forge.assert_unchanged(&before).await;
    forge.complete(&draft, push).await.assert_published(&item.path);
    assert_honest(&forge, &item).await;
}

/// A NAR that ends early within a record that doesn't: refused, and nothing of it is kept.
#[rstest]
#[case::plain(frame::NONE, "nar-malformed")]
#[case::zstd(frame::ZSTD, "compression-invalid")]
#[tokio::test]
async fn nars_cut_short(#[case] compression: u8, #[case] code: &str) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let before = forge.snapshot().await;
    let packed = |item: &Item| match compression {
        frame::ZSTD => zstd::bulk::compress(&item.nar, 1).expect("zstd"),
        _ => item.nar.clone(),
    };
    for end in 0..packed(&Item::source("source", "0000")).len() {
        let item = Item::source("source", &format!("{end:04}"));
        let draft = forge.draft(&alice).item(&item);
        let push = forge.announce(&draft).await.expect("an honest announcement");
        let packed = packed(&item);
        let body = framed_as(&item.nar_hash, compression, &packed[..end.min(packed.len() - 1)]);
        let uploaded = forge.upload(&push.status.push, &push.token, body).await.expect("a whole record");
        let error = uploaded.nars[0].error.as_ref().expect("a refusal");
        assert_eq!(error.code, code, "cut at byte {end}");
        assert_eq!(forge.status(&push, "").await.expect("the status").paths[0].state, PathState::Rejected);
    }
    forge.assert_unchanged(&before).await;
}
