//! Fetching what a build may use, from the job's view and from nowhere else. Nix checks signatures and hashes; this module
//! only sees that all is there.

use std::{collections::BTreeMap, ffi::OsString, time::Duration};

use pushgate_formats::{StorePath, jobs::Failure};
use tokio::io::AsyncReadExt;

use super::{
    Order, failure, fault,
    limits::{Exceeded, Watch},
    listed,
};
use crate::{
    confine::Confinement,
    nix::{Nix, Phase, Valid, tail},
};

/// Paths in one command: some hundred bytes each, far from what the kernel lets a command have.
const BATCH: usize = 500;
/// Last words that are kept.
const MAX_SAID: usize = 64 << 10;

/// What was in the store before the build; only [`fetch`] makes it.
#[derive(Debug)]
pub struct Inputs {
    valid: BTreeMap<StorePath, Valid>,
}

impl Inputs {
    pub const fn valid(&self) -> &BTreeMap<StorePath, Valid> {
        &self.valid
    }
}

/// Fetches the derivation and the inputs with all that they refer to.
pub async fn fetch(nix: &Nix, order: &Order) -> Result<Inputs, Failure> {
    let mut wanted = vec![order.job.derivation.clone()];
    wanted.extend(order.job.inputs.iter().cloned());
    // Realising a derivation would build it. `storePath` only makes sure that a path is there, and with it what it refers
    // to; store paths have no character that means something in the language but `?`, which means nothing here either.
    for batch in wanted.chunks(BATCH) {
        let list: Vec<_> = batch.iter().map(StorePath::absolute).collect();
        let expression = format!("map (p: builtins.storePath p) [ \"{}\" ]", list.join("\" \""));
        let arguments =
            ["--eval", "--strict", "--read-write-mode", "--expr", &expression].map(OsString::from);
        substitute(nix, order, "nix-instantiate", arguments).await?;
    }
    let valid = nix.valid().await.map_err(|e| fault(e.to_string()))?;
    let missing: Vec<_> = wanted.iter().filter(|path| !valid.contains_key(path)).collect();
    if !missing.is_empty() {
        return Err(unavailable(format!("not in the job's view: {}", listed(missing.into_iter()))));
    }
    Ok(Inputs { valid })
}

pub(super) fn unavailable(message: impl AsRef<str>) -> Failure {
    failure("inputs-unavailable", message)
}

async fn substitute(
    nix: &Nix,
    order: &Order,
    program: &str,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(), Failure> {
    let how = Confinement { network: true, ..Confinement::default() };
    let mut child = nix
        .confined(Phase::Fetch, &how, program, arguments)
        .map_err(|e| fault(format!("`{program}`: {e}")))?;
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let said = async {
        let read_out = read_tail(out.as_mut());
        let read_err = read_tail(err.as_mut());
        let (_, said) = tokio::join!(read_out, read_err);
        (child.wait().await, said)
    };
    let watch = Watch::of_disk(nix.layout.clone(), order.limits.disk);
    let (status, said) = tokio::select! {
        ended = said => ended,
        exceeded = watch.run() => return Err(match exceeded {
            Exceeded::Disk => failure("disk-full", "the inputs are larger than what a job may have on the verifier's disk"),
            other => fault(format!("while fetching: {other:?}")),
        }),
        () = tokio::time::sleep(Duration::from_secs(order.limits.time)) => {
            return Err(Failure { retry: true, ..unavailable("fetching the inputs took longer than a build may") });
        }
    };
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => {
            let said = tail(&String::from_utf8_lossy(&said));
            Err(Failure { retry: is_passing(&said), ..unavailable(said) })
        }
        Err(error) => Err(fault(format!("`{program}`: {error}"))),
    }
}

/// Whether the line or the disk is to blame, so that the same may go well another time.
fn is_passing(said: &str) -> bool {
    ["unable to download", "No space left", "timed out", "Couldn't connect", "Connection re"]
        .iter()
        .any(|words| said.contains(words))
        && !["HTTP error 404", "HTTP error 401", "HTTP error 403"].iter().any(|words| said.contains(words))
}

/// Reads to the end and keeps the last of it.
async fn read_tail(source: Option<&mut (impl tokio::io::AsyncRead + Unpin)>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(source) = source else { return kept };
    while source.read_buf(&mut kept).await.is_ok_and(|n| n > 0) {
        if kept.len() > 2 * MAX_SAID {
            kept.drain(..kept.len() - MAX_SAID);
        }
    }
    kept
}
