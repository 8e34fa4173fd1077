//! Keeping a lease: heartbeats, and the word that a job is over before it is done.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle};

use crate::{
    api::{Api, JobHandle},
    clock,
};

/// How a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Good,
    /// Nobody needs the job any more.
    Cancelled,
    /// The gateway doesn't know the lease any more, so that nothing of the job is of use.
    Lost,
}

/// A lease that is kept while the value lives.
#[derive(Debug)]
pub struct Lease {
    standing: watch::Receiver<Standing>,
    beats: JoinHandle<()>,
}

impl Lease {
    /// Keeps a lease of some seconds by a beat in each third of them. A gateway that can't be reached is no reason to give
    /// up: it may not have noticed, and takes a late result where it gave the job to nobody else.
    pub fn keep(api: Arc<Api>, job: JobHandle, seconds: u64) -> Self {
        let (tell, standing) = watch::channel(Standing::Good);
        let beats = tokio::spawn(async move {
            let every = Duration::from_millis((seconds.clamp(1, 3600) * 1000) / 3);
            let mut failures = 0;
            loop {
                let pause =
                    if failures == 0 { every } else { clock::pause(failures, clock::random()).min(every) };
                tokio::time::sleep(pause).await;
                match api.heartbeat(&job).await {
                    Ok(beat) if beat.cancelled => {
                        tell.send_replace(Standing::Cancelled);
                        return;
                    }
                    Ok(_) => failures = 0,
                    Err(error) if error.is_final() => {
                        tracing::warn!(job = job.id, %error, "the lease is over");
                        tell.send_replace(Standing::Lost);
                        return;
                    }
                    Err(error) => {
                        failures += 1;
                        tracing::warn!(job = job.id, %error, "no heartbeat; trying again");
                    }
                }
            }
        });
        Self { standing, beats }
    }

    /// Returns when the lease is over.
    pub async fn over(&self) -> Standing {
        let mut standing = self.standing.clone();
        match standing.wait_for(|now| *now != Standing::Good).await.map(|now| *now) {
            Ok(standing) => standing,
            // the beats end only after they have told why
            Err(_) => Standing::Lost,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.beats.abort();
    }
}
