//! Announcements that no client makes: names, sizes, things twice.

use pushgate_formats::{
    StorePath,
    api::{MAX_ANNOUNCEMENT, MAX_DERIVATIONS, MAX_PATHS, MAX_REFERENCES},
};
use pushgate_tests::forge::{Draft, Forge, Item, Package};
use rstest::rstest;
use serde_json::{Value, json};

use super::{published, source};

const HASH: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr";

/// The announcement is refused as a whole, for this reason; without the change it is published.
async fn refused(change: impl FnOnce(&mut Value), status: u16, code: &str) {
    let forge = Forge::start().await;
    let good = forge.draft(&forge.submitter("alice").await).item(&source());
    refused_as(&forge, &good, good.sealed_after(change), status, code).await;
}

async fn refused_as(forge: &Forge, good: &Draft, bad: Vec<u8>, status: u16, code: &str) {
    let before = forge.snapshot().await;
    let refused = forge.announce_raw("main", bad).await.unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (status, code), "{refused:?}");
    assert!(refused.message.len() < 1000 && !refused.message.contains(['\n', '\0', '\u{1b}']), "{refused:?}");
    forge.assert_unchanged(&before).await;
    published(forge, good).await;
}

#[rstest]
#[case::lookalike_letters(format!("/nix/store/{HASH}-gl\u{456}bc-2.40"))]
#[case::wide_letters(format!("/nix/store/{HASH}-\u{ff47}libc"))]
#[case::right_to_left(format!("/nix/store/{HASH}-\u{202e}cbilg"))]
#[case::zero_width(format!("/nix/store/{HASH}-glibc\u{200b}"))]
#[case::dots(format!("/nix/store/{HASH}-.."))]
#[case::slash(format!("/nix/store/{HASH}-a/../../x"))]
#[case::nul(format!("/nix/store/{HASH}-a\0"))]
#[case::line_end(format!("/nix/store/{HASH}-a\nSig: x"))]
#[case::escape(format!("/nix/store/{HASH}-\u{1b}[2J"))]
#[case::no_name(format!("/nix/store/{HASH}-"))]
#[case::too_long(format!("/nix/store/{HASH}-{}", "a".repeat(212)))]
#[case::much_too_long(format!("/nix/store/{HASH}-{}", "a".repeat(1_000_000)))]
#[case::letters_that_base_32_lacks(format!("/nix/store/{}-a", HASH.replace('0', "e")))]
#[case::short_hash("/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5p-a".to_owned())]
#[case::another_store(format!("/gnu/store/{HASH}-a"))]
#[case::outside(format!("/nix/store/../../etc/{HASH}-a"))]
#[case::relative(format!("{HASH}-a"))]
#[case::empty(String::new())]
#[tokio::test]
async fn store_path_invalid(#[case] path: String, #[values("path", "reference", "deriver")] place: &str) {
    let change = |body: &mut Value| match place {
        "path" => body["paths"][0]["path"] = json!(path),
        "reference" => body["paths"][0]["references"] = json!([path]),
        _ => body["paths"][0]["deriver"] = json!(path),
    };
    refused(change, 400, "store-path-invalid").await;
}

#[rstest]
#[case::derivations(|body: &mut Value| body["derivations"] = json!(["/nix/store/x"]))]
#[case::realisations(|body: &mut Value| body["realisations"] = json!([{"id": "x", "outPath": "x"}]))]
#[tokio::test]
async fn store_path_invalid_elsewhere(#[case] change: fn(&mut Value)) {
    refused(change, 400, "store-path-invalid").await;
}

#[rstest]
#[case::unknown_field(|b: &mut Value| b["admit"] = json!(true))]
#[case::unknown_field_of_a_path(|b: &mut Value| b["paths"][0]["url"] = json!("https://evil"))]
#[case::size_of_zero(|b: &mut Value| b["paths"][0]["narSize"] = json!(0))]
#[case::negative_size(|b: &mut Value| b["paths"][0]["narSize"] = json!(-1))]
#[case::huge_size(|b: &mut Value| b["paths"][0]["narSize"] = json!(1e300))]
#[case::no_hash(|b: &mut Value| b["paths"][0]["narHash"] = json!("sha256:"))]
#[case::md5(|b: &mut Value| b["paths"][0]["narHash"] = json!("md5:1B2M2Y8AsgTpgAmY7PhCfg=="))]
#[case::unsorted_references(|b: &mut Value| {
    let mut two = [source().path.absolute(), source().path.absolute()];
    two.sort();
    two.reverse();
    b["paths"][0]["references"] = json!(two);
})]
#[case::a_reference_twice(|b: &mut Value| {
    let one = source().path.absolute();
    b["paths"][0]["references"] = json!([one, one]);
})]
#[case::deriver_that_is_none(|b: &mut Value| b["paths"][0]["deriver"] = json!(source().path.absolute()))]
#[case::derivation_that_is_none(|b: &mut Value| b["derivations"] = json!([source().path.absolute()]))]
#[tokio::test]
async fn announcement_malformed(#[case] change: fn(&mut Value)) {
    refused(change, 400, "announcement-malformed").await;
}

