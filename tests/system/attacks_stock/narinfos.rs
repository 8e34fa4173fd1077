//! Narinfos that lie, or are made to be read in two ways.

use pushgate_formats::{StorePath, keys::KeyName, narinfo::UnverifiedNarInfo};
use pushgate_tests::forge::{Forge, Item, Package, Packing, Submitter};
use rstest::rstest;

use super::*;

/// Changes the narinfo's text, after it was signed.
type Bend = fn(&str) -> String;

#[rstest]
#[case::duplicate_field(|t: &str| t.replace("NarSize:", "NarSize: 1\nNarSize:"))]
#[case::unknown_field(|t: &str| format!("{t}Extra: x\n"))]
#[case::crlf(|t: &str| t.replace('\n', "\r\n"))]
#[case::nul(|t: &str| t.replace("Compression: xz", "Compression: xz\0"))]
#[case::no_line_end(|t: &str| t.trim_end().to_owned())]
#[case::blank_line(|t: &str| format!("{t}\n"))]
#[case::order(|t: &str| format!("{}{}", &t[t.find("URL").unwrap()..], &t[..t.find("URL").unwrap()]))]
#[case::plus(|t: &str| t.replace("NarSize: ", "NarSize: +"))]
#[case::leading_zero(|t: &str| t.replace("NarSize: ", "NarSize: 0"))]
#[case::long_field(|t: &str| t.replace("Compression: xz", &format!("Compression: xz{}", "z".repeat(900_000))))]
#[case::md5(|t: &str| t.replace("NarHash: sha256:", "NarHash: md5:"))]
#[case::injected_line(|t: &str| t.replace("References: ", "References: \nURL: nar/x "))]
#[tokio::test]
async fn malformed(#[case] bend: Bend) {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let item = source();
    forge.put_nar(&alice, &item, Packing::Xz).await.unwrap();
    let before = forge.snapshot().await;
    let good = alice.narinfo(&item, Packing::Xz);
    let name = format!("{}.narinfo", item.path.hash_part());
    let bad = bend(&good.print());
    assert_ne!(bad, good.print());
    assert_refused(forge.put(&alice, &name, bad).await, 400, "narinfo-malformed");
    forge.assert_unchanged(&before).await;
    // the file is still good for the truth
    let said = forge.put_narinfo(&alice, &good).await.unwrap();
    assert!(said.contains("published"), "{said}");
}

#[rstest]
#[case::absolute("http://127.0.0.1:1/nar/x.nar.xz")]
#[case::above("../../../etc/passwd")]
#[case::elsewhere("other/x.nar.xz")]
#[tokio::test]
async fn urls_that_lead_elsewhere(#[case] url: &str) {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let item = source();
    forge.put_nar(&alice, &item, Packing::Xz).await.unwrap();
    let before = forge.snapshot().await;
    let bad = UnverifiedNarInfo { url: url.to_owned(), ..alice.narinfo(&item, Packing::Xz) };
    assert_refused(forge.put_narinfo(&alice, &bad).await, 422, "narinfo-url-foreign");
    // the file's hash is another's than its name's
    let mut bad = alice.narinfo(&item, Packing::Xz);
    bad.file_hash = Some(pushgate_formats::Sha256::of(b"x"));
    assert_refused(forge.put_narinfo(&alice, &bad).await, 422, "narinfo-url-foreign");
    forge.assert_unchanged(&before).await;
}

#[tokio::test]
async fn the_file_of_another_path() {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let (item, other) = (source(), source());
    let before = forge.snapshot().await;
    forge.put_nar(&alice, &item, Packing::Xz).await.unwrap();
    forge.put_nar(&alice, &other, Packing::Xz).await.unwrap();
    let theirs = alice.narinfo(&other, Packing::Xz);
    let bad = UnverifiedNarInfo {
        url: theirs.url.clone(),
        file_hash: theirs.file_hash,
        file_size: theirs.file_size,
        ..alice.narinfo(&item, Packing::Xz)
    };
    assert_refused(forge.put_narinfo(&alice, &bad).await, 422, "nar-hash-mismatch");
    let_go(&forge).await;
    forge.assert_unchanged(&before).await;
}

