//! A forging client and gateways that run inside the test's process: whole pushes over real HTTP, every field of which can
//! be a lie, and a look behind the curtain at what a refusal left behind. Everything is synthetic; no Nix is needed.
//!
//! What goes wrong in the harness itself panics: then the test has failed.

mod acts;
mod client;
mod packages;
mod remote;
mod snapshot;
mod stock;
mod verifier;

pub use acts::{act, sealed_act};
pub use client::{Draft, Pushed, Refused, Submitter, framed, framed_as, packed_derivations};
pub use packages::{Item, Package, PackageBuilder, directory_nar, file_nar, random_hex};
pub use remote::{Remote, Tally, all_published};
pub use snapshot::Snapshot;
pub use stock::{Packing, StockUser};
pub use verifier::{Built, Verifier, lease_query};

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex},
};

use pushgate_formats::{StorePath, keys::SecretKey};
use pushgate_gateway::{
    app::{App, Seams},
    clock::Clock,
    config::Config,
    db::Role,
    identities::Invite,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use crate::faults::{Fault, Faults, FaultyDb};

/// Everything published here that is proven, no upstream, nothing reached for outside this machine. Tables may follow.
pub const POLICY: &str = r#"version = 1
cache = "main"
[[rule]]
name = "contents"
match = { content-addressed = true }
require = "content-address"
[[rule]]
name = "rest"
match = {}
require = "derivation"
"#;

/// Seconds that the policy lets a push wait, by default.
pub const QUARANTINE_TTL: u64 = 7 * 86_400;

/// A gateway in this process, on a directory of its own.
pub struct Forge {
    pub app: Arc<App>,
    pub clock: Clock,
    pub url: String,
    pub http: reqwest::Client,
    dir: TempDir,
    /// Every path that was ever claimed here.
    claimed: Mutex<BTreeSet<StorePath>>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Forge {
    /// Starts a gateway with [`POLICY`].
    pub async fn start() -> Self {
        Self::start_with(POLICY, Config::default()).await
    }

    pub async fn start_with(policy: &str, config: Config) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // before the first start: the gateway writes a starting policy, with an upstream, only where there is none
        std::fs::create_dir_all(dir.path().join("policies")).expect("policies");
        std::fs::write(dir.path().join("policies/main.toml"), policy).expect("the policy");
        Self::open(dir, config, Clock::default(), Mutex::default()).await
    }

    async fn open(dir: TempDir, config: Config, clock: Clock, claimed: Mutex<BTreeSet<StorePath>>) -> Self {
        let app = App::open(dir.path(), config, clock.clone()).await.expect("the gateway opens");
        Self::serve(app, dir, clock, claimed).await
    }

    async fn serve(app: Arc<App>, dir: TempDir, clock: Clock, claimed: Mutex<BTreeSet<StorePath>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(pushgate_gateway::http::serve(app.clone(), listener, async {
            // dropped or told: both mean stop
            let _ = stopped.await;
        }));
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { app, clock, url, http, dir, claimed, stop, serving }
    }

    /// Stops the gateway and starts another on the same directory: what isn't stored is forgotten.
    pub async fn restart(self) -> Self {
        let (config, clock) = (self.app.config.clone(), self.clock.clone());
        let (dir, claimed) = self.end().await;
        Self::open(dir, config, clock, claimed).await
    }

    /// The same on a database in which a fault waits, of a kind that doesn't kill.
    pub async fn restart_with(self, fault: Fault) -> (Self, Arc<Faults>) {
        let (config, clock) = (self.app.config.clone(), self.clock.clone());
        let (dir, claimed) = self.end().await;
        let faults = Faults::new(Some(fault));
        let Seams { db, blobs } = Seams::below(dir.path()).await.expect("the seams");
        let seams = Seams { db: Arc::new(FaultyDb::new(db, faults.clone())), blobs };
        let app = App::open_on(seams, dir.path(), config, clock.clone()).await.expect("the gateway opens");
        (Self::serve(app, dir, clock, claimed).await, faults)
    }

    /// Stops the gateway and gives its directory.
    pub async fn stop(self) -> TempDir {
        self.end().await.0
    }

    async fn end(self) -> (TempDir, Mutex<BTreeSet<StorePath>>) {
        let Self { app, http, dir, claimed, stop, serving, .. } = self;
        // the server waits for connections that are open
        drop((http, stop));
        serving.await.expect("the server's task").expect("the server");
        drop(app);
        (dir, claimed)
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Adds a cache with the same policy.
    pub async fn add_cache(&self, name: &str) {
        let places = pushgate_gateway::app::DataDir::new(self.dir()).places;
        std::fs::write(places.policy(name), POLICY.replace("\"main\"", &format!("\"{name}\"")))
            .expect("the policy");
        pushgate_gateway::caches::create(self.app.db.as_ref(), &places, &self.clock, name)
            .await
            .expect("the cache");
    }

    /// An invite for a submitter who is his own owner.
    pub fn invitation(name: &str) -> Invite {
        Invite {
            name: name.to_owned(),
            role: Role::Submitter,
            owner: Some(name.to_owned()),
            groups: vec![],
            caches: None,
            ttl: 3600,
            key_expires: None,
        }
    }

    /// Makes an invite; gives the code.
    pub async fn invite(&self, invite: Invite) -> String {
        pushgate_gateway::identities::invite(self.app.db.as_ref(), self.clock.now(), invite)
            .await
            .expect("an invite")
    }

    /// Enrols a new submitter with a key of his own.
    pub async fn submitter(&self, name: &str) -> Submitter {
        self.submitter_by(Self::invitation(name)).await
    }

    /// Enrols a new key by this invite.
    pub async fn submitter_by(&self, invite: Invite) -> Submitter {
        let submitter = Submitter::new(&format!("{}-{}", invite.name, &random_hex()[..8]));
        let code = self.invite(invite).await;
        self.enrol(&submitter.key, &code).await.expect("the enrolment");
        submitter
    }

    /// Revokes a key, as the admin would.
    pub async fn revoke(&self, key: &SecretKey) {
        let (db, now) = (self.app.db.as_ref(), self.clock.now());
        let known =
            pushgate_gateway::identities::revoke_key(db, key.name(), now).await.expect("the database");
        assert!(known, "no key `{}` is enrolled", key.name());
    }

    /// Ends what ran out and frees what nothing needs.
    pub async fn sweep(&self) {
        pushgate_gateway::push::recover::sweep(&self.app).await.expect("a sweep");
    }

    /// The body of a public file; `None` where the answer is 404, which must not be kept by anybody.
    pub async fn public(&self, name: &str) -> Option<Vec<u8>> {
        let answer = self.http.get(format!("{}/main/{name}", self.url)).send().await.expect("an answer");
        match answer.status().as_u16() {
            200 => Some(answer.bytes().await.expect("a body").to_vec()),
            404 => {
                assert_eq!(answer.headers()["cache-control"], "no-store");
                None
            }
            other => panic!("{name} is answered with {other}"),
        }
    }

    /// The narinfo of a path, if it is published.
    pub async fn narinfo(&self, path: &StorePath) -> Option<String> {
        let raw = self.public(&format!("{}.narinfo", path.hash_part())).await?;
        Some(String::from_utf8(raw).expect("a narinfo is text"))
    }
}
