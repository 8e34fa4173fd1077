//! Derivations that don't yield what is claimed, or aren't what they seem.

use pushgate_formats::{
    HashAlgo, StorePath,
    api::PathState,
    derivation::{Derivation, Method, Output, OutputName, text_path},
};
use pushgate_tests::forge::{Forge, Item, Package, Pushed, file_nar};
use rstest::rstest;

use super::{published, rejected, source};

/// Pushes the package's output, said to be made by a derivation of another text; `drv` is the path it is sent under.
async fn push_with(forge: &Forge, package: &Package, drv: &StorePath, text: &[u8], code: &str) -> Pushed {
    let alice = forge.submitter("alice").await;
    let item = Item { deriver: Some(drv.clone()), ..package.out().clone() };
    let mut draft = forge.draft(&alice).item(&item).with(|body| body.derivations.push(drv.clone()));
    draft.texts.insert(drv.clone(), text.to_vec());
    let pushed = rejected(forge, &draft, &item, code).await;
    let refused = &pushed.derivations.as_ref().unwrap().refused;
    assert_eq!((refused.len(), refused[0].code.as_str()), (1, code), "{refused:?}");
    assert_eq!(refused[0].path, Some(drv.absolute()));
    assert!(forge.app.db.derivations(std::slice::from_ref(drv)).await.unwrap().is_empty());
    published(forge, &forge.draft(&alice).package(package)).await;
    pushed
}

/// The path that a text would have, references as in the package.
fn own_path(package: &Package, text: &[u8]) -> StorePath {
    text_path(package.drv.name(), text, &package.derivation.references()).unwrap()
}

#[rstest]
#[case::of_another_derivation(|a: &Package, b: &Package| (a.path().clone(), b.drv.clone()))]
#[case::of_another_name(|a: &Package, _: &Package| {
    (StorePath::from_base_name(&format!("{}-evil", a.path().hash_part())).unwrap(), a.drv.clone())
})]
#[case::of_no_derivation(|a: &Package, _: &Package| (source().path, a.drv.clone()))]
#[case::the_derivation_itself(|a: &Package, b: &Package| (b.drv.clone(), a.drv.clone()))]
#[tokio::test]
async fn derivation_mismatch(#[case] claim: fn(&Package, &Package) -> (StorePath, StorePath)) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let (a, b) = (Package::new("a").build(), Package::new("b").build());
    let (path, deriver) = claim(&a, &b);
    let bad = Item { path, deriver: Some(deriver), ..a.out().clone() };
    let draft = forge.draft(&alice).item(&bad).derivations(&a).derivations(&b);
    rejected(&forge, &draft, &bad, "derivation-mismatch").await;
    published(&forge, &forge.draft(&alice).package(&a).package(&b)).await;
}

/// The derivation is bent so that it says what it doesn't yield; its own path follows from its text.
#[rstest]
#[case::another_path(|d: &mut Derivation| {
    let path = source().path;
    d.env.insert(b"out".to_vec(), path.absolute().into_bytes());
    d.outputs.insert(OutputName::parse("out").unwrap(), Output::InputAddressed(path));
})]
#[case::the_paths_of_two_outputs_swapped(|d: &mut Derivation| {
    let [dev, out] = ["dev", "out"].map(|n| (OutputName::parse(n).unwrap(), n.as_bytes().to_vec()));
    let (dev_path, out_path) = (d.outputs[&dev.0].clone(), d.outputs[&out.0].clone());
    d.outputs.extend([(dev.0, out_path), (out.0, dev_path)]);
    let (dev_text, out_text) = (d.env[&dev.1].clone(), d.env[&out.1].clone());
    d.env.extend([(dev.1, out_text), (out.1, dev_text)]);
})]
// the masked hash doesn't cover the variable: the builder would write elsewhere
#[case::environment(|d: &mut Derivation| {
    d.env.insert(b"out".to_vec(), source().path.absolute().into_bytes());
})]
#[case::another_builder(|d: &mut Derivation| d.builder = b"/bin/evil".to_vec())]
#[case::another_source(|d: &mut Derivation| { d.input_srcs.clear(); })]
#[tokio::test]
async fn derivation_mismatch_in_itself(#[case] bend: fn(&mut Derivation)) {
    let forge = Forge::start().await;
    let package = Package::new("tool").source(&source()).outputs(&["dev", "out"]).build();
    let mut bent = package.derivation.clone();
    bend(&mut bent);
    let text = bent.print();
    let drv = text_path(package.drv.name(), &text, &bent.references()).unwrap();
    assert_ne!(drv, package.drv);
    push_with(&forge, &package, &drv, &text, "derivation-mismatch").await;
}

/// Makes a text, and the path that it is sent under if that isn't the package's.
type Lie = fn(&Package, &Package) -> (Option<StorePath>, Vec<u8>);

