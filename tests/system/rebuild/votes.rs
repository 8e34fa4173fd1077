//! Whose rebuilds count: one vote for each owner, none for the claimant's own, none for a key that was revoked.

use super::*;

#[tokio::test]
async fn two_owners_are_two_and_anybody_more_is_left_alone() {
    let forge = start(&rebuilt("2", "")).await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = held(&forge, &alice, &lib).await;
    let (victor, vera) =
        (forge.verifier("victor", Some("victor")).await, forge.verifier("vera", Some("vera")).await);
    let third = forge.verifier("valentin", Some("valentin")).await;
    forge.rebuild(&victor, &lib).await;
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-rebuild")).await;
    assert_eq!(push.of(lib.path()).waits_for, ["2 rebuilds (1 of 2)"]);
    // not twice the same derivation
    forge.assert_no_job(&victor).await;
    forge.assert_nothing_public(&before).await;
    forge.rebuild(&vera, &lib).await;
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
    forge.assert_published_only(&before, &[lib.path()]).await;
    forge.assert_no_job(&third).await;
    let raw = forge.public(&format!("attestations/{}.jsonl", lib.path().hash_part())).await.unwrap();
    assert_eq!(String::from_utf8(raw).unwrap().lines().count(), 2);
}

#[tokio::test]
async fn two_verifiers_of_one_owner_are_one() {
    let forge = start(&rebuilt("2", "")).await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = held(&forge, &alice, &lib).await;
    let (one, two) =
        (forge.verifier("victor-1", Some("victor")).await, forge.verifier("victor-2", Some("victor")).await);
    let job = forge.lease(&one).await;
    // neither while the first builds nor after it
    forge.assert_no_job(&two).await;
    forge.build(&one, &job, &lib.outputs).await;
    forge.assert_no_job(&two).await;
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-rebuild")).await;
    forge.assert_nothing_public(&before).await;
}

/// Each of two owners has built; then an admin says that they are one.
#[tokio::test]
async fn owners_are_counted_as_they_are_now() {
    let forge = start(&rebuilt("3", "")).await;
    let (alice, ada) = (forge.submitter("alice").await, forge.admin("ada").await);
    let lib = package("lib");
    let mut push = held(&forge, &alice, &lib).await;
    for name in ["victor", "vera"] {
        let verifier = forge.verifier(name, Some(name)).await;
        forge.rebuild(&verifier, &lib).await;
    }
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-rebuild")).await;
    assert_eq!(push.of(lib.path()).waits_for, ["3 rebuilds (2 of 3)"]);
    let deed = pushgate_formats::acts::Deed::Owner { name: "vera".into(), owner: Some("victor".into()) };
    forge.act(&ada, deed).await.expect("an owner");
    pushgate_gateway::push::recover::judge_open(&forge.app).await.unwrap();
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-rebuild")).await;
    assert_eq!(push.of(lib.path()).waits_for, ["3 rebuilds (1 of 3)"]);
    assert_eq!(forge.narinfo(lib.path()).await, None);
}

#[tokio::test]
async fn the_claimants_own_verifier_gets_no_job() {
    let forge = start(&rebuilt("1", "")).await;
    // one who has an owner, and one who is his own for want of another
    let (alice, bob) = (owned(&forge, "alice", Some("team")).await, owned(&forge, "bob", None).await);
    let (team, bobs) =
        (forge.verifier("team-1", Some("team")).await, forge.verifier("bob-v", Some("bob")).await);
    let before = forge.snapshot().await;
    let (lib, tool) = (package("lib"), package("tool"));
    let mut push = held(&forge, &alice, &lib).await;
    forge.assert_no_job(&team).await;
    forge.rebuild(&bobs, &lib).await;
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
    let mut push = held(&forge, &bob, &tool).await;
    forge.assert_no_job(&bobs).await;
    stays(&forge, &mut push, tool.path(), PathState::Held, Some("needs-rebuild")).await;
    forge.assert_published_only(&before, &[lib.path()]).await;
    assert!(rows(&forge, tool.path()).await.is_empty());
}

#[tokio::test]
async fn a_verifier_without_an_owner_gets_no_job() {
    let forge = start(&rebuilt("1", "")).await;
    let alice = forge.submitter("alice").await;
    let nobody = forge.verifier("nobody", None).await;
    let lib = package("lib");
    let mut push = held(&forge, &alice, &lib).await;
    let asked = forge.ask_for_job(&nobody, &pushgate_tests::forge::lease_query(), 1).await;
    refused(asked, 403, "verifier-without-owner");
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-rebuild")).await;
    assert_eq!(jobs(&forge, &lib).await, [("open".to_owned(), None)]);
}

/// Before the second of two came: what the first said is worth nothing any more.
#[tokio::test]
async fn a_revoked_key_counts_no_more() {
    let forge = start(&rebuilt("2", "")).await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = held(&forge, &alice, &lib).await;
    let (victor, vera) =
        (forge.verifier("victor", Some("victor")).await, forge.verifier("vera", Some("vera")).await);
    forge.rebuild(&victor, &lib).await;
    assert_eq!(rows(&forge, lib.path()).await.len(), 1);
    forge.revoke(&victor.submitter.key).await;
    assert!(rows(&forge, lib.path()).await.is_empty());
    forge.rebuild(&vera, &lib).await;
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-rebuild")).await;
    assert_eq!(push.of(lib.path()).waits_for, ["2 rebuilds (1 of 2)"]);
    forge.assert_nothing_public(&before).await;
    // another takes its place, and only those who count are named
    let third = forge.verifier("valentin", Some("valentin")).await;
    forge.rebuild(&third, &lib).await;
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
    forge.assert_published_only(&before, &[lib.path()]).await;
    let info = forge.narinfo(lib.path()).await.unwrap();
    assert!(!info.contains(&format!("{}:", victor.submitter.key.name())));
}
