//! Pushes that would make the gateway hold, read or compute more than it has to: memory, quota, time. Each is refused
//! by its rule, or costs no more than it should; beside it the same without the excess is taken.

use pushgate_formats::api::{MAX_PATHS, PathState, frame};
use pushgate_gateway::config::Config;
use pushgate_tests::forge::{Forge, Item, POLICY, Package, file_nar, framed, framed_as, random_hex};
use rstest::rstest;

fn source() -> Item {
    Item::source("source", &random_hex())
}

/// Bytes that don't compress.
fn noise(length: usize) -> Vec<u8> {
    std::iter::repeat_with(random_hex).flat_map(String::into_bytes).take(length).collect()
}

async fn published(forge: &Forge, draft: &pushgate_tests::forge::Draft) {
    let pushed = forge.push(draft).await;
    assert!(pushed.status.paths.iter().all(|p| p.state == PathState::Published), "{:?}", pushed.status);
}

/// The first copy is taken, the others are not even read.
#[tokio::test]
async fn a_nar_comes_once_in_an_upload() {
    let forge = Forge::start().await;
    let (one, two) = (source(), source());
    let draft = forge.draft(&forge.submitter("alice").await).item(&one).item(&two);
    let push = forge.announce(&draft).await.unwrap();
    let mut body = framed(&one.nar_hash, &one.nar, true);
    body.extend(framed(&one.nar_hash, &one.nar, true));
    // no NAR at all: it isn't looked at
    body.extend(framed_as(&one.nar_hash, frame::ZSTD, b"no zstd"));
    body.extend(framed(&two.nar_hash, &two.nar, true));
    let uploaded = forge.upload(&push.status.push, &push.token, body).await.unwrap();
    let codes: Vec<_> = uploaded.nars.iter().map(|n| n.error.as_ref().map(|e| e.code.as_str())).collect();
    assert_eq!(codes, [None, Some("nar-not-wanted"), Some("nar-not-wanted"), None]);
    let status = forge.status(&push, "?wait=20").await.unwrap();
    assert!(status.paths.iter().all(|p| p.state == PathState::Published), "{status:?}");
}

/// No push has more paths than that, so no upload has more records.
#[tokio::test]
async fn records_of_an_upload_are_bounded() {
    let forge = Forge::start().await;
    let item = source();
    let draft = forge.draft(&forge.submitter("alice").await).item(&item);
    let push = forge.announce(&draft).await.unwrap();
    let record = framed_as(&source().nar_hash, frame::NONE, b"");
    let refused =
        forge.upload(&push.status.push, &push.token, record.repeat(MAX_PATHS + 1)).await.unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (400, "upload-malformed"), "{refused:?}");
    let uploaded = forge.upload(&push.status.push, &push.token, record.repeat(MAX_PATHS)).await.unwrap();
    assert_eq!(uploaded.nars.len(), MAX_PATHS);
    forge.complete(&draft, push).await.assert_published(&item.path);
}

/// A claim that is refused for its size must not lift the limit for another of the same NAR.
#[tokio::test]
async fn the_declared_size_bounds_what_is_decompressed() {
    let policy = format!("{POLICY}[limits]\nnar-size = \"1 MiB\"\n");
    let forge = Forge::start_with(&policy, Config::default()).await;
    let alice = forge.submitter("alice").await;
    let good = source();
    let package = Package::new("large").build();
    let mut large = package.out().with_nar(good.nar.clone());
    large.nar_size = 1 << 62;
    let bomb = file_nar(&vec![0; 32 << 20], false);
    let draft = forge.draft(&alice).item(&good).item(&large).derivations(&package);
    let push = forge.announce(&draft).await.unwrap();
    let of = |status: &pushgate_formats::api::PushStatus, item: &Item| {
        status.paths.iter().find(|p| p.path == item.path).unwrap().code.clone()
    };
    assert_eq!(of(&push.status, &large).as_deref(), Some("nar-too-large"));
    let body = framed(&good.nar_hash, &bomb, true);
    let uploaded = forge.upload(&push.status.push, &push.token, body).await.unwrap();
    // given up at the announced size; at its end it would be `nar-hash-mismatch`
    assert_eq!(uploaded.nars[0].error.as_ref().unwrap().code, "nar-too-large");
    assert_eq!(of(&forge.status(&push, "").await.unwrap(), &good).as_deref(), Some("nar-too-large"));
    // beside such a claim, the bytes that are right are taken
    let again = forge.draft(&alice).item(&good).item(&large).derivations(&package);
    let pushed = forge.push(&again).await;
    pushed.assert_published(&good.path);
    pushed.assert_rejected(&large.path, "nar-too-large");
}

