//! The body of an upload as it is written: records and chunks, as the protocol has them, handed to the HTTP client in
//! pieces through a bounded channel. Doesn't know what is in the chunks.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use pushgate_formats::{Sha256, api::frame};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::Instant,
};

use super::line::Line;

/// Small records are gathered until there are this many bytes.
const PIECE: usize = 256 << 10;
/// Pieces between the thread that makes them and the connection.
const PIECES: usize = 6;
/// Room for the record that fills a piece.
const SLACK: usize = 64 << 10;
const MAX_CHUNK: usize = frame::MAX_CHUNK as usize;

/// Nobody reads the body any more: the request has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request has ended")]
pub(super) struct Closed;

/// The writing end of a body, for a thread that may block.
pub(super) struct Sink {
    to: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
    line: Arc<Line>,
}

/// The reading end of a body; its clones are the same end.
///
/// It can be closed from aside ([`Pieces::close`]): a gateway that answers early may leave the connection with a piece
/// that it never reads, and the thread that makes the next ones would wait for ever.
#[derive(Clone)]
pub(super) struct Pieces {
    from: Arc<Mutex<Option<mpsc::Receiver<Bytes>>>>,
    sent: Arc<AtomicU64>,
}

/// A new body: its writing end and its reading end.
pub(super) fn body(line: Arc<Line>) -> (Sink, Pieces) {
    let (to, from) = mpsc::channel(PIECES);
    let sink = Sink { to, buffer: Vec::with_capacity(PIECE + SLACK), line };
    (sink, Pieces { from: Arc::new(Mutex::new(Some(from))), sent: Arc::default() })
}

impl Pieces {
    /// Ends the body: the writing end is told that nobody reads any more.
    pub(super) fn close(&self) {
        self.from.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// How many bytes were read so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Stream for Pieces {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut from = self.from.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(from) = from.as_mut() else { return Poll::Ready(None) };
        from.poll_recv(context).map(|piece| {
            let piece = piece?;
            self.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            Some(Ok(piece))
        })
    }
}

impl Sink {
    /// The line that this goes over.
    pub(super) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Starts a record.
    pub(super) fn start(&mut self, hash: &Sha256) {
        self.buffer.extend_from_slice(&hash.0);
        self.buffer.push(frame::ZSTD);
    }

    /// Adds one chunk of at most `bound` bytes, written in place by `fill`, which says how many there are. `bound` is
    /// at most [`frame::MAX_CHUNK`].
    pub(super) fn chunk_in_place<E>(
        &mut self,
        bound: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        assert!(bound <= MAX_CHUNK, "a chunk of {bound} bytes");
        let at = self.buffer.len();
        self.buffer.resize(at + 4 + bound, 0);
        let filled = fill(&mut self.buffer[at + 4..]);
        // after an error nothing of the chunk stays
        let end = filled.as_ref().map_or(at, |n| if *n == 0 { at } else { at + 4 + n });
        self.buffer.truncate(end);
        let filled = filled?;
        if filled > 0 {
            self.buffer[at..at + 4].copy_from_slice(&(filled as u32).to_le_bytes());
        }
        Ok(filled)
    }

