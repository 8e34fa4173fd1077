//! Files as response bodies: on HTTP/1 the kernel sends them from its page cache, and no byte of them passes through this
//! process.
//!
//! hyper takes bodies as bytes only. The body of a file is therefore made of stand-ins: slices of one static array, as long
//! as the file, which hyper frames, counts and queues like any others without looking into them. Below hyper the connection
//! knows a stand-in by its address and sends as many bytes of the file in its place, when the socket has room for them. What
//! a slow reader has not taken yet lies in no buffer of this process, however many such readers there are.
//!
//! Nothing between the handler and the connection may change such a body. HTTP/2 cuts bodies into frames of its own, so
//! there, files are read into memory, a piece at a time.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fs::File,
    future::Future,
    io::{self, IoSlice, IoSliceMut},
    os::{fd::AsFd, unix::fs::FileExt},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use rustix::{
    fs::sendfile,
    io::{ReadWriteFlags, preadv2},
    net::{SendAncillaryBuffer, SendFlags, sendmsg},
};
use tokio::{io::Interest, net::TcpStream, task::JoinHandle};

/// The steps in which a body is taken. Small, so that it shows that a slow reader takes something, and on HTTP/2 holds little.
const STEP: usize = 16 << 10;
/// Stands for bytes of a file; a static has one address.
static STAND_IN: [u8; STEP] = [0; STEP];
/// Bytes sent at a time: enough to make the calls cheap, few enough that a fast reader doesn't keep a thread to himself.
const PIECE: usize = 256 << 10;

/// What the kernel reads ahead at the least.
const READ_AT_ONCE: usize = 64 << 10;

fn is_stand_in(slice: &[u8]) -> bool {
    !slice.is_empty() && STAND_IN.as_ptr_range().contains(&slice.as_ptr())
}

/// The files that an HTTP/1 connection has yet to send, in the order of their bodies. Shared by the connection and, through
/// the extensions of its requests, their handlers.
#[derive(Clone, Default)]
pub(super) struct Outbox(Arc<Mutex<VecDeque<Part>>>);

/// The rest of a part of a file.
struct Part {
    file: Arc<File>,
    at: u64,
    left: u64,
    /// Up to here it was in memory when it was looked at.
    warm: u64,
    /// Waits for the disk.
    warming: Option<JoinHandle<io::Result<()>>>,
}

impl Outbox {
    /// A part of a file as a body of this connection's. It may go to no other.
    pub(super) fn body(&self, file: File, start: u64, length: u64) -> FileBody {
        let part = Part { file: Arc::new(file), at: start, left: length, warm: 0, warming: None };
        FileBody { outbox: self.clone(), part: Some(part), left: length }
    }

    fn parts(&self) -> MutexGuard<'_, VecDeque<Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the connection waits for a disk, and not for its reader.
    pub(super) fn is_reading(&self) -> bool {
        self.parts().front().is_some_and(|part| part.warming.is_some())
    }

    /// Writes what the socket takes.
    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        stream: &TcpStream,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_warm(cx, slices))?;
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_io(Interest::WRITABLE, || self.send(stream, slices)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// The same without waiting. A socket isn't called writable before a third of its buffer is free; this finds less.
    pub(super) fn send(&self, stream: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let real = slices.iter().take_while(|slice| !is_stand_in(slice)).count();
        if real > 0 {
            // the head goes into one packet with the file's beginning
            let more = if real < slices.len() { SendFlags::MORE } else { SendFlags::empty() };
            let flags = more | SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            return Ok(sendmsg(stream, &slices[..real], &mut SendAncillaryBuffer::default(), flags)?);
        }
        // those of a next file come behind its head
        let length = slices.iter().take_while(|slice| is_stand_in(slice)).map(|slice| slice.len()).sum();
        let mut parts = self.parts();
        // a stand-in comes from a body, which has left its part here before
        let part = parts.front_mut().ok_or(io::ErrorKind::InvalidInput)?;
        let sent = part.send(stream, length)?;
        if part.left == 0 {
            parts.pop_front();
        }
        Ok(sent)
    }

    /// Waits until what is to be sent next is in memory: a thread that waits for a disk can't serve the other connections.
    fn poll_warm(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<()>> {
        match slices.first() {
            Some(slice) if is_stand_in(slice) => {
                let mut parts = self.parts();
                let part = parts.front_mut().ok_or(io::ErrorKind::InvalidInput)?;
                part.poll_warm(cx)
            }
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl Part {
    fn next(&self) -> usize {
        PIECE.min(usize::try_from(self.left).unwrap_or(PIECE))
    }

    fn send(&mut self, stream: &TcpStream, most: usize) -> io::Result<usize> {
        let count = self.next().min(most);
        let mut at = self.at;
        let sent = sendfile(stream, &*self.file, Some(&mut at), count)?;
        if sent == 0 {
            // somebody cut the file: the reader sees that its body is too short
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += sent as u64;
        self.left -= sent as u64;
        Ok(sent)
    }

    fn poll_warm(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let count = self.next();
        let end = self.at + count as u64;
        if self.warming.is_none() && end > self.warm && !is_cached(&self.file, self.at, count) {
            let (file, at) = (self.file.clone(), self.at);
            self.warming = Some(tokio::task::spawn_blocking(move || read_through(&file, at, count)));
        }
        if let Some(warming) = &mut self.warming {
            let read = ready!(Pin::new(warming).poll(cx));
            self.warming = None;
            read.unwrap_or_else(|e| Err(io::Error::other(e)))?;
        }
        // not asked a second time: where memory is short, it may be gone again
        self.warm = self.warm.max(end);
        Poll::Ready(Ok(()))
    }
}

/// Whether a part of a file is in memory, by its ends; false as well where the file system can't tell.
fn is_cached(file: &File, at: u64, count: usize) -> bool {
    // a small part is read from the disk in one go
    let first = (count > READ_AT_ONCE).then_some(at);
    first.into_iter().chain([at + count as u64 - 1]).all(|at| {
        let mut byte = [0];
        preadv2(file.as_fd(), &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT).is_ok()
    })
}

/// Reads, so that it is in memory. Blocks.
fn read_through(file: &File, mut at: u64, count: usize) -> io::Result<()> {
    let mut scratch = [0; 16 << 10];
    let end = at + count as u64;
    while at < end {
        let most = scratch.len().min((end - at) as usize);
        match file.read_at(&mut scratch[..most], at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => at += n as u64,
        }
    }
    Ok(())
}

/// See the module's documentation.
pub(super) struct FileBody {
    outbox: Outbox,
    part: Option<Part>,
    left: u64,
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        // now, and not when the body is made: bodies are asked for their bytes in the order in which they are sent
        if let Some(part) = self.part.take() {
            self.outbox.parts().push_back(part);
        }
        let count = STAND_IN.len().min(usize::try_from(self.left).unwrap_or(STAND_IN.len()));
        self.left -= count as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&STAND_IN[..count])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
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
            tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; STEP.min(usize::try_from(left).unwrap_or(STEP))];
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
