//! Answers on HTTP/2, where a reader who takes nothing doesn't show at the socket: he closes the window of a stream, answers
//! every ping, and the bytes wait in memory. So it is counted what of the answers has left it.

use std::{
    fs::File,
    future::Future,
    io,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::{sync::Notify, task::JoinHandle, time::Instant};

use super::patience::Pace;

/// Bytes of a file in memory for one stream.
const PIECE: usize = 64 << 10;
/// The same while the streams of all connections together have more than [`PLENTY`]. Nobody waits for memory that another
/// stream holds: that would be a place at which slow readers hold up the others.
const SMALL_PIECE: usize = 4 << 10;
const PLENTY: usize = 32 << 20;

/// Bytes that wait in memory, over all connections.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// The answers of one connection.
#[derive(Clone, Default)]
pub(super) struct Flow(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is an answer.
    begun: Notify,
}

#[derive(Default)]
struct State {
    /// Answers of which something is still to be taken.
    open: usize,
    /// Since when there are any.
    since: Option<Instant>,
    /// Bytes taken so far.
    taken: u64,
}

impl Flow {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A body whose bytes are counted until they are sent.
    pub(super) fn counted<B: Body<Data = Bytes> + Unpin>(&self, inner: B) -> Counted<B> {
        let mut state = self.state();
        if state.open == 0 {
            state.since = Some(Instant::now());
        }
        state.open += 1;
        drop(state);
        self.0.begun.notify_one();
        Counted { inner, answer: Arc::new(Answer(self.clone())) }
    }

    /// Resolves once the reader takes too little.
    pub(super) async fn stalled(self, pace: Pace) {
        self.0.begun.notified().await;
        let least = pace.rate.saturating_mul(pace.idle.as_secs()).max(1);
        let (mut seen, mut at) = (0, Instant::now());
        loop {
            tokio::time::sleep(pace.idle).await;
            let state = self.state();
            if state.since.is_some_and(|since| since <= at) && state.taken - seen < least {
                return;
            }
            (seen, at) = (state.taken, Instant::now());
        }
    }
}

/// One answer, until it is gone with all its bytes.
struct Answer(Flow);

impl Drop for Answer {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        if state.open == 0 {
            state.since = None;
        }
    }
}

/// Bytes that say when they are dropped, which is when they are sent.
struct Waiting {
    bytes: Bytes,
    answer: Arc<Answer>,
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        self.answer.0.state().taken += self.bytes.len() as u64;
    }
}

/// See [`Flow::counted`].
pub(super) struct Counted<B> {
    inner: B,
    answer: Arc<Answer>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| {
                frame.map_data(|bytes| {
                    WAITING.fetch_add(bytes.len(), Ordering::Relaxed);
                    Bytes::from_owner(Waiting { bytes, answer: self.answer.clone() })
                })
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A part of a file as a body, read a piece at a time once the last one is gone.
pub(super) struct Pieces {
    file: Arc<File>,
    at: u64,
    left: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Pieces {
    pub(super) fn new(file: File, start: u64, length: u64) -> Self {
        Self { file: Arc::new(file), at: start, left: length, reading: None }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let (file, at, left) = (self.file.clone(), self.at, self.left);
        let reading = self.reading.get_or_insert_with(|| {
            let most = if WAITING.load(Ordering::Relaxed) > PLENTY { SMALL_PIECE } else { PIECE };
            tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; most.min(usize::try_from(left).unwrap_or(most))];
                file.read_exact_at(&mut piece, at).map(|()| piece.into())
            })
        });
        let piece = ready!(Pin::new(reading).poll(cx)).unwrap_or_else(|e| Err(io::Error::other(e)));
        self.reading = None;
        if let Ok(piece) = &piece {
            self.at += piece.len() as u64;
            self.left -= piece.len() as u64;
        }
        Poll::Ready(Some(piece.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
