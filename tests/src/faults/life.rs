//! One life of a gateway: from its start on a data directory to its end, natural or not.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use pushgate_gateway::{
    app::{App, DataDir, Seams},
    clock::Clock,
    config::Config,
    push::recover,
};
use tokio::{net::TcpListener, runtime::Runtime, sync::oneshot, task::JoinHandle};

use super::{Fault, Faults, FaultyBlobs, FaultyDb, Kind, Scenario};

/// A gateway that runs, in a runtime of its own: all that it does can be ended from outside.
pub struct Life {
    pub app: Arc<App>,
    pub url: String,
    pub faults: Arc<Faults>,
    body: Body,
    serving: JoinHandle<std::io::Result<()>>,
    stop: oneshot::Sender<()>,
}

/// Why there is no gateway.
#[derive(Debug)]
pub enum NoLife {
    /// It was killed while it started.
    Killed,
    /// It gave up by itself, and said why.
    Failed(String),
}

/// What is buried when it dies.
struct Body {
    /// `None` once it is buried.
    runtime: Option<Runtime>,
    faults: Arc<Faults>,
    blobs: Arc<OnceLock<Arc<FaultyBlobs>>>,
}

impl Drop for Body {
    fn drop(&mut self) {
        // also where a test fails with it: dropped as it is, it would wait for what runs
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Body {
    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("taken only when it is buried")
    }

    /// Ends all that runs. Everything that was being written when the gateway died is written by then.
    fn bury(mut self) {
        self.faults.wait_for_quiet();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if self.faults.fault.is_some_and(|fault| fault.kind == Kind::PowerCut)
            && self.faults.is_dead()
            && let Some(blobs) = self.blobs.get()
        {
            blobs.cut_power();
        }
    }
}

impl Life {
    /// Starts a gateway on a directory, with a fault that waits for it.
    pub async fn begin(
        dir: &Path,
        clock: &Clock,
        fault: Option<Fault>,
        scenario: Arc<dyn Scenario>,
    ) -> (Arc<Faults>, Result<Self, NoLife>) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let faults = Faults::new(fault);
        let body = Body { runtime: Some(runtime), faults: faults.clone(), blobs: Arc::default() };
        let (given, slot) = (faults.clone(), body.blobs.clone());
        let (dir, clock) = (dir.to_owned(), clock.clone());
        let opening = body.runtime().spawn(async move {
            let seams = Seams::below(&dir).await?;
            let data = dir.clone();
            let blobs = FaultyBlobs::new(seams.blobs, &DataDir::new(&dir).blobs, given.clone())
                .before(move |what| scenario.before(what, &data));
            let blobs = slot.get_or_init(|| Arc::new(blobs)).clone();
            let db = Arc::new(FaultyDb::new(seams.db, given));
            let app = App::open_on(Seams { db, blobs }, &dir, Config::default(), clock).await?;
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let url = format!("http://{}", listener.local_addr()?);
            let (stop, stopped) = oneshot::channel::<()>();
            let serving = tokio::spawn(pushgate_gateway::http::serve(app.clone(), listener, async {
                // dropped or told: both mean stop
                let _ = stopped.await;
            }));
            anyhow::Ok((app, url, serving, stop))
        });
        let opened = tokio::select! {
            biased;
            () = faults.death() => None,
            opened = opening => Some(opened.map_err(anyhow::Error::from).and_then(|opened| opened)),
        };
        let life = match opened {
            // what a thread of the dead leaves is an error too
            Some(Err(error)) if !faults.is_dead() => {
                body.bury();
                Err(NoLife::Failed(format!("{error:#}")))
            }
            Some(Ok((app, url, serving, stop))) if !faults.is_dead() => {
                Ok(Self { app, url, faults: faults.clone(), body, serving, stop })
            }
            _ => {
                body.bury();
                Err(NoLife::Killed)
            }
        };
        (faults, life)
    }

    /// What the sweeper does now and then, now.
    pub async fn tidy(&self) {
        let app = self.app.clone();
        // in the gateway's runtime; fails only where the gateway was killed, and then nobody asks
        let _ = self.body.runtime().spawn(async move { recover::tidy(&app).await }).await;
    }

    /// Ends what runs of one that was killed.
    pub fn bury(self) {
        let Self { app, body, .. } = self;
        body.bury();
        drop(app);
    }

    /// Asks it to stop; false where it was killed while it did.
    pub async fn stop(self) -> bool {
        let Self { app, faults, body, serving, stop, .. } = self;
        drop(stop);
        let stopped = tokio::select! {
            biased;
            () = faults.death() => false,
            stopped = serving => {
                stopped.expect("the server's task").expect("the server");
                !faults.is_dead()
            }
        };
        body.bury();
        drop(app);
        stopped
    }
}
