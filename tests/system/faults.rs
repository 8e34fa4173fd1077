//! A fault at every write of a push, in the database and in the blob store: failed and not stored, failed but stored,
//! killed before and after it, a power cut. Whichever it is, clients that try again as clients do get their push done,
//! nothing is published twice or lost, and the invariants hold at the death, after each start, and at the end.
//! ("kill -9 at every write of a push", "the disk or bucket fails once", "two pushes of one path at once", "swap the
//! quarantined bytes between check and publish".)
//!
//! What one scenario needs to be tried so is a few lines: see [`small`]. `PUSHGATE_FAULTS=all` tries more of everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use pushgate_formats::StorePath;
use pushgate_tests::{
    faults::{After, Again, At, Fault, Kind, Life, OwnPushes, Scenario, StockCopy, Template, run},
    forge::{Draft, Item, Package, Submitter, random_hex},
    process::{names, read},
};

/// Makes a scenario for one run.
type Make<'a> = &'a (dyn Fn(reqwest::Client, After) -> Arc<dyn Scenario> + Sync);

/// Every way in which a write can end, and what clients do then.
const VARIANTS: [(Kind, After); 8] = [
    (Kind::NotStored, After::GoOn),
    (Kind::Stored, After::GoOn),
    (Kind::KilledBefore, After::GoOn),
    (Kind::KilledAfter, After::GoOn),
    (Kind::PowerCut, After::GoOn),
    (Kind::KilledAfter, After::StartAnew),
    (Kind::KilledBefore, After::StartAnew),
    (Kind::PowerCut, After::StartAnew),
];

/// The first so many of them, or all.
fn variants(few: usize) -> &'static [(Kind, After)] {
    if all() { &VARIANTS } else { &VARIANTS[..few] }
}

fn all() -> bool {
    std::env::var("PUSHGATE_FAULTS").is_ok_and(|value| value == "all")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn http() -> reqwest::Client {
    // no connection outlives its gateway
    reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap()
}

/// Runs a scenario again and again, with a fault at its first write, at its second, and so on, in each variant, in the life
/// of the gateway after those with the faults of `before`. Gives the names of the writes that were struck, by kind.
fn at_every_write(
    template: &Template,
    make: Make,
    before: &[Fault],
    variants: &[(Kind, After)],
) -> BTreeMap<Kind, BTreeSet<&'static str>> {
    let next: Mutex<Vec<Option<usize>>> = Mutex::new(vec![Some(0); variants.len()]);
    let struck: Mutex<BTreeMap<Kind, BTreeSet<&'static str>>> = Mutex::default();
    let failed: Mutex<Vec<(Vec<Fault>, After)>> = Mutex::default();
    let runs = std::sync::atomic::AtomicUsize::new(0);
    let worker = || {
        let (runtime, http) = (runtime(), http());
        loop {
            let job = {
                let mut next = next.lock().unwrap();
                let least = (0..variants.len()).filter(|i| next[*i].is_some()).min_by_key(|i| next[*i]);
                least.and_then(|i| {
                    let write = next[i]?;
                    next[i] = Some(write + 1);
                    Some((i, write))
                })
            };
            let Some((variant, write)) = job else { return };
            let (kind, after) = variants[variant];
            let faults = [before, &[Fault { at: At::Write(write), kind }]].concat();
            let run = || runtime.block_on(run(template, make(http.clone(), after), &faults));
            // what is written in the background comes late in some runs: the last write isn't there, and in the next it is
            let run = || (0..2).fold(run(), |ran, _| if ran.struck[before.len()] { ran } else { run() });
            let Ok(ran) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) else {
                let mut failed = failed.lock().unwrap();
                failed.push((faults, after));
                // enough is known
                if failed.len() >= 12 {
                    return;
                }
                continue;
            };
            runs.fetch_add(1, Relaxed);
            assert!(ran.struck[..before.len()].iter().all(|s| *s), "{before:?} didn't come");
            if ran.struck[before.len()] {
                let name = ran.writes[before.len()][write];
                struck.lock().unwrap().entry(kind).or_default().insert(name);
            } else {
                next.lock().unwrap()[variant] = None;
            }
        }
    };
    // they wait more than they work
    let workers = 3 * std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    let (struck, failed) = (struck.into_inner().unwrap(), failed.into_inner().unwrap());
    // what each panicked with stands above
    assert!(failed.is_empty(), "{} runs failed: {failed:#?}", failed.len());
    eprintln!("{} runs with {before:?} before", runs.into_inner());
    struck
}

