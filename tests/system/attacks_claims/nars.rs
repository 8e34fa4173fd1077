//! Bytes that are not what was announced.

use pushgate_formats::api::{PathState, frame};
use pushgate_gateway::config::Config;
use pushgate_tests::forge::{Forge, Item, POLICY, Package, framed, framed_as};
use rstest::rstest;

use super::{published, rejected, source};

/// The record's header has the announced hash, its bytes another.
#[rstest]
#[tokio::test]
async fn nar_hash_mismatch(#[values(false, true)] zstd: bool) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    // by its derivation any bytes would do: only the hash binds them
    let package = Package::new("tool").build();
    let other = package.out().with_nar(Package::new("evil").build().out().nar.clone());
    assert_eq!(other.nar_size, package.out().nar_size);
    let mut bad = forge.draft(&alice).package(&package);
    bad.zstd = zstd;
    bad.nars.insert(package.out().nar_hash, other.nar);
    let pushed = rejected(&forge, &bad, package.out(), "nar-hash-mismatch").await;
    let results = pushed.uploaded.unwrap().nars;
    assert_eq!(results[0].error.as_ref().unwrap().code, "nar-hash-mismatch");
    published(&forge, &forge.draft(&alice).package(&package)).await;
}

/// The record's header tells the truth about bytes that nobody announced.
#[tokio::test]
async fn a_nar_that_was_not_announced_is_not_taken() {
    let forge = Forge::start().await;
    let (item, other) = (source(), source());
    let draft = forge.draft(&forge.submitter("alice").await).item(&item);
    let push = forge.announce(&draft).await.unwrap();
    let before = forge.snapshot().await;
    let body = framed(&other.nar_hash, &other.nar, true);
    let uploaded = forge.upload(&push.status.push, &push.token, body).await.unwrap();
    assert_eq!(uploaded.nars[0].error.as_ref().unwrap().code, "nar-not-wanted");
    forge.assert_unchanged(&before).await;
    // the claim still waits for its own
    assert_eq!(forge.status(&push, "").await.unwrap().paths[0].state, PathState::Wanted);
    forge.complete(&draft, push).await.assert_published(&item.path);
}

#[rstest]
#[case::more_announced_than_sent(8, "nar-size-mismatch")]
#[case::less_announced_than_sent(-8, "nar-too-large")]
#[tokio::test]
async fn nar_size_mismatch(#[case] by: i64, #[case] code: &str, #[values(false, true)] zstd: bool) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let good = source();
    let mut bad = good.clone();
    bad.nar_size = bad.nar_size.strict_add_signed(by);
    let mut draft = forge.draft(&alice).item(&bad);
    draft.zstd = zstd;
    rejected(&forge, &draft, &bad, code).await;
    published(&forge, &forge.draft(&alice).item(&good)).await;
}

/// Two claims of the same bytes, one of which lies about the size: only that one is refused.
#[tokio::test]
async fn nar_size_mismatch_of_one_of_two_claims() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let good = source();
    let package = Package::new("same-bytes").build();
    let mut bad = package.out().with_nar(good.nar.clone());
    bad.nar_size += 1;
    let before = forge.snapshot().await;
    let pushed = forge.push(&forge.draft(&alice).item(&bad).item(&good).derivations(&package)).await;
    pushed.assert_rejected(&bad.path, "nar-size-mismatch");
    pushed.assert_published(&good.path);
    forge.assert_published_only(&before, &[&good.path]).await;
    assert!(forge.snapshot().await.packs.is_empty());
}

#[tokio::test]
async fn nar_too_large_for_the_policy() {
    let policy = format!("{POLICY}[limits]\nnar-size = \"4 KiB\"\n");
    let forge = Forge::start_with(&policy, Config::default()).await;
    let alice = forge.submitter("alice").await;
    let bad = Item::source("large", &"x".repeat(4096));
    let pushed = rejected(&forge, &forge.draft(&alice).item(&bad), &bad, "nar-too-large").await;
    assert!(pushed.announced.status.wanted.is_empty(), "not a byte of it is asked for");
    published(&forge, &forge.draft(&alice).item(&source())).await;
}

/// Hash and size are right, for bytes that are no NAR.
#[rstest]
#[case::trailing_zeros(|nar: &mut Vec<u8>| nar.extend([0; 8]), "nar-trailing-bytes")]
#[case::a_second_nar(|nar: &mut Vec<u8>| nar.extend(nar.clone()), "nar-trailing-bytes")]
#[case::cut_short(|nar: &mut Vec<u8>| nar.truncate(nar.len() - 8), "nar-malformed")]
#[case::padding(|nar: &mut Vec<u8>| nar[24 - 1] = 1, "nar-malformed")]
#[case::no_nar(|nar: &mut Vec<u8>| *nar = b"#!/bin/sh\n".to_vec(), "nar-malformed")]
#[tokio::test]
async fn nar_malformed(#[case] bend: fn(&mut Vec<u8>), #[case] code: &str) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let package = Package::new("tool").build();
    let mut nar = package.out().nar.clone();
    bend(&mut nar);
    let bad = package.out().with_nar(nar);
    rejected(&forge, &forge.draft(&alice).item(&bad).derivations(&package), &bad, code).await;
    published(&forge, &forge.draft(&alice).package(&package)).await;
}

#[rstest]
#[case::no_zstd(|_: &[u8]| b"no zstd".to_vec())]
#[case::not_compressed(|nar: &[u8]| nar.to_vec())]
#[case::cut_short(|nar: &[u8]| {
    let mut frame = zstd::bulk::compress(nar, 1).unwrap();
    frame.pop();
    frame
})]
#[tokio::test]
async fn compression_invalid(#[case] packed: fn(&[u8]) -> Vec<u8>) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let package = Package::new("tool").build();
    let item = package.out();
    let push = forge.announce(&forge.draft(&alice).package(&package)).await.unwrap();
    let before = forge.snapshot().await;
    let body = framed_as(&item.nar_hash, frame::ZSTD, &packed(&item.nar));
    let uploaded = forge.upload(&push.status.push, &push.token, body).await.unwrap();
    assert_eq!(uploaded.nars[0].error.as_ref().unwrap().code, "compression-invalid");
    let status = forge.status(&push, "").await.unwrap();
    assert_eq!(status.paths[0].code.as_deref(), Some("compression-invalid"));
    forge.assert_unchanged(&before).await;
    published(&forge, &forge.draft(&alice).package(&package)).await;
}

/// One refused NAR doesn't touch the others of its request, before or behind it.
#[tokio::test]
async fn one_bad_nar_does_not_touch_the_others() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let mut items = [source(), source(), source()];
    items.sort_by_key(|item| item.nar_hash);
    let draft = forge.draft(&alice).item(&items[0]).item(&items[1]).item(&items[2]);
    let push = forge.announce(&draft).await.unwrap();
    let before = forge.snapshot().await;
    let mut body = framed(&items[0].nar_hash, &items[0].nar, true);
    body.extend(framed(&items[1].nar_hash, &items[0].nar, true));
    body.extend(framed(&items[2].nar_hash, &items[2].nar, false));
    forge.upload(&push.status.push, &push.token, body).await.unwrap();
    let pushed = forge.complete(&draft, push).await;
    pushed.assert_rejected(&items[1].path, "nar-hash-mismatch");
    forge.assert_published_only(&before, &[&items[0].path, &items[2].path]).await;
    assert!(forge.snapshot().await.packs.is_empty());
}
