//! The build itself: stock Nix, confined, with nobody to ask. Knows how it ended; doesn't know what came out.

use std::time::{Duration, Instant};

use pushgate_formats::jobs::Failure;
use tokio::{io::AsyncReadExt, sync::watch};

use super::{
    Order, Worker, failure, fault,
    limits::{Exceeded, Watch},
    refuse::Permitted,
};
use crate::{
    cgroup::Group,
    confine::Confinement,
    nix::{Nix, Phase},
    nix_log::{self, Lines, Told},
    report::{LogFile, send_log},
};

/// Beyond a build's own time: for Nix to start, to hash what came out and to end.
const GRACE: Duration = Duration::from_secs(300);
/// Errors of Nix that are kept.
const MAX_ERRORS: usize = 20;

/// A build that ended well; only [`build`] and a fetch make it.
#[derive(Debug)]
pub struct Finished {
    pub(super) sandbox: String,
}

/// What Nix said and how it ended.
#[derive(Debug, Default)]
struct Ended {
    /// `None` where it was ended.
    code: Option<i32>,
    errors: Vec<String>,
    /// What came in no form: of the loader, or of those that confine.
    strays: Vec<String>,
    log_full: bool,
    /// Before the build's time was over.
    early: bool,
}

/// Builds, and sends the log meanwhile.
pub async fn build(
    worker: &Worker,
    nix: &Nix,
    order: &Order,
    permitted: &Permitted,
) -> Result<Finished, Failure> {
    let io = |e: std::io::Error| fault(format!("the build can't be started: {e}"));
    let log = LogFile::create(&nix.layout.log(), order.limits.log).map_err(io)?;
    let (end, ended) = watch::channel(false);
    let sending = AbortOnDrop(tokio::spawn(send_log(
        worker.api.clone(),
        order.handle.clone(),
        nix.layout.log(),
        ended,
    )));
    let outcome = confined(worker, nix, order, permitted, log).await;
    end.send_replace(true);
    // all of the log arrives before the result, unless the job is over first
    let mut sending = sending;
    let _ = (&mut sending.0).await;
    outcome
}

/// A task that doesn't outlive whoever waits for it.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn confined(
    worker: &Worker,
    nix: &Nix,
    order: &Order,
    permitted: &Permitted,
    log: LogFile,
) -> Result<Finished, Failure> {
    let limits = order.limits;
    let group = match &worker.groups {
        Some(groups) => Some(
            groups
                .make(&order.handle.id, limits.memory, limits.processes)
                .map_err(|e| fault(format!("no control group: {e}")))?,
        ),
        None => None,
    };
    let how = Confinement {
        // not even a fixed output gets one
        network: false,
        // With room for the watch to see that there are too many: at this bound a build can't start more, but some that fail
        // by that end and make room again.
        processes: Some(limits.processes.saturating_mul(2).saturating_add(64)),
        memory: Some(limits.memory),
        file_size: Some(limits.disk),
        cgroup: group.as_ref().map(|group| group.path().to_owned()),
        inner: false,
    };
    let derivation = order.job.derivation.absolute();
    let arguments = ["--realise", &derivation, "--log-format", "internal-json"].map(Into::into);
    let mut child = nix
        .confined(Phase::Build, &how, "nix-store", arguments)
        .map_err(|e| fault(format!("the build can't be started: {e}")))?;
    let watch = Watch::of_build(
        nix.layout.clone(),
        limits,
        child.id(),
        permitted.inputs.valid().keys(),
        permitted.outputs.values(),
    );
    let began = Instant::now();
    let ended = tokio::select! {
        ended = follow(&mut child, log) => ended,
        exceeded = watch.run() => Err(exceeded.failure(&limits)),
        () = tokio::time::sleep(Duration::from_secs(limits.time) + GRACE) => {
            Err(failure("timed-out", "Nix went on after the build's time was over"))
        }
    };
    // ends all of the namespace where it still runs
    drop(child.stdin.take());
    let _ = child.wait().await;
    let mut ended = ended?;
    ended.early = began.elapsed() < Duration::from_secs(limits.time);
    match ended.code {
        Some(0) if !ended.log_full => Ok(Finished { sandbox: worker.sandbox.clone() }),
        _ => Err(why(&ended, group.as_ref(), &limits)),
    }
}

