//! Uploads: how many at once, how slow, how long; the same NAR twice at once.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn places_are_an_owners_and_some_are_for_newcomers() {
    let forge = forge(|config| (config.limits.uploads, config.limits.uploads_per_submitter) = (8, 4)).await;
    let mut open = Vec::new();
    let mut begin = async |by: &Submitter, forge: &Forge| {
        let draft = forge.draft(by).item(&source());
        let push = forge.announce(&draft).await.unwrap();
        let before = forge.app.uploads.taken();
        let socket = begun(forge, &push, b"x").await;
        uploads(forge, before + 1).await;
        open.push(socket);
    };
    let refused = async |by: &Submitter| {
        let item = source();
        let push = forge.announce(&forge.draft(by).item(&item)).await.unwrap();
        let body = framed(&item.nar_hash, &item.nar, true);
        let refused = forge.upload(&push.status.push, &push.token, body).await.unwrap_err();
        assert_eq!((refused.status, refused.code.as_str()), (429, "too-many-uploads"), "{refused:?}");
        refused.message
    };
    // one owner, two identities: four places between them
    let [first, second] =
        [forge.submitter_by(owned("a1", "anna")).await, forge.submitter_by(owned("a2", "anna")).await];
    for by in [&first, &second, &first, &second] {
        begin(by, &forge).await;
    }
    assert!(refused(&first).await.contains("this submitter"));
    assert!(refused(&second).await.contains("this submitter"));
    // identities without an owner count each for itself; the last two places are for those who have none
    let unowned = |name: &str| Invite { owner: None, ..Forge::invitation(name) };
    let [bob, carol, dora] = [
        forge.submitter_by(unowned("bob")).await,
        forge.submitter_by(unowned("carol")).await,
        forge.submitter_by(unowned("dora")).await,
    ];
    begin(&bob, &forge).await;
    begin(&bob, &forge).await;
    assert!(refused(&bob).await.contains("all submitters"));
    published(&forge, &forge.draft(&carol).item(&source())).await;
    begin(&carol, &forge).await;
    begin(&dora, &forge).await;
    assert_eq!(forge.app.uploads.taken(), 8);
    let late = forge.submitter("emil").await;
    refused(&late).await;
    // who goes away leaves his place
    open.clear();
    uploads(&forge, 0).await;
    published(&forge, &forge.draft(&late).item(&source())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_half_open_uploads() {
    let forge = forge(|config| config.limits.upload_idle = 5).await;
    let (mallory, alice) = (forge.submitter("mallory").await, forge.submitter("alice").await);
    let push = forge.announce(&forge.draft(&mallory).item(&source())).await.unwrap();
    let before = forge.snapshot().await;
    let mut half_open = Vec::new();
    for _ in 0..1000 {
        half_open.push(begun(&forge, &push, &[0; 20]).await);
    }
    uploads(&forge, forge.app.config.limits.uploads_per_submitter).await;
    // another isn't kept waiting
    for _ in 0..5 {
        let item = source();
        forge.push(&forge.draft(&alice).item(&item)).await.assert_published(&item.path);
    }
    let mut refused = 0;
    for socket in &mut half_open[..] {
        let answer = answer(socket).await;
        let busy = answer.starts_with("HTTP/1.1 429") && answer.contains("\"too-many-uploads\"");
        assert!(
            busy || answer.starts_with("HTTP/1.1 408") && answer.contains("\"upload-too-slow\""),
            "{answer}"
        );
        assert!(!busy || answer.contains("retry-after: 1"), "{answer}");
        refused += usize::from(busy);
    }
    assert_eq!(refused, 1000 - forge.app.config.limits.uploads_per_submitter);
    uploads(&forge, 0).await;
    let after = forge.snapshot().await;
    assert_eq!((after.packs, after.rows), (before.packs, before.rows));
}

/// A record that trickles in, or a body that stays away, ends; what came whole is kept.
#[rstest]
#[case::trickling(true)]
#[case::silent(false)]
#[tokio::test(flavor = "multi_thread")]
async fn upload_too_slow(#[case] trickling: bool) {
    let forge = forge(|config| {
        config.limits.upload_idle = 1;
        config.limits.upload_rate = 1000;
    })
    .await;
    let (good, slow) = (source(), source());
    let draft = forge.draft(&forge.submitter("alice").await).item(&good).item(&slow);
    let push = forge.announce(&draft).await.unwrap();
    let before = forge.snapshot().await;
    let mut socket = begun(&forge, &push, &framed(&good.nar_hash, &good.nar, true)).await;
    socket.write_all(&framed(&slow.nar_hash, &slow.nar, false)[..33 + 4 + 10]).await.unwrap();
    let text = {
        let (mut read, mut write) = socket.split();
        let trickle = async {
            while trickling && write.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            std::future::pending::<()>().await
        };
        let mut text = vec![0; 4096];
        tokio::select! {
            n = read.read(&mut text) => String::from_utf8_lossy(&text[..n.unwrap()]).into_owned(),
            () = trickle => unreachable!(),
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("it may take as long as it likes"),
        }
    };
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("upload-too-slow"), "{text}");
    uploads(&forge, 0).await;
    let status = forge.status(&push, "").await.unwrap();
    let mut pushed = Pushed { announced: push, derivations: None, uploaded: None, status };
    forge.becomes(&mut pushed, &good.path, PathState::Published, None).await;
    forge.assert_published_only(&before, &[&good.path]).await;
    assert!(forge.snapshot().await.packs.is_empty());
    forge.complete(&draft, pushed.announced).await.assert_published(&slow.path);
}

