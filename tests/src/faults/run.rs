//! A scenario from beginning to end, over as many lives of the gateway as its faults make necessary, with the invariants
//! checked at each death, after each start, and at the end.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pushgate_gateway::{clock::Clock, push::recover::ORPHANED};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use super::{Again, Fault, Faults, Kind, Life, NoLife, Scenario};
use crate::{
    forge::{Draft, Forge, StockUser, Submitter},
    invariants::{Books, check_public, packs, temporary},
    process::names,
};

/// How long anything may take. Being slow fails nothing before that.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a client tries again at once what fails.
const PAUSE: Duration = Duration::from_millis(20);

/// A data directory to begin with, of which each run has a copy.
pub struct Template {
    dir: TempDir,
    pub gateway_id: String,
    pub clock: Clock,
    pub alice: Submitter,
    pub bob: Submitter,
    /// Alice with a token, for stock Nix.
    pub stock: StockUser,
}

impl Template {
    /// A gateway without upstreams, with two submitters.
    pub async fn make() -> Self {
        let forge = Forge::start().await;
        let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
        let stock =
            StockUser { submitter: alice.clone(), login: "alice".into(), token: forge.token("alice").await };
        let (gateway_id, clock) = (forge.app.gateway_id.clone(), forge.clock.clone());
        let dir = forge.stop().await;
        settle(&dir.path().join("gateway.db")).await;
        Self { dir, gateway_id, clock, alice, bob, stock }
    }

    /// Begins an announcement.
    pub fn draft(&self, by: &Submitter) -> Draft {
        Draft::new(&self.gateway_id, self.clock.now(), by)
    }

    /// In memory, where that is possible: thousands of files are waited for.
    fn copy(&self) -> TempDir {
        let memory = Path::new("/dev/shm");
        let copy =
            tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).expect("a temporary directory");
        copy_below(self.dir.path(), copy.path());
        copy
    }
}