#[tokio::test]
async fn a_size_that_is_not_the_nars() {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let before = forge.snapshot().await;
    let mut bad = source();
    bad.nar_size += 8;
    assert_refused(forge.copy(&alice, &bad, Packing::Xz).await, 422, "nar-size-mismatch");
    let_go(&forge).await;
    forge.assert_unchanged(&before).await;
}

#[tokio::test]
async fn signatures() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.stock_user("alice").await, forge.stock_user("bob").await);
    let item = source();
    forge.put_nar(&alice, &item, Packing::Xz).await.unwrap();
    let before = forge.snapshot().await;
    let good = alice.narinfo(&item, Packing::Xz);
    let with = |signatures| UnverifiedNarInfo { signatures, ..good.clone() };
    assert_refused(forge.put_narinfo(&alice, &with(vec![])).await, 403, "signature-missing");
    let by_bob = bob.narinfo(&item, Packing::Xz).signatures.remove(0);
    let refused = assert_refused(
        forge.put_narinfo(&alice, &with(vec![by_bob.clone()])).await,
        403,
        "signature-missing",
    );
    assert!(refused.message.contains(bob.submitter.key.name().as_str()), "{}", refused.message);
    // her name under his bytes
    let mut forged = by_bob;
    forged.name = alice.submitter.key.name().clone();
    assert_refused(forge.put_narinfo(&alice, &with(vec![forged])).await, 403, "signature-invalid");
    // a key that nobody enrolled
    let stranger = Submitter::new("stranger-1");
    let signature = item.announced(&stranger.key).signature;
    assert_refused(forge.put_narinfo(&alice, &with(vec![signature])).await, 403, "signature-missing");
    // signed for other references
    let mut lie = good.clone();
    lie.references.insert(item.path.clone());
    assert_refused(forge.put_narinfo(&alice, &lie).await, 403, "signature-invalid");
    forge.assert_unchanged(&before).await;
    let _: KeyName = alice.submitter.key.name().clone();
}

#[tokio::test]
async fn a_revoked_key_and_a_frozen_token() {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let item = source();
    forge.put_nar(&alice, &item, Packing::Xz).await.unwrap();
    let before = forge.snapshot().await;
    forge.revoke(&alice.submitter.key).await;
    // whoever had the key may have made the token
    assert_refused(forge.put_nar(&alice, &item, Packing::Xz).await, 401, "token-revoked");
    let alice = StockUser { token: forge.token("alice").await, ..alice };
    let refused = forge.put_narinfo(&alice, &alice.narinfo(&item, Packing::Xz)).await;
    assert_refused(refused, 403, "key-revoked");
    let now = forge.clock.now();
    pushgate_gateway::tokens::revoke(forge.app.db.as_ref(), "alice", now).await.unwrap();
    assert_refused(forge.put_nar(&alice, &item, Packing::Xz).await, 401, "token-revoked");
    forge.assert_unchanged(&before).await;
}

#[tokio::test]
async fn tokens_run_out_and_are_of_one_cache() {
    let forge = Forge::start().await;
    forge.add_cache("second").await;
    let mut alice = forge.stock_user("alice").await;
    let (db, now) = (forge.app.db.as_ref(), forge.clock.now());
    let make = async |cache: &str, ttl| {
        pushgate_gateway::tokens::make_for(db, "alice", cache, now, ttl).await.unwrap()
    };
    alice.token = make("second", None).await;
    assert_refused(forge.put(&alice, "debuginfo/00.debug", "{}").await, 401, "token-not-for-cache");
    alice.token = make("main", Some(10)).await;
    forge.put(&alice, "debuginfo/00.debug", "{}").await.unwrap();
    forge.clock.advance(10);
    assert_refused(forge.put(&alice, "debuginfo/00.debug", "{}").await, 401, "token-expired");
    // not without end
    let mut made = Vec::new();
    let now = forge.clock.now();
    while let Ok(token) = pushgate_gateway::tokens::make_for(db, "alice", "main", now, None).await {
        made.push(token);
        assert!(made.len() <= 100);
    }
    assert_eq!(made.len(), 98, "beside the first and that for the other cache");
    alice.token = made[0].clone();
    forge.put(&alice, "debuginfo/00.debug", "{}").await.unwrap();
    alice.token = "nonsense".into();
    assert_refused(forge.put(&alice, "debuginfo/00.debug", "{}").await, 401, "token-invalid");
}

