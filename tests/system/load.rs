//! Many at once: that all come to their end, in bounded memory and in their turn, and that stopping in the middle of it loses
//! nothing. Nothing here depends on how fast the machine is: what is asserted are orders, counts and bounds.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use pushgate_formats::{StorePath, log_leaf::PublishLeaf};
use pushgate_gateway::{
    clock::Clock,
    config::Config,
    db::{Db, Role, sqlite::Sqlite},
    identities::{self, Invite},
};
use pushgate_tests::{
    forge::{Draft, Forge, Item, POLICY, Remote, Submitter, Tally, all_published, framed, random_hex},
    process::{Gateway, names, wait_for},
};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

fn source() -> Item {
    Item::source("source", &random_hex())
}

/// Enrols submitters at a running gateway without a process for each: invites are made in its database, keys join over
/// HTTP.
async fn enrolled(
    gateway: &Gateway,
    count: usize,
    owner: impl Fn(usize) -> Option<String>,
) -> Vec<Submitter> {
    let db = Sqlite::open(&gateway.data().join("gateway.db")).await.unwrap();
    let mut all = Vec::new();
    for n in 0..count {
        let name = format!("s{n}-{}", &random_hex()[..8]);
        let invite = Invite {
            name: name.clone(),
            role: Role::Submitter,
            owner: owner(n),
            groups: vec![],
            caches: None,
            ttl: 3600,
            key_expires: None,
        };
        let code = identities::invite(&db, Clock::default().now(), invite).await.unwrap();
        all.push(joined(&gateway.url(""), &name, code).await);
    }
    all
}

async fn joined(url: &str, name: &str, code: String) -> Submitter {
    use pushgate_formats::{api::Enrolment, dsse};
    let submitter = Submitter::new(&format!("{name}-1"));
    let enrolment = Enrolment { code, key: submitter.key.public().to_string() };
    let payload = serde_json::to_vec(&enrolment).unwrap();
    let envelope = dsse::Envelope::seal(dsse::ENROLMENT, &payload, &submitter.key);
    let http = reqwest::Client::new();
    let answer = http.post(format!("{url}/api/v1/enrol")).json(&envelope).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    submitter
}

/// What waits for another process: off the threads that serve the clients.
fn off<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// The paths in the log of `main`; fails where one is there twice.
async fn logged(data: &Path) -> BTreeSet<StorePath> {
    let db = Sqlite::open(&data.join("gateway.db")).await.unwrap();
    let leaves = db.leaves("main", 0, u32::MAX).await.unwrap();
    let mut paths = BTreeSet::new();
    for (_, body, _) in leaves {
        let leaf: PublishLeaf = serde_json::from_slice(&body).unwrap();
        assert!(paths.insert(leaf.path.clone()), "{} is logged twice", leaf.path);
    }
    paths
}

/// Each announces paths of his own and some that all have.
fn drafts(remote: &Remote, submitters: &[Submitter], clients: usize, shared: &[Item]) -> Vec<Draft> {
    let now = Clock::default().now();
    (0..clients)
        .map(|n| {
            let draft = remote.draft(&submitters[n % submitters.len()], now);
            let own: Vec<Item> = (0..3).map(|_| source()).collect();
            own.iter().chain(shared).fold(draft, |draft, item| draft.item(item))
        })
        .collect()
}

/// Pushes all of them at once; gives how many of each were there when the last of `watched` had ended.
fn start(remote: &Remote, drafts: Vec<Draft>, tally: &Arc<Tally>, done: &Arc<AtomicUsize>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for draft in drafts {
        let (remote, tally, done) = (remote.clone(), tally.clone(), done.clone());
        tasks.spawn(async move {
            let status = remote.push(&draft, &tally).await;
            assert!(all_published(&status), "{status:?}");
            done.fetch_add(1, Relaxed);
        });
    }
    tasks
}

