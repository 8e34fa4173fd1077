//! One job from its lease to its report. The stages stand here in their order; each has a module, and hands the next what
//! only it can make.
//!
//! ```text
//! Order → Inputs → Permitted → Finished → JobResult
//! ```

pub mod build;
pub mod cleanup;
pub mod collect;
pub mod fetch;
pub mod limits;
pub mod prepare;
pub mod refuse;

use std::sync::Arc;

use pushgate_formats::{
    StorePath,
    jobs::{Failure, Job, JobResult, MAX_MESSAGE},
    keys::{PublicKey, SecretKey},
};
use tokio::sync::{Semaphore, watch};

use crate::{
    api::{Api, JobHandle, printable},
    cgroup::Groups,
    clock,
    config::{Config, Limits, is_system},
    lease::{Lease, Standing},
    nix::{Bounds, Layout, Nix, View},
    report,
    workdir::Joined,
};

/// What all jobs share.
pub struct Worker {
    pub api: Arc<Api>,
    pub joined: Joined,
    pub key: SecretKey,
    pub config: Config,
    pub jobs_dir: std::path::PathBuf,
    pub groups: Option<Groups>,
    /// What confines builds here, for attestations.
    pub sandbox: String,
    pub nix_version: String,
    /// Fetches at a time: a slow origin is asked by one job only.
    pub fetches: Semaphore,
}

/// A failure with its code. Whether the same may go well elsewhere is for the gateway to know.
pub fn failure(code: &str, message: impl AsRef<str>) -> Failure {
    let mut message = printable(message.as_ref());
    while message.len() > MAX_MESSAGE {
        message.pop();
    }
    Failure { code: code.to_owned(), message, exit_code: None, retry: false }
}

/// A fault of this machine or of the network: of no meaning for the derivation.
pub fn fault(message: impl AsRef<str>) -> Failure {
    Failure { retry: true, ..failure("verifier-fault", message) }
}

/// A job whose words are fit for settings and request lines.
pub struct Order {
    pub job: Job,
    pub handle: JobHandle,
    pub limits: Limits,
    view: View,
}

impl Order {
    /// Checks what a gateway sent: it may be any server that answers at the address.
    pub fn check(job: Job, handle: JobHandle, base: &str, limits: &Limits) -> Result<Self, Failure> {
        let bad = |what: &str| Err(failure("job-malformed", format!("the job's {what}")));
        if job.token.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"') {
            return bad("token is malformed");
        }
        let fit = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
        if !job.view.starts_with("/api/v1/jobs/") || !job.view.chars().all(fit) || job.view.contains("..") {
            return bad("view is no path of this gateway");
        }
        if PublicKey::parse(&job.view_key).is_err() {
            return bad("view key is malformed");
        }
        if !job.derivation.is_derivation() {
            return bad("derivation isn't one");
        }
        if !is_system(&job.system) {
            return bad("system is malformed");
        }
        let Some(host) = reqwest::Url::parse(base).ok().and_then(|url| url.host_str().map(str::to_owned))
        else {
            return bad("gateway has no address");
        };
        let view = View {
            url: format!("{base}{}", job.view),
            key: job.view_key.clone(),
            netrc: format!("machine {host} login verifier password {}\n", job.token),
        };
        let limits = limits.tightened(&job.limits);
        Ok(Self { job, handle, limits, view })
    }

    fn bounds(&self) -> Bounds {
        let Limits { time, silence, log, memory, .. } = self.limits;
        // a quarter of the memory for /dev/shm, which would escape what is counted by process
        Bounds { time, silence, log, shm: memory / 4 }
    }
}

/// Why a job ended without a report.
enum Given {
    Up(Failure),
    Over(Standing),
}