/// A narinfo of old, validly signed, for a path that is published with other contents by now.
#[tokio::test]
async fn a_replayed_narinfo_is_a_conflict() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.stock_user("alice").await, forge.stock_user("bob").await);
    let package = Package::new("tool").build();
    let old = package.out().with_nar(Package::new("evil").build().out().nar.clone());
    for (path, text) in &package.closure {
        forge.copy(&bob, &Item::derivation(path, text), Packing::Xz).await.unwrap();
        forge.copy(&alice, &Item::derivation(path, text), Packing::Xz).await.unwrap();
    }
    let said = forge.copy(&bob, package.out(), Packing::Xz).await.unwrap();
    assert!(said.contains("published"), "{said}");
    let stands = forge.narinfo(&package.out().path).await.unwrap();
    let said = forge.copy(&alice, &old, Packing::Xz).await.unwrap();
    assert!(said.contains("held") && said.contains("the published one stays"), "{said}");
    assert_eq!(forge.narinfo(&package.out().path).await.unwrap(), stands);
}

/// References are checked as at the own interface, and the refusal names them.
#[tokio::test]
async fn references_that_are_not_in_the_bytes() {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let library = Package::new("library").build();
    let tool = Package::new("tool").input(&library).build();
    for (path, text) in &tool.closure {
        forge.copy(&alice, &Item::derivation(path, text), Packing::Xz).await.unwrap();
    }
    forge.copy(&alice, library.out(), Packing::Xz).await.unwrap();
    let_go(&forge).await;
    let before = forge.snapshot().await;
    let mut bad = tool.out().clone();
    bad.references.insert(library.out().path.clone());
    let refused = assert_refused(forge.copy(&alice, &bad, Packing::Xz).await, 422, "reference-absent");
    assert_eq!(refused.path, Some(bad.path.absolute()));
    assert!(refused.message.contains(&library.out().path.absolute()), "{}", refused.message);
    let_go(&forge).await;
    forge.assert_unchanged(&before).await;
    forge.copy(&alice, tool.out(), Packing::Xz).await.unwrap();
}

/// A text that is named like a derivation and is none; a derivation under another's path.
#[tokio::test]
async fn derivations_that_are_none() {
    let forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let before = forge.snapshot().await;
    let text = Item::text("a.drv", b"Derive(nonsense)", &[]);
    assert_refused(forge.copy(&alice, &text, Packing::Xz).await, 422, "derivation-malformed");
    let package = Package::new("tool").build();
    let mut moved = Item::derivation(&package.drv, &package.text);
    moved.path = StorePath::from_digest(&[9; 20], "tool.drv").unwrap();
    assert_refused(forge.copy(&alice, &moved, Packing::Xz).await, 422, "content-address-mismatch");
    let_go(&forge).await;
    forge.assert_unchanged(&before).await;
    assert!(forge.app.db.derivations_sent(1, &[moved.path]).await.unwrap().is_empty());
}

/// The same copy twice, and from two at once, is one publication.
#[tokio::test]
async fn two_copies_at_once_are_one_publication() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.stock_user("alice").await, forge.stock_user("bob").await);
    let item = source();
    let before = forge.snapshot().await;
    let copies = [&alice, &bob, &alice, &bob].map(|user| forge.copy(user, &item, Packing::Zstd));
    for said in futures_util::future::join_all(copies).await {
        assert!(said.unwrap().contains("published"));
    }
    forge.assert_published_only(&before, &[&item.path]).await;
}

/// After a restart the proof is made again from the stored narinfo.
#[tokio::test]
async fn a_held_narinfo_survives_a_restart() {
    let mut forge = Forge::start().await;
    let alice = forge.stock_user("alice").await;
    let package = Package::new("tool").build();
    let said = forge.copy(&alice, package.out(), Packing::Xz).await.unwrap();
    assert!(said.contains("held"), "{said}");
    forge = forge.restart().await;
    for (path, text) in &package.closure {
        forge.copy(&alice, &Item::derivation(path, text), Packing::Xz).await.unwrap();
    }
    forge.settle(&package.out().path).await;
}