async fn all(mut tasks: JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

/// What is published, logged and served is what was pushed, each path once.
async fn check(gateway: &Gateway, expected: &BTreeSet<StorePath>) {
    assert_eq!(logged(&gateway.data()).await, *expected);
    let narinfos: BTreeSet<String> =
        names(&gateway.public("main")).into_iter().filter(|n| n.ends_with(".narinfo")).collect();
    let wanted = expected.iter().map(|p| format!("{}.narinfo", p.hash_part())).collect();
    assert_eq!(narinfos, wanted);
}

fn paths(drafts: &[Draft]) -> BTreeSet<StorePath> {
    drafts.iter().flat_map(|d| d.body.paths.iter().map(|p| p.path.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_clients_at_once() {
    const CLIENTS: usize = 500;
    const CEILING: u64 = 576 << 20;
    let gateway = off(|| Gateway::with("", "[limits]\nmemory = \"576 MiB\"\n"));
    let remote = Remote::new(&gateway.url("")).await;
    let submitters = enrolled(&gateway, 50, |n| Some(format!("owner-{n}"))).await;
    let shared: Vec<Item> = (0..3).map(|_| source()).collect();
    let drafts = drafts(&remote, &submitters, CLIENTS, &shared);
    let expected = paths(&drafts);
    assert_eq!(expected.len(), 3 * CLIENTS + 3);
    let (tally, done) = <(Arc<Tally>, Arc<AtomicUsize>)>::default();
    all(start(&remote, drafts, &tally, &done)).await;
    assert_eq!(done.load(Relaxed), CLIENTS);
    check(&gateway, &expected).await;
    let peak = gateway.peak_memory();
    eprintln!("peak memory {} MiB, {tally:?}", peak >> 20);
    assert!(peak < CEILING, "{} MiB", peak >> 20);
    // nothing is left in quarantine, and nothing failed on the way
    off(|| {
        wait_for("the quarantine to be empty", || {
            names(&gateway.data().join("blobs/quarantine/packs")).is_empty().then_some(())
        });
        assert_eq!(gateway.metric("pushgate_judge_failures_total"), 0);
        assert_eq!(gateway.metric("pushgate_uploads_under_way"), 0);
    });
}

/// Large uploads and large announcements, as many at once as come: the ceiling holds.
#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_below_its_ceiling() {
    const CEILING: u64 = 640 << 20;
    let gateway = off(|| Gateway::with("", "[limits]\nmemory = \"640 MiB\"\nannouncements = 8\n"));
    let remote = Remote::new(&gateway.url("")).await;
    let submitters = enrolled(&gateway, 12, |n| Some(format!("owner-{n}"))).await;
    let now = Clock::default().now();
    let drafts: Vec<Draft> = (submitters.iter().enumerate())
        .map(|(n, by)| {
            let mut draft = remote.draft(by, now);
            // a window as large as may be, for a NAR that fills it
            let text = format!("{n} {}", random_hex()).repeat((16 << 20) / 34);
            draft = draft.item(&Item::source("large", &text));
            // and a list of derivations that is as long as may be
            let path = |m: usize| {
                StorePath::parse(&format!("/nix/store/{:032}-{}.drv", m, "x".repeat(150))).unwrap()
            };
            draft.body.derivations = (0..10_000).map(path).collect();
            draft
        })
        .collect();
    let (tally, done) = <(Arc<Tally>, Arc<AtomicUsize>)>::default();
    all(start(&remote, drafts, &tally, &done)).await;
    let peak = gateway.peak_memory();
    eprintln!("peak memory {} MiB, {tally:?}", peak >> 20);
    assert!(peak < CEILING, "{} MiB", peak >> 20);
}

/// One owner sends a great many pushes through several identities; another's single push doesn't wait for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_does_not_starve_another() {
    const FLOOD: usize = 240;
    let gateway = off(|| Gateway::with("", "[limits]\nuploads = 8\nuploads-per-submitter = 8\n"));
    let remote = Remote::new(&gateway.url("")).await;
    let flood = enrolled(&gateway, 4, |_| Some("mallory".to_owned())).await;
    let alice = enrolled(&gateway, 1, |_| Some("alice".to_owned())).await;
    let shared: Vec<Item> = (0..20).map(|_| source()).collect();
    let (tally, done) = <(Arc<Tally>, Arc<AtomicUsize>)>::default();
    let flooding = start(&remote, drafts(&remote, &flood, FLOOD, &shared), &tally, &done);
    for _ in 0..6000 {
        if done.load(Relaxed) > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // one after another, while the flood goes on: each has its turn
    let mut seen = Vec::new();
    for _ in 0..3 {
        let single = Arc::new(Tally::default());
        let draft = drafts(&remote, &alice, 1, &[]).remove(0);
        assert!(all_published(&remote.push(&draft, &single).await));
        // a place for uploads is never denied to who has none
        seen.push((done.load(Relaxed), single.sent_away.load(Relaxed)));
    }
    eprintln!("of {FLOOD} pushes were done: {seen:?}; {tally:?}");
    assert!(seen.iter().all(|(done, _)| *done < FLOOD), "the flood was over before: {seen:?}");
    assert!(seen[0].0 < FLOOD / 2, "half of the flood went first: {seen:?}");
    assert!(seen.iter().all(|(_, away)| *away == 0), "she was sent away: {seen:?}");
    all(flooding).await;
}

/// Those who read slowly and those who send slowly hold up nobody.
#[tokio::test(flavor = "multi_thread")]
async fn slow_ones_hold_up_nobody() {
    let forge = Forge::start_with(POLICY, Config::default()).await;
    let (slow, alice) = (forge.submitter("slow").await, forge.submitter("alice").await);
    let large = Item::source("large", &"x".repeat(8 << 20));
    let mut draft = forge.draft(&slow).item(&large);
    draft.zstd = false;
    assert!(all_published(&forge.push(&draft).await.status));
    let narinfo = forge.narinfo(&large.path).await.unwrap();
    let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
    let address = forge.url.trim_start_matches("http://");
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(format!("GET /main/{url} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        open.push(socket);
    }
    let unfinished = forge.draft(&slow).item(&source());
    let push = forge.announce(&unfinished).await.unwrap();
    for _ in 0..100 {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let (id, token) = (&push.status.push, &push.token);
        let head =
            format!("POST /api/v1/pushes/{id}/nars HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n");
        socket.write_all(format!("{head}Content-Length: 1000000\r\n\r\n").as_bytes()).await.unwrap();
        socket.write_all(&framed(&large.nar_hash, b"x", false)[..40]).await.unwrap();
        open.push(socket);
    }
    for _ in 0..20 {
        let item = source();
        forge.push(&forge.draft(&alice).item(&item)).await.assert_published(&item.path);
    }
    // their own fault, and their own push can still be finished
    drop(open);
    wait_for_uploads(&forge).await;
    assert!(all_published(&forge.complete(&unfinished, push).await.status));
}

async fn wait_for_uploads(forge: &Forge) {
    for _ in 0..1000 {
        if forge.app.uploads.taken() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("uploads go on for ever");
}

/// SIGTERM while many push, twice: whatever was answered as taken is there afterwards, and all come to their end.
#[tokio::test(flavor = "multi_thread")]
async fn stopped_under_load_it_loses_nothing() {
    const CLIENTS: usize = 80;
    let mut gateway = off(Gateway::start);
    let remote = Remote::new(&gateway.url("")).await;
    let submitters = enrolled(&gateway, 8, |n| Some(format!("owner-{n}"))).await;
    let shared: Vec<Item> = (0..3).map(|_| source()).collect();
    let drafts = drafts(&remote, &submitters, CLIENTS, &shared);
    let expected = paths(&drafts);
    let (tally, done) = <(Arc<Tally>, Arc<AtomicUsize>)>::default();
    let pushing = start(&remote, drafts, &tally, &done);
    let mut stopped = 0;
    for at in [1, CLIENTS / 3] {
        while done.load(Relaxed) < at {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if done.load(Relaxed) < CLIENTS {
            stopped += 1;
        }
        off(|| {
            // ends by itself, with success
            gateway.stop();
            let left = names(&gateway.data().join("blobs/quarantine/tmp"));
            assert!(left.is_empty(), "{left:?}");
            gateway.restart();
        });
    }
    all(pushing).await;
    eprintln!("{tally:?}");
    assert_eq!((stopped, done.load(Relaxed)), (2, CLIENTS));
    assert!(tally.cut_off.load(Relaxed) > 0, "nobody noticed");
    check(&gateway, &expected).await;
}

/// A file system of 96 MiB of its own, of which 64 have to stay free.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_runs_full() {
    let gateway = off(|| Gateway::on_a_disk_of("96m", "[limits]\nfree-space = \"64 MiB\"\n"));
    let remote = Remote::new(&gateway.url("")).await;
    let code = off(|| gateway.admin(&["invite", "alice"]).line());
    let alice = joined(&gateway.url(""), "alice", code).await;
    let http = reqwest::Client::new();
    let now = Clock::default().now();
    let announce = async |item: &Item| {
        let draft = remote.draft(&alice, now).item(item);
        let url = format!("{}/api/v1/caches/main/pushes", remote.url);
        let answer = http.post(url).body(draft.sealed()).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json::<serde_json::Value>().await.unwrap())
    };
    let upload = async |item: &Item, announced: &serde_json::Value| {
        let body = framed(&item.nar_hash, &item.nar, false);
        let url = format!("{}/api/v1/pushes/{}/nars", remote.url, announced["push"].as_str().unwrap());
        let token = announced["token"].as_str().unwrap();
        // a refusal in the middle of the body may be lost to the connection's end, as on any network
        for _ in 0..10 {
            let answer = http.post(&url).bearer_auth(token).body(body.clone()).send().await;
            if let Ok(answer) = answer {
                return (answer.status().as_u16(), answer.json::<serde_json::Value>().await.unwrap());
            }
        }
        panic!("no answer comes through");
    };
    let (large, small) = (Item::source("large", &"x".repeat(48 << 20)), source());
    let (status, large_push) = announce(&large).await;
    assert_eq!(status, 200);
    let (status, small_push) = announce(&small).await;
    assert_eq!(status, 200);
    // given up in the middle, before the disk is full, and nothing of it is left
    let (status, refused) = upload(&large, &large_push).await;
    assert_eq!((status, refused["error"]["code"].as_str()), (507, Some("disk-full")), "{refused}");
    let free = rustix::fs::statvfs(gateway.data()).unwrap();
    assert!(free.f_bavail * free.f_frsize > 64 << 20);
    // what is small finds room
    let (status, _) = upload(&small, &small_push).await;
    assert_eq!(status, 200);
    let narinfo = gateway.public("main").join(format!("{}.narinfo", small.path.hash_part()));
    off(|| wait_for("the small one to be published", || narinfo.exists().then_some(())));
    let narinfos = names(&gateway.public("main")).into_iter().filter(|n| n.ends_with(".narinfo"));
    assert_eq!(narinfos.count(), 1);
    // filled by somebody else: nothing is taken, what is there is served
    let filler = gateway.data().join("filler");
    fs::write(&filler, vec![0; 40 << 20]).unwrap();
    let (status, refused) = announce(&source()).await;
    assert_eq!((status, refused["error"]["code"].as_str()), (507, Some("disk-full")), "{refused}");
    let served =
        reqwest::get(gateway.url(&format!("/main/{}.narinfo", small.path.hash_part()))).await.unwrap();
    assert_eq!(served.status().as_u16(), 200);
    let ready = reqwest::get(gateway.url("/readyz")).await.unwrap();
    assert_eq!(ready.status().as_u16(), 200);
    fs::remove_file(filler).unwrap();
    let next = source();
    let (status, push) = announce(&next).await;
    assert_eq!(status, 200);
    assert_eq!(upload(&next, &push).await.0, 200);
}
