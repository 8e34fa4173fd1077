//! What goes back to the gateway while a job runs and after it: the log in pieces, the result, NARs. Each is sent until it
//! has arrived or the gateway refuses it.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use pushgate_formats::{
    Sha256,
    jobs::{JobResult, MAX_LOG_PIECE, ResultTaken},
};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    api::{Api, ApiError, JobHandle},
    clock,
};

/// How often a growing log is looked at.
const LOG_PAUSE: Duration = Duration::from_millis(250);
/// A NAR is compressed for one upload; the level of Nix's own binary caches is of no use.
const LEVEL: i32 = 3;
const CHUNK: usize = 128 << 10;

/// The log of a build in a file, bounded.
pub struct LogFile {
    file: std::fs::File,
    length: u64,
    limit: u64,
}

impl LogFile {
    pub fn create(path: &Path, limit: u64) -> std::io::Result<Self> {
        Ok(Self { file: std::fs::File::create(path)?, length: 0, limit })
    }

    /// Adds a line; false where it doesn't fit any more.
    pub fn line(&mut self, line: &str) -> std::io::Result<bool> {
        let room = usize::try_from(self.limit.saturating_sub(self.length)).unwrap_or(usize::MAX);
        let mut bytes = line.as_bytes().to_vec();
        bytes.push(b'\n');
        let fits = bytes.len() <= room;
        bytes.truncate(room);
        self.file.write_all(&bytes)?;
        self.length += bytes.len() as u64;
        Ok(fits)
    }
}

/// Sends a log while it grows; returns when it was told that the log has ended and all of it has arrived, or when the
/// gateway wants no more. A log is a help to people and never the reason why a job fails.
pub async fn send_log(api: Arc<Api>, job: JobHandle, path: PathBuf, mut ended: watch::Receiver<bool>) {
    let (mut at, mut failures) = (0, 0);
    loop {
        // asked before the file is read: what was written before the end is then seen
        let last = *ended.borrow();
        let piece = match piece(&path, at).await {
            Ok(piece) => piece,
            Err(error) => return tracing::warn!(job = job.id, %error, "the log can't be read"),
        };
        if piece.is_empty() {
            if last {
                return;
            }
            let _ = tokio::time::timeout(LOG_PAUSE, ended.changed()).await;
            continue;
        }
        let end = at + piece.len() as u64;
        match api.log(&job, at, piece).await {
            Ok(taken) if taken.length <= end => {
                failures = if taken.length > at { 0 } else { failures + 1 };
                at = taken.length;
            }
            Ok(taken) => {
                return tracing::warn!(
                    job = job.id,
                    length = taken.length,
                    "the gateway has more log than there is"
                );
            }
            Err(error) if error.is_final() => return tracing::debug!(job = job.id, %error, "no more log"),
            Err(error) => {
                tracing::debug!(job = job.id, %error, "the log waits");
                failures += 1;
            }
        }
        if failures > 0 {
            tokio::time::sleep(clock::pause(failures - 1, clock::random())).await;
        }
    }
}

async fn piece(path: &Path, at: u64) -> std::io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(path).await?;
    file.seek(std::io::SeekFrom::Start(at)).await?;
    let mut piece = Vec::new();
    file.take(MAX_LOG_PIECE as u64).read_to_end(&mut piece).await?;
    Ok(piece)
}

/// Sends the result until the gateway has taken or refused it.
pub async fn send_result(api: &Api, job: &JobHandle, result: &JobResult) -> Result<ResultTaken, ApiError> {
    let mut failures = 0;
    loop {
        match api.result(job, result).await {
            Err(error) if !error.is_final() => {
                tracing::warn!(job = job.id, %error, "the result waits");
                tokio::time::sleep(clock::pause(failures, clock::random())).await;
                failures += 1;
            }
            answer => return answer,
        }
    }
}

/// Sends a NAR: the path is dumped again for each attempt, compressed on the way, and never whole in memory.
pub async fn send_nar(
    api: &Api,
    job: &JobHandle,
    hash: &Sha256,
    dump: impl Fn() -> std::process::Command,
) -> Result<(), ApiError> {
    let mut failures = 0;
    loop {
        let (send, receive) = mpsc::channel(4);
        let command = dump();
        // ends with the dump, or when nobody reads any more
        let work = tokio::task::spawn_blocking(move || compress(command, &send));
        let sent = api.nar(job, hash, reqwest::Body::wrap_stream(ReceiverStream::new(receive))).await;
        let _ = work.await;
        match sent {
            Err(error) if !error.is_final() => {
                tracing::warn!(job = job.id, %error, "a NAR waits");
                tokio::time::sleep(clock::pause(failures, clock::random())).await;
                failures += 1;
            }
            answer => return answer,
        }
    }
}

type Piece = Result<Bytes, std::io::Error>;

fn compress(mut command: std::process::Command, send: &mpsc::Sender<Piece>) {
    let mut done = || -> std::io::Result<()> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut out = zstd::stream::write::Encoder::new(Vec::with_capacity(2 * CHUNK), LEVEL)?;
        let mut source = child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        let mut chunk = vec![0; CHUNK];
        let forward = |bytes: Vec<u8>| {
            send.blocking_send(Ok(bytes.into()))
                .map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))
        };
        let mut pump = || -> std::io::Result<()> {
            loop {
                let n = source.read(&mut chunk)?;
                if n == 0 {
                    return Ok(());
                }
                out.write_all(&chunk[..n])?;
                if out.get_ref().len() >= CHUNK {
                    forward(std::mem::take(out.get_mut()))?;
                }
            }
        };
        let pumped = pump();
        if pumped.is_err() {
            let _ = child.kill();
        }
        let status = child.wait()?;
        pumped?;
        if !status.success() {
            return Err(std::io::Error::other("the path can't be dumped"));
        }
        forward(out.finish()?)
    };
    if let Err(error) = done() {
        // breaks the upload off, where somebody still reads
        let _ = send.blocking_send(Err(error));
    }
}
