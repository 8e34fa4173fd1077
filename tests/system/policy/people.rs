//! Approvals, refusals, and whose of them count.

use pushgate_formats::{acts::Deed, api::PathState};
use pushgate_tests::forge::Package;

use super::*;

/// With all that waited for it, in one go: its leaf comes first, and those of the waiting ones behind it.
#[tokio::test]
async fn an_approved_claim_is_published_with_all_that_waited_for_it() {
    let forge = start(&looked_at()).await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let lib = package("lib");
    let tool = Package::new("tool-1").input(&lib).mention(lib.path()).build();
    let top = Package::new("top-1").input(&tool).mention(tool.path()).build();
    let before = forge.snapshot().await;
    let mut first = forge.push(&forge.draft(&alice).package(&lib)).await;
    first.assert_held(lib.path(), "needs-approval");
    let status = first.of(lib.path());
    assert_eq!(status.waits_for, ["1 approval from `core` (0 of 1)"]);
    // one by the same submitter, one by another
    let mut second = forge.push(&forge.draft(&alice).package(&tool)).await;
    second.assert_held(tool.path(), "closure-open");
    let carol = forge.submitter("carol").await;
    let mut third = forge.push(&forge.draft(&carol).package(&top)).await;
    third.assert_held(top.path(), "closure-open");
    forge.assert_nothing_public(&before).await;

    forge.act(&bob, approve(&lib, None)).await.expect("an approval");
    forge.becomes(&mut first, lib.path(), PathState::Published, None).await;
    forge.becomes(&mut second, tool.path(), PathState::Published, None).await;
    forge.becomes(&mut third, top.path(), PathState::Published, None).await;
    forge.assert_published_only(&before, &[lib.path(), tool.path(), top.path()]).await;
    let admin = forge.admin("ada").await;
    let events = forge.events(&admin).await;
    let event = events.iter().find(|e| e.kind == "approve").expect("an event");
    assert_eq!((event.who.as_str(), event.path.as_ref()), ("bob", Some(lib.path())));
    assert_eq!(event.why, "a test wants it");
    assert!(held(&forge, &admin).await.claims.is_empty());
}

#[tokio::test]
async fn approvals_that_do_not_count() {
    let forge = start(&looked_at()).await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = forge.push(&forge.draft(&alice).package(&lib)).await;
    // his own
    forge.act(&alice, approve(&lib, None)).await.expect("taken, and worth nothing");
    // of another identity of the same owner, and of one without
    let (bob, carol) = (owned(&forge, "bob", Some("alice")).await, owned(&forge, "carol", None).await);
    forge.act(&bob, approve(&lib, None)).await.expect("taken, and worth nothing");
    forge.act(&carol, approve(&lib, None)).await.expect("taken, and worth nothing");
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-approval")).await;
    // of an admin who isn't in the group
    let admin = forge.admin("ada").await;
    forge.act(&admin, approve(&lib, None)).await.expect("taken, and worth nothing");
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-approval")).await;
    forge.assert_nothing_public(&before).await;
    // they are on record, each with whose it is
    let claim = held(&forge, &admin).await.claims.remove(0);
    let by: Vec<&str> = claim.evidence.iter().map(|e| e.by.as_str()).collect();
    assert_eq!(by, ["alice", "bob", "carol", "ada"]);
    // an owner of his own, and bob counts
    forge.act(&admin, Deed::Owner { name: "bob".into(), owner: Some("bob".into()) }).await.expect("an owner");
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
}

