//! Several submitters and one path; what waits for what; what one learns of another.

use pushgate_formats::api::PathState;
use pushgate_tests::forge::{Forge, Item, Package, QUARANTINE_TTL};
use rstest::rstest;

use super::{published, source};

/// A package that refers to a source which isn't published, so that it waits; and the same path with other contents.
fn rivals() -> (Item, Package, Item) {
    let missing = source();
    let package = Package::new("tool").source(&missing).mention(&missing.path).build();
    let other = package.out_mentioning("other", &[&missing.path]);
    (missing, package, other)
}

#[rstest]
#[case::in_memory(false)]
#[case::over_a_restart(true)]
#[tokio::test]
async fn conflicts_with_claim(#[case] restart: bool) {
    let mut forge = Forge::start().await;
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    let (missing, package, other) = rivals();
    let before = forge.snapshot().await;
    let mut first = forge.push(&forge.draft(&alice).package(&package)).await;
    first.assert_held(package.path(), "closure-open");
    let mut second = forge.push(&forge.draft(&mallory).item(&other).derivations(&package)).await;
    second.assert_held(package.path(), "conflicts-with-claim");
    forge.assert_nothing_public(&before).await;
    if restart {
        forge = forge.restart().await;
    }
    // what both wait for comes: neither goes ahead of the other
    published(&forge, &forge.draft(&alice).item(&missing)).await;
    let code = Some("conflicts-with-claim");
    forge.becomes(&mut first, package.path(), PathState::Held, code).await;
    forge.becomes(&mut second, package.path(), PathState::Held, code).await;
    forge.assert_published_only(&before, &[&missing.path]).await;
    // a third with the contents of the first doesn't settle it
    let bob = forge.submitter("bob").await;
    let third = forge.push(&forge.draft(&bob).package(&package)).await;
    third.assert_held(package.path(), "conflicts-with-claim");
    forge.assert_published_only(&before, &[&missing.path]).await;
}

/// The same contents twice are no conflict: one narinfo, one leaf.
#[tokio::test]
async fn the_same_claim_by_two_is_no_conflict() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let (missing, package, _) = rivals();
    let before = forge.snapshot().await;
    let mut first = forge.push(&forge.draft(&alice).package(&package)).await;
    let mut second = forge.push(&forge.draft(&bob).package(&package)).await;
    second.assert_held(package.path(), "closure-open");
    published(&forge, &forge.draft(&alice).item(&missing)).await;
    for push in [&mut first, &mut second] {
        forge.becomes(push, package.path(), PathState::Published, None).await;
    }
    forge.assert_published_only(&before, &[&missing.path, package.path()]).await;
    assert!(forge.snapshot().await.packs.is_empty());
}

/// Two with other contents at once: at most one is published, the other is a conflict, whoever is first.
#[tokio::test]
async fn conflicts_with_published_of_two_at_once() {
    let forge = Forge::start().await;
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    let package = Package::new("tool").build();
    let other = package.out_mentioning("other", &[]);
    let before = forge.snapshot().await;
    let (one, two) =
        (forge.draft(&alice).package(&package), forge.draft(&mallory).item(&other).derivations(&package));
    let (one, two) = tokio::join!(forge.push(&one), forge.push(&two));
    let states = [&one, &two].map(|p| (p.of(package.path()).state, p.of(package.path()).code.clone()));
    assert_eq!(states.iter().filter(|s| s.0 == PathState::Published).count(), 1, "{states:?}");
    let loser = states.iter().find(|s| s.0 == PathState::Held).expect("a conflict");
    assert_eq!(loser.1.as_deref(), Some("conflicts-with-published"));
    let winner = if states[0].0 == PathState::Published { package.out() } else { &other };
    let narinfo = forge.narinfo(package.path()).await.unwrap();
    assert!(narinfo.contains(&winner.nar_hash.base32()), "{narinfo}");
    forge.assert_published_only(&before, &[package.path()]).await;
}

/// A reference that is nowhere: waits, and comes in time.
#[tokio::test]
async fn closure_open() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let (missing, package, _) = rivals();
    let before = forge.snapshot().await;
    let mut pushed = forge.push(&forge.draft(&alice).package(&package)).await;
    pushed.assert_held(package.path(), "closure-open");
    assert_eq!(pushed.of(package.path()).waits_for, [missing.path.absolute()]);
    forge.assert_nothing_public(&before).await;
    published(&forge, &forge.draft(&bob).item(&missing)).await;
    forge.becomes(&mut pushed, package.path(), PathState::Published, None).await;
    forge.assert_published_only(&before, &[&missing.path, package.path()]).await;
    assert!(forge.snapshot().await.packs.is_empty());
}

