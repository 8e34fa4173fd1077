//! Paths that are said to be a hash of their contents.

use pushgate_formats::{HashAlgo, StorePath, api::PathState, derivation::Method};
use pushgate_tests::forge::{Forge, Item, Package, file_nar};
use rstest::rstest;

use super::{published, rejected, source};

fn flat() -> Item {
    Item::addressed("flat", file_nar(b"good", false), Method::Flat, HashAlgo::Sha256)
}

fn evil(item: Item) -> Item {
    item.with_nar(file_nar(b"evil", false))
}

#[rstest]
#[case::flat(flat, evil)]
#[case::flat_sha512(|| Item::addressed("flat", file_nar(b"good", false), Method::Flat, HashAlgo::Sha512), evil)]
#[case::recursive(source, evil)]
#[case::recursive_sha512(
    || Item::addressed("tree", file_nar(b"good", false), Method::Recursive, HashAlgo::Sha512), evil
)]
#[case::text(|| Item::text("text", b"good", &[]), evil)]
#[case::self_referring(|| Item::self_referring("own", "good"), |item: Item| {
    let text = format!("evil {}", item.path);
    item.with_nar(file_nar(text.as_bytes(), false))
})]
// the hash without positions would be the same with the reference somewhere else
#[case::self_referring_elsewhere(|| Item::self_referring("own", &"\0".repeat(32)), |item: Item| {
    let text = format!("{} /nix/store/{}-own", item.path.hash_part(), "\0".repeat(32));
    item.with_nar(file_nar(text.as_bytes(), false))
})]
#[case::executable(flat, |item: Item| item.with_nar(file_nar(b"good", true)))]
#[case::of_another_method(flat, |item: Item| {
    let other = Item::addressed("flat", item.nar.clone(), Method::Recursive, HashAlgo::Sha256);
    Item { ca: other.ca, ..item }
})]
#[case::of_another_algorithm(flat, |item: Item| {
    let other = Item::addressed("flat", item.nar.clone(), Method::Flat, HashAlgo::Sha512);
    Item { ca: other.ca, ..item }
})]
#[case::text_said_to_be_flat(|| Item::text("text", b"good", &[]), |item: Item| Item { ca: flat().ca, ..item })]
#[case::another_name(source, |item: Item| {
    let name = format!("{}-glibc", item.path.hash_part());
    Item { path: StorePath::from_base_name(&name).unwrap(), ..item }
})]
#[case::a_reference_more(source, |mut item: Item| { item.references.insert(source().path); item })]
#[case::a_self_reference_more(source, |mut item: Item| { item.references.insert(item.path.clone()); item })]
#[case::a_flat_one_with_references(flat, |mut item: Item| { item.references.insert(source().path); item })]
#[case::of_a_built_path(source, |item: Item| Item { path: Package::new("built").build().path().clone(), ..item })]
#[tokio::test]
async fn content_address_mismatch(#[case] make: fn() -> Item, #[case] bend: fn(Item) -> Item) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let good = make();
    let bad = bend(good.clone());
    rejected(&forge, &forge.draft(&alice).item(&bad), &bad, "content-address-mismatch").await;
    published(&forge, &forge.draft(&alice).item(&good)).await;
}

/// A CA field that says nothing isn't taken for one that isn't there.
#[rstest]
#[case("")]
#[case("fixed:sha256:")]
#[case("text:sha1:ssss")]
#[case("fixed:text:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73")]
#[tokio::test]
async fn content_address_malformed(#[case] ca: &str) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let bad = Item { ca: Some(ca.to_owned()), ..source() };
    let before = forge.snapshot().await;
    let refused = forge.announce(&forge.draft(&alice).item(&bad)).await.unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (400, "announcement-malformed"));
    forge.assert_unchanged(&before).await;
}

