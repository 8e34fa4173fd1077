//! Room: quotas, the whole quarantine, the disk, memory.

use super::*;

/// Whole NARs of pushes that are never finished: they fill the submitter's own quota, nobody else's, and go with time.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_never_end_fill_one_quota_and_are_swept() {
    let policy = format!("{POLICY}[limits]\nquarantine-size = \"256 KiB\"\n");
    let forge = Forge::start_with(&policy, Config::default()).await;
    let (mallory, alice) = (forge.submitter("mallory").await, forge.submitter("alice").await);
    // held for want of a derivation: they wait
    let held = |n: usize| Package::new(&format!("held-{n}")).contents(&random_hex().repeat(3000)).build();
    let (mut kept, mut refused) = (0, 0);
    for n in 0..8 {
        let package = held(n);
        let push = forge.announce(&forge.draft(&mallory).item(package.out())).await.unwrap();
        let body = framed(&package.out().nar_hash, &package.out().nar, false);
        let uploaded = forge.upload(&push.status.push, &push.token, body).await.unwrap();
        match uploaded.nars[0].error.as_ref().map(|e| e.code.as_str()) {
            None => kept += 1,
            Some("quota-exceeded") => refused += 1,
            Some(other) => panic!("{other}"),
        }
    }
    assert!(kept >= 2 && refused >= 3, "{kept} {refused}");
    assert!(!forge.snapshot().await.packs.is_empty());
    for _ in 0..3 {
        published(&forge, &forge.draft(&alice).item(&noise(60 << 10))).await;
    }
    forge.clock.advance(pushgate_tests::forge::QUARANTINE_TTL + 1);
    assert!(forge.snapshot().await.packs.is_empty());
    published(&forge, &forge.draft(&mallory).item(&noise(60 << 10))).await;
}