#[tokio::test]
async fn who_may_not_approve_is_told() {
    let forge = start(&looked_at()).await;
    let (alice, mallory, bob) =
        (forge.submitter("alice").await, forge.submitter("mallory").await, forge.submitter("bob").await);
    let admin = forge.admin("ada").await;
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = forge.push(&forge.draft(&alice).package(&lib)).await;
    refused(forge.act(&mallory, approve(&lib, None)).await, 403, "forbidden");
    refused(forge.act(&bob, reject(&lib)).await, 403, "forbidden");
    refused(forge.act(&admin, approve(&lib, Some(forge.clock.now()))).await, 400, "act-malformed");
    let mut other = lib.clone();
    other.outputs.insert("out".into(), lib.out_mentioning("x", &[]));
    refused(forge.act(&bob, approve(&other, None)).await, 404, "claim-unknown");
    refused(forge.act(&bob, approve(&package("lib"), None)).await, 404, "claim-unknown");
    let Deed::Approve { path, nar_hash, .. } = approve(&lib, None) else { unreachable!() };
    let elsewhere = Deed::Approve { cache: "other".into(), path, nar_hash, until: None };
    refused(forge.act(&bob, elsewhere).await, 404, "not-found");
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-approval")).await;
    forge.assert_nothing_public(&before).await;
    assert!(held(&forge, &admin).await.claims[0].evidence.is_empty());
    // the same act without the lie
    forge.act(&bob, approve(&lib, None)).await.expect("an approval");
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
    refused(forge.act(&bob, approve(&lib, None)).await, 409, "already-published");
    refused(forge.act(&admin, reject(&lib)).await, 409, "already-published");
    assert!(forge.narinfo(lib.path()).await.is_some());
}