/// Contents with the same md5 or sha1 can be made at will.
#[rstest]
#[case::md5(HashAlgo::Md5)]
#[case::sha1(HashAlgo::Sha1)]
#[tokio::test]
async fn content_address_weak(
    #[case] algo: HashAlgo,
    #[values(Method::Flat, Method::Recursive)] method: Method,
) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let nar = file_nar(b"contents", false);
    let weak = Item::addressed("weak", nar.clone(), method, algo);
    let before = forge.snapshot().await;
    let pushed = forge.push(&forge.draft(&alice).item(&weak)).await;
    pushed.assert_held(&weak.path, "content-address-weak");
    // nor by way of a fixed-output derivation
    let package = Package::new("weak").fixed(method, algo, nar.clone()).build();
    let pushed = forge.push(&forge.draft(&alice).package(&package)).await;
    pushed.assert_held(package.path(), "content-address-weak");
    forge.assert_nothing_public(&before).await;
    published(&forge, &forge.draft(&alice).item(&Item::addressed("x", nar, method, HashAlgo::Sha256))).await;
}

/// The backdoored contents hash to their own path, which may stand; that they are what the derivation makes is the lie,
/// and that is never published on anybody's word.
#[tokio::test]
async fn a_realisation_is_held() {
    let forge = Forge::start().await;
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    let package = Package::new("floating").floating().build();
    let id = package.realisation_id();
    let backdoored = Item {
        deriver: Some(package.drv.clone()),
        ..Item::recursive("floating", file_nar(b"backdoor", false), &[])
    };
    let before = forge.snapshot().await;
    for (who, item) in [(&mallory, &backdoored), (&alice, package.out())] {
        let draft = forge.draft(who).item(item).derivations(&package).realisation(&id, &item.path);
        let pushed = published(&forge, &draft).await;
        let rows = forge.app.db.realisations(&pushed.announced.status.push).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].id.as_str(), &rows[0].path), (id.as_str(), &item.path));
        assert_eq!((rows[0].state, rows[0].code.as_str()), (PathState::Held, "realisation-unproven"));
    }
    forge.assert_published_only(&before, &[&backdoored.path, package.path()]).await;
    let out = id.replace("!out", "");
    for name in [
        format!("realisations/{id}.doi"),
        format!("realisations/{}.doi", id.replace('!', "%21")),
        format!("build-trace-v2/{}/out.doi", package.drv.base_name()),
        format!("build-trace-v2/{out}/out.doi"),
        format!("log/{}", package.drv.base_name()),
    ] {
        assert_eq!(forge.public(&name).await, None, "{name}");
    }
}

/// Without the CA field a floating output has nothing that binds it.
#[tokio::test]
async fn a_floating_output_without_its_address_is_held() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let package = Package::new("floating").floating().build();
    let bad = Item { ca: None, ..package.out().clone() };
    let before = forge.snapshot().await;
    let pushed = forge.push(&forge.draft(&alice).item(&bad).derivations(&package)).await;
    pushed.assert_held(&bad.path, "needs-derivation");
    forge.assert_nothing_public(&before).await;
    published(&forge, &forge.draft(&alice).package(&package)).await;
}

/// A floating output's undeclared references are found as any other's.
#[tokio::test]
async fn a_floating_output_with_an_undeclared_reference() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let dep = Package::new("dep").build();
    published(&forge, &forge.draft(&alice).package(&dep)).await;
    let package = Package::new("floating").floating().input(&dep).build();
    let nar = file_nar(dep.path().absolute().as_bytes(), false);
    let deriver = Some(package.drv.clone());
    let bad = Item { deriver: deriver.clone(), ..Item::recursive("floating", nar.clone(), &[]) };
    let draft = forge.draft(&alice).item(&bad).derivations(&package);
    rejected(&forge, &draft, &bad, "reference-undeclared").await;
    let good = Item { deriver, ..Item::recursive("floating", nar, &[dep.path()]) };
    published(&forge, &forge.draft(&alice).item(&good).derivations(&package)).await;
}