/// Bytes that were refused and rolled back are given back; those that are kept count.
#[tokio::test]
async fn the_quota_counts_what_is_kept() {
    let policy = format!("{POLICY}[limits]\nquarantine-size = \"64 KiB\"\n");
    let forge = Forge::start_with(&policy, Config::default()).await;
    let alice = forge.submitter("alice").await;
    let items: Vec<Item> =
        (0..6).map(|_| Item::source("noise", &String::from_utf8(noise(20 << 10)).unwrap())).collect();
    let draft = items.iter().fold(forge.draft(&alice), |draft, item| draft.item(item));
    let push = forge.announce(&draft).await.unwrap();
    let (good, bad) = items.split_last().unwrap();
    let mut body: Vec<u8> = bad.iter().flat_map(|item| framed(&item.nar_hash, &good.nar, false)).collect();
    body.extend(framed(&good.nar_hash, &good.nar, false));
    let uploaded = forge.upload(&push.status.push, &push.token, body).await.unwrap();
    let (last, first) = uploaded.nars.split_last().unwrap();
    assert!(first.iter().all(|n| n.error.as_ref().unwrap().code == "nar-hash-mismatch"), "{first:?}");
    assert_eq!(last.error, None);
    let status = forge.status(&push, "?wait=20").await.unwrap();
    assert_eq!(status.paths[5].state, PathState::Published);
    // what is kept counts, until it is swept: the fourth doesn't fit
    forge.sweep().await;
    let items: Vec<Item> =
        (0..4).map(|_| Item::source("noise", &String::from_utf8(noise(20 << 10)).unwrap())).collect();
    let draft = items.iter().fold(forge.draft(&alice), |draft, item| draft.item(item));
    let push = forge.announce(&draft).await.unwrap();
    let body = items.iter().flat_map(|item| framed(&item.nar_hash, &item.nar, false)).collect();
    let uploaded = forge.upload(&push.status.push, &push.token, body).await.unwrap();
    let codes: Vec<_> = uploaded.nars.iter().map(|n| n.error.as_ref().map(|e| e.code.as_str())).collect();
    assert_eq!(codes, [None, None, None, Some("quota-exceeded")]);
}

/// The worst order costs no more than the right one, in one request or in two.
#[rstest]
#[case::inputs_first(false, 600)]
#[case::dependants_first(true, 600)]
#[case::dependants_first_in_two_requests(true, 300)]
#[tokio::test]
async fn a_long_chain_of_derivations(#[case] reverse: bool, #[case] at_once: usize) {
    const LENGTH: usize = 600;
    let forge = Forge::start().await;
    let mut package = Package::new("p0").build();
    for n in 1..LENGTH {
        package = Package::new(&format!("p{n}")).input(&package).build();
    }
    let mut draft = forge.draft(&forge.submitter("alice").await).package(&package);
    if reverse {
        draft.body.derivations.reverse();
    }
    let push = forge.announce(&draft).await.unwrap();
    let texts: Vec<_> = draft.body.derivations.iter().map(|d| (d, &draft.texts[d])).collect();
    assert_eq!(texts.len(), LENGTH);
    for (n, part) in texts.chunks(at_once).enumerate() {
        let sent = part.iter().copied();
        let taken = forge.send_derivations(&push.status.push, &push.token, sent).await.unwrap();
        assert_eq!((taken.taken, taken.refused.len()), (at_once, 0));
        // of the first half, the one input that didn't come with it
        let missing: Vec<_> =
            texts.get((n + 1) * at_once).map(|(path, _)| (*path).clone()).into_iter().collect();
        assert_eq!(taken.missing, missing);
    }
    forge.complete(&draft, push).await.assert_published(package.path());
}

#[tokio::test]
async fn a_derivation_comes_once_in_a_request() {
    let forge = Forge::start().await;
    let package = Package::new("tool").build();
    let draft = forge.draft(&forge.submitter("alice").await).package(&package);
    let push = forge.announce(&draft).await.unwrap();
    let sent = [(&package.drv, &package.text); 2];
    let refused = forge.send_derivations(&push.status.push, &push.token, sent).await.unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (400, "derivations-malformed"), "{refused:?}");
    assert!(forge.app.db.derivations(std::slice::from_ref(&package.drv)).await.unwrap().is_empty());
    forge.complete(&draft, push).await.assert_published(package.path());
    published(&forge, &forge.draft(&forge.submitter("bob").await).item(&source())).await;
}