/// Of two that are needed one runs out, and one key is revoked, before the others come.
#[tokio::test]
async fn approvals_run_out_and_go_with_their_keys() {
    let two = rule("lib", r#"{ all = ["derivation", { approvals = 2, from = "core" }] }"#);
    let forge = start(&format!("{HEAD}{two}{REST}")).await;
    let (dora, bob, carol, alice) = (
        forge.submitter("dora").await,
        forge.submitter("bob").await,
        forge.submitter("carol").await,
        forge.submitter("alice").await,
    );
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = forge.push(&forge.draft(&dora).package(&lib)).await;
    forge.act(&bob, approve(&lib, Some(forge.clock.now() + 3600))).await.expect("an approval");
    // twice is once
    forge.act(&bob, approve(&lib, Some(forge.clock.now() + 3600))).await.expect("an approval");
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-approval")).await;
    assert_eq!(push.of(lib.path()).waits_for, ["2 approvals from `core` (1 of 2)"]);
    forge.clock.advance(3601);
    // what time alone changes is noticed
    pushgate_gateway::push::recover::judge_due(&forge.app).await.unwrap();
    for _ in 0..100 {
        push.status = forge.status(&push.announced, "").await.unwrap();
        if push.of(lib.path()).waits_for == ["2 approvals from `core` (0 of 2)"] {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    assert_eq!(push.of(lib.path()).waits_for, ["2 approvals from `core` (0 of 2)"]);
    forge.act(&carol, approve(&lib, None)).await.expect("an approval");
    forge.revoke(&carol.key).await;
    forge.act(&alice, approve(&lib, None)).await.expect("an approval");
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-approval")).await;
    assert_eq!(push.of(lib.path()).waits_for, ["2 approvals from `core` (1 of 2)"]);
    forge.assert_nothing_public(&before).await;
    let again = forge.submitter_by(Invite { ..Forge::invitation("bob") }).await;
    forge.act(&again, approve(&lib, None)).await.expect("an approval");
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
}

/// Refused with all that is held for its sake by nobody else.
#[tokio::test]
async fn an_admin_s_no_is_final_for_the_claim_and_for_nothing_else() {
    let forge = start(&looked_at()).await;
    let (alice, bob, admin) =
        (forge.submitter("alice").await, forge.submitter("bob").await, forge.admin("ada").await);
    let (lib, other) = (package("lib"), package("other"));
    let before = forge.snapshot().await;
    let draft = forge.draft(&alice).package(&lib).package(&other);
    let mut push = forge.push(&draft).await;
    push.assert_published(other.path());
    forge.act(&admin, reject(&lib)).await.expect("a refusal");
    forge.becomes(&mut push, lib.path(), PathState::Rejected, Some("refused-by-admin")).await;
    assert!(push.of(lib.path()).message.as_deref().unwrap().contains("a test wants it"));
    refused(forge.act(&bob, approve(&lib, None)).await, 404, "claim-unknown");
    // announced again it is refused again
    let again = forge.push(&forge.draft(&alice).package(&lib)).await;
    again.assert_rejected(lib.path(), "refused-by-admin");
    forge.assert_published_only(&before, &[other.path()]).await;
}

/// What is half there survives a restart, and nothing is decided twice.
#[tokio::test]
async fn evidence_survives_a_restart_and_decisions_are_made_once() {
    let two = rule("lib", r#"{ all = ["derivation", { approvals = 2, from = "core" }] }"#);
    let mut forge = start(&format!("{HEAD}{two}{REST}")).await;
    let (dora, bob, carol) =
        (forge.submitter("dora").await, forge.submitter("bob").await, forge.submitter("carol").await);
    let admin = forge.admin("ada").await;
    let lib = package("lib");
    let mut push = forge.push(&forge.draft(&dora).package(&lib)).await;
    forge.act(&bob, approve(&lib, None)).await.expect("an approval");
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-approval")).await;
    let made = decisions(&forge, &admin).await.decisions;
    let outcomes: Vec<(&str, usize)> =
        made.iter().map(|d| (d.outcome.decision.as_ref(), d.facts.approvals.len())).collect();
    assert_eq!(outcomes, [("hold", 0), ("hold", 1)]);
    forge = forge.restart().await;
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-approval")).await;
    assert_eq!(decisions(&forge, &admin).await.decisions.len(), 2);
    forge.act(&carol, approve(&lib, None)).await.expect("an approval");
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
    let made = decisions(&forge, &admin).await.decisions;
    let last = made.last().unwrap();
    assert_eq!((made.len(), last.outcome.decision.as_ref()), (3, "publish"));
    let policy = forge.app.caches.all()[0].policy();
    assert_eq!((last.policy, last.outcome.rule.as_deref()), (policy.digest, Some("for lib")));
    assert_eq!(last.facts.submitter.name, "dora");
}

/// Whoever is only asked for approvals may look, and whoever isn't may not.
#[tokio::test]
async fn held_claims_are_shown_to_those_who_decide() {
    let forge = start(&looked_at()).await;
    let (alice, bob, mallory) =
        (forge.submitter("alice").await, forge.submitter("bob").await, forge.submitter("mallory").await);
    let lib = package("lib");
    forge.push(&forge.draft(&alice).package(&lib)).await.assert_held(lib.path(), "needs-approval");
    let claim = held(&forge, &bob).await.claims.remove(0);
    assert_eq!((claim.submitter.as_str(), claim.nar_hash), ("alice", lib.out().nar_hash));
    assert_eq!(claim.decided.unwrap().rule.as_deref(), Some("for lib"));
    let denied: Result<HeldClaims, _> = forge.signed_get(&mallory, "/api/v1/caches/main/held", |_| {}).await;
    assert_eq!(denied.unwrap_err().code, "forbidden");
    for wrong in ["held?after=x", "decisions?after=x", "decisions?after=1&after=2"] {
        let target = format!("/api/v1/caches/main/{wrong}");
        let refused: Result<serde_json::Value, _> = forge.signed_get(&bob, &target, |_| {}).await;
        let error = refused.unwrap_err();
        assert_eq!((error.status, error.code.as_str()), (400, "query-malformed"), "{wrong}");
    }
}

/// Whose word counts may change after he gave it, long after anything else of the claim did.
#[tokio::test]
async fn claims_are_judged_again_when_the_word_of_somebody_comes_to_count() {
    let forge = start(&looked_at()).await;
    let (alice, admin) = (forge.submitter("alice").await, forge.admin("ada").await);
    let bob = owned(&forge, "bob", None).await;
    let lib = package("lib");
    let mut push = forge.push(&forge.draft(&alice).package(&lib)).await;
    forge.act(&bob, approve(&lib, None)).await.expect("taken, and worth nothing");
    // what was done on the gateway's host is looked for every two seconds
    tokio::time::sleep(std::time::Duration::from_millis(4500)).await;
    forge.becomes(&mut push, lib.path(), PathState::Held, Some("needs-approval")).await;
    forge.act(&admin, Deed::Owner { name: "bob".into(), owner: Some("bob".into()) }).await.expect("an owner");
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
}

/// Each word is kept for good, and every decision rests on all of them: one person can't pile them up.
#[tokio::test]
async fn nobody_says_the_same_without_end() {
    let forge = start(&looked_at()).await;
    let alice = forge.submitter("alice").await;
    let admin = forge.admin("ada").await;
    let bob = owned(&forge, "bob", None).await;
    let lib = package("lib");
    let mut push = forge.push(&forge.draft(&alice).package(&lib)).await;
    for _ in 0..16 {
        forge.act(&bob, approve(&lib, None)).await.expect("taken, and worth nothing");
    }
    refused(forge.act(&bob, approve(&lib, None)).await, 409, "too-many-words");
    assert_eq!(held(&forge, &admin).await.claims[0].evidence.len(), 16);
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-approval")).await;
    // others have a word of their own
    forge.act(&forge.submitter("carol").await, approve(&lib, None)).await.expect("an approval");
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
}

/// Hundreds of claims of a path that were refused at once, or are never sent, don't hide the one that is to be decided.
#[tokio::test]
async fn claims_of_one_submitter_do_not_hide_those_of_another() {
    let small = looked_at().replace("[groups]", "[limits]\nnar-size = \"4 KiB\"\n[groups]");
    let forge = start(&small).await;
    let (dora, mallory, bob) =
        (forge.submitter("dora").await, forge.submitter("mallory").await, forge.submitter("bob").await);
    let lib = package("lib");
    let mut push = forge.push(&forge.draft(&dora).package(&lib)).await;
    push.assert_held(lib.path(), "needs-approval");
    let large = lib.out_mentioning(&"large".repeat(2000), &[]);
    for _ in 0..1000 {
        let said = forge.announce(&forge.draft(&mallory).item(&large)).await.expect("an announcement");
        assert_eq!(said.status.paths[0].code.as_deref(), Some("nar-too-large"));
    }
    let of_path = format!("/api/v1/caches/main/held?path={}", lib.path().base_name());
    let shown: HeldClaims = forge.signed_get(&bob, &of_path, |_| {}).await.expect("what is held");
    let by: Vec<&str> = shown.claims.iter().map(|c| c.submitter.as_str()).collect();
    assert_eq!(by, ["dora"]);
    let why = format!("/api/v1/caches/main/paths/{}/why", lib.path().base_name());
    let why: pushgate_policies::review::Why = forge.signed_get(&dora, &why, |_| {}).await.expect("why");
    assert_eq!(why.claims.len(), 1);
    forge.act(&bob, approve(&lib, None)).await.expect("an approval");
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
}

/// What `why` answers doesn't grow with the claims of a path times the rules.
#[tokio::test]
async fn only_the_newest_claims_are_explained() {
    let forge = start(&looked_at()).await;
    let dora = forge.submitter("dora").await;
    let lib = package("lib");
    for _ in 0..22 {
        forge.push(&forge.draft(&dora).package(&lib)).await.assert_held(lib.path(), "needs-approval");
    }
    let target = format!("/api/v1/caches/main/paths/{}/why", lib.path().base_name());
    let why: pushgate_policies::review::Why = forge.signed_get(&dora, &target, |_| {}).await.expect("why");
    let explained: Vec<bool> = why.claims.iter().map(|claim| claim.explanation.is_some()).collect();
    assert_eq!(explained, [vec![true; 20], vec![false; 2]].concat());
}
