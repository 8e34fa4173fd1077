//! What all requests share: the two seams, clock, keys, caches, and the bounds on what runs at once.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicU64},
};

use anyhow::Context;
use pushgate_formats::StorePath;
use pushgate_policies::Limits;
use tokio::sync::{Notify, RwLock, Semaphore, mpsc, watch};

use crate::{
    blobs::{Blobs, directory::Directory},
    caches::{self, Caches, Places},
    clock::Clock,
    config::Config,
    db::{Db, DbError, EnrolledKey, GatewayRow, NewEvent, sqlite::Sqlite},
    error::ApiError,
    limits::{self, Budget, Disk, Full, Memory, Place, Places as UploadPlaces, Shares},
    push::{
        derivations::Derivations,
        judge,
        rebuild::{self, Rebuilds},
        recover,
        session::Sessions,
    },
    upstream::Upstreams,
};

/// Small files at once, over all and of one owner. Stock Nix has 25 connections.
const SMALL: (usize, usize) = (256, 32);

/// See the module's documentation.
pub struct App {
    pub db: Arc<dyn Db>,
    pub blobs: Arc<dyn Blobs>,
    pub clock: Clock,
    pub config: Config,
    /// The gateway's random id, the audience of what is signed.
    pub gateway_id: String,
    /// Makes push tokens.
    pub secret: Vec<u8>,
    pub caches: Caches,
    pub upstreams: Upstreams,
    pub sessions: Sessions,
    pub derivations: Derivations,
    /// Announcements read and parsed at once.
    pub announcing: Arc<Semaphore>,
    /// Questions for what is missing, read and answered at once.
    pub asking: Arc<Semaphore>,
    /// Uploads at once.
    pub uploads: Arc<UploadPlaces>,
    /// Small files of stock Nix, and reads of own NARs, at once.
    pub small: Arc<UploadPlaces>,
    pub memory: Memory,
    pub disk: Disk,
    /// Bytes in quarantine, of all submitters.
    quarantined: Arc<AtomicU64>,
    /// Held for reading while bytes in quarantine are counted anew, for writing while some are freed.
    counting: RwLock<()>,
    /// NARs examined at once: one a core.
    pub examining: Arc<Semaphore>,
    /// Paths whose narinfos are written but perhaps not durable, by cache.
    pub revealed: Mutex<Vec<(String, Vec<StorePath>)>>,
    /// Whether narinfos of committed publications could not be written.
    pub unrevealed: std::sync::atomic::AtomicBool,
    pub orphans: Mutex<recover::Orphans>,
    /// Held while build logs are published.
    pub publishing_logs: tokio::sync::Mutex<()>,
    /// Asks for a sweep soon.
    pub sweep: Notify,
    /// True once the gateway stops.
    pub stopping: watch::Sender<bool>,
    /// Work that goes on after its request.
    pub background: Background,
    pub invites: crate::identities::Attempts,
    /// Stage 7.
    pub rebuilds: Rebuilds,
    /// Wakes those who wait for events.
    news: watch::Sender<()>,
    submitters: Mutex<HashMap<i64, Arc<Submitter>>>,
}

/// What is under way for one submitter.
#[derive(Default)]
pub struct Submitter {
    /// The count of quarantined bytes, as long as any budget uses it.
    quarantined: tokio::sync::Mutex<Weak<AtomicU64>>,
    /// What came within the last day, likewise.
    sent: tokio::sync::Mutex<Weak<AtomicU64>>,
}

/// Tasks that are waited for when the gateway stops.
#[derive(Default)]
pub struct Background {
    tasks: Mutex<tokio::task::JoinSet<()>>,
}

impl Background {
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Waits for all.
    pub async fn finish(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
    }
}

/// Where a gateway keeps its things below its data directory.
pub struct DataDir {
    pub database: PathBuf,
    pub blobs: PathBuf,
    pub places: Places,
}

impl DataDir {
    pub fn new(dir: &Path) -> Self {
        Self { database: dir.join("gateway.db"), blobs: dir.join("blobs"), places: Places::below(dir) }
    }
}