#[rstest]
#[case::text_of_another(|_: &Package, other: &Package| (None, other.text.clone()))]
#[case::another_name(|package: &Package, _: &Package| {
    let name = format!("{}-other.drv", package.drv.hash_part());
    (Some(StorePath::from_base_name(&name).unwrap()), package.text.clone())
})]
#[case::one_byte(|package: &Package, _: &Package| {
    let mut text = package.text.clone();
    let at = text.windows(4).position(|w| w == b"echo").unwrap();
    text[at] = b'f';
    (None, text)
})]
#[tokio::test]
async fn derivation_path_mismatch(#[case] lie: Lie) {
    let forge = Forge::start().await;
    let package = Package::new("tool").build();
    let (drv, text) = lie(&package, &Package::new("other").build());
    let drv = drv.unwrap_or_else(|| package.drv.clone());
    push_with(&forge, &package, &drv, &text, "derivation-path-mismatch").await;
}

/// The text means the same, but Nix wouldn't print it so. Its path follows from it.
#[rstest]
#[case::space(|t: &str| t.replacen("Derive([", "Derive( [", 1), "derivation-malformed")]
#[case::line_end(|t: &str| format!("{t}\n"), "derivation-malformed")]
#[case::unsorted(
    |t: &str| t.replacen(r#"("a","1"),("b","2")"#, r#"("b","2"),("a","1")"#, 1), "derivation-not-canonical"
)]
#[case::duplicate_key(
    |t: &str| t.replacen(r#"("a","1")"#, r#"("a","0"),("a","1")"#, 1), "derivation-not-canonical"
)]
#[case::duplicate_output(
    |t: &str| t.replacen(r#"Derive([("#, r#"Derive([("out","","",""),("#, 1), "derivation-not-canonical"
)]
#[case::unknown_escape(|t: &str| t.replacen(r#"("a","1")"#, r#"("a","\1")"#, 1), "derivation-malformed")]
#[case::cut_short(|t: &str| t[..t.len() - 1].to_owned(), "derivation-malformed")]
#[case::output_name_that_holds_text(
    |t: &str| t.replacen(r#"Derive([("out""#, r#"Derive([("out\",\"","","")"#, 1), "derivation-malformed"
)]
#[tokio::test]
async fn derivation_not_canonical(#[case] bend: fn(&str) -> String, #[case] code: &str) {
    let forge = Forge::start().await;
    let package = Package::new("tool").env("a", "1").env("b", "2").build();
    let plain = String::from_utf8(package.text.clone()).unwrap();
    let text = bend(&plain);
    assert_ne!(text, plain);
    let drv = own_path(&package, text.as_bytes());
    push_with(&forge, &package, &drv, text.as_bytes(), code).await;
}

/// What the derivation forbids is refused, though the bytes and the declaration agree.
#[rstest]
#[case::allowed_references("allowedReferences", |_: &StorePath, _: &StorePath| String::new())]
#[case::disallowed_references("disallowedReferences", |dep: &StorePath, _: &StorePath| dep.absolute())]
#[case::allowed_requisites("allowedRequisites", |dep: &StorePath, _: &StorePath| dep.absolute())]
#[case::disallowed_requisites("disallowedRequisites", |_: &StorePath, deep: &StorePath| deep.absolute())]
#[tokio::test]
async fn reference_disallowed(#[case] rule: &str, #[case] value: fn(&StorePath, &StorePath) -> String) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let deep = Package::new("deep").build();
    let dep = Package::new("dep").input(&deep).mention(deep.path()).build();
    published(&forge, &forge.draft(&alice).package(&deep).package(&dep)).await;
    let app = Package::new("app").input(&dep).input(&deep).mention(dep.path());
    let strict = app.clone().env(rule, &value(dep.path(), deep.path())).build();
    let draft = forge.draft(&alice).package(&strict);
    let pushed = rejected(&forge, &draft, strict.out(), "reference-disallowed").await;
    assert!(pushed.of(strict.path()).message.as_ref().unwrap().contains(rule));
    // the same without the rule, and the rule where it is kept
    published(&forge, &forge.draft(&alice).package(&app.build())).await;
    let keeps = strict.out_mentioning("nothing", &[]);
    published(&forge, &forge.draft(&alice).item(&keeps).derivations(&strict)).await;
}

/// The proof needs every input's text: what is missing is named, and sending it lets the claim go on.
#[tokio::test]
async fn needs_derivation() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let input = Package::new("input").build();
    let app = Package::new("app").input(&input).build();
    let mut draft = forge.draft(&alice).package(&app);
    let text = draft.texts.remove(&input.drv).unwrap();
    let before = forge.snapshot().await;
    let mut pushed = forge.push(&draft).await;
    pushed.assert_held(app.path(), "needs-derivation");
    assert!(pushed.of(app.path()).waits_for.contains(&input.drv.absolute()), "{:?}", pushed.of(app.path()));
    assert_eq!(pushed.derivations.as_ref().unwrap().missing, std::slice::from_ref(&input.drv));
    forge.assert_nothing_public(&before).await;
    let announced = &pushed.announced;
    let sent = [(&input.drv, &text)];
    let taken = forge.send_derivations(&announced.status.push, &announced.token, sent).await.unwrap();
    assert_eq!((taken.taken, taken.refused.len()), (1, 0));
    forge.becomes(&mut pushed, app.path(), PathState::Published, None).await;
    forge.assert_published_only(&before, &[app.path()]).await;
}

