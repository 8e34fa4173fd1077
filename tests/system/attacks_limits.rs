//! Whoever takes more than his share: places, room on the disk, time, connections, rows. Each limit refuses with its code,
//! leaves nothing behind, and lets in what keeps to it.
//!
//! | what a hostile submitter does | tests |
//! |---|---|
//! | many uploads never finished, quota passed | `uploads_that_never_end_fill_one_quota_and_are_swept`, `attacks_resources::the_quota_counts_what_is_kept` |
//! | fills the gateway's quarantine, or the disk | `gateway_full`, `disk_full`, `load::a_disk_that_runs_full` |
//! | 1,000 half-open uploads | `a_thousand_half_open_uploads` |
//! | one owner with many identities | `places_are_an_owners_and_some_are_for_newcomers` |
//! | slow bodies, long bodies | `upload_too_slow`, `upload_too_long` |
//! | memory: announcements, derivations, sessions | `gateway_busy`, `memory_that_runs_out_in_an_upload`; the whole process: `load::five_hundred_clients_at_once` |
//! | pushes that are never finished | `too_many_open_pushes`, `too_many_open_paths`, `announcements_count_in_the_quota` |
//! | connections that only look alive, answers that nobody takes | `a_connection_without_requests_is_closed_although_it_answers_pings`, `an_answer_that_nobody_takes_is_given_up` |
//! | rows that stay for ever | `ended_pushes_are_forgotten_and_evidence_stays`, `derivations_that_nobody_uses_are_forgotten` |
//! | the same NAR in parallel uploads | `a_nar_that_comes_twice_at_once_is_kept_once` |
//! | a large push in the judge's way | `a_large_push_does_not_hold_up_a_small_one`; a flood of pushes: `load::a_flood_does_not_starve_another` |
//! | two gateways on one store | not here: one gateway serves a data directory |

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use pushgate_formats::{
    StorePath,
    api::{Announced, PathState, frame},
};
use pushgate_gateway::{config::Config, identities::Invite};
use pushgate_tests::forge::{
    Draft, Forge, Item, POLICY, Package, Pushed, Submitter, framed, framed_as, random_hex,
};
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Limits with so many bytes in quarantine.
fn quarantine(bytes: u64) -> pushgate_policies::Limits {
    pushgate_policies::Limits { quarantine_size: bytes, ..Default::default() }
}

async fn forge(change: impl FnOnce(&mut Config)) -> Forge {
    let mut config = Config::default();
    change(&mut config);
    Forge::start_with(POLICY, config).await
}

fn source() -> Item {
    Item::source("source", &random_hex())
}

/// Contents that don't compress.
fn noise(length: usize) -> Item {
    let text: String = std::iter::repeat_with(random_hex)
        .flat_map(|hex| hex.into_bytes())
        .take(length)
        .map(char::from)
        .collect();
    Item::source("noise", &text)
}

async fn published(forge: &Forge, draft: &Draft) {
    let pushed = forge.push(draft).await;
    assert!(pushed.status.paths.iter().all(|p| p.state == PathState::Published), "{:?}", pushed.status);
}

/// An upload that was begun: its head, and as much of the body as is given.
async fn begun(forge: &Forge, push: &Announced, body: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(forge.url.trim_start_matches("http://")).await.unwrap();
    let head = format!(
        "POST /api/v1/pushes/{}/nars HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 1000000\r\n\r\n",
        push.status.push, push.token
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body).await.unwrap();
    socket
}

