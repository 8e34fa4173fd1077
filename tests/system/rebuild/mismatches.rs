//! Verifiers got something else than was claimed: who is asked then, what follows, and what the report says.

use pushgate_formats::{acts::Deed, review::Differences};
use pushgate_gateway::db::IdentityRow;
use pushgate_tests::forge::Verifier;

use super::*;

/// A backdoored claim, and three verifiers who get what is right.
struct Stage {
    forge: Forge,
    mallory: Submitter,
    verifiers: [Verifier; 3],
    lib: Package,
    evil: Item,
    push: Pushed,
    before: pushgate_tests::forge::Snapshot,
}

impl Stage {
    async fn set(policy: &str) -> Self {
        let forge = start(policy).await;
        let mallory = forge.submitter("mallory").await;
        let verifiers = [
            forge.verifier("v0", Some("v0")).await,
            forge.verifier("v1", Some("v1")).await,
            forge.verifier("v2", Some("v2")).await,
        ];
        let lib = package("lib");
        let evil = other(&lib, "evil");
        let before = forge.snapshot().await;
        let push = forge.push(&forge.draft(&mallory).item(&evil).derivations(&lib)).await;
        push.assert_held(lib.path(), "needs-rebuild");
        Self { forge, mallory, verifiers, lib, evil, push, before }
    }

    async fn is_held(&mut self, code: &str) {
        stays(&self.forge, &mut self.push, self.lib.path(), PathState::Held, Some(code)).await;
        self.forge.assert_nothing_public(&self.before).await;
    }

    /// All of them got the right contents, the first one twice.
    async fn confirm(&self) {
        for n in [0, 0, 1, 2] {
            self.forge.rebuild(&self.verifiers[n], &self.lib).await;
        }
    }

    async fn mallory_is(&self) -> IdentityRow {
        let all = self.forge.app.db.identities().await.unwrap();
        all.into_iter().find(|row| row.name == "mallory").unwrap()
    }
}

/// The same verifier a second time, then two others; before all have reported nothing follows.
#[tokio::test]
async fn a_mismatch_asks_the_same_again_and_two_others() {
    let mut stage = Stage::set(&rebuilt("1", "")).await;
    let v3 = stage.forge.verifier("v3", Some("v3")).await;
    stage.forge.rebuild(&stage.verifiers[0], &stage.lib).await;
    stage.is_held("rebuild-mismatch").await;
    jobs_become(&stage.forge, &stage.lib, &["done", "open", "open", "open"]).await;
    let waits = &stage.push.of(stage.lib.path()).waits_for;
    assert!(waits.iter().any(|w| w.contains("`v0`")), "{waits:?}");
    // the second build is the same verifier's
    let second = stage.forge.rebuild(&stage.verifiers[0], &stage.lib).await;
    stage.forge.assert_no_job(&stage.verifiers[0]).await;
    stage.forge.rebuild(&stage.verifiers[1], &stage.lib).await;
    stage.is_held("rebuild-mismatch").await;
    assert!(events(&stage.forge, "rebuild-mismatch").await.is_empty(), "not confirmed yet");
    stage.forge.rebuild(&stage.verifiers[2], &stage.lib).await;
    stage.is_held("key-held").await;
    assert_eq!(events(&stage.forge, "rebuild-mismatch").await.len(), 1);
    stage.forge.assert_no_job(&v3).await;
    assert!(!second.job.is_empty());
}