/// What a small push has: a source, a build that refers to it, its derivation as a path of its own, and for the larger
/// variation more of each.
struct Goods {
    items: Vec<Item>,
    packages: Vec<Package>,
}

impl Goods {
    fn new() -> Self {
        let source = Item::source("source", &random_hex());
        let tool = Package::new("tool").source(&source).mention(&source.path).build();
        let mut goods =
            Self { items: vec![source, Item::derivation(&tool.drv, &tool.text)], packages: vec![tool] };
        if all() {
            goods.add_more();
        }
        goods
    }

    fn add_more(&mut self) {
        for n in 0..3 {
            let below = self.packages.last().unwrap().clone();
            let package = Package::new(&format!("more-{n}")).input(&below).mention(below.path()).build();
            self.items.push(Item::text(&format!("text-{n}"), random_hex().as_bytes(), &[]));
            self.items.push(Item::self_referring("self", &random_hex()));
            self.packages.push(package);
        }
        let large: String = (0..40_000).map(|_| random_hex()).collect();
        self.items.push(Item::source("large", &large));
    }

    fn draft(&self, template: &Template, by: &Submitter) -> Draft {
        let draft = self.items.iter().fold(template.draft(by), |draft, item| draft.item(item));
        self.packages.iter().fold(draft, |draft, package| draft.package(package))
    }
}

/// One push, and the same paths again.
fn small<'a>(
    template: &'a Template,
    goods: &'a Goods,
) -> impl Fn(reqwest::Client, After) -> Arc<dyn Scenario> {
    |http, after| {
        let push = || vec![goods.draft(template, &template.alice)];
        Arc::new(OwnPushes::new(http, vec![push(), push()], after))
    }
}

/// Two submitters push the same paths at once.
fn at_once<'a>(
    template: &'a Template,
    goods: &'a Goods,
) -> impl Fn(reqwest::Client, After) -> Arc<dyn Scenario> {
    |http, after| {
        let pushes = [&template.alice, &template.bob].map(|by| goods.draft(template, by));
        Arc::new(OwnPushes::new(http, vec![pushes.to_vec()], after))
    }
}

/// Every write that the scenario has without faults must have been struck, by each kind.
fn assert_all_struck(struck: &BTreeMap<Kind, BTreeSet<&'static str>>, template: &Template, make: Make) {
    let ran = runtime().block_on(run(template, make(http(), After::GoOn), &[]));
    let writes: BTreeSet<&str> = ran.writes[0].iter().copied().collect();
    eprintln!("{} writes: {:?}", ran.writes[0].len(), ran.writes[0]);
    for kind in Kind::ALL {
        assert!(struck[&kind].is_superset(&writes), "{kind:?}: {:?}", &writes - &struck[&kind]);
    }
}

#[test]
fn a_fault_at_any_write_of_a_push() {
    let template = runtime().block_on(Template::make());
    let goods = Goods::new();
    let make = small(&template, &goods);
    let struck = at_every_write(&template, &make, &[], variants(6));
    assert_all_struck(&struck, &template, &make);
}

#[test]
fn a_fault_at_any_write_of_two_pushes_of_the_same_paths() {
    let template = runtime().block_on(Template::make());
    let goods = Goods::new();
    let make = at_once(&template, &goods);
    let variants = if all() { &VARIANTS[..] } else { &VARIANTS[1..3] };
    at_every_write(&template, &make, &[], variants);
}

