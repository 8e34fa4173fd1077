//! Claims of one path with different contents, and how an admin settles them.

use pushgate_formats::{acts::Deed, api::PathState};
use pushgate_tests::forge::{Item, Package};

use super::*;

fn settle(item: &Item) -> Deed {
    Deed::Settle { cache: "main".into(), path: item.path.clone(), nar_hash: item.nar_hash }
}

/// The claims of two submitters, both held, under a policy that has somebody look first.
async fn two(forge: &Forge) -> (Package, Item, Pushed, Pushed) {
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    let lib = package("lib");
    let evil = lib.out_mentioning("evil", &[]);
    let first = forge.push(&forge.draft(&alice).package(&lib)).await;
    first.assert_held(lib.path(), "needs-approval");
    let second = forge.push(&forge.draft(&mallory).item(&evil).derivations(&lib)).await;
    second.assert_held(lib.path(), "conflicts-with-claim");
    (lib, evil, first, second)
}

#[tokio::test]
async fn shown_side_by_side_and_settled() {
    let forge = start(&looked_at()).await;
    let (admin, bob) = (forge.admin("ada").await, forge.submitter("bob").await);
    let before = forge.snapshot().await;
    let (lib, evil, mut first, mut second) = two(&forge).await;
    let conflict = conflicts(&forge, &admin).await.remove(0);
    assert_eq!((&conflict.path, conflict.published), (lib.path(), None));
    let mut shown: Vec<_> = conflict.claims.iter().map(|c| (c.submitter.as_str(), c.nar_hash)).collect();
    shown.sort();
    assert_eq!(shown, [("alice", lib.out().nar_hash), ("mallory", evil.nar_hash)]);
    // approved is not yet settled: whoever approves may not know of the other
    forge.act(&bob, approve(&lib, None)).await.expect("an approval");
    forge.becomes(&mut first, lib.path(), PathState::Held, Some("conflicts-with-claim")).await;
    stays(&forge, &mut second, lib.path(), PathState::Held, Some("conflicts-with-claim")).await;
    forge.assert_nothing_public(&before).await;

    refused(forge.act(&bob, settle(lib.out())).await, 403, "forbidden");
    refused(forge.act(&admin, settle(&lib.out_mentioning("third", &[]))).await, 404, "claim-unknown");
    forge.act(&admin, settle(lib.out())).await.expect("a settlement");
    forge.becomes(&mut first, lib.path(), PathState::Published, None).await;
    // published by then, or settled: it is refused in the end either way
    forge.becomes(&mut second, lib.path(), PathState::Rejected, Some("conflict-settled")).await;
    forge.assert_published_only(&before, &[lib.path()]).await;
    assert!(conflicts(&forge, &admin).await.is_empty());
}

/// Settled for the one that nobody approved: the other is refused, and this one still needs its approval.
#[tokio::test]
async fn settling_replaces_no_requirement() {
    let forge = start(&looked_at()).await;
    let (admin, bob) = (forge.admin("ada").await, forge.submitter("bob").await);
    let before = forge.snapshot().await;
    let (lib, evil, mut first, mut second) = two(&forge).await;
    forge.act(&admin, settle(lib.out())).await.expect("a settlement");
    forge.becomes(&mut second, lib.path(), PathState::Rejected, Some("conflict-settled")).await;
    stays(&forge, &mut first, lib.path(), PathState::Held, Some("needs-approval")).await;
    forge.assert_nothing_public(&before).await;
    // a new claim of the loser's contents fares no better
    let carol = forge.submitter("carol").await;
    let third = forge.push(&forge.draft(&carol).item(&evil).derivations(&lib)).await;
    third.assert_rejected(lib.path(), "conflict-settled");
    forge.act(&bob, approve(&lib, None)).await.expect("an approval");
    forge.becomes(&mut first, lib.path(), PathState::Published, None).await;
}

/// What is published stays: a differing claim is recorded, shown, and can only be settled one way.
#[tokio::test]
async fn conflicts_with_published() {
    let forge = start(&format!("{HEAD}{REST}")).await;
    let (alice, mallory, admin) =
        (forge.submitter("alice").await, forge.submitter("mallory").await, forge.admin("ada").await);
    let lib = package("lib");
    let evil = lib.out_mentioning("evil", &[]);
    forge.push(&forge.draft(&alice).package(&lib)).await.assert_published(lib.path());
    let before = forge.snapshot().await;
    let mut push = forge.push(&forge.draft(&mallory).item(&evil).derivations(&lib)).await;
    push.assert_held(lib.path(), "conflicts-with-published");
    let conflict = conflicts(&forge, &admin).await.remove(0);
    assert_eq!(conflict.published, Some(lib.out().nar_hash));
    refused(forge.act(&admin, settle(&evil)).await, 409, "already-published");
    forge.act(&admin, settle(lib.out())).await.expect("a settlement");
    forge.becomes(&mut push, lib.path(), PathState::Rejected, Some("conflict-settled")).await;
    forge.assert_published_only(&before, &[]).await;
}
