//! Announcements sent again: later, elsewhere, with other contents.

use pushgate_formats::api::{Announcement, PathState};
use pushgate_tests::forge::{Forge, Package, Submitter, framed, random_hex};
use rstest::rstest;

use super::{code, is, refused_but_for, source};

#[tokio::test]
async fn announcement_expired() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let bad = forge.draft(&alice).item(&source());
    forge.clock.advance(601);
    let good = forge.draft(&alice).item(&source());
    refused_but_for(&forge, good, bad.sealed(), (403, "announcement-expired")).await;
}

/// One that was taken doesn't give its push, and the token with it, to whoever finds it later.
#[tokio::test]
async fn announcement_expired_that_was_taken_before() {
    let forge = Forge::start().await;
    let draft = forge.draft(&forge.submitter("alice").await).item(&source());
    forge.announce(&draft).await.expect("it is good now");
    let before = forge.snapshot().await;
    forge.clock.advance(601);
    assert_eq!(code(forge.announce(&draft).await), is(403, "announcement-expired"));
    forge.assert_unchanged(&before).await;
}

#[rstest]
#[case::from_the_future(|b: &mut Announcement| { b.issued += 400; b.expires += 400 }, 403, "announcement-from-future")]
#[case::valid_too_long(|b: &mut Announcement| b.expires = b.issued + 3601, 400, "announcement-malformed")]
#[case::valid_for_ever(|b: &mut Announcement| b.expires = u64::MAX, 400, "announcement-malformed")]
#[case::ended_before_it_began(|b: &mut Announcement| b.expires = b.issued - 1, 403, "announcement-expired")]
#[case::from_the_end_of_time(
    |b: &mut Announcement| { b.issued = u64::MAX; b.expires = u64::MAX }, 403, "announcement-from-future"
)]
#[case::another_version(|b: &mut Announcement| b.version = 2, 400, "announcement-malformed")]
#[case::short_nonce(|b: &mut Announcement| b.nonce.truncate(15), 400, "announcement-malformed")]
#[case::long_nonce(|b: &mut Announcement| b.nonce = "a".repeat(65), 400, "announcement-malformed")]
#[case::odd_nonce(|b: &mut Announcement| b.nonce.replace_range(..1, "g"), 400, "announcement-malformed")]
#[case::no_paths(|b: &mut Announcement| b.paths.clear(), 400, "announcement-malformed")]
#[tokio::test]
async fn announcement_refused(
    #[case] bend: fn(&mut Announcement),
    #[case] status: u16,
    #[case] expected: &str,
) {
    let forge = Forge::start().await;
    let good = forge.draft(&forge.submitter("alice").await).item(&source());
    let bad = good.clone().with(bend);
    refused_but_for(&forge, good, bad.sealed(), (status, expected)).await;
}

/// A clock that is a little ahead is nobody's fault.
#[tokio::test]
async fn an_announcement_by_a_clock_a_little_ahead_is_taken() {
    let forge = Forge::start().await;
    let item = source();
    let draft = forge.draft(&forge.submitter("alice").await).item(&item).with(|b| {
        b.issued += 200;
        b.expires += 200;
    });
    forge.push(&draft).await.assert_published(&item.path);
}

#[rstest]
#[case::cache(|b: &mut Announcement| b.audience.cache = "other".into())]
#[case::gateway(|b: &mut Announcement| b.audience.gateway = random_hex())]
#[tokio::test]
async fn audience_mismatch(#[case] bend: fn(&mut Announcement)) {
    let forge = Forge::start().await;
    let good = forge.draft(&forge.submitter("alice").await).item(&source());
    let bad = good.clone().with(bend);
    refused_but_for(&forge, good, bad.sealed(), (403, "audience-mismatch")).await;
}

/// What one cache of a gateway has taken is not taken by another.
#[tokio::test]
async fn audience_mismatch_of_a_replay_at_another_cache() {
    let forge = Forge::start().await;
    forge.add_cache("other").await;
    let item = source();
    let draft = forge.draft(&forge.submitter("alice").await).item(&item);
    let replayed = forge.announce_raw("other", draft.sealed()).await;
    assert_eq!(code(replayed), is(403, "audience-mismatch"));
    forge.push(&draft).await.assert_published(&item.path);
    let before = forge.snapshot().await;
    let replayed = forge.announce_raw("other", draft.sealed()).await;
    assert_eq!(code(replayed), is(403, "audience-mismatch"));
    assert!(forge.app.db.leaves("other", 0, 10).await.unwrap().is_empty());
    forge.assert_unchanged(&before).await;
}