#[test]
fn a_fault_at_any_write_of_a_recovery() {
    let template = runtime().block_on(Template::make());
    let goods = Goods::new();
    let make = |http: reqwest::Client, after| -> Arc<dyn Scenario> {
        Arc::new(OwnPushes::new(http, vec![vec![goods.draft(&template, &template.alice)]], after))
    };
    let killed = |name, n| Fault { at: At::Call(name, n), kind: Kind::KilledAfter };
    // rows that aren't public yet; narinfos that are cut short
    let mut first = vec![killed("commit", 0), Fault { kind: Kind::PowerCut, ..killed("publish narinfo", 1) }];
    if all() {
        first.extend([killed("add_push", 0), killed("write to a pack", 1), killed("finish a pack", 0)]);
        first.extend([killed("add_quarantined", 0), killed("publish nar", 0), killed("sync", 0)]);
        first.extend([killed("mark_visible", 0), killed("sweep", 0)]);
    }
    let variants = if all() { &VARIANTS[..] } else { &VARIANTS[1..3] };
    for first in first {
        at_every_write(&template, &make, &[first], variants);
    }
}

/// The same by stock Nix, which sends files and says afterwards what they are.
#[test]
fn a_fault_at_any_write_of_a_stock_copy() {
    let template = runtime().block_on(Template::make());
    let goods = Goods::new();
    // sources and derivations first, then what is built by them
    let built = goods.packages.iter().flat_map(|package| package.outputs.values());
    let items: Vec<Item> = goods.items.iter().chain(built).cloned().collect();
    let make = |http: reqwest::Client, _| -> Arc<dyn Scenario> {
        Arc::new(StockCopy::new(http, &template.stock, items.clone()))
    };
    let struck = at_every_write(&template, &make, &[], &VARIANTS[..5]);
    assert_all_struck(&struck, &template, &make);
}

/// The quarantined bytes are changed on the disk after they were checked, right before they are published.
struct Swapped {
    push: OwnPushes,
    done: AtomicBool,
}

#[async_trait]
impl Scenario for Swapped {
    async fn drive(&self, gateway: &Life) -> Result<(), Again> {
        self.push.drive(gateway).await
    }

    fn published(&self) -> BTreeSet<StorePath> {
        self.push.published()
    }

    fn killed(&self) {
        self.push.killed();
    }

    fn before(&self, what: &'static str, data: &std::path::Path) {
        if what == "publish nar" && !self.done.swap(true, Relaxed) {
            let packs = data.join("blobs/quarantine/packs");
            for pack in names(&packs) {
                let mut bytes = read(&packs.join(&pack));
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(packs.join(&pack), bytes).unwrap();
            }
        }
    }
}

/// Nothing of the changed bytes is published, the claims ask for theirs again, and the client, which sends them, gets its
/// push done: also where a fault comes on the way.
#[test]
fn quarantined_bytes_that_are_swapped_before_they_are_published() {
    let template = runtime().block_on(Template::make());
    let goods = Goods::new();
    let make = |http: reqwest::Client, after| -> Arc<dyn Scenario> {
        let push = OwnPushes::new(http, vec![vec![goods.draft(&template, &template.alice)]], after);
        Arc::new(Swapped { push, done: AtomicBool::new(false) })
    };
    let ran = runtime().block_on(run(&template, make(http(), After::GoOn), &[]));
    let dropped = ran.writes[0].iter().filter(|w| **w == "drop_quarantined").count();
    assert!(dropped >= 1, "nothing was found to be damaged: {:?}", ran.writes[0]);
    let variants = if all() { &VARIANTS[..] } else { &[VARIANTS[0], VARIANTS[3]] };
    at_every_write(&template, &make, &[], variants);
}