impl Worker {
    /// Does a job. `give_up` becomes true when the verifier has to end now.
    pub async fn run(&self, job: Job, give_up: watch::Receiver<bool>) {
        let lease_seconds = job.lease;
        let Some(handle) = JobHandle::new(&job.job, &job.token) else {
            return tracing::error!("a job has a malformed id or token");
        };
        let order = match Order::check(job, handle.clone(), self.api.base(), &self.config.limits) {
            Ok(order) => order,
            Err(failure) => {
                tracing::error!(code = failure.code, message = failure.message, "a job can't be understood");
                let _ = report::send_result(&self.api, &handle, &JobResult::Failed(failure)).await;
                return;
            }
        };
        tracing::info!(job = order.handle.id, derivation = %order.job.derivation, "begins");
        let lease = Lease::keep(self.api.clone(), order.handle.clone(), lease_seconds);
        let nix = Nix::new(Layout { dir: self.jobs_dir.join(&order.handle.id) }, &self.config);
        let mut stopping = give_up.clone();
        let outcome = tokio::select! {
            done = self.work(&order, &nix) => done.map_err(Given::Up),
            standing = lease.over() => Err(Given::Over(standing)),
            _ = stopping.wait_for(|stop| *stop) => Err(Given::Up(fault("the verifier was told to stop"))),
        };
        // Nothing of the build runs on while its outputs are sent. What it had started ends with `work`, and this waits for
        // it; the directory goes when all is sent.
        cleanup::end(&nix.layout.dir).await;
        let result = match outcome {
            Ok(finished) => finished,
            Err(Given::Up(failure)) => JobResult::Failed(failure),
            Err(Given::Over(standing)) => {
                tracing::info!(job = order.handle.id, ?standing, "ends without a report");
                cleanup::remove(&nix.layout.dir).await;
                return;
            }
        };
        match &result {
            JobResult::Built { outputs, .. } => {
                tracing::info!(job = order.handle.id, outputs = outputs.len(), "built")
            }
            JobResult::Failed(f) => {
                tracing::info!(
                    job = order.handle.id,
                    code = f.code,
                    message = f.message,
                    retry = f.retry,
                    "failed"
                );
            }
        }
        let mut stopping = give_up;
        tokio::select! {
            () = self.report(&order, &nix, &result, &lease) => {}
            // a gateway that is away may stay away: whoever stops this verifier doesn't wait for it
            _ = async {
                let _ = stopping.wait_for(|stop| *stop).await;
                tokio::time::sleep(std::time::Duration::from_secs(10)).await;
            } => {}
        }
        cleanup::remove(&nix.layout.dir).await;
    }

    async fn report(&self, order: &Order, nix: &Nix, result: &JobResult, lease: &Lease) {
        let sent = tokio::select! {
            sent = report::send_result(&self.api, &order.handle, result) => sent,
            standing = lease.over() => {
                return tracing::info!(job = order.handle.id, ?standing, "nobody waits for the result");
            }
        };
        let wanted = match sent {
            Ok(taken) => taken.wanted,
            Err(error) => return tracing::warn!(job = order.handle.id, %error, "the result isn't taken"),
        };
        let JobResult::Built { outputs, .. } = result else { return };
        for hash in wanted {
            let Some(output) = outputs.iter().find(|output| output.nar_hash == hash) else {
                tracing::warn!(job = order.handle.id, %hash, "the gateway wants a NAR that wasn't built");
                continue;
            };
            let dump = || nix.dump(&output.path);
            if let Err(error) = report::send_nar(&self.api, &order.handle, &hash, dump).await {
                tracing::warn!(job = order.handle.id, %error, "a NAR isn't taken");
            }
        }
    }

    async fn work(&self, order: &Order, nix: &Nix) -> Result<JobResult, Failure> {
        let started = clock::now();
        let io = |e: std::io::Error| fault(format!("the job's directory can't be made: {e}"));
        cleanup::make(&nix.layout).map_err(io)?;
        nix.configure(&self.config, &order.job.system, &order.bounds(), Some(&order.view)).map_err(io)?;
        let inputs = prepare::fetch(nix, order).await?;
        let permitted = refuse::check(nix, order, inputs, &self.config)?;
        let finished = match permitted.fetch() {
            Some(url) => {
                let _turn = self.fetches.acquire().await;
                fetch::fetch(nix, order, &permitted, url, &self.config).await?
            }
            None => build::build(self, nix, order, &permitted).await?,
        };
        collect::collect(self, nix, order, permitted, finished, started).await
    }
}

/// Paths for a message: the first few.
pub fn listed<'a>(paths: impl Iterator<Item = &'a StorePath>) -> String {
    let all: Vec<_> = paths.map(|path| format!("`{path}`")).collect();
    let rest = all.len().saturating_sub(5);
    let more = if rest == 0 { String::new() } else { format!(" and {rest} more") };
    format!("{}{more}", all[..all.len() - rest].join(", "))
}