/// While uploads overlap the count is never taken anew: it has to follow what is swept.
#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_free_again_while_other_uploads_go_on() {
    let policy = format!("{POLICY}[limits]\nquarantine-size = \"128 KiB\"\n");
    let forge = Forge::start_with(&policy, Config::default()).await;
    let alice = forge.submitter("alice").await;
    let other = forge.announce(&forge.draft(&alice).item(&source())).await.unwrap();
    let _under_way = begun(&forge, &other, b"x").await;
    uploads(&forge, 1).await;
    for n in 0..6 {
        let item = noise(50 << 10);
        let pushed = forge.push(&forge.draft(&alice).item(&item)).await;
        assert_eq!(pushed.of(&item.path).state, PathState::Published, "{n}");
        forge.sweep().await;
    }
    // and of the gateway's count nothing is left
    assert_eq!(forge.app.db.quarantine_total().await.unwrap(), 0);
    let (_, budget) = forge.app.submitter(1, &quarantine(1)).await.unwrap();
    assert_eq!((budget.own.load(Relaxed), budget.all.load(Relaxed)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_full() {
    let forge = forge(|config| config.limits.quarantine = 128 << 10).await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let filling = Package::new("held").contents(&random_hex().repeat(3000)).build();
    let mut plain = forge.draft(&alice).item(filling.out());
    plain.zstd = false;
    let filled = forge.push(&plain).await;
    filled.assert_held(filling.path(), "needs-derivation");
    let before = forge.snapshot().await;
    let item = noise(60 << 10);
    let draft = forge.draft(&bob).item(&item);
    let push = forge.announce(&draft).await.unwrap();
    let body = framed(&item.nar_hash, &item.nar, false);
    let uploaded = forge.upload(&push.status.push, &push.token, body.clone()).await.unwrap();
    let error = uploaded.nars[0].error.clone().unwrap();
    assert_eq!(error.code, "gateway-full");
    // it isn't his fault: the path stays wanted
    assert_eq!(forge.status(&push, "").await.unwrap().paths[0].state, PathState::Wanted);
    forge.assert_unchanged(&before).await;
    // what is small finds its place
    published(&forge, &forge.draft(&bob).item(&source())).await;
    let texts = Draft { nars: Default::default(), ..forge.draft(&alice).package(&filling) };
    let announced = forge.announce(&texts).await.unwrap();
    forge.complete(&texts, announced).await.assert_published(filling.path());
    forge.sweep().await;
    forge.complete(&draft, push).await.assert_published(&item.path);
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_full() {
    // more than any disk has
    let forge = forge(|config| config.limits.free_space = u64::MAX).await;
    let alice = forge.submitter("alice").await;
    let item = source();
    let draft = forge.draft(&alice).item(&item);
    let before = forge.snapshot().await;
    let refused = forge.announce(&draft).await.unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (507, "disk-full"), "{refused:?}");
    let url = format!("{}/api/v1/caches/main/pushes", forge.url);
    let answer = forge.http.post(url).body(draft.sealed()).send().await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "60");
    assert_eq!(forge.app.db.open_of(1).await.unwrap().pushes, 0);
    // it stays healthy, and what is public is read
    let health = forge.http.get(format!("{}/healthz", forge.url)).send().await.unwrap();
    assert_eq!(health.status().as_u16(), 200);
    assert!(forge.public("nix-cache-info").await.is_some());
    forge.assert_unchanged(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_busy() {
    let forge = forge(|_| {}).await;
    let alice = forge.submitter("alice").await;
    let package = Package::new("tool").build();
    let draft = forge.draft(&alice).package(&package);
    let push = forge.announce(&draft).await.unwrap();
    let before = forge.snapshot().await;
    // as if others had it all
    let all = forge.app.memory.take(forge.app.memory.all() / 64 * 63).unwrap();
    let mut rest = vec![];
    while let Some(more) = forge.app.memory.take(1) {
        rest.push(more);
    }
    let busy = |refused: pushgate_tests::forge::Refused| {
        assert_eq!((refused.status, refused.code.as_str()), (503, "gateway-busy"), "{refused:?}");
    };
    busy(forge.announce(&forge.draft(&alice).item(&source())).await.unwrap_err());
    busy(forge.send_derivations(&push.status.push, &push.token, &draft.texts).await.unwrap_err());
    let body = framed(&package.out().nar_hash, &package.out().nar, true);
    busy(forge.upload(&push.status.push, &push.token, body).await.unwrap_err());
    forge.assert_unchanged(&before).await;
    assert_eq!(forge.app.uploads.taken(), 0);
    drop((all, rest));
    forge.complete(&draft, push).await.assert_published(package.path());
}

/// Memory that runs out in the midst of an upload: what came before is kept, and nothing else is counted or stays.
#[tokio::test(flavor = "multi_thread")]
async fn memory_that_runs_out_in_an_upload() {
    let forge = forge(|_| {}).await;
    let alice = forge.submitter("alice").await;
    let items: Vec<Item> = std::iter::repeat_with(source).take(12).collect();
    let draft = items.iter().fold(forge.draft(&alice), |draft, item| draft.item(item));
    let push = forge.announce(&draft).await.unwrap();
    let key = forge.app.db.key_named(alice.key.name()).await.unwrap().unwrap();
    let (_, budget) = forge.app.submitter(key.identity, &quarantine(u64::MAX)).await.unwrap();
    assert_eq!(budget.all.load(Relaxed), 0);
    let all = forge.app.memory.take(forge.app.memory.all() / 64 * 63).unwrap();
    let mut rest = vec![];
    while let Some(more) = forge.app.memory.take(1) {
        rest.push(more);
    }
    // for what was found in some of the NARs, not in all
    rest.truncate(rest.len() - 6);
    let body = items.iter().flat_map(|item| framed(&item.nar_hash, &item.nar, false)).collect();
    let refused = forge.upload(&push.status.push, &push.token, body).await.unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (503, "gateway-busy"), "{refused:?}");
    drop((all, rest));
    let status = forge.status(&push, "").await.unwrap();
    let left = status.wanted.len();
    assert!(0 < left && left < items.len(), "{left} are wanted still");
    let pushed = forge.complete(&draft, Announced { status, token: push.token }).await;
    items.iter().for_each(|item| pushed.assert_published(&item.path));
    assert!(forge.snapshot().await.packs.is_empty());
    assert_eq!(budget.all.load(Relaxed), 0);
}

/// Pushes that wait take their memory from what is shared; those that are only remembered give it back.
#[tokio::test(flavor = "multi_thread")]
async fn pushes_in_memory_give_way() {
    let forge = forge(|config| config.limits.memory = 576 << 20).await;
    let alice = forge.submitter("alice").await;
    let mut pushes = Vec::new();
    for _ in 0..20 {
        let mut draft = forge.draft(&alice);
        for n in 0..2000 {
            let item = Item { nar_hash: pushgate_formats::Sha256([n as u8; 32]), ..source() };
            draft = draft.item(&item);
        }
        pushes.push(forge.announce(&draft).await.expect("there is memory for it"));
    }
    for push in &pushes {
        let status = forge.status(push, "").await.expect("there is memory for it");
        assert_eq!(status.paths.len(), 2000);
    }
    published(&forge, &forge.draft(&alice).item(&source())).await;
}
