//! NAR files, logs, realisations and whatever else is put.

use std::time::Duration;

use bytes::Bytes;
use pushgate_formats::{Sha256, StorePath};
use pushgate_gateway::config::Config;
use pushgate_tests::forge::{Forge, Item, POLICY, Package, Packing, file_nar};
use reqwest::Body;
use rstest::rstest;

use super::*;

#[rstest]
#[tokio::test]
async fn honest_files_are_published(#[values(Packing::Plain, Packing::Xz, Packing::Zstd)] packing: Packing) {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    published(&forge, &alice, &source(), packing).await;
}

#[tokio::test]
async fn a_file_that_is_not_what_its_name_says() {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let before = forge.snapshot().await;
    let item = source();
    let name = format!("nar/{}.nar", Sha256::of(b"something else").base32());
    assert_refused(forge.put(&alice, &name, item.nar.clone()).await, 422, "file-hash-mismatch");
    // packed by another method than its name says
    for (packed, suffix, code) in [
        (Packing::Zstd.pack(&item.nar), ".xz", "compression-invalid"),
        (Packing::Xz.pack(&item.nar), ".zst", "compression-invalid"),
        (Packing::Xz.pack(&item.nar), "", "nar-malformed"),
    ] {
        let name = format!("nar/{}.nar{suffix}", Sha256::of(&packed).base32());
        assert_refused(forge.put(&alice, &name, packed).await, 422, code);
    }
    let_go(&forge).await;
    forge.assert_unchanged(&before).await;
}

#[rstest]
#[case::unknown("br")]
#[case::bzip2("bz2")]
#[case::lz4("lz4")]
#[tokio::test]
async fn other_compressions_are_told(#[case] suffix: &str) {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let name = format!("nar/{}.nar.{suffix}", Sha256::of(b"").base32());
    let refused = assert_refused(forge.put(&alice, &name, vec![1]).await, 422, "compression-invalid");
    assert!(refused.message.contains("compression=zstd, xz or none"), "{}", refused.message);
}

#[rstest]
#[tokio::test]
async fn broken_and_endless_compression(#[values(Packing::Xz, Packing::Zstd)] packing: Packing) {
    let policy = format!("{POLICY}[limits]\nnar-size = \"1 MiB\"\n");
    let forge = Forge::start_with(&policy, Config::default()).await;
    let alice = forge.stock_user("alice").await;
    let before = forge.snapshot().await;
    let put =
        async |packed: Vec<u8>| forge.put(&alice, &format!("nar/{}", packing.file(&packed)), packed).await;
    let good = packing.pack(&source().nar);
    for cut in [1, 4, good.len() / 2, good.len() - 1] {
        assert_refused(put(good[..cut].to_vec()).await, 422, "compression-invalid");
    }
    assert_refused(put([&good[..], b"tail"].concat()).await, 422, "compression-invalid");
    // a megabyte of NAR is allowed; this is a gigabyte of zeros, in a few kilobytes
    let bomb = packing.pack(&file_nar(&vec![0; 64 << 20], false));
    assert!(bomb.len() < 100_000);
    assert_refused(put(bomb).await, 422, "nar-too-large");
    let_go(&forge).await;
    forge.assert_unchanged(&before).await;
}

#[rstest]
#[case::empty(vec![])]
#[case::not_a_nar(b"hello".to_vec())]
#[case::trailing([&file_nar(b"x", false)[..], &[0; 8]].concat())]
#[case::cut(file_nar(b"contents", false)[..100].to_vec())]
#[tokio::test]
async fn malformed_nars(#[case] nar: Vec<u8>) {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let before = forge.snapshot().await;
    let trailing = nar.len() > 100;
    let name = format!("nar/{}", Packing::Plain.file(&nar));
    let code = if trailing { "nar-trailing-bytes" } else { "nar-malformed" };
    assert_refused(forge.put(&alice, &name, nar).await, 422, code);
    let_go(&forge).await;
    forge.assert_unchanged(&before).await;
}