/// Head and body of the answer, as text.
async fn answer(socket: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    let reading = async {
        while !text.windows(2).any(|w| w == b"}}") {
            match socket.read(&mut buffer).await {
                Ok(n) if n > 0 => text.extend_from_slice(&buffer[..n]),
                _ => break,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reading).await.expect("an answer");
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits until so many uploads are under way.
async fn uploads(forge: &Forge, count: usize) {
    for _ in 0..1000 {
        if forge.app.uploads.taken() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} uploads are under way instead of {count}", forge.app.uploads.taken());
}

fn owned(name: &str, owner: &str) -> Invite {
    Invite { owner: Some(owner.to_owned()), ..Forge::invitation(name) }
}

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

/// Reads frames of HTTP/2 and answers pings, as long as the connection is open; gives the number of pings.
async fn answer_pings(socket: &mut TcpStream) -> usize {
    let mut pings = 0;
    loop {
        let mut head = [0; 9];
        if socket.read_exact(&mut head).await.is_err() {
            return pings;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if socket.read_exact(&mut payload).await.is_err() {
            return pings;
        }
        let (kind, flags) = (head[3], head[4]);
        let reply = match (kind, flags & 1) {
            (6, 0) => {
                pings += 1;
                [&[0, 0, 8, 6, 1, 0, 0, 0, 0][..], &payload].concat()
            }
            (4, 0) => vec![0, 0, 0, 4, 1, 0, 0, 0, 0],
            _ => continue,
        };
        if socket.write_all(&reply).await.is_err() {
            return pings;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_requests_is_closed_although_it_answers_pings() {
    let forge = forge(|config| (config.limits.header_timeout, config.limits.connections) = (1, 2)).await;
    let mut lively = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(forge.url.trim_start_matches("http://")).await.unwrap();
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        lively.push(tokio::spawn(async move { answer_pings(&mut socket).await }));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let request = forge.http.get(format!("{}/healthz", forge.url)).timeout(Duration::from_secs(20));
    assert_eq!(request.send().await.expect("a place becomes free").status().as_u16(), 200);
    for socket in lively {
        let pings =
            tokio::time::timeout(Duration::from_secs(20), socket).await.expect("it is closed").unwrap();
        assert!(pings > 0, "it was closed for want of pings");
    }
}

/// One who asks for a large file and doesn't read it loses his place; one who reads gets the whole.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_takes_is_given_up() {
    let forge = forge(|config| {
        (config.limits.header_timeout, config.limits.download_idle, config.limits.connections) = (1, 1, 3);
    })
    .await;
    let alice = forge.submitter("alice").await;
    let item = Item::source("large", &"x".repeat(24 << 20));
    let mut draft = forge.draft(&alice).item(&item);
    draft.zstd = false;
    published(&forge, &draft).await;
    let narinfo = forge.narinfo(&item.path).await.unwrap();
    let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap().to_owned();
    // the test's own connection is closed when nothing goes over it
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut stuck = Vec::new();
    for _ in 0..8 {
        let mut socket = TcpStream::connect(forge.url.trim_start_matches("http://")).await.unwrap();
        socket.write_all(format!("GET /main/{url} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        stuck.push(socket);
    }
    let whole = async {
        // others wait in line, and are served
        let got =
            forge.http.get(format!("{}/main/{url}", forge.url)).send().await.unwrap().bytes().await.unwrap();
        assert!(got == item.nar, "{} bytes came", got.len());
    };
    tokio::time::timeout(Duration::from_secs(60), whole).await.expect("a place becomes free");
    // long enough for each of them
    tokio::time::sleep(Duration::from_secs(4)).await;
    for mut socket in stuck {
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut rest))
            .await
            .expect("it is closed");
        assert!(rest.len() < item.nar.len(), "all of it was sent");
    }
}

/// How many pushes a submitter is told of.
async fn statuses(forge: &Forge, by: &Submitter) -> usize {
    let list: Vec<serde_json::Value> = forge.signed_get(by, "/api/v1/pushes", |_| {}).await.unwrap();
    list.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_pushes_are_forgotten_and_evidence_stays() {
    let forge = forge(|config| config.limits.keep_ended = 86_400).await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    // one that published something, and was refused something
    let (good, bad) = (source(), source());
    let mut mixed = forge.draft(&alice).item(&good).item(&bad);
    mixed.nars.insert(bad.nar_hash, source().nar);
    let mixed = forge.push(&mixed).await;
    mixed.assert_published(&good.path);
    mixed.assert_rejected(&bad.path, "nar-hash-mismatch");
    // one that came to nothing, one that is in conflict, one that waits
    let mut nothing = forge.draft(&alice).item(&source());
    nothing.nars.values_mut().for_each(|nar| *nar = source().nar);
    forge.push(&nothing).await;
    let other = good.with_nar(source().nar);
    let conflict = forge.push(&forge.draft(&bob).item(&other)).await;
    conflict.assert_held(&good.path, "conflicts-with-published");
    let narinfo = forge.narinfo(&good.path).await;
    let leaves = forge.snapshot().await.leaves;
    let forget = async || {
        forge.sweep().await;
        pushgate_gateway::push::recover::forget(&forge.app).await.unwrap();
    };
    assert_eq!((statuses(&forge, &alice).await, statuses(&forge, &bob).await), (2, 1));

    // not before its time
    forge.clock.advance(pushgate_tests::forge::QUARANTINE_TTL + 3600);
    let waiting = source();
    let waits = forge.announce(&forge.draft(&alice).item(&waiting)).await.unwrap();
    forget().await;
    assert_eq!((statuses(&forge, &alice).await, statuses(&forge, &bob).await), (3, 1));
    forge.clock.advance(2 * 86_400);
    forget().await;
    // what came to nothing is gone
    assert_eq!((statuses(&forge, &alice).await, statuses(&forge, &bob).await), (2, 1));
    assert!(
        forge
            .app
            .db
            .push_by_digest(&pushgate_formats::Sha256::of(&nothing.sealed()))
            .await
            .unwrap()
            .is_none()
    );
    let claims = async |path: &StorePath| forge.app.db.claims_of_path("main", path).await.unwrap();
    assert_eq!(claims(&bad.path).await.len(), 0);
    // what was published, and what is in conflict with it, is there with the announcement that its signature is in
    let states: Vec<PathState> = claims(&good.path).await.iter().map(|claim| claim.state).collect();
    assert_eq!(states, [PathState::Rejected, PathState::Published]);
    for id in [&mixed.status.push, &conflict.status.push] {
        assert!(!forge.app.db.push(id).await.unwrap().expect("it is evidence").envelope.is_empty());
    }
    assert_eq!(forge.narinfo(&good.path).await, narinfo);
    assert_eq!(forge.snapshot().await.leaves, leaves);
    // it can be asked for, also by a gateway that has to read it again
    let waits_for = waits.status.push.clone();
    let forge = forge.restart().await;
    let status = forge.status(&mixed.announced, "").await.unwrap();
    let of = |path: &StorePath| status.paths.iter().find(|p| p.path == *path).unwrap().clone();
    assert_eq!(of(&good.path).state, PathState::Published);
    assert_eq!(of(&bad.path).code.as_deref(), Some("push-forgotten"));
    // invariant 3 holds as before
    let again = forge.push(&forge.draft(&alice).item(&other)).await;
    again.assert_held(&good.path, "conflicts-with-published");
    // and who waits still may
    assert_eq!(
        forge.status_by(&waits_for, &waits.token, "").await.unwrap().paths[0].state,
        PathState::Wanted
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn derivations_that_nobody_uses_are_forgotten() {
    let forge = forge(|config| config.limits.keep_ended = 86_400).await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let tool = Package::new("tool").build();
    let used = Package::new("used").input(&tool).build();
    let idle = Package::new("idle").build();
    let shared = Package::new("shared").build();
    published(&forge, &forge.draft(&alice).package(&used)).await;
    // derivations for paths that never come
    let never = |by: &Submitter, package: &Package| Draft {
        nars: Default::default(),
        ..forge.draft(by).package(package)
    };
    for (by, package) in [(&alice, &idle), (&alice, &shared), (&bob, &shared)] {
        let draft = never(by, package);
        let push = forge.announce(&draft).await.unwrap();
        forge.send_derivations(&push.status.push, &push.token, &draft.texts).await.unwrap();
    }
    let here = async |package: &Package| {
        !forge.app.db.derivations(std::slice::from_ref(&package.drv)).await.unwrap().is_empty()
    };
    let quota = async || forge.app.db.quarantine_bytes(1).await.unwrap();
    let first = quota().await;
    assert!(first > 0);
    let forget = async || {
        forge.sweep().await;
        pushgate_gateway::push::recover::forget(&forge.app).await.unwrap();
    };
    // bob uses his again in the meantime
    forge.clock.advance(7 * 86_400);
    forge.announce(&never(&bob, &shared)).await.unwrap();
    forge.clock.advance(2 * 86_400);
    forget().await;
    assert!(!here(&idle).await, "nobody uses it");
    assert!(here(&shared).await, "bob uses it");
    // what shows that a published path is right stays, with what that was made from, and counts for nobody
    assert!(here(&used).await && here(&tool).await);
    assert_eq!(quota().await, 0);
    let (_, budget) = forge.app.submitter(1, &quarantine(1)).await.unwrap();
    assert_eq!(budget.own.load(Relaxed), 0);
    // whoever needs one again sends it again
    forge.clock.advance(30 * 86_400);
    forget().await;
    assert!(!here(&shared).await && here(&used).await && here(&tool).await);
    published(&forge, &forge.draft(&alice).package(&shared)).await;
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