/// Opens the database of a data directory, making both where they are missing, and the gateway's constants.
pub async fn open_database(dir: &Path, clock: &Clock) -> anyhow::Result<(Arc<dyn Db>, GatewayRow)> {
    let db = database(dir).await?;
    let row = constants(db.as_ref(), clock).await?;
    Ok((db, row))
}

async fn database(dir: &Path) -> anyhow::Result<Arc<dyn Db>> {
    let data = DataDir::new(dir);
    std::fs::create_dir_all(dir).with_context(|| format!("the data directory {}", dir.display()))?;
    let db = Sqlite::open(&data.database)
        .await
        .with_context(|| format!("the database {}", data.database.display()))?;
    Ok(Arc::new(db))
}

async fn constants(db: &dyn Db, clock: &Clock) -> Result<GatewayRow, crate::db::DbError> {
    let fresh = GatewayRow { id: crate::random::hex(16), secret: crate::random::bytes::<32>().to_vec() };
    db.gateway(fresh, clock.now()).await
}

/// The two seams that a gateway stands on.
pub struct Seams {
    pub db: Arc<dyn Db>,
    pub blobs: Arc<dyn Blobs>,
}

impl Seams {
    /// Those of a data directory, made where they are missing.
    pub async fn below(dir: &Path) -> anyhow::Result<Self> {
        let db = database(dir).await?;
        let blobs = DataDir::new(dir).blobs;
        let blobs =
            Directory::open(&blobs).with_context(|| format!("the blob directory {}", blobs.display()))?;
        Ok(Self { db, blobs: Arc::new(blobs) })
    }
}

impl App {
    /// Opens a data directory, makes what a first start needs, and finishes what a crash left half done.
    pub async fn open(dir: &Path, config: Config, clock: Clock) -> anyhow::Result<Arc<Self>> {
        Self::open_on(Seams::below(dir).await?, dir, config, clock).await
    }

    /// The same on given seams. Keys and policies are files of the data directory all the same.
    pub async fn open_on(
        Seams { db, blobs }: Seams,
        dir: &Path,
        config: Config,
        clock: Clock,
    ) -> anyhow::Result<Arc<Self>> {
        let places = DataDir::new(dir).places;
        let row = constants(db.as_ref(), &clock).await?;
        if db.caches().await?.is_empty() {
            caches::create(db.as_ref(), &places, &clock, "main").await?;
        }
        let (started, mut new_caches) = mpsc::unbounded_channel();
        let shares = Shares::of(&config.limits);
        if shares.uploads < config.limits.uploads {
            tracing::info!(
                uploads = shares.uploads,
                "fewer uploads at once: `limits.memory` is less than all would need"
            );
        }
        let memory = Memory::new(shares.rest);
        let disk = Disk::new(vec![dir.to_owned(), DataDir::new(dir).blobs], config.limits.free_space);
        if !disk.has_room() {
            tracing::warn!(
                "the disk has less free space than `limits.free-space`: nothing is taken until there is more"
            );
        }
        let quarantined = Arc::new(AtomicU64::new(db.quarantine_total().await?));
        let (rebuilds, ends) = Rebuilds::new();
        let app = Arc::new(Self {
            db,
            blobs,
            gateway_id: row.id,
            secret: row.secret,
            caches: Caches::new(places, clock.clone(), started),
            upstreams: Upstreams::new(clock.clone())?,
            sessions: Sessions::new(memory.all() / 4),
            derivations: Derivations::default(),
            announcing: Arc::new(Semaphore::new(config.limits.announcements.max(1))),
            asking: Arc::new(Semaphore::new(crate::http::pushes::QUESTIONS)),
            small: Arc::new(UploadPlaces::new(SMALL.0, SMALL.1)),
            uploads: Arc::new(UploadPlaces::new(shares.uploads, config.limits.uploads_per_submitter)),
            memory,
            disk,
            quarantined,
            counting: RwLock::default(),
            examining: Arc::new(Semaphore::new(
                std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            )),
            rebuilds,
            revealed: Mutex::default(),
            unrevealed: std::sync::atomic::AtomicBool::new(false),
            orphans: Mutex::default(),
            publishing_logs: Default::default(),
            sweep: Notify::new(),
            stopping: watch::channel(false).0,
            background: Background::default(),
            invites: crate::identities::Attempts::new(config.limits.invite_attempts),
            news: watch::channel(()).0,
            submitters: Mutex::default(),
            clock,
            config,
        });
        recover::clean(&app).await?;
        app.caches.refresh(app.db.as_ref()).await?;
        for cache in app.caches.all() {
            publish_info(&app, &cache.name).await?;
            recover::finish_publications(&app, &cache).await?;
            rebuild::audit::withdraw(&app, &cache.name).await?;
        }
        let judges = app.clone();
        app.background.spawn(async move {
            let mut stopping = judges.stopping.subscribe();
            loop {
                let next = tokio::select! {
                    next = new_caches.recv() => next,
                    () = recover::stopped(&mut stopping) => return,
                };
                let Some((cache, queue)) = next else { return };
                if let Err(e) = publish_info(&judges, &cache.name).await {
                    tracing::error!(cache = cache.name, error = %e, "nix-cache-info can't be written");
                }
                judges.background.spawn(judge::run(judges.clone(), cache, queue));
            }
        });
        rebuild::start(&app, ends);
        app.background.spawn(recover::tend(app.clone()));
        app.background.spawn(recover::watch_policies(app.clone()));
        app.background.spawn(crate::acts::follow_host(app.clone()));
        recover::judge_open(&app).await?;
        for cache in app.caches.all() {
            app.rebuilds.ask(rebuild::demand::Ask::Builds(cache));
        }
        Ok(app)
    }

