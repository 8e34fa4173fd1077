//! References that are declared and not there, or there and not declared.

use pushgate_formats::{HashAlgo, derivation::Derivation};
use pushgate_formats::{StorePath, api::PathState, derivation::Method};
use pushgate_tests::forge::{Forge, Item, Package, Submitter, file_nar};
use rstest::rstest;

use super::{published, rejected, source};

/// `app` is built with `dep`, which refers to `deep`.
struct World {
    forge: Forge,
    alice: Submitter,
    deep: Package,
    dep: Package,
    app: Package,
    stranger: Item,
}

impl World {
    /// `with_inputs`: the inputs of `app` are published, so that their closure is known.
    async fn new(with_inputs: bool) -> Self {
        let forge = Forge::start().await;
        let alice = forge.submitter("alice").await;
        let deep = Package::new("deep").build();
        let dep = Package::new("dep").input(&deep).mention(deep.path()).build();
        let app = Package::new("app").input(&dep).outputs(&["dev", "out"]).build();
        let stranger = source();
        let mut first = forge.draft(&alice).item(&stranger);
        if with_inputs {
            first = first.package(&deep).package(&dep);
        }
        published(&forge, &first).await;
        Self { forge, alice, deep, dep, app, stranger }
    }

    fn path(&self, which: Which) -> &StorePath {
        match which {
            Which::Own => self.app.path(),
            Which::OtherOutput => &self.app.outputs["dev"].path,
            Which::Input => self.dep.path(),
            Which::DeepInput => self.deep.path(),
            Which::Stranger => &self.stranger.path,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Own,
    OtherOutput,
    Input,
    DeepInput,
    Stranger,
}

/// All that `out` needs beside itself is in the same push: else it would wait for it.
async fn push_out(world: &World, item: &Item, code: &str) {
    let forge = &world.forge;
    published(forge, &forge.draft(&world.alice).item(&world.app.outputs["dev"]).derivations(&world.app))
        .await;
    let draft = forge.draft(&world.alice).item(item).derivations(&world.app);
    rejected(forge, &draft, item, code).await;
}

#[rstest]
#[case::own_path(Which::Own)]
#[case::own_output(Which::OtherOutput)]
#[case::direct_input(Which::Input)]
#[case::deep_input(Which::DeepInput)]
#[tokio::test]
async fn reference_undeclared(#[case] which: Which) {
    let world = World::new(true).await;
    let good = world.app.out_mentioning("app", &[world.path(which)]);
    let mut bad = good.clone();
    bad.references.clear();
    push_out(&world, &bad, "reference-undeclared").await;
    published(&world.forge, &world.forge.draft(&world.alice).item(&good).derivations(&world.app)).await;
}

/// A bare hash anywhere counts, as for Nix: in the middle of other text too.
#[tokio::test]
async fn reference_undeclared_as_a_bare_hash() {
    let world = World::new(true).await;
    let hidden = format!("xx{}yy", world.dep.path().hash_part());
    let bad = world.app.out_mentioning(&hidden, &[]);
    push_out(&world, &bad, "reference-undeclared").await;
    let other = hidden.replace(&world.dep.path().hash_part()[..4], "0000");
    let good = world.app.out_mentioning(&other, &[]);
    published(&world.forge, &world.forge.draft(&world.alice).item(&good).derivations(&world.app)).await;
}

#[rstest]
#[case::own_path(Which::Own)]
#[case::own_output(Which::OtherOutput)]
#[case::direct_input(Which::Input)]
#[case::deep_input(Which::DeepInput)]
#[case::outside(Which::Stranger)]
#[tokio::test]
async fn reference_absent(#[case] which: Which) {
    let world = World::new(true).await;
    let good = world.app.out_mentioning("app", &[]);
    let mut bad = good.clone();
    bad.references.insert(world.path(which).clone());
    push_out(&world, &bad, "reference-absent").await;
    published(&world.forge, &world.forge.draft(&world.alice).item(&good).derivations(&world.app)).await;
}

#[tokio::test]
async fn reference_outside_inputs() {
    let world = World::new(true).await;
    let bad = world.app.out_mentioning("app", &[world.path(Which::Stranger)]);
    push_out(&world, &bad, "reference-outside-inputs").await;
}

/// The hash of an input, declared under a name that isn't the input's: the input itself isn't declared then.
#[tokio::test]
async fn reference_undeclared_under_another_name() {
    let world = World::new(true).await;
    let input = world.dep.path();
    let other = StorePath::from_base_name(&format!("{}-other", input.hash_part())).unwrap();
    let bad = world.app.out_mentioning("app", &[&other]);
    push_out(&world, &bad, "reference-undeclared").await;
}

/// As long as the inputs' closure isn't known, what may yet be right waits, and is settled when it is known.
#[rstest]
#[case::declared_and_outside(Which::Stranger, true, Err("reference-outside-inputs"))]
#[case::undeclared_and_inside(Which::DeepInput, false, Err("reference-undeclared"))]
#[case::declared_and_inside(Which::DeepInput, true, Ok(()))]
#[tokio::test]
async fn references_unknown(#[case] which: Which, #[case] declared: bool, #[case] end: Result<(), &str>) {
    let world = World::new(false).await;
    let forge = &world.forge;
    let mut item = world.app.out_mentioning("app", &[world.path(which)]);
    if !declared {
        item.references.clear();
    }
    let before = forge.snapshot().await;
    let mut pushed = forge.push(&forge.draft(&world.alice).item(&item).derivations(&world.app)).await;
    match end {
        Err(_) => {
            pushed.assert_held(&item.path, "references-unknown");
            assert_eq!(pushed.of(&item.path).waits_for, [world.dep.path().absolute()]);
        }
        // an output of the derivation closure: possible, so that only its own publication is waited for
        Ok(()) => pushed.assert_held(&item.path, "closure-open"),
    }
    forge.assert_nothing_public(&before).await;
    let inputs = forge.draft(&forge.submitter("bob").await).package(&world.deep).package(&world.dep);
    published(forge, &inputs).await;
    let mut public = vec![world.deep.path(), world.dep.path()];
    match end {
        Err(code) => forge.becomes(&mut pushed, &item.path, PathState::Rejected, Some(code)).await,
        Ok(()) => {
            forge.becomes(&mut pushed, &item.path, PathState::Published, None).await;
            public.push(&item.path);
        }
    }
    forge.assert_published_only(&before, &public).await;
    assert!(forge.snapshot().await.packs.is_empty());
}

/// What one submitter says of an input decides nothing about another's path, also not when both are judged at once, as
/// they are after a restart.
#[tokio::test]
async fn an_unpublished_claim_of_another_explains_no_reference() {
    let mut world = World::new(false).await;
    let forge = &world.forge;
    let (mallory, carol) = (forge.submitter("mallory").await, forge.submitter("carol").await);
    // `dep` twice: as it is, and without its reference. The second is exact in itself and held as a conflict
    let right = forge.push(&forge.draft(&carol).package(&world.dep)).await;
    right.assert_held(world.dep.path(), "closure-open");
    let lie = world.dep.out_mentioning("lie", &[]);
    let lying = forge.push(&forge.draft(&mallory).item(&lie).derivations(&world.dep)).await;
    lying.assert_held(&lie.path, "conflicts-with-claim");
    // the order of judgement is that of random ids: several, so that some come after the lie
    let mut apps = vec![];
    for n in 0..6 {
        let app = Package::new(&format!("app-{n}")).input(&world.dep).mention(world.deep.path()).build();
        let pushed = forge.push(&forge.draft(&world.alice).package(&app)).await;
        pushed.assert_held(app.path(), "closure-open");
        apps.push((app, pushed));
    }
    let before = forge.snapshot().await;
    // so that the right claim explains nothing either; its end also shows that all were judged
    forge.revoke(&carol.key).await;
    world.forge = world.forge.restart().await;
    let mut right = right;
    world.forge.becomes(&mut right, world.dep.path(), PathState::Rejected, Some("key-revoked")).await;
    for (app, pushed) in &mut apps {
        world.forge.becomes(pushed, app.path(), PathState::Held, Some("closure-open")).await;
    }
    world.forge.assert_nothing_public(&before).await;
}

/// A .drv refers to exactly what it lists.
#[tokio::test]
async fn references_of_a_derivation() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let (input, other) = (source(), source());
    published(&forge, &forge.draft(&alice).item(&input).item(&other)).await;
    let package = Package::new("tool").source(&input).build();
    let name = package.drv.name();
    let lacking = Item::text(name, &package.text, &[]);
    rejected(&forge, &forge.draft(&alice).item(&lacking), &lacking, "reference-undeclared").await;
    let extra = Item::text(name, &package.text, &[&input.path, &other.path]);
    rejected(&forge, &forge.draft(&alice).item(&extra), &extra, "reference-absent").await;
    let good = Item::derivation(&package.drv, &package.text);
    assert_eq!(good.path, package.drv);
    published(&forge, &forge.draft(&alice).item(&good)).await;
}

/// The same bytes come first for a path of another name, where they are not looked at as a derivation.
#[tokio::test]
async fn references_of_a_derivation_that_came_under_another_name() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let input = source();
    let package = Package::new("tool").source(&input).build();
    let decoy = Item::text("decoy", &package.text, &[&input.path]);
    forge.push(&forge.draft(&alice).item(&decoy)).await.assert_held(&decoy.path, "closure-open");
    let before = forge.snapshot().await;
    let bad = Item::text(package.drv.name(), &package.text, &[]);
    let pushed = forge.push(&forge.draft(&alice).item(&bad)).await;
    assert!(pushed.uploaded.is_none(), "the bytes are here already");
    pushed.assert_rejected(&bad.path, "reference-undeclared");
    forge.assert_unchanged(&before).await;
}

/// What is named like a derivation has to be one.
#[tokio::test]
async fn a_derivation_that_is_none() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let package = Package::new("tool").build();
    let mut text = package.text.clone();
    text.push(b'\n');
    assert!(Derivation::parse(&text).is_err());
    let name = package.drv.name();
    let recursive = (Method::Recursive, HashAlgo::Sha256);
    for bad in [
        Item::text(name, &text, &[]),
        Item::text(name, b"", &[]),
        Item::addressed(name, file_nar(&package.text, false), recursive.0, recursive.1),
        Item::addressed(name, package.out().nar.clone(), recursive.0, recursive.1),
    ] {
        rejected(&forge, &forge.draft(&alice).item(&bad), &bad, "derivation-malformed").await;
    }
    published(&forge, &forge.draft(&alice).item(&Item::derivation(&package.drv, &package.text))).await;
}