/// The same where the input isn't even announced: it is named all the same, whatever others have sent.
#[rstest]
#[case::sent_by_nobody(false)]
#[case::sent_by_another(true)]
#[tokio::test]
async fn needs_derivation_that_was_not_announced(#[case] by_another: bool) {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let input = Package::new("input").build();
    let app = Package::new("app").input(&input).build();
    if by_another {
        published(&forge, &forge.draft(&bob).package(&input)).await;
    }
    let mut draft = forge.draft(&alice).package(&app);
    draft.body.derivations.retain(|d| *d == app.drv);
    let before = forge.snapshot().await;
    let pushed = forge.push(&draft).await;
    pushed.assert_held(app.path(), "needs-derivation");
    assert!(pushed.of(app.path()).waits_for.contains(&input.drv.absolute()), "{:?}", pushed.of(app.path()));
    forge.assert_nothing_public(&before).await;
    published(&forge, &forge.draft(&alice).package(&app)).await;
}

/// A derivation that another has sent proves nothing for one who hasn't.
#[tokio::test]
async fn needs_derivation_that_another_has_sent() {
    let forge = Forge::start().await;
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    let package = Package::new("tool").outputs(&["dev", "out"]).build();
    let alices = forge.draft(&alice).item(&package.outputs["dev"]).derivations(&package);
    published(&forge, &alices).await;
    let before = forge.snapshot().await;
    for announced in [true, false] {
        let mut draft = forge.draft(&mallory).item(package.out()).derivations(&package).without_texts();
        if !announced {
            draft.body.derivations.clear();
        }
        let pushed = forge.push(&draft).await;
        pushed.assert_held(package.path(), "needs-derivation");
        let wanted = &pushed.announced.status.wanted_derivations;
        assert_eq!(wanted.contains(&package.drv), announced);
    }
    forge.assert_nothing_public(&before).await;
    published(&forge, &forge.draft(&mallory).item(package.out()).derivations(&package)).await;
}

/// No deriver and no content address: nothing shows what made it.
#[tokio::test]
async fn needs_derivation_where_none_is_named() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let package = Package::new("tool").build();
    let bare = Item { deriver: None, ..package.out().clone() };
    let before = forge.snapshot().await;
    let pushed = forge.push(&forge.draft(&alice).item(&bare).derivations(&package)).await;
    pushed.assert_held(&bare.path, "needs-derivation");
    assert_eq!(pushed.of(&bare.path).waits_for, ["derivation"]);
    forge.assert_nothing_public(&before).await;
    published(&forge, &forge.draft(&alice).package(&package)).await;
}

/// A .drv that comes as a path of the push is a derivation that was sent.
#[tokio::test]
async fn a_derivation_pushed_as_a_path_counts_as_sent() {
    let forge = Forge::start().await;
    let package = Package::new("tool").build();
    let drv = Item::derivation(&package.drv, &package.text);
    let alice = forge.submitter("alice").await;
    published(&forge, &forge.draft(&alice).item(&drv).package(&package).without_texts()).await;
}

/// Texts that weren't announced are not taken: they would be room for anything.
#[tokio::test]
async fn derivation_not_announced() {
    let forge = Forge::start().await;
    let item = source();
    let other = Package::new("other").build();
    let draft = forge.draft(&forge.submitter("alice").await).item(&item);
    let push = forge.announce(&draft).await.unwrap();
    let sent = forge.send_derivations(&push.status.push, &push.token, [(&other.drv, &other.text)]).await;
    assert_eq!(sent.unwrap_err().code, "derivation-not-announced");
    assert!(forge.app.db.derivations(std::slice::from_ref(&other.drv)).await.unwrap().is_empty());
    forge.complete(&draft, push).await.assert_published(&item.path);
}

/// A fixed output's contents follow from its derivation.
#[rstest]
#[case::flat(Method::Flat, HashAlgo::Sha256)]
#[case::flat_sha512(Method::Flat, HashAlgo::Sha512)]
#[case::recursive(Method::Recursive, HashAlgo::Sha256)]
#[case::recursive_sha512(Method::Recursive, HashAlgo::Sha512)]
#[tokio::test]
async fn content_address_mismatch_of_a_fixed_output(#[case] method: Method, #[case] algo: HashAlgo) {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let package = Package::new("fetched").fixed(method, algo, file_nar(b"good", false)).build();
    let bad = package.out().with_nar(file_nar(b"evil", false));
    let draft = forge.draft(&alice).item(&bad).derivations(&package);
    rejected(&forge, &draft, &bad, "content-address-mismatch").await;
    // nor does it refer to anything
    let mut refers = package.out().clone();
    refers.references.insert(source().path);
    let draft = forge.draft(&alice).item(&refers).derivations(&package);
    rejected(&forge, &draft, &refers, "content-address-mismatch").await;
    published(&forge, &forge.draft(&alice).package(&package)).await;
}