    /// What is under way for a submitter; the second value counts his quarantined bytes, and has to be kept until what it
    /// was taken for is in the database.
    pub async fn submitter(
        &self,
        identity: i64,
        limits: &Limits,
    ) -> Result<(Arc<Submitter>, Budget), DbError> {
        let submitter = {
            let mut all = self.submitters.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() > 10_000 {
                let counts =
                    |s: &Submitter| s.quarantined.try_lock().is_ok_and(|used| used.strong_count() > 0);
                all.retain(|_, s| Arc::strong_count(s) > 1 || counts(s));
            }
            all.entry(identity).or_default().clone()
        };
        // With nothing else under way the database knows best. Under the lock, so that who begins meanwhile shares the count
        // that is being loaded.
        // not while a sweep is between its rows and its count
        let _counting = self.counting.read().await;
        let mut quarantined = submitter.quarantined.lock().await;
        let used = match quarantined.upgrade() {
            Some(used) => used,
            None => {
                let used = Arc::new(AtomicU64::new(self.db.quarantine_bytes(identity).await?));
                *quarantined = Arc::downgrade(&used);
                used
            }
        };
        drop(quarantined);
        let all = self.quarantined.clone();
        let day = match limits.bytes_per_day {
            None => None,
            Some(most) => {
                let mut sent = submitter.sent.lock().await;
                let count = match sent.upgrade() {
                    Some(count) => count,
                    None => {
                        let since = self.clock.now().saturating_sub(86_400);
                        let count = Arc::new(AtomicU64::new(self.db.sent_since(identity, since).await?));
                        *sent = Arc::downgrade(&count);
                        count
                    }
                };
                Some((count, most))
            }
        };
        let (most, all_most) = (limits.quarantine_size, self.config.limits.quarantine);
        Ok((submitter, Budget { own: used, most, all, all_most, day }))
    }

    /// A place for an upload of this key's owner.
    pub fn place(&self, key: &EnrolledKey, limits: &Limits) -> Result<Place, ApiError> {
        self.place_of(key.identity, key.owner.as_deref(), limits)
    }

    /// A place for a small file of an identity and its owner, or for reading a large one back.
    pub fn small_place(&self, identity: i64, owner: Option<&str>) -> Result<Place, ApiError> {
        Self::place_among(&self.small, identity, owner, None)
    }

    /// A place for an upload of an identity and its owner.
    pub fn place_of(&self, identity: i64, owner: Option<&str>, limits: &Limits) -> Result<Place, ApiError> {
        Self::place_among(&self.uploads, identity, owner, limits.uploads_at_once)
    }

