//! What a changed policy does to what is held.

use pushgate_formats::api::PathState;

use super::*;

fn denied() -> String {
    format!(
        "{HEAD}[[rule]]\nname = \"no lib\"\nmatch = {{ pname = \"lib\" }}\ndeny = \"we have another\"\n{REST}"
    )
}

#[tokio::test]
async fn a_policy_edited_to_forbid_it_rejects_what_is_held() {
    let forge = start(&looked_at()).await;
    let (alice, bob, admin) =
        (forge.submitter("alice").await, forge.submitter("bob").await, forge.admin("ada").await);
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = forge.push(&forge.draft(&alice).package(&lib)).await;
    push.assert_held(lib.path(), "needs-approval");
    let old = forge.app.caches.all()[0].policy().digest;

    // a broken edit changes nothing, and is told
    assert!(!edit(&forge, &denied().replace("deny", "denie")).await);
    let problem = forge.app.caches.all()[0].policy_problem().unwrap();
    assert!(problem.contains("12:1: unknown field `denie`"), "{problem}");
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-approval")).await;

    assert!(edit(&forge, &denied()).await);
    forge.becomes(&mut push, lib.path(), PathState::Rejected, Some("not-permitted")).await;
    // nobody is asked for approvals any more
    refused(forge.act(&bob, approve(&lib, None)).await, 403, "forbidden");
    forge.assert_nothing_public(&before).await;
    let made = decisions(&forge, &admin).await.decisions;
    let by: Vec<_> = made.iter().map(|d| (d.policy == old, d.outcome.decision.as_ref())).collect();
    assert_eq!(by, [(true, "hold"), (false, "reject")]);
}