/// Fast enough at every moment, and without end.
#[tokio::test(flavor = "multi_thread")]
async fn upload_too_long() {
    let forge = forge(|config| {
        config.limits.upload_time = 2;
        config.limits.upload_rate = 10;
        config.limits.upload_idle = 1;
    })
    .await;
    let alice = forge.submitter("alice").await;
    let push = forge.announce(&forge.draft(&alice).item(&source())).await.unwrap();
    let before = forge.snapshot().await;
    let mut socket = begun(&forge, &push, b"").await;
    // records that nobody wants, one after another
    let record = framed_as(&source().nar_hash, frame::NONE, b"");
    let text = {
        let (mut read, mut write) = socket.split();
        let sending = async {
            while write.write_all(&record).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            std::future::pending::<()>().await
        };
        let mut text = vec![0; 4096];
        tokio::select! {
            n = read.read(&mut text) => String::from_utf8_lossy(&text[..n.unwrap()]).into_owned(),
            () = sending => unreachable!(),
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("it goes on for ever"),
        }
    };
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("upload-too-long"), "{text}");
    uploads(&forge, 0).await;
    forge.assert_unchanged(&before).await;
    published(&forge, &forge.draft(&alice).item(&source())).await;
}

/// Two uploads of a submitter bring the same NAR at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn a_nar_that_comes_twice_at_once_is_kept_once() {
    use std::os::unix::fs::MetadataExt;
    let forge = Arc::new(forge(|_| {}).await);
    let alice = forge.submitter("alice").await;
    // held, so that they stay where they are
    let held = |n: usize| {
        let contents: String = (0..4000).map(|_| random_hex()).collect();
        Package::new(&format!("held-{n}")).contents(&contents).build().out().clone()
    };
    let (both, own) = (held(0), [held(1), held(2)]);
    let mut tasks = Vec::new();
    let barrier = Arc::new(tokio::sync::Barrier::new(2));
    for own in &own {
        let push = forge.announce(&forge.draft(&alice).item(&both).item(own)).await.unwrap();
        let mut body = framed(&both.nar_hash, &both.nar, false);
        body.extend(framed(&own.nar_hash, &own.nar, false));
        let (forge, barrier) = (forge.clone(), barrier.clone());
        tasks.push(tokio::spawn(async move {
            // one body is there but for its last byte when the other ends
            barrier.wait().await;
            let last = body.split_off(body.len() - 1);
            let socket_body = reqwest::Body::wrap_stream(two_pieces(body, last, barrier));
            let url = format!("{}/api/v1/pushes/{}/nars", forge.url, push.status.push);
            let answer =
                forge.http.post(url).bearer_auth(&push.token).body(socket_body).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 200);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let packs = forge.dir().join("blobs/quarantine/packs");
    let blocks: u64 =
        std::fs::read_dir(packs).unwrap().map(|e| e.unwrap().metadata().unwrap().blocks() * 512).sum();
    let bytes: u64 = [&both, &own[0], &own[1]].iter().map(|item| item.nar_size).sum();
    assert!(blocks < bytes + both.nar_size / 2, "{blocks} bytes are kept of {bytes}");
    assert_eq!(forge.app.db.quarantine_bytes(1).await.unwrap(), bytes);
    let (_, budget) = forge.app.submitter(1, &quarantine(1)).await.unwrap();
    assert_eq!(budget.all.load(Relaxed), bytes);
}

/// A body in two pieces, the second of which comes when all have sent the first.
fn two_pieces(
    first: Vec<u8>,
    last: Vec<u8>,
    barrier: Arc<tokio::sync::Barrier>,
) -> impl futures_util::Stream<Item = Result<Vec<u8>, std::io::Error>> {
    futures_util::stream::unfold((Some(first), Some(last), barrier), |(first, last, barrier)| async move {
        match (first, last) {
            (Some(first), last) => Some((Ok(first), (None, last, barrier))),
            (None, Some(last)) => {
                barrier.wait().await;
                // both wait for the end of a body whose records are here
                tokio::time::sleep(Duration::from_millis(300)).await;
                Some((Ok(last), (None, None, barrier)))
            }
            (None, None) => None,
        }
    })
}