    fn place_among(
        places: &Arc<UploadPlaces>,
        identity: i64,
        owner: Option<&str>,
        most: Option<u64>,
    ) -> Result<Place, ApiError> {
        let owner = match owner {
            Some(owner) => format!("owner {owner}"),
            None => format!("identity {identity}"),
        };
        places.take(&owner, most).map_err(|full| {
            let whose = match full {
                Full::All => "all submitters",
                Full::Owner => "this submitter",
            };
            ApiError::busy(format!("too many uploads at once of {whose}; try again in a moment"))
        })
    }

    /// Refuses what would be written, where the disk is nearly full.
    pub async fn disk_has_room(self: &Arc<Self>) -> Result<(), ApiError> {
        let app = self.clone();
        let room = tokio::task::spawn_blocking(move || app.disk.has_room()).await;
        if room.map_err(|e| ApiError::unavailable(&e))? { Ok(()) } else { Err(ApiError::disk_full()) }
    }

    /// Sweeps with the counts of bytes in quarantine kept right.
    pub async fn freeing<T>(
        &self,
        sweep: impl Future<Output = Result<T, DbError>>,
        freed: impl Fn(&T) -> &[(i64, u64)],
    ) -> Result<T, DbError> {
        let _counting = self.counting.write().await;
        let swept = sweep.await?;
        for (identity, bytes) in freed(&swept) {
            limits::sub(&self.quarantined, *bytes);
            if let Some(used) = self.count_of(*identity).await {
                limits::sub(&used, *bytes);
            }
        }
        Ok(swept)
    }

    /// Counts bytes that went into the database without having been taken from a budget.
    pub async fn stored(&self, identity: i64, bytes: u64) {
        use std::sync::atomic::Ordering::Relaxed;
        self.quarantined.fetch_add(bytes, Relaxed);
        if let Some(used) = self.count_of(identity).await {
            used.fetch_add(bytes, Relaxed);
        }
    }

    /// A submitter's count, if anybody uses it.
    async fn count_of(&self, identity: i64) -> Option<Arc<AtomicU64>> {
        let submitter = {
            let all = self.submitters.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(&identity).cloned()
        };
        submitter?.quarantined.lock().await.upgrade()
    }

    /// Records something that changes nothing else; gives the event's number.
    pub async fn event(&self, event: &NewEvent) -> Result<u64, DbError> {
        let id = self.db.add_event(event).await?;
        self.tell_of_events();
        Ok(id)
    }

    /// Wakes those who wait for events: one was written.
    pub fn tell_of_events(&self) {
        self.news.send_replace(());
    }

    /// Changes whenever an event was written since.
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Has all pushes judged again that aren't settled for good and are an identity's, or it has said something of what they
    /// claim: something about it has changed. What fails
    /// is logged; all open pushes are looked at again from time to time anyway.
    pub async fn report_pushes_of(&self, identity: &str) {
        let open = match self.db.open_pushes_of(identity).await {
            Ok(open) => open,
            Err(e) => {
                let error = &e as &dyn std::error::Error;
                return tracing::warn!(error, identity, "its open pushes are judged again later");
            }
        };
        for (cache, push) in open {
            if let Ok(Some(cache)) = self.caches.get(self.db.as_ref(), &cache).await {
                crate::push::evidence::concerns(self, &cache, &push);
            }
        }
    }

    /// Stops: judges finish their batch, background work is waited for.
    pub async fn stop(&self) {
        self.stopping.send_replace(true);
        self.background.finish().await;
        recover::mark_revealed(self).await;
    }
}

/// `nix-cache-info` of every cache.
pub const CACHE_INFO: &str = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n";

/// `nix-cache-info` of a cache, so that its directory is whole without the gateway.
async fn publish_info(app: &Arc<App>, cache: &str) -> std::io::Result<()> {
    let (blobs, cache) = (app.blobs.clone(), cache.to_owned());
    tokio::task::spawn_blocking(move || blobs.publish_bytes(&cache, "nix-cache-info", CACHE_INFO.as_bytes()))
        .await
        .map_err(std::io::Error::other)?
}
