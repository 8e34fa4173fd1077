//! What a reference check rests on: nothing may be taken for unmentioned because nobody knew to look for it, and nothing a
//! submitter claims without its being published may explain anything.

use pushgate_formats::{Sha256, StorePath, api::PathState, derivation::Derivation};
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

/// Large NARs lie in packs of their own, and aren't read again before they are published if nobody wrote to them since they
/// were examined. Here somebody did, to one of two: that one is asked for again, the other is published.
#[tokio::test]
async fn a_large_nar_that_was_changed_in_quarantine_is_not_published() {
    let forge = Forge::start().await;
    let alice = forge.submitter("alice").await;
    let text = |name: &str| {
        let line = |n: u32| Sha256::of(format!("{name} {n}").as_bytes()).base32();
        (0..40_000).map(line).collect::<String>()
    };
    let package = |name: &str| Package::new(name).contents(&text(name)).build();
    let (first, second, small) = (package("first"), package("second"), Package::new("small").build());
    let before = forge.snapshot().await;
    // held for want of their derivations
    let draft = (forge.draft(&alice).package(&first).package(&second).package(&small)).without_texts();
    let announced = forge.announce(&draft).await.unwrap();
    let pushed = forge.complete(&draft, announced.clone()).await;
    [&first, &second, &small].iter().for_each(|p| pushed.assert_held(p.path(), "needs-derivation"));
    let packs: Vec<_> = std::fs::read_dir(forge.dir().join("blobs/quarantine/packs"))
        .unwrap()
        .map(|pack| pack.unwrap().path())
        .filter(|pack| pack.metadata().unwrap().len() > 1 << 20)
        .collect();
    assert_eq!(packs.len(), 2, "{packs:?}");
    let modified = packs[0].metadata().unwrap().modified().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&packs[0]).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 1 << 20).unwrap();
    file.set_modified(modified).unwrap();

    let texts = [(&first.drv, &first.text), (&second.drv, &second.text), (&small.drv, &small.text)];
    forge.send_derivations(&announced.status.push, &announced.token, texts).await.unwrap();
    let status = forge.status(&announced, "?wait=5").await.unwrap();
    let state = |path: &StorePath| status.paths.iter().find(|p| p.path == *path).unwrap();
    let (bad, good): (Vec<_>, Vec<_>) =
        [&first, &second].into_iter().partition(|p| state(p.path()).state == PathState::Wanted);
    assert_eq!((bad.len(), good.len()), (1, 1), "{:?}", status.paths);
    assert_eq!(state(bad[0].path()).code.as_deref(), Some("quarantine-damaged"));
    forge.assert_published_only(&before, &[good[0].path(), small.path()]).await;
    // what is sent again is published
    forge.complete(&draft, forge.announce(&draft).await.unwrap()).await.assert_published(bad[0].path());
}
