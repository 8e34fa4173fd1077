//! What a reference check rests on: nothing may be taken for unmentioned because nobody knew to look for it, and nothing a
//! submitter claims without its being published may explain anything.

use pushgate_formats::{api::PathState, derivation::Derivation};
use pushgate_tests::forge::{Forge, Item, Package};

use super::{published, source};

/// The derivations were sent with an earlier push; this one names none. What the inputs are is known all the same.
#[tokio::test]
async fn reference_undeclared_where_this_push_announces_no_derivations() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let dep = Package::new("dep").build();
    let app = Package::new("app").input(&dep).outputs(&["dev", "out"]).build();
    published(&forge, &forge.draft(&alice).package(&dep)).await;
    published(&forge, &forge.draft(&alice).item(&app.outputs["dev"]).derivations(&app)).await;
    let good = app.out_mentioning("app", &[dep.path()]);
    let mut bad = good.clone();
    bad.references.clear();
    let before = forge.snapshot().await;
    let pushed = forge.push(&forge.draft(&alice).item(&bad)).await;
    pushed.assert_rejected(&bad.path, "reference-undeclared");
    forge.assert_unchanged(&before).await;
    published(&forge, &forge.draft(&alice).item(&good)).await;
}

/// The derivation itself is sent, one of its inputs is only announced: what it yields could be mentioned, so nothing is
/// decided.
#[tokio::test]
async fn needs_every_input_of_the_derivation_to_judge_references() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let dep = Package::new("dep").build();
    let app = Package::new("app").input(&dep).outputs(&["dev", "out"]).build();
    // so that the gateway has the derivation's facts
    published(&forge, &forge.draft(&bob).package(&dep).item(&app.outputs["dev"]).derivations(&app)).await;
    let mut bad = app.out_mentioning("app", &[dep.path()]);
    bad.references.clear();
    let before = forge.snapshot().await;
    let draft = forge.draft(&alice).item(&bad).derivations(&app).without_texts();
    let announced = forge.announce(&draft).await.unwrap();
    let (text, path) = (&app.text, &app.drv);
    assert!(Derivation::parse(text).unwrap().input_drvs.contains_key(&dep.drv));
    forge.send_derivations(&announced.status.push, &announced.token, [(path, text)]).await.unwrap();
    let pushed = forge.complete(&draft, announced).await;
    let status = pushed.of(&bad.path);
    assert_eq!(status.state, PathState::Held, "{status:?}");
    forge.assert_nothing_public(&before).await;
}

/// Two paths with made-up bytes refer to each other, so that neither is ever published; one of them is an input. They
/// must not make the inputs' closure look known.
#[tokio::test]
async fn unpublished_claims_of_the_same_push_explain_nothing() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let deep = Package::new("deep").build();
    let dep = Package::new("dep").input(&deep).outputs(&["dev", "out"]).build();
    let app = Package::new("app").input(&dep).build();
    let mentioning = |item: &Item, other: &Item| {
        let mut fake =
            item.with_nar(pushgate_tests::forge::file_nar(other.path.absolute().as_bytes(), false));
        fake.references = [other.path.clone()].into();
        fake
    };
    let (out, dev) = (&dep.outputs["out"], &dep.outputs["dev"]);
    let (fake_out, fake_dev) = (mentioning(out, dev), mentioning(dev, out));
    let mut bad = app.out_mentioning("app", &[deep.path()]);
    bad.references.clear();
    let before = forge.snapshot().await;
    let draft = forge.draft(&alice).item(&fake_out).item(&fake_dev).item(&bad).derivations(&app);
    let pushed = forge.push(&draft).await;
    pushed.assert_held(&fake_out.path, "closure-open");
    pushed.assert_held(&bad.path, "references-unknown");
    forge.assert_nothing_public(&before).await;
}

/// One push whose bytes were lost in the gateway's store holds up no other.
#[tokio::test]
async fn a_push_that_cannot_be_judged_holds_up_no_other() {
    let forge = Forge::start().await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let dep = Package::new("dep").build();
    let held = Package::new("held").input(&dep).build();
    // held for want of its derivation, which comes when its bytes are gone
    let draft = forge.draft(&bob).item(held.out()).derivations(&held).without_texts();
    let announced = forge.announce(&draft).await.unwrap();
    let pushed = forge.complete(&draft, announced.clone()).await;
    pushed.assert_held(held.path(), "needs-derivation");
    for pack in std::fs::read_dir(forge.dir().join("blobs/quarantine/packs")).unwrap() {
        std::fs::remove_file(pack.unwrap().path()).unwrap();
    }
    let texts = [(&dep.drv, &dep.text), (&held.drv, &held.text)];
    forge.send_derivations(&announced.status.push, &announced.token, texts).await.unwrap();
    published(&forge, &forge.draft(&alice).item(&source())).await;
    let status = forge.status(&announced, "?wait=5").await.unwrap();
    assert_eq!(status.paths[0].state, PathState::Wanted, "{:?}", status.paths);
    assert_eq!(status.paths[0].code.as_deref(), Some("quarantine-damaged"));
}