/// A reference that is nowhere: waits, until the hold runs out. What comes later doesn't bring it back.
#[tokio::test]
async fn closure_open_runs_out() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let (missing, package, _) = rivals();
    let before = forge.snapshot().await;
    let mut pushed = forge.push(&forge.draft(&alice).package(&package)).await;
    pushed.assert_held(package.path(), "closure-open");
    forge.clock.advance(QUARANTINE_TTL - 100);
    forge.sweep().await;
    assert_eq!(forge.status(&pushed.announced, "").await.unwrap().paths, pushed.status.paths);
    forge.clock.advance(100);
    forge.assert_unchanged(&before).await;
    forge.becomes(&mut pushed, package.path(), PathState::Rejected, Some("closure-open")).await;
    published(&forge, &forge.draft(&bob).item(&missing)).await;
    forge.assert_published_only(&before, &[&missing.path]).await;
    let status = forge.status(&pushed.announced, "").await.unwrap();
    assert_eq!(status.paths[0].state, PathState::Rejected);
    // pushed again it is as good as ever
    published(&forge, &forge.draft(&alice).package(&package)).await;
}

/// Two paths that refer to each other are never published half.
#[tokio::test]
async fn closure_open_of_a_cycle() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let package = Package::new("cycle").outputs(&["dev", "out"]).build();
    let out = package.out_mentioning("out", &[&package.outputs["dev"].path]);
    let mut dev = package.out_mentioning("dev", &[package.path()]);
    dev.path = package.outputs["dev"].path.clone();
    let before = forge.snapshot().await;
    let draft = forge.draft(&alice).item(&out).item(&dev).derivations(&package);
    let pushed = forge.push(&draft).await;
    pushed.assert_held(&out.path, "closure-open");
    pushed.assert_held(&dev.path, "closure-open");
    forge.assert_nothing_public(&before).await;
}

/// One rejected path ends nothing but itself; those that refer to it wait for a right one.
#[tokio::test]
async fn one_rejected_path_blocks_only_those_that_refer_to_it() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let bad = Package::new("bad").build();
    let user = Package::new("user").input(&bad).mention(bad.path()).build();
    let users_user = Package::new("users-user").input(&user).mention(user.path()).build();
    let bystander = Package::new("bystander").input(&bad).build();
    let item = source();
    let mut lie = bad.out().clone();
    lie.references.insert(item.path.clone());
    let draft = forge
        .draft(&alice)
        .item(&lie)
        .item(&item)
        .package(&users_user)
        .package(&user)
        .package(&bystander)
        .derivations(&bad);
    let before = forge.snapshot().await;
    let mut pushed = forge.push(&draft).await;
    pushed.assert_rejected(bad.path(), "reference-absent");
    pushed.assert_published(&item.path);
    pushed.assert_published(bystander.path());
    pushed.assert_held(user.path(), "closure-open");
    pushed.assert_held(users_user.path(), "closure-open");
    forge.assert_published_only(&before, &[&item.path, bystander.path()]).await;
    published(&forge, &forge.draft(&alice).package(&bad)).await;
    forge.becomes(&mut pushed, users_user.path(), PathState::Published, None).await;
    let all = [&item.path, bystander.path(), bad.path(), user.path(), users_user.path()];
    forge.assert_published_only(&before, &all).await;
}

/// Nobody learns what others have sent, nor vouches for bytes he doesn't have.
#[tokio::test]
async fn bytes_are_wanted_whatever_others_have_sent() {
    let forge = Forge::start().await;
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    let (_, package, _) = rivals();
    let hash = package.out().nar_hash;
    forge.push(&forge.draft(&alice).package(&package)).await.assert_held(package.path(), "closure-open");
    let before = forge.snapshot().await;
    let theirs = forge.announce(&forge.draft(&mallory).package(&package)).await.unwrap();
    assert_eq!(theirs.status.wanted, [hash]);
    assert_eq!(theirs.status.paths[0].state, PathState::Wanted);
    assert_eq!(theirs.status.wanted_derivations, std::slice::from_ref(&package.drv));
    // an announcement alone is no claim that anybody has to reckon with
    forge.assert_unchanged(&before).await;
    // his own bytes aren't asked for twice
    let again = forge.announce(&forge.draft(&alice).package(&package)).await.unwrap();
    assert!(again.status.wanted.is_empty());
    assert!(again.status.wanted_derivations.is_empty());
}

/// The question for missing paths, which needs no key, says nothing of the quarantine.
#[tokio::test]
async fn missing_tells_only_what_is_public() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let (missing, package, other) = rivals();
    let unknown = source();
    forge.push(&forge.draft(&alice).package(&package)).await.assert_held(package.path(), "closure-open");
    let asked = [package.out(), &missing, &unknown];
    let answer = forge.missing(&asked).await;
    assert_eq!(answer.missing, asked.map(|i| i.path.clone()));
    assert!(answer.upstream.is_empty());
    published(&forge, &forge.draft(&alice).item(&missing)).await;
    published(&forge, &forge.draft(&alice).package(&package)).await;
    assert_eq!(forge.missing(&asked).await.missing, std::slice::from_ref(&unknown.path));
    // with another NAR hash it isn't there
    assert_eq!(forge.missing(&[&other]).await.missing, std::slice::from_ref(package.path()));
}
