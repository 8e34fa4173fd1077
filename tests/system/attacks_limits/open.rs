//! What a submitter may have open, and turns between owners.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn too_many_paths() {
    let forge = forge(|config| config.limits.paths = 3).await;
    let alice = forge.submitter("alice").await;
    let draft = |n: usize| (0..n).fold(forge.draft(&alice), |draft, _| draft.item(&source()));
    let before = forge.snapshot().await;
    let refused = forge.announce(&draft(4)).await.unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (413, "announcement-too-large"), "{refused:?}");
    assert!(refused.message.contains("4 paths; 3 are allowed"), "{refused:?}");
    forge.assert_unchanged(&before).await;
    // clients are told beforehand
    let told = forge.http.get(format!("{}/api/v1/gateway", forge.url)).send().await.unwrap();
    let told: pushgate_formats::api::GatewayInfo = told.json().await.unwrap();
    assert_eq!(told.max_paths, Some(3));
    published(&forge, &draft(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_open_pushes() {
    let forge = forge(|config| config.limits.open_pushes = 3).await;
    let (mallory, alice) = (forge.submitter("mallory").await, forge.submitter("alice").await);
    let mut open = Vec::new();
    for _ in 0..3 {
        let draft = forge.draft(&mallory).item(&source());
        open.push((forge.announce(&draft).await.unwrap(), draft));
    }
    let before = forge.snapshot().await;
    let item = source();
    let draft = forge.draft(&mallory).item(&item);
    let refused = forge.announce(&draft).await.unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (429, "too-many-open"), "{refused:?}");
    forge.assert_unchanged(&before).await;
    assert_eq!(forge.app.db.open_of(1).await.unwrap().pushes, 3);
    // the same announcement again is the same push, also now
    forge.announce(&open[0].1).await.expect("it is known");
    published(&forge, &forge.draft(&alice).item(&source())).await;
    let (push, first) = open.pop().unwrap();
    forge.complete(&first, push).await;
    forge.push(&draft).await.assert_published(&item.path);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_open_paths() {
    let forge = forge(|config| config.limits.open_paths = 5).await;
    let mallory = forge.submitter("mallory").await;
    let draft = |n: usize| (0..n).fold(forge.draft(&mallory), |draft, _| draft.item(&source()));
    let first = draft(4);
    let push = forge.announce(&first).await.unwrap();
    let before = forge.snapshot().await;
    let refused = forge.announce(&draft(2)).await.unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (429, "too-many-open"), "{refused:?}");
    assert!(refused.message.contains("4 paths"), "{refused:?}");
    forge.assert_unchanged(&before).await;
    published(&forge, &draft(1)).await;
    forge.complete(&first, push).await;
    published(&forge, &draft(5)).await;
}

/// One path, and a long list of derivations beside it.
#[tokio::test(flavor = "multi_thread")]
async fn announcements_count_in_the_quota() {
    let policy = format!("{POLICY}[limits]\nquarantine-size = \"64 KiB\"\n");
    let forge = Forge::start_with(&policy, Config::default()).await;
    let (mallory, alice) = (forge.submitter("mallory").await, forge.submitter("alice").await);
    let long = || {
        let path = || StorePath::parse(&format!("/nix/store/{}-x.drv", &source().path.hash_part())).unwrap();
        forge
            .draft(&mallory)
            .item(&source())
            .with(|body| body.derivations = (0..5000).map(|_| path()).collect())
    };
    let mut taken = 0;
    let refused = loop {
        match forge.announce(&long()).await {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
        assert!(taken < 20, "they don't count");
    };
    assert_eq!((refused.status, refused.code.as_str()), (507, "quota-exceeded"), "{refused:?}");
    assert!(taken > 0);
    published(&forge, &forge.draft(&alice).item(&source())).await;
}

/// It is judged in parts, and owners take turns.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_push_does_not_hold_up_a_small_one() {
    const LARGE: usize = 6000;
    let forge = forge(|_| {}).await;
    let (mallory, alice) = (forge.submitter("mallory").await, forge.submitter("alice").await);
    let items: Vec<Item> = (0..LARGE).map(|_| source()).collect();
    let large = items.iter().fold(forge.draft(&mallory), |draft, item| draft.item(item));
    let push = forge.announce(&large).await.unwrap();
    let small = source();
    let draft = forge.draft(&alice).item(&small);
    let other = forge.announce(&draft).await.unwrap();
    let body = items.iter().flat_map(|item| framed(&item.nar_hash, &item.nar, false)).collect();
    forge.upload(&push.status.push, &push.token, body).await.unwrap();
    // it is being judged from now on
    forge.complete(&draft, other).await.assert_published(&small.path);
    let status = forge.status(&push, "").await.unwrap();
    let done = status.paths.iter().filter(|p| p.state == PathState::Published).count();
    assert!(done <= LARGE - 1000, "{done} of {LARGE} went first");
    // and comes to its end
    for _ in 0..600 {
        let status = forge.status(&push, "?wait=20").await.unwrap();
        if status.paths.iter().all(|p| p.state == PathState::Published) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it is never judged to its end");
}
