//! A listener that serves a bounded number of connections; further ones wait in the kernel's queue. Who has a place and
//! doesn't say which protocol he speaks loses it, and so does who asks and then doesn't take the answer.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{
    activity::Activity,
    files::Outbox,
    patience::{Pace, Reader},
};
use axum::serve::Listener;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};

/// Files that the gateway has open besides its connections: database, blobs, connections to upstreams.
const OTHER_FILES: u64 = 256;
/// What an HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Lets the process open as many files as it may, and gives the connections that there is room for: of those that are
/// wanted, not more than files can be open.
pub(super) fn raise_files(wanted: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => limit = raised,
            Err(e) => tracing::warn!(error = %e, "the limit of open files can't be raised"),
        }
    }
    let places = fitting(wanted, limit.current);
    if places < wanted {
        tracing::warn!(wanted, places, "fewer connections are served: too few files may be open");
    }
    places
}

/// Without a limit of files, what is wanted.
fn fitting(wanted: usize, files: Option<u64>) -> usize {
    let room = files.map_or(u64::MAX, |files| files.saturating_sub(OTHER_FILES));
    wanted.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1)
}

/// See the module's documentation.
pub(super) struct Limited {
    inner: TcpListener,
    places: Arc<Semaphore>,
    patience: Duration,
    pace: Pace,
}

impl Limited {
    pub(super) fn new(inner: TcpListener, most: usize, patience: Duration, pace: Pace) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        Self { inner, places: Arc::new(Semaphore::new(most)), patience, pace }
    }

    /// The next connection, once there is a place for it.
    pub(super) async fn accept(&mut self) -> Connection {
        // the semaphore is never closed
        let place = self.places.clone().acquire_owned().await.ok();
        let (stream, _) = Listener::accept(&mut self.inner).await;
        // answers are small and awaited: waiting to fill a segment only delays them
        let _ = stream.set_nodelay(true);
        let opening = Some(Opening { due: Box::pin(tokio::time::sleep(self.patience)), seen: 0 });
        let reader = Reader::new(self.pace);
        Connection {
            stream,
            opening,
            outbox: Outbox::default(),
            activity: Arc::default(),
            reader,
            _place: place,
        }
    }
}

/// A connection that holds its place until it is closed.
pub(super) struct Connection {
    stream: TcpStream,
    opening: Option<Opening>,
    outbox: Outbox,
    activity: Arc<Activity>,
    reader: Reader,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// Where handlers put files for this connection.
    pub(super) fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }

    /// What goes on over it.
    pub(super) fn activity(&self) -> Arc<Activity> {
        self.activity.clone()
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            match self.outbox.poll_send(cx, &self.stream, bufs) {
                Poll::Pending if self.outbox.is_reading() => return Poll::Pending,
                Poll::Pending => {}
                Poll::Ready(Ok(sent)) => return Poll::Ready(self.reader.took(sent).map(|()| sent)),
                failed => return failed,
            }
            ready!(self.reader.poll_due(cx));
            match self.outbox.send(&self.stream, bufs) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.reader.full()?,
                sent => return Poll::Ready(sent.inspect(|sent| self.reader.found(*sent))),
            }
        }
    }
}

/// The time until it is known whether HTTP/1 or HTTP/2 is spoken. hyper-util finds that out before the protocols' own
/// timers run, and waits for ever.
struct Opening {
    due: Pin<Box<Sleep>>,
    /// Bytes of [`PREFACE`] that came.
    seen: usize,
}

impl Opening {
    /// Whether it is still open after these further bytes.
    fn goes_on(&mut self, new: &[u8]) -> bool {
        let open = PREFACE[self.seen..].starts_with(new);
        self.seen += if open { new.len() } else { 0 };
        open && self.seen < PREFACE.len()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let Some(opening) = &mut self.opening else { return read };
        if read.is_pending() {
            ready!(opening.due.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if !opening.goes_on(&buf.filled()[before..]) {
            self.opening = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = self.poll_send(cx, bufs);
        self.activity.note_socket(sent.is_pending());
        sent
    }

    /// Also what makes hyper leave bodies as they are: otherwise it copies them behind the head, and stand-ins for files are
    /// sent as if they were bytes.
    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        assert_eq!(fitting(4096, None), 4096);
        assert_eq!(fitting(4096, Some(1 << 20)), 4096);
        assert_eq!(fitting(4096, Some(1024)), 768);
        assert_eq!(fitting(4096, Some(100)), 1);
    }
}