/// Without a push in memory: from what was stored with the decisions.
#[tokio::test]
async fn held_claims_are_judged_again_after_a_restart_and_an_edit() {
    let mut forge = start(&looked_at()).await;
    let (alice, admin) = (forge.submitter("alice").await, forge.admin("ada").await);
    let libs: Vec<_> = (0..40).map(|_| package("lib")).collect();
    let before = forge.snapshot().await;
    let mut pushes = vec![];
    for lib in &libs {
        pushes.push(forge.push(&forge.draft(&alice).package(lib)).await);
    }
    forge = forge.restart().await;
    // what the start reported is judged
    for (push, lib) in pushes.iter_mut().zip(&libs) {
        forge.becomes(push, lib.path(), PathState::Held, Some("needs-approval")).await;
    }
    for push in &pushes {
        forge.app.sessions.forget(&push.announced.status.push);
    }
    // one may have been judged twice, where its derivation came in the middle
    let made = decisions(&forge, &admin).await.decisions;
    let about: std::collections::BTreeSet<_> = made.iter().map(|d| d.facts.path.clone()).collect();
    assert_eq!(about.len(), libs.len());
    // and then with the same result
    assert!(made.iter().all(|d| d.outcome.code.as_deref() == Some("needs-approval")), "{made:?}");
    assert!(made.len() <= libs.len() + 1, "{} decisions", made.len());
    // other words for the same: nothing is asked of anybody
    let two = looked_at().replace("approvals = 1", "approvals = 2");
    assert!(edit(&forge, &two).await);
    for (push, lib) in pushes.iter_mut().zip(&libs) {
        for _ in 0..100 {
            push.status = forge.status(&push.announced, "").await.unwrap();
            if push.of(lib.path()).waits_for == ["2 approvals from `core` (0 of 2)"] {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(push.of(lib.path()).waits_for, ["2 approvals from `core` (0 of 2)"]);
        forge.app.sessions.forget(&push.announced.status.push);
    }
    forge.assert_nothing_public(&before).await;
    // a laxer one publishes them all
    assert!(edit(&forge, &format!("{HEAD}{REST}")).await);
    for (push, lib) in pushes.iter_mut().zip(&libs) {
        forge.becomes(push, lib.path(), PathState::Published, None).await;
    }
}

#[tokio::test]
async fn what_is_published_stays_whatever_the_policy_becomes() {
    let forge = start(&format!("{HEAD}{REST}")).await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    let mut push = forge.push(&forge.draft(&alice).package(&lib)).await;
    push.assert_published(lib.path());
    assert!(edit(&forge, &denied()).await);
    stays(&forge, &mut push, lib.path(), PathState::Published, None).await;
    assert!(forge.narinfo(lib.path()).await.is_some());
}

/// All of the directory or nothing: one broken file keeps the other from coming into force.
#[tokio::test]
async fn a_directory_is_taken_up_as_a_whole() {
    let forge = start(&format!("{HEAD}{REST}")).await;
    forge.add_cache("second").await;
    forge.app.caches.refresh(forge.app.db.as_ref()).await.unwrap();
    let of = |name: &str| forge.app.caches.all().into_iter().find(|c| c.name == name).unwrap();
    let (main, second) = (of("main"), of("second"));
    let before = (main.policy().digest, second.policy().digest);
    std::fs::write(forge.dir().join("policies/second.toml"), "version = 1\n").unwrap();
    assert!(!edit(&forge, &looked_at()).await);
    assert_eq!((main.policy().digest, second.policy().digest), before);
    assert!(main.policy_problem().unwrap().contains("`second`"));
    assert!(second.policy_problem().is_some());
    let text = format!("{HEAD}{REST}").replace("\"main\"", "\"second\"");
    std::fs::write(forge.dir().join("policies/second.toml"), text).unwrap();
    assert!(edit(&forge, &looked_at()).await);
    assert_eq!((main.policy_problem(), second.policy_problem()), (None, None));
    assert!(main.policy().digest != before.0 && second.policy().digest != before.1);
}

/// Nobody tells the gateway: it looks.
#[tokio::test]
async fn an_edit_is_noticed() {
    let forge = start(&looked_at()).await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    let mut push = forge.push(&forge.draft(&alice).package(&lib)).await;
    push.assert_held(lib.path(), "needs-approval");
    std::fs::write(forge.dir().join("policies/main.toml"), denied()).unwrap();
    forge.becomes(&mut push, lib.path(), PathState::Rejected, Some("not-permitted")).await;
}

#[tokio::test]
async fn a_hold_ends_when_its_rule_says() {
    let text = rule("lib", r#"{ approvals = 1, from = "core" }"#);
    let forge = start(&format!("{HEAD}{}hold = \"2h\"\n{REST}", text)).await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = forge.push(&forge.draft(&alice).package(&lib)).await;
    push.assert_held(lib.path(), "needs-approval");
    forge.clock.advance(7100);
    pushgate_gateway::push::recover::judge_due(&forge.app).await.unwrap();
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-approval")).await;
    forge.clock.advance(200);
    pushgate_gateway::push::recover::judge_due(&forge.app).await.unwrap();
    forge.becomes(&mut push, lib.path(), PathState::Rejected, Some("hold-expired")).await;
    refused(forge.act(&bob, approve(&lib, None)).await, 404, "claim-unknown");
    forge.assert_unchanged(&before).await;
}

/// Groups that were given on the gateway's host before the policy that asks for them: nothing is refused by the old ones.
#[tokio::test]
async fn a_changed_policy_looks_at_who_the_submitter_is_now() {
    let forge = start(&looked_at()).await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    let mut push = forge.push(&forge.draft(&alice).package(&lib)).await;
    push.assert_held(lib.path(), "needs-approval");
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    forge.app.sessions.forget(&push.announced.status.push);
    // as another process does it
    let change =
        pushgate_gateway::db::Change::Groups { name: "alice".into(), groups: vec!["trusted".into()] };
    let event = pushgate_gateway::db::NewEvent::new(forge.clock.now(), "gateway host", "groups");
    forge.app.db.act(&event, None, &change).await.unwrap();
    let trusted = "[[rule]]\nname = \"trusted\"\nmatch = { group = \"trusted\" }\nrequire = \"derivation\"\n";
    let head = HEAD.replace("[groups]\n", "[groups]\ntrusted = \"enrolled\"\n");
    assert!(edit(&forge, &format!("{head}{trusted}")).await);
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
}

/// What isn't a file is refused like what can't be read, and neither waited for nor read without end.
#[tokio::test]
async fn a_policy_that_is_no_file_is_refused() {
    let forge = start(&looked_at()).await;
    let file = forge.dir().join("policies/main.toml");
    let before = forge.app.caches.all()[0].policy().digest;
    std::fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    let reload = forge.app.caches.reload_policies(forge.app.db.as_ref());
    let reloaded = tokio::time::timeout(std::time::Duration::from_secs(5), reload).await;
    if reloaded.is_err() {
        // lets go of the one who waits, or the test would never end
        let _ = std::fs::OpenOptions::new().write(true).open(&file);
    }
    assert!(!reloaded.expect("a reload that ends").unwrap());
    let problem = forge.app.caches.all()[0].policy_problem().unwrap();
    assert!(problem.ends_with("main.toml: not a regular file"), "{problem}");
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
    assert!(!forge.app.caches.reload_policies(forge.app.db.as_ref()).await.unwrap());
    let problem = forge.app.caches.all()[0].policy_problem().unwrap();
    assert!(problem.ends_with("main.toml: not a regular file"), "{problem}");
    assert_eq!(forge.app.caches.all()[0].policy().digest, before);
    // a link to a file is one
    std::fs::remove_file(&file).unwrap();
    std::fs::write(forge.dir().join("elsewhere.toml"), denied()).unwrap();
    std::os::unix::fs::symlink(forge.dir().join("elsewhere.toml"), &file).unwrap();
    assert!(forge.app.caches.reload_policies(forge.app.db.as_ref()).await.unwrap());
}

/// A rule that waits for a verifier where none is enrolled is taken, and told of: in the log, and by the check that asks the
/// gateway.
#[test]
fn what_nobody_enrolled_could_meet_is_told() {
    let gateway = pushgate_tests::process::Gateway::start();
    let admin = gateway.enrol("ada", &["--role", "admin"]);
    let text = format!("{HEAD}{}", rule("lib", "{ rebuilds = 1 }"));
    let file = gateway.data().join("new.toml");
    std::fs::write(&file, &text).unwrap();
    let file = file.to_str().unwrap();
    let offline = admin.run(&["policy", "check", file]).ended_with(0).out;
    assert!(!offline.contains("verifier"), "{offline}");
    let asked = admin.run(&["policy", "check", "--enrolled", file]).ended_with(0).out;
    assert!(asked.contains("warning") && asked.contains("verifier"), "{asked}");
    assert!(asked.contains(": ok, for the cache main"), "{asked}");
    assert!(!gateway.log().contains("verifier"), "{}", gateway.log());
    std::fs::write(gateway.data().join("policies/main.toml"), &text).unwrap();
    let told = || gateway.log().contains("verifier").then_some(());
    pushgate_tests::process::wait_for("the gateway to warn of it", told);
}