/// The same key is enrolled at two gateways; what it signed for one is nothing to the other.
#[tokio::test]
async fn audience_mismatch_of_a_replay_at_another_gateway() {
    let (here, there) = (Forge::start().await, Forge::start().await);
    let alice = here.submitter("alice").await;
    let invite = there.invite(Forge::invitation("alice")).await;
    there.enrol(&alice.key, &invite).await.unwrap();
    let item = source();
    let draft = here.draft(&alice).item(&item);
    let good = there.draft(&alice).item(&source());
    here.push(&draft).await.assert_published(&item.path);
    refused_but_for(&there, good, draft.sealed(), (403, "audience-mismatch")).await;
    // nor an enrolment: invites are the gateway's own
    let invite = here.invite(Forge::invitation("bob")).await;
    assert_eq!(code(there.enrol(&Submitter::new("bob").key, &invite).await), is(403, "invite-invalid"));
}

#[tokio::test]
async fn nonce_reused() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let first = forge.draft(&alice).item(&source());
    let pushed = forge.push(&first).await;
    let nonce = &first.body.nonce;
    let good = forge.draft(&bob).item(&source()).with(|b| b.nonce.clone_from(nonce));
    // in capital letters it is the same nonce
    for nonce in [nonce.clone(), nonce.to_uppercase()] {
        let before = forge.snapshot().await;
        let bad = forge.draft(&alice).item(&source()).with(|b| b.nonce = nonce);
        assert_eq!(code(forge.announce(&bad).await), is(409, "nonce-reused"));
        forge.assert_unchanged(&before).await;
    }
    let again = forge.status(&pushed.announced, "").await.unwrap();
    assert_eq!(again.paths, pushed.status.paths);
    // it is used once per key, not once for all
    assert_eq!(forge.push(&good).await.status.paths[0].state, PathState::Published);
}

#[tokio::test]
async fn the_same_announcement_again_is_the_same_push() {
    let forge = Forge::start().await;
    let item = source();
    let draft = forge.draft(&forge.submitter("alice").await).item(&item);
    let first = forge.announce(&draft).await.unwrap();
    let again = forge.announce(&draft).await.unwrap();
    assert_eq!(first, again);
    let before = forge.snapshot().await;
    let done = forge.complete(&draft, again).await;
    done.assert_published(&item.path);
    let third = forge.announce(&draft).await.unwrap();
    assert_eq!((third.status.push, third.token), (first.status.push, first.token));
    assert_eq!(third.status.paths[0].state, PathState::Published);
    forge.assert_published_only(&before, &[&item.path]).await;
}

/// An old claim, validly signed, of a path that has other contents now.
#[rstest]
#[case::by_the_same_submitter(true)]
#[case::by_another(false)]
#[tokio::test]
async fn conflicts_with_published(#[case] same: bool) {
    let mut forge = Forge::start().await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let package = Package::new("tool").contents("new").build();
    let old = package.out_mentioning("old", &[]);
    forge.push(&forge.draft(&alice).package(&package)).await.assert_published(package.path());
    let narinfo = forge.narinfo(package.path()).await.unwrap();
    let before = forge.snapshot().await;
    let draft = forge.draft(if same { &alice } else { &bob }).item(&old).derivations(&package);
    let pushed = forge.push(&draft).await;
    pushed.assert_held(package.path(), "conflicts-with-published");
    assert!(pushed.announced.status.wanted.is_empty(), "its bytes are not asked for");
    assert_eq!(pushed.of(package.path()).waits_for, ["person"]);
    // its bytes aren't taken when they come all the same
    let body = framed(&old.nar_hash, &old.nar, true);
    let announced = &pushed.announced;
    let uploaded = forge.upload(&announced.status.push, &announced.token, body).await.unwrap();
    assert_eq!(uploaded.nars[0].error.as_ref().unwrap().code, "nar-not-wanted");
    assert_eq!(forge.narinfo(package.path()).await.unwrap(), narinfo);
    forge.assert_unchanged(&before).await;
    forge = forge.restart().await;
    let status = forge.status(announced, "").await.unwrap();
    assert_eq!(status.paths[0].code.as_deref(), Some("conflicts-with-published"));
    assert_eq!(forge.narinfo(package.path()).await.unwrap(), narinfo);
    forge.assert_unchanged(&before).await;
}