#[tokio::test]
async fn an_encoded_nar_is_not_taken() {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let before = forge.snapshot().await;
    let nar = source().nar;
    let name = format!("nar/{}", Packing::Plain.file(&nar));
    let answer = forge.put_with(&alice, &name, &[("content-encoding", "gzip")], nar).await;
    assert_refused(answer, 415, "encoding-unsupported");
    forge.assert_unchanged(&before).await;
}

/// A chunked body that never ends, or comes too slowly, is given up and leaves nothing.
#[tokio::test]
async fn a_body_without_end() {
    let mut config = Config::default();
    config.limits.upload_idle = 1;
    let forge = Forge::start_with(POLICY, config).await;
    let alice = forge.stock_user("alice").await;
    let before = forge.snapshot().await;
    let nar = file_nar(&vec![7; 100_000], false);
    let name = format!("nar/{}", Packing::Plain.file(&nar));
    let endless = futures_util::stream::unfold(0usize, move |at| {
        let piece = Bytes::copy_from_slice(nar.get(at..at + 1).unwrap_or_default());
        async move {
            if at > 0 {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Some((Ok::<_, std::io::Error>(piece), at + 1))
        }
    });
    let answer = forge.put(&alice, &name, Body::wrap_stream(endless)).await;
    assert_refused(answer, 408, "upload-too-slow");
    forge.assert_unchanged(&before).await;
}

/// Quota: what is announced is reserved before a byte is read, and given back.
#[tokio::test]
async fn a_full_quarantine() {
    let policy = format!("{POLICY}[limits]\nquarantine-size = \"1 MiB\"\n");
    let forge = Forge::start_with(&policy, Config::default()).await;
    let alice = forge.stock_user("alice").await;
    let before = forge.snapshot().await;
    let large = Item::source("large", &"x".repeat(2 << 20));
    for chunked in [false, true] {
        let name = format!("nar/{}", Packing::Plain.file(&large.nar));
        let body = if chunked {
            let pieces: Vec<_> = large
                .nar
                .chunks(1 << 16)
                .map(|c| Ok::<_, std::io::Error>(Bytes::copy_from_slice(c)))
                .collect();
            Body::wrap_stream(futures_util::stream::iter(pieces))
        } else {
            Body::from(large.nar.clone())
        };
        assert_refused(forge.put(&alice, &name, body).await, 507, "quota-exceeded");
    }
    forge.assert_unchanged(&before).await;
    published(&forge, &alice, &source(), Packing::Plain).await;
}

/// A file that never comes to its narinfo waits for a day, and is swept.
#[tokio::test]
async fn an_upload_without_a_narinfo_is_swept() {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let before = forge.snapshot().await;
    let item = source();
    forge.put_nar(&alice, &item, Packing::Xz).await.unwrap();
    // not before its time, whatever else is swept
    let name = format!("nar/{}", Packing::Xz.file(&Packing::Xz.pack(&item.nar)));
    forge.clock.advance(80_000);
    forge.sweep().await;
    assert!(forge.get_stock(&alice, &name).await.is_some());
    forge.clock.advance(7_000);
    forge.assert_unchanged(&before).await;
    assert_eq!(forge.get_stock(&alice, &name).await, None);
    let refused = forge.put_narinfo(&alice, &alice.narinfo(&item, Packing::Xz)).await;
    assert_refused(refused, 422, "narinfo-url-foreign");
}

/// Listings, indices, logs and realisations of what isn't the submitter's own push.
#[tokio::test]
async fn files_beside_foreign_paths() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.stock_user("alice").await, forge.stock_user("bob").await);
    let item = source();
    published(&forge, &bob, &item, Packing::Xz).await;
    let package = Package::new("tool").build();
    forge.copy(&bob, package.out(), Packing::Xz).await.unwrap();
    let before = forge.snapshot().await;
    let part = item.path.hash_part();
    assert_refused(forge.put(&alice, &format!("{part}.ls"), "{}").await, 403, "forbidden");
    let log = format!("log/{}", package.drv.base_name());
    assert_refused(forge.put(&alice, &log, "<script>").await, 403, "forbidden");
    let id = format!("sha256:{}!out", "0".repeat(64));
    for path in [&item.path, &package.out().path] {
        let text = format!(r#"{{"id":"{id}","outPath":"{}","signatures":[]}}"#, path.base_name());
        let name = format!("realisations/{id}.doi");
        assert_refused(forge.put(&alice, &name, text).await, 403, "forbidden");
        let name = format!("build-trace-v2/{}/out.doi", package.drv.base_name());
        let text = format!(r#"{{"outPath":"{}","signatures":{{}}}}"#, path.base_name());
        assert_refused(forge.put(&alice, &name, text).await, 403, "forbidden");
    }
    for name in ["nix-cache-info", "../main/x.narinfo", "other/file", "index.html"] {
        assert_refused(
            forge.put(&alice, name, "x").await,
            if name.starts_with("..") { 405 } else { 403 },
            if name.starts_with("..") { "method-not-allowed" } else { "forbidden" },
        );
    }
    forge.assert_unchanged(&before).await;
}

/// A log is text, whatever it holds, and is public only beside the path that it is about.
#[tokio::test]
async fn a_log_with_scripts_and_escapes_is_text() {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let package = Package::new("tool").build();
    let hostile = "<script>alert(1)</script>\x1b]0;title\x07\n";
    forge.copy(&alice, package.out(), Packing::Xz).await.unwrap();
    let name = format!("log/{}", package.drv.base_name());
    forge.put(&alice, &name, hostile).await.unwrap();
    assert_eq!(forge.public(&name).await, None);
    for (path, text) in &package.closure {
        let said = forge.copy(&alice, &Item::derivation(path, text), Packing::Xz).await.unwrap();
        assert!(said.contains("published") || said.contains("held"), "{said}");
    }
    forge.settle(&package.out().path).await;
    pushgate_gateway::push::recover::tidy(&forge.app).await;
    let answer = forge.http.get(format!("{}/main/{name}", forge.url)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    assert_eq!(answer.headers()["content-security-policy"], "default-src 'none'; sandbox");
    assert_eq!(answer.text().await.unwrap(), hostile);
    // the first one stays
    forge.put(&alice, &name, "another").await.unwrap();
    pushgate_gateway::push::recover::tidy(&forge.app).await;
    assert_eq!(forge.public(&name).await.unwrap(), hostile.as_bytes());
}

/// Somebody's own content-addressed path that names another's derivation as its deriver is no way to that one's log.
#[tokio::test]
async fn a_log_by_a_false_deriver_stays_private() {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let package = Package::new("glibc").build();
    let item = Item { deriver: Some(package.drv.clone()), ..source() };
    forge.copy(&alice, &item, Packing::Xz).await.unwrap();
    assert!(forge.narinfo(&item.path).await.is_some());
    let name = format!("log/{}", package.drv.base_name());
    forge.put(&alice, &name, "lies").await.unwrap();
    pushgate_gateway::push::recover::tidy(&forge.app).await;
    assert_eq!(forge.public(&name).await, None);
}

/// Nor is a claim of what another has published: who comes later has nothing to say of how it was built.
#[tokio::test]
async fn a_log_of_what_another_published_stays_private() {
    let forge = Forge::start().await;
    let (alice, mallory) = (forge.stock_user("alice").await, forge.stock_user("mallory").await);
    let package = Package::new("tool").build();
    for (path, text) in &package.closure {
        forge.copy(&alice, &Item::derivation(path, text), Packing::Xz).await.unwrap();
    }
    forge.copy(&alice, package.out(), Packing::Xz).await.unwrap();
    forge.settle(&package.out().path).await;
    let said = forge.copy(&mallory, package.out(), Packing::Xz).await.unwrap();
    assert!(said.contains("published"), "{said}");
    let name = format!("log/{}", package.drv.base_name());
    forge.put(&mallory, &name, "lies").await.unwrap();
    pushgate_gateway::push::recover::tidy(&forge.app).await;
    assert_eq!(forge.public(&name).await, None);
    // hers is published, also when it comes second
    forge.put(&alice, &name, "built\n").await.unwrap();
    pushgate_gateway::push::recover::tidy(&forge.app).await;
    assert_eq!(forge.public(&name).await.unwrap(), b"built\n");
}

/// Realisations are taken of derivations that the submitter has to do with, and not without end.
#[tokio::test]
async fn realisations_are_bounded() {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let item = source();
    forge.copy(&alice, &item, Packing::Xz).await.unwrap();
    let text = format!(r#"{{"outPath":"{}","signatures":{{}}}}"#, item.path.base_name());
    let strange = Package::new("strange").build();
    let name = format!("build-trace-v2/{}/out.doi", strange.drv.base_name());
    assert_refused(forge.put(&alice, &name, text).await, 403, "forbidden");
    for n in 0..=64u64 {
        let id = format!("sha256:{n:064x}!out");
        let text = format!(r#"{{"id":"{id}","outPath":"{}","signatures":[]}}"#, item.path.base_name());
        let answer = forge.put(&alice, &format!("realisations/{id}.doi"), text).await;
        if n < 64 {
            answer.unwrap();
        } else {
            assert_refused(answer, 507, "quota-exceeded");
        }
    }
}

#[tokio::test]
async fn small_files_are_bounded_before_and_after_decoding() {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let item = source();
    let name = format!("{}.narinfo", item.path.hash_part());
    let before = forge.snapshot().await;
    assert_refused(forge.put(&alice, &name, vec![b'x'; (1 << 20) + 1]).await, 413, "narinfo-malformed");
    let bomb = zstd::bulk::compress(&vec![b'x'; 64 << 20], 1).unwrap();
    let answer = forge.put_with(&alice, &name, &[("content-encoding", "zstd")], bomb).await;
    assert_refused(answer, 413, "narinfo-malformed");
    let answer = forge.put_with(&alice, &name, &[("content-encoding", "lz4")], "x").await;
    assert_refused(answer, 415, "encoding-unsupported");
    let answer = forge.put_with(&alice, &name, &[("content-encoding", "gzip")], "no gzip").await;
    assert_refused(answer, 400, "encoding-invalid");
    forge.assert_unchanged(&before).await;
}

/// Nothing of what others sent shows, and nobody vouches for bytes that he doesn't have.
#[tokio::test]
async fn others_see_nothing() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.stock_user("alice").await, forge.stock_user("bob").await);
    let item = Item { ca: None, ..source() };
    forge.copy(&alice, &item, Packing::Xz).await.unwrap();
    let part = format!("{}.narinfo", item.path.hash_part());
    let nar = format!("nar/{}", Packing::Xz.file(&Packing::Xz.pack(&item.nar)));
    let own = forge.get_stock(&alice, &part).await.expect("her own, held");
    assert!(String::from_utf8(own).unwrap().contains(&format!("URL: {nar}\n")));
    assert_eq!(forge.get_stock(&alice, &nar).await, Some(Packing::Xz.pack(&item.nar)));
    for name in [&part, &nar] {
        assert_eq!(forge.get_stock(&bob, name).await, None, "{name}");
    }
    // the narinfo that she sent, signed by himself, without the file
    let refused = forge.put_narinfo(&bob, &bob.narinfo(&item, Packing::Xz)).await;
    assert_refused(refused, 422, "narinfo-url-foreign");
    assert_eq!(forge.public(&part).await, None);
    let _: StorePath = item.path;
}