#[rstest]
#[case::no_json(b"{".to_vec())]
#[case::no_object(b"[]".to_vec())]
#[case::empty(vec![])]
#[case::deep("[".repeat(1_000_000).into_bytes())]
#[case::deep_objects("{\"a\":".repeat(1_000_000).into_bytes())]
#[case::not_utf_8(vec![0xff; 100])]
#[tokio::test]
async fn announcement_malformed_as_a_whole(#[case] body: Vec<u8>) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let good = forge.draft(&alice).item(&source());
    let sealed =
        pushgate_formats::dsse::Envelope::seal(pushgate_formats::dsse::ANNOUNCEMENT, &body, &alice.key);
    refused_as(&forge, &good, body, 400, "announcement-malformed").await;
    // the same inside a good envelope
    let good = forge.draft(&alice).item(&source());
    refused_as(&forge, &good, serde_json::to_vec(&sealed).unwrap(), 400, "announcement-malformed").await;
}

fn repeated(value: &Value, times: usize) -> Value {
    Value::from(vec![value.clone(); times])
}

#[rstest]
#[case::paths(|b: &mut Value| b["paths"] = repeated(&b["paths"][0], MAX_PATHS + 1))]
#[case::references(|b: &mut Value| {
    b["paths"][0]["references"] = repeated(&b["paths"][0]["path"], MAX_REFERENCES + 1);
})]
#[case::derivations(|b: &mut Value| {
    b["derivations"] = repeated(&json!(format!("/nix/store/{HASH}-a.drv")), MAX_DERIVATIONS + 1);
})]
#[case::realisations(|b: &mut Value| {
    let one = json!({"id": "sha256:00!out", "outPath": b["paths"][0]["path"]});
    b["realisations"] = repeated(&one, MAX_PATHS + 1);
})]
#[tokio::test]
async fn announcement_too_large(#[case] change: fn(&mut Value)) {
    refused(change, 413, "announcement-too-large").await;
}

#[tokio::test]
async fn announcement_too_large_in_bytes() {
    let forge = Forge::start().await;
    let good = forge.draft(&forge.submitter("alice").await).item(&source());
    let mut bad = good.sealed();
    bad.resize(MAX_ANNOUNCEMENT + 1, b' ');
    refused_as(&forge, &good, bad, 413, "announcement-too-large").await;
}

#[tokio::test]
async fn announcement_duplicate_path() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let item = source();
    let other = item.with_nar(source().nar);
    let good = forge.draft(&alice).item(&item);
    for second in [&item, &other] {
        let bad = forge.draft(&alice).item(&item).item(second);
        let before = forge.snapshot().await;
        let refused = forge.announce(&bad).await.unwrap_err();
        assert_eq!((refused.status, refused.code.as_str()), (400, "announcement-duplicate-path"));
        forge.assert_unchanged(&before).await;
    }
    published(&forge, &good).await;
}

/// Narinfos are found by the hash part alone: two names behind one hash would share one.
#[tokio::test]
async fn announcement_duplicate_path_by_its_hash_part() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let package = Package::new("tool").build();
    let name = format!("{}-other", package.path().hash_part());
    let other = Item { path: StorePath::from_base_name(&name).unwrap(), ..package.out().clone() };
    let good = forge.draft(&alice).package(&package);
    let bad = forge.draft(&alice).package(&package).item(&other);
    refused_as(&forge, &good, bad.sealed(), 400, "announcement-duplicate-path").await;
    // and in a push of its own, once the hash part is taken
    let before = forge.snapshot().await;
    let narinfo = forge.narinfo(package.path()).await;
    let pushed = forge.push(&forge.draft(&alice).item(&other).derivations(&package)).await;
    pushed.assert_held(&other.path, "conflicts-with-published");
    assert_eq!(forge.narinfo(&other.path).await, narinfo);
    forge.assert_unchanged(&before).await;
}