/// Reads what Nix tells until it ends.
async fn follow(child: &mut tokio::process::Child, mut log: LogFile) -> Result<Ended, Failure> {
    let mut ended = Ended::default();
    let (Some(err), Some(mut out)) = (child.stderr.take(), child.stdout.take()) else {
        return Err(fault("the build has no output"));
    };
    // the outputs' paths; read so that Nix isn't stopped by a full pipe
    let paths = tokio::spawn(async move { while out.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} });
    let mut lines = Lines::new(err);
    while let Some(line) = lines.next().await.map_err(|e| fault(format!("the build's output: {e}")))? {
        let text = match nix_log::parse(&line) {
            Told::Line(text) => text,
            Told::Error(text) => {
                if ended.errors.len() < MAX_ERRORS {
                    ended.errors.push(text.clone());
                }
                text
            }
            Told::Stray(text) => {
                if ended.strays.len() < MAX_ERRORS {
                    ended.strays.push(text);
                }
                continue;
            }
            Told::Other => continue,
        };
        if !log.line(&text).map_err(|e| fault(format!("the log can't be written: {e}")))? {
            ended.log_full = true;
            return Ok(ended);
        }
    }
    let _ = paths.await;
    ended.code = child.wait().await.map_err(|e| fault(e.to_string()))?.code();
    Ok(ended)
}

/// The code for how a build ended, by Nix's own words, which are nearly the same from 2.8 to 2.34.
fn why(ended: &Ended, group: Option<&Group>, limits: &crate::config::Limits) -> Failure {
    let said = ended.errors.join(" ");
    if group.is_some_and(Group::ran_out_of_memory) {
        return Exceeded::Memory.failure(limits);
    }
    if group.is_some_and(Group::ran_out_of_processes) {
        return Exceeded::Processes.failure(limits);
    }
    by_words(&said, ended)
}

fn by_words(said: &str, ended: &Ended) -> Failure {
    let exit_code = number_after(said, "failed with exit code ");
    let signal = number_after(said, "failed due to signal ");
    if ended.log_full || said.contains("of log output") {
        return failure("log-too-large", "the build wrote more log than is allowed");
    }
    // newer ones have the same words for both
    if said.contains("of silence") || (said.contains("timed out after") && ended.early) {
        return failure("silent", said);
    }
    if said.contains("timed out after") {
        return failure("timed-out", said);
    }
    // SIGXFSZ: the bound of one file is what a job may have on the disk
    if signal == Some(25) {
        return failure("disk-full", said);
    }
    if said.contains("No space left on device") && exit_code.is_none() {
        return Failure { retry: true, ..failure("disk-full", said) };
    }
    match (exit_code, ended.code) {
        (Some(_), _) => Failure { exit_code, ..failure("build-failed", said) },
        (None, _) if signal.is_some() => failure("build-failed", said),
        // what Nix says of builds: failed, hash mismatch, not deterministic
        (None, Some(100 | 102 | 104)) => failure("build-failed", said),
        (None, code) => {
            let code = code.map_or_else(|| "a signal".to_owned(), |code| format!("code {code}"));
            fault(format!("Nix ended with {code}: {said} {}", ended.strays.join(" ")))
        }
    }
}

fn number_after(text: &str, words: &str) -> Option<i32> {
    let rest = &text[text.find(words)? + words.len()..];
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        "error: builder for '/nix/store/x.drv' failed with exit code 3;",
        100,
        "build-failed",
        Some(3),
        false
    )]
    #[case(
        "error: Cannot build '/nix/store/x.drv'. Reason: builder failed with exit code 1. Output",
        1,
        "build-failed",
        Some(1),
        false
    )]
    #[case(
        "error: builder for 'x' failed due to signal 25 (File size limit exceeded)",
        100,
        "disk-full",
        None,
        false
    )]
    #[case(
        "error: builder for 'x' failed due to signal 11 (Segmentation fault)",
        100,
        "build-failed",
        None,
        false
    )]
    #[case("error: building of 'x' timed out after 3 seconds of silence", 101, "silent", None, false)]
    #[case("error: building of 'x' timed out after 3 seconds", 101, "timed-out", None, false)]
    #[case(
        "error: x killed after writing more than 100 bytes of log output",
        100,
        "log-too-large",
        None,
        false
    )]
    #[case("error: hash mismatch in fixed-output derivation 'x'", 102, "build-failed", None, false)]
    #[case("error: writing to file: No space left on device", 1, "disk-full", None, true)]
    #[case("error: cannot fork", 1, "verifier-fault", None, true)]
    fn ends(
        #[case] said: &str,
        #[case] code: i32,
        #[case] expected: &str,
        #[case] exit: Option<i32>,
        #[case] retry: bool,
    ) {
        let ended = Ended { code: Some(code), ..Ended::default() };
        let failure = by_words(said, &ended);
        assert_eq!(
            (failure.code.as_str(), failure.exit_code, failure.retry),
            (expected, exit, retry),
            "{failure:?}"
        );
    }

    #[test]
    fn silence_is_told_from_time_where_nix_does_not() {
        let ended = Ended { code: Some(101), early: true, ..Ended::default() };
        assert_eq!(by_words("error: timed out after 3 seconds", &ended).code, "silent");
    }
}