#[tokio::test]
async fn a_confirmed_mismatch_rejects() {
    let mut stage = Stage::set(&rebuilt("1", "on-mismatch = \"reject\"\n")).await;
    stage.confirm().await;
    let (forge, lib) = (&stage.forge, &stage.lib);
    forge.becomes(&mut stage.push, lib.path(), PathState::Rejected, Some("rebuild-mismatch")).await;
    forge.assert_nothing_public(&stage.before).await;
    for _ in 0..100 {
        if !events(forge, "rebuild-mismatch").await.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    assert_eq!(events(forge, "rebuild-mismatch").await.len(), 1);
    assert!(!stage.mallory_is().await.frozen);
    // the key is good for what is right
    let push = forge.push(&forge.draft(&stage.mallory).package(lib)).await;
    push.assert_published(lib.path());
}

/// Of that key everything that isn't published, until an admin lets it go; another key of the same person isn't held.
#[tokio::test]
async fn a_confirmed_mismatch_holds_the_key() {
    let mut stage = Stage::set(&rebuilt("1", "on-mismatch = \"hold-key\"\n")).await;
    let bystander = Item::source("source", &random_hex());
    stage.confirm().await;
    stage.is_held("key-held").await;
    let (forge, lib) = (&stage.forge, &stage.lib);
    assert_eq!(events(forge, "rebuild-mismatch").await.len(), 1);
    let mut held = forge.push(&forge.draft(&stage.mallory).item(&bystander)).await;
    held.assert_held(&bystander.path, "key-held");
    let second = forge.submitter_by(Forge::invitation("mallory")).await;
    let free = Item::source("source", &random_hex());
    forge.push(&forge.draft(&second).item(&free)).await.assert_published(&free.path);
    let ada = forge.admin("ada").await;
    forge.act(&ada, Deed::Unfreeze { name: "mallory".into() }).await.expect("let go");
    forge.becomes(&mut held, &bystander.path, PathState::Published, None).await;
    // the claim itself is what it was, and nothing follows from it a second time
    stays(forge, &mut stage.push, lib.path(), PathState::Held, Some("rebuild-mismatch")).await;
    pushgate_gateway::push::recover::judge_open(&forge.app).await.unwrap();
    stays(forge, &mut stage.push, lib.path(), PathState::Held, Some("rebuild-mismatch")).await;
    assert_eq!(events(forge, "rebuild-mismatch").await.len(), 1);
    forge.assert_published_only(&stage.before, &[&free.path, &bystander.path]).await;
}

#[tokio::test]
async fn a_confirmed_mismatch_freezes() {
    let mut stage = Stage::set(&rebuilt("1", "on-mismatch = \"freeze\"\n")).await;
    stage.confirm().await;
    for _ in 0..100 {
        if stage.mallory_is().await.frozen {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    assert!(stage.mallory_is().await.frozen);
    assert_eq!(events(&stage.forge, "rebuild-mismatch").await.len(), 1);
    let forge = &stage.forge;
    forge.announce(&forge.draft(&stage.mallory).package(&package("other"))).await.expect_err("it is frozen");
    stage.push.status = forge.status(&stage.push.announced, "").await.unwrap();
    assert_eq!(stage.push.of(stage.lib.path()).state, PathState::Held);
    forge.assert_nothing_public(&stage.before).await;
}

/// It isn't asked forever, and that it fails keeps nobody else from confirming.
#[tokio::test]
async fn a_second_build_that_fails_is_not_asked_forever() {
    let mut stage = Stage::set(&rebuilt("1", "")).await;
    stage.forge.rebuild(&stage.verifiers[0], &stage.lib).await;
    for _ in 0..3 {
        let job = stage.forge.lease(&stage.verifiers[0]).await;
        stage.forge.fail(&job, "build-failed", false).await.expect("it is taken");
    }
    stage.forge.assert_no_job(&stage.verifiers[0]).await;
    for n in [1, 2] {
        stage.forge.rebuild(&stage.verifiers[n], &stage.lib).await;
    }
    // of those who got something else, another built a second time
    stage.is_held("rebuild-mismatch").await;
    stage.forge.rebuild(&stage.verifiers[1], &stage.lib).await;
    stage.is_held("key-held").await;
    assert_eq!(rows(&stage.forge, stage.lib.path()).await.len(), 4);
}

#[tokio::test]
async fn where_others_get_what_was_claimed_nobody_knows() {
    let mut stage = Stage::set(&rebuilt("1", "")).await;
    for n in [0, 0] {
        stage.forge.rebuild(&stage.verifiers[n], &stage.lib).await;
    }
    for n in [1, 2] {
        stage.forge.rebuild_with(&stage.verifiers[n], &stage.lib, &stage.evil).await;
    }
    stage.is_held("rebuild-inconclusive").await;
    assert!(events(&stage.forge, "rebuild-mismatch").await.is_empty());
    assert!(!stage.mallory_is().await.frozen);
}

/// The verifier differs from itself: not reproducible, and a person may say that it goes without.
#[tokio::test]
async fn what_is_not_reproducible_can_be_waived() {
    let mut stage = Stage::set(&rebuilt("1", "")).await;
    stage.forge.rebuild(&stage.verifiers[0], &stage.lib).await;
    stage.forge.rebuild_with(&stage.verifiers[0], &stage.lib, &other(&stage.lib, "third")).await;
    stage.is_held("rebuild-inconclusive").await;
    let (path, nar_hash) = (stage.lib.path().clone(), stage.evil.nar_hash);
    let waiver = Deed::Waive { cache: "main".into(), path, nar_hash, until: None, waives: "rebuilds".into() };
    // of an admin who is the claimant's: worth nothing
    let own = pushgate_gateway::identities::Invite {
        role: pushgate_gateway::db::Role::Admin,
        owner: Some("mallory".into()),
        ..Forge::invitation("mallory-admin")
    };
    let own = stage.forge.submitter_by(own).await;
    let _ = stage.forge.act(&own, waiver.clone()).await;
    stage.is_held("rebuild-inconclusive").await;
    let ada = stage.forge.admin("ada").await;
    stage.forge.act(&ada, waiver).await.expect("a waiver");
    stage.forge.becomes(&mut stage.push, stage.lib.path(), PathState::Published, None).await;
    stage.forge.assert_published_only(&stage.before, &[stage.lib.path()]).await;
}

/// Waived until a moment that has passed when something else is there at last.
#[tokio::test]
async fn a_waiver_that_has_run_out_waives_nothing() {
    let policy =
        rebuilt("1", "").replace("{ rebuilds = 1 }", "{ rebuilds = 1 }, { approvals = 1, from = \"core\" }");
    let policy = policy.replacen("[[rule]]", "[groups]\ncore = [\"bob\"]\n[[rule]]", 1);
    let forge = start(&policy).await;
    let (alice, bob, ada) =
        (forge.submitter("alice").await, forge.submitter("bob").await, forge.admin("ada").await);
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = forge.push(&forge.draft(&alice).package(&lib)).await;
    let (path, nar_hash) = (lib.path().clone(), lib.out().nar_hash);
    let (until, waives) = (Some(forge.clock.now() + 100), "rebuilds".to_owned());
    let (cache, at) = ("main".to_owned(), path.clone());
    let waive = Deed::Waive { cache: cache.clone(), path: at.clone(), nar_hash, until, waives };
    forge.act(&ada, waive).await.expect("a waiver");
    forge.becomes(&mut push, &path, PathState::Held, Some("needs-approval")).await;
    forge.clock.advance(101);
    forge.act(&bob, Deed::Approve { cache, path: at, nar_hash, until: None }).await.expect("an approval");
    stays(&forge, &mut push, &path, PathState::Held, Some("needs-rebuild")).await;
    forge.assert_nothing_public(&before).await;
    let victor = forge.verifier("victor", Some("victor")).await;
    forge.rebuild(&victor, &lib).await;
    forge.becomes(&mut push, &path, PathState::Published, None).await;
}

/// The second build of the same verifier is enough. (Another is asked all the same, as the rule still lacks a match; nobody
/// waits for it.)
#[tokio::test]
async fn a_mismatch_that_nobody_else_has_to_confirm() {
    let policy = format!("{}[rebuilds]\nconfirm = 0\n", rebuilt("1", "on-mismatch = \"reject\"\n"));
    let mut stage = Stage::set(&policy).await;
    stage.forge.rebuild(&stage.verifiers[0], &stage.lib).await;
    stage.is_held("rebuild-mismatch").await;
    stage.forge.rebuild(&stage.verifiers[0], &stage.lib).await;
    let (forge, lib) = (&stage.forge, &stage.lib);
    forge.becomes(&mut stage.push, lib.path(), PathState::Rejected, Some("rebuild-mismatch")).await;
    forge.assert_nothing_public(&stage.before).await;
}

#[tokio::test]
async fn the_report_names_the_file_that_differs() {
    let stage = Stage::set(&rebuilt("1", "")).await;
    let Stage { forge, lib, evil, verifiers, mallory, .. } = &stage;
    let bob = forge.submitter("bob").await;
    let ada = forge.admin("ada").await;
    let job = forge.lease(&verifiers[0]).await;
    let taken = forge.build(&verifiers[0], &job, &lib.outputs).await;
    assert_eq!(taken.wanted, [lib.out().nar_hash]);
    // not what was attested, and not under another name
    refused(forge.send_built(&job, &lib.out().nar_hash, &evil.nar).await, 422, "nar-hash-mismatch");
    refused(forge.send_built(&job, &evil.nar_hash, &evil.nar).await, 404, "not-found");
    let address = format!("/api/v1/caches/main/paths/{}/differences", lib.path().base_name());
    let ask = async |by: &Submitter| -> Result<Differences, Refused> {
        forge.signed_get(by, &address, |_| {}).await
    };
    assert!(ask(&ada).await.unwrap().differences.is_empty());
    forge.send_built(&job, &lib.out().nar_hash, &lib.out().nar).await.expect("it is taken");
    forge.send_built(&job, &lib.out().nar_hash, &lib.out().nar).await.expect("twice is once");
    for by in [&ada, mallory] {
        let found = ask(by).await.unwrap().differences;
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].claimed, found[0].rebuilt), (evil.nar_hash, lib.out().nar_hash));
        assert_eq!(found[0].verifiers, ["v0"]);
        let report = found[0].report.as_ref().expect("a report");
        let files: Vec<&str> = report.files.iter().map(|file| file.path.as_str()).collect();
        assert!(!report.identical && files.iter().any(|f| f.ends_with("file")), "{files:?}");
    }
    // whoever claimed nothing there learns nothing
    refused(ask(&bob).await, 404, "not-found");
    // nor does he who claimed something else
    let third = other(lib, "third");
    let push = forge.push(&forge.draft(&bob).item(&third).derivations(lib)).await;
    assert_eq!(push.of(lib.path()).state, PathState::Held);
    assert!(ask(&bob).await.unwrap().differences.iter().all(|d| d.claimed == third.nar_hash));
    forge.assert_nothing_public(&stage.before).await;
}