/// Brings all that is in the write-ahead log into the database: connections are closed a moment after they were dropped, and
/// a copy has to be of files that nobody changes.
async fn settle(database: &Path) {
    let options = SqliteConnectOptions::new().filename(database);
    let mut db = SqliteConnection::connect_with(&options).await.expect("the database opens");
    loop {
        let (busy, _, _): (i64, i64, i64) =
            sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut db).await.expect("a checkpoint");
        if busy == 0 {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn copy_below(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        // see `settle`: they are empty, and may go at any moment
        if to.extension().is_some_and(|e| e == "db-wal" || e == "db-shm") {
            continue;
        }
        if entry.file_type().expect("a type").is_dir() {
            fs::create_dir_all(&to).expect("a directory");
            copy_below(&entry.path(), &to);
        } else {
            // with its mode, which counts for keys
            fs::copy(entry.path(), to).expect("a copy");
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Ran {
    /// For each fault asked for: whether it came. Those after one that didn't come had no life to come in.
    pub struck: Vec<bool>,
    /// The writes of each life, by name.
    pub writes: Vec<Vec<&'static str>>,
}

struct Run {
    dir: TempDir,
    clock: Clock,
    scenario: Arc<dyn Scenario>,
    /// Files being written when an earlier life ended.
    half_written: BTreeSet<String>,
    /// The power failed, and no gateway has come up since: files may be short or gone until one does.
    cut: bool,
}

/// Runs a scenario with the first fault in the first life of the gateway, the second in the second, and so on; the lives
/// after have none. Panics where an invariant doesn't hold or the scenario doesn't come to its end.
pub async fn run(template: &Template, scenario: Arc<dyn Scenario>, faults: &[Fault]) -> Ran {
    let dir = template.copy();
    let mut run = Run { dir, clock: Clock::default(), scenario, half_written: BTreeSet::new(), cut: false };
    let mut ran = Ran { struck: vec![false; faults.len()], writes: vec![] };
    for number in 0.. {
        let fault = faults.get(number).copied();
        let ended = tokio::time::timeout(PATIENCE, run.live(fault)).await;
        let Ok((faults, ended)) = ended else { panic!("a life with {fault:?} doesn't end") };
        ran.writes.push(faults.writes());
        if let Some(struck) = ran.struck.get_mut(number) {
            *struck = faults.has_struck();
        }
        match ended {
            Ended::Well => break,
            Ended::Killed(kind) => run.check_dead(kind).await,
            // at its start, by a fault: whoever started it starts it again
            Ended::Gave(up) => assert!(faults.has_struck(), "it doesn't start: {up}"),
        }
    }
    run.check_end().await;
    ran
}

enum Ended {
    Well,
    Killed(Kind),
    Gave(String),
}

impl Run {
    fn data(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    async fn books(&self) -> Books {
        Books::read(&self.data().join("gateway.db"), "main").await
    }

    async fn live(&mut self, fault: Option<Fault>) -> (Arc<Faults>, Ended) {
        let (faults, life) = Life::begin(&self.data(), &self.clock, fault, self.scenario.clone()).await;
        let killed = || Ended::Killed(fault.expect("nothing else kills").kind);
        let life = match life {
            Ok(life) => life,
            Err(NoLife::Killed) => return (faults, killed()),
            Err(NoLife::Failed(why)) => return (faults, Ended::Gave(why)),
        };
        self.cut = false;
        let done = tokio::select! {
            biased;
            () = faults.death() => false,
            () = self.work(&life) => !faults.is_dead(),
        };
        let well = if done {
            life.stop().await
        } else {
            life.bury();
            false
        };
        (faults, if well { Ended::Well } else { killed() })
    }

    /// What is done with a gateway that runs: what the clients want, and what sweeps free after them.
    async fn work(&self, life: &Life) {
        self.check_started(life).await;
        while let Err(Again(_)) = self.scenario.drive(life).await {
            tokio::time::sleep(PAUSE).await;
        }
        // pushes that somebody gave up are over too, now that others have brought the paths
        loop {
            life.tidy().await;
            let books = self.books().await;
            if books.open_claims().is_empty() && books.published.values().all(|row| row.visible) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        // packs without rows are left alone for a while; one round sees them, the next removes them; files of stock
        // Nix wait for their narinfos
        for wait in [ORPHANED, ORPHANED, ORPHANED, pushgate_gateway::push::stock::nar::WAITS, ORPHANED] {
            self.clock.advance(wait);
            life.tidy().await;
        }
    }

    /// Right after a start: all that is logged is public, and what earlier lives left is gone.
    async fn check_started(&self, life: &Life) {
        let before = self.books().await;
        if life.faults.is_dead() {
            return;
        }
        let data = self.data();
        for path in before.paths() {
            let narinfo = data.join("blobs/main").join(format!("{}.narinfo", path.hash_part()));
            assert!(narinfo.exists(), "{path} is logged and not public after a start");
        }
        let left: Vec<String> = names(&temporary(&data));
        assert!(
            !left.iter().any(|name| self.half_written.contains(name)),
            "{left:?} is left of an earlier life"
        );
    }

    /// Nothing that is public is wrong, whatever moment it was.
    async fn check_dead(&mut self, kind: Kind) {
        self.cut |= kind == Kind::PowerCut;
        if !self.cut {
            let books = self.books().await;
            check_public(&self.data(), "main", &books);
        }
        self.half_written = names(&temporary(&self.data())).into_iter().collect();
        self.scenario.killed();
    }

    /// All is published, once, and nothing else is left.
    async fn check_end(&self) {
        let (data, books) = (self.data(), self.books().await);
        let public = check_public(&data, "main", &books);
        assert_eq!(public, self.scenario.published());
        assert_eq!(public, books.paths());
        assert_eq!(names(&temporary(&data)), [""; 0], "left half-written");
        assert_eq!(books.packs, BTreeSet::new(), "rows of the quarantine are left");
        assert_eq!(packs(&data), BTreeSet::new(), "packs that nothing names are left");
        let listings = names(&data.join("blobs/main")).iter().filter(|n| n.ends_with(".ls")).count();
        assert_eq!(listings, public.len(), "listings");
        let nars = names(&data.join("blobs/main/nar")).len();
        assert_eq!(nars, public.len(), "NARs");
    }
}