    /// Adds bytes of any number as chunks.
    pub(super) fn chunks(&mut self, bytes: Vec<u8>) -> Result<(), Closed> {
        let mut bytes = Bytes::from(bytes);
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(MAX_CHUNK));
            // a chunk is never empty, and its length fits
            self.buffer.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
            if chunk.len() < PIECE / 4 {
                self.buffer.extend_from_slice(&chunk);
            } else {
                self.flush()?;
                self.send(chunk)?;
            }
        }
        Ok(())
    }

    /// Ends a record.
    pub(super) fn end(&mut self) -> Result<(), Closed> {
        self.buffer.extend_from_slice(&0u32.to_le_bytes());
        self.flush_if_full()
    }

    /// Ends a record that can't be finished.
    pub(super) fn abort(&mut self) -> Result<(), Closed> {
        self.buffer.extend_from_slice(&frame::ABORT.to_le_bytes());
        self.flush_if_full()
    }

    /// Adds bytes that aren't framed.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> Result<(), Closed> {
        self.buffer.extend_from_slice(bytes);
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Result<(), Closed> {
        if self.buffer.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    /// Hands on what was gathered.
    pub(super) fn flush(&mut self) -> Result<(), Closed> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE + SLACK));
        self.send(piece.into())
    }

    fn send(&mut self, piece: Bytes) -> Result<(), Closed> {
        let bytes = piece.len();
        let waited = match self.to.try_send(piece) {
            Ok(()) => Duration::ZERO,
            Err(TrySendError::Closed(_)) => return Err(Closed),
            Err(TrySendError::Full(piece)) => {
                let since = Instant::now();
                self.to.blocking_send(piece).map_err(|_| Closed)?;
                since.elapsed()
            }
        };
        self.line.sent(bytes, waited);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod testing {
    use futures_util::StreamExt;

    use super::*;

    /// A record as a reader of the protocol understands it.
    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Record {
        pub(crate) hash: Sha256,
        pub(crate) data: Vec<u8>,
        pub(crate) chunks: Vec<usize>,
        pub(crate) aborted: bool,
    }

    /// Everything that `write` writes.
    pub(crate) fn written(write: impl FnOnce(&mut Sink) + Send) -> Vec<u8> {
        let (mut sink, pieces) = body(Arc::new(Line::new(Some(3))));
        let out = std::thread::scope(|scope| {
            scope.spawn(move || {
                write(&mut sink);
                sink.flush().unwrap();
            });
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(pieces.clone().map(|piece| piece.unwrap()).collect::<Vec<_>>()).concat()
        });
        assert_eq!(pieces.sent(), out.len() as u64);
        out
    }

    pub(crate) fn records(mut body: &[u8]) -> Vec<Record> {
        let take = |n: usize, body: &mut &[u8]| {
            let (head, rest) = body.split_at(n);
            *body = rest;
            head.to_vec()
        };
        let mut out = Vec::new();
        while !body.is_empty() {
            let hash = Sha256(take(32, &mut body).try_into().unwrap());
            assert_eq!(take(1, &mut body), [1]);
            let mut record = Record { hash, data: vec![], chunks: vec![], aborted: false };
            loop {
                match u32::from_le_bytes(take(4, &mut body).try_into().unwrap()) {
                    0 => break,
                    u32::MAX => {
                        record.aborted = true;
                        break;
                    }
                    n => {
                        assert!(n <= frame::MAX_CHUNK);
                        record.chunks.push(n as usize);
                        record.data.extend(take(n as usize, &mut body));
                    }
                }
            }
            out.push(record);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    #[test]
    fn bytes_of_a_record() {
        let hash = Sha256([7; 32]);
        let body = written(|sink| {
            sink.start(&hash);
            let n = sink.chunk_in_place(100, |out| {
                out[..3].copy_from_slice(b"abc");
                Ok::<_, ()>(3)
            });
            assert_eq!(n, Ok(3));
            sink.end().unwrap();
            sink.start(&hash);
            sink.abort().unwrap();
        });
        let mut expected = vec![7; 32];
        expected.extend(b"\x01\x03\0\0\0abc\0\0\0\0");
        expected.extend([7; 32]);
        expected.extend(b"\x01\xff\xff\xff\xff");
        assert_eq!(body, expected);
    }

    #[test]
    fn large_data_is_cut_and_kept_in_order() {
        let data: Vec<u8> = (0..MAX_CHUNK * 2 + 10).map(|i| (i % 251) as u8).collect();
        let body = written(|sink| {
            for _ in 0..2 {
                sink.start(&Sha256([1; 32]));
                sink.chunks(data.clone()).unwrap();
                sink.chunks(vec![]).unwrap();
                sink.end().unwrap();
            }
        });
        let records = records(&body);
        assert_eq!(records.len(), 2);
        assert!(
            records.iter().all(|r| r.data == data && r.chunks == [MAX_CHUNK, MAX_CHUNK, 10] && !r.aborted)
        );
    }

    #[test]
    fn a_chunk_that_fails_leaves_nothing() {
        let body = written(|sink| {
            assert_eq!(sink.chunk_in_place(10, |_| Err("no")), Err("no"));
            assert_eq!(sink.chunk_in_place(10, |_| Ok::<_, ()>(0)), Ok(0));
        });
        assert!(body.is_empty());
    }

    #[test]
    fn a_body_that_nobody_reads_ends() {
        let (mut sink, pieces) = body(Arc::new(Line::new(Some(3))));
        let other = pieces.clone();
        sink.start(&Sha256([1; 32]));
        assert_eq!(sink.chunks(vec![0; 10]), Ok(()));
        other.close();
        assert_eq!(sink.chunks(vec![0; PIECE]), Err(Closed));
        drop(pieces);
    }
}
