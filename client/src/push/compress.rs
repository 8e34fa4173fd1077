//! NARs into records of an upload. Small ones are compressed in one call, large ones in slices, each a zstd frame of its
//! own, on several cores at once. Doesn't hash: the gateway checks every NAR against its announced hash.

use std::{
    io::{self, Write},
    path::Path,
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
};

use pushgate_formats::api::frame;
use zstd::bulk::Compressor;

use super::{
    framing::{Closed, Sink},
    line::Line,
    plan::Nar,
};
use crate::nix::dump::{DumpError, Dumper, Taker};

/// Bytes of a NAR in one frame. Against one frame for all, slices of 4 MiB cost half a percent of size at level 3, of
/// 1 MiB two to three; larger ones cost memory.
const SLICE: usize = 4 << 20;
/// Threads for large NARs: each holds a slice before and after compression, some 10 MiB.
const MAX_THREADS: usize = 6;

/// Why a NAR couldn't be sent as announced.
#[derive(Debug, thiserror::Error)]
pub(super) enum PackError {
    #[error(transparent)]
    Closed(#[from] Closed),
    #[error("{}", with_cause(.0))]
    Dump(DumpError),
    #[error(
        "has a NAR of {got} bytes and not of {want} as the store says; repair it with `nix-store --verify --check-contents`"
    )]
    Size { got: u64, want: u64 },
    #[error("can't be compressed: {0}")]
    Compress(io::Error),
}

/// An error on one line with what caused it.
fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// What it takes to pack small NARs one after another: made once per thread, since making a compression context takes
/// longer than compressing a small NAR with it.
pub(super) struct Packer {
    compressor: Compressor<'static>,
    level: i32,
    dumper: Dumper,
    nar: Vec<u8>,
}

impl Packer {
    pub(super) fn new() -> io::Result<Self> {
        let level = 1; // set anew for each NAR
        Ok(Self { compressor: Compressor::new(level)?, level, dumper: Dumper::new(), nar: Vec::new() })
    }

    /// Adds the record of a small NAR whose files lie at `file`. After an error of the NAR's own nothing of it was
    /// written.
    pub(super) fn pack(&mut self, file: &Path, nar: &Nar, sink: &mut Sink) -> Result<(), PackError> {
        self.nar.clear();
        let mut limited = Limited { to: &mut self.nar, left: nar.size, over: 0 };
        let dumped = self.dumper.dump(file, &mut limited);
        let over = limited.over;
        whole(dumped, over, nar)?;
        set_level(&mut self.compressor, &mut self.level, sink.line().level()).map_err(PackError::Compress)?;

        let bound = zstd::zstd_safe::compress_bound(self.nar.len());
        if bound <= frame::MAX_CHUNK as usize {
            sink.start(&nar.hash);
            // the buffer has the room that zstd says it may need, so this fails only for want of memory
            sink.chunk_in_place(bound, |out| self.compressor.compress_to_buffer(&self.nar, out))
                .map_err(PackError::Compress)?;
        } else {
            let packed = self.compressor.compress(&self.nar).map_err(PackError::Compress)?;
            sink.start(&nar.hash);
            sink.chunks(packed)?;
        }
        Ok(sink.end()?)
    }
}

/// Changes a context's level where it is another.
fn set_level(compressor: &mut Compressor<'_>, level: &mut i32, wanted: i32) -> io::Result<()> {
    if *level != wanted {
        compressor.set_compression_level(wanted)?;
        *level = wanted;
    }
    Ok(())
}

/// Whether a dump gave the NAR that was announced.
fn whole(dumped: Result<u64, DumpError>, over: u64, nar: &Nar) -> Result<(), PackError> {
    match dumped {
        Ok(got) if got == nar.size => Ok(()),
        Ok(got) => Err(PackError::Size { got, want: nar.size }),
        Err(DumpError::Sink(_)) if over > 0 => Err(PackError::Size { got: nar.size + over, want: nar.size }),
        Err(error) => Err(PackError::Dump(error)),
    }
}

/// Takes as many bytes as were announced and no more: how much memory a NAR takes isn't for the disk to say.
struct Limited<'a> {
    to: &'a mut Vec<u8>,
    left: u64,
    over: u64,
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len() as u64;
        if len > self.left {
            self.over = len - self.left;
            return Err(io::Error::other("more than announced"));
        }
        self.left -= len;
        self.to.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A slice on its way to a thread that compresses it, and where the result is waited for.
struct Task {
    slice: Vec<u8>,
    filled: usize,
    done: SyncSender<io::Result<Vec<u8>>>,
}

/// Adds the record of a large NAR, of which so many are under way `at_once`: one thread reads, several compress, this one
/// writes the frames in order.
/// Every step waits for the next, so that only a few slices are in memory. A record that can't be finished ends as
/// given up. `progress` is told of the NAR's bytes as they go.
pub(super) fn pack_large(
    file: &Path,
    nar: &Nar,
    at_once: usize,
    sink: &mut Sink,
    progress: &dyn Fn(u64),
) -> Result<(), PackError> {
    sink.start(&nar.hash);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads =
        cores.min(MAX_THREADS / at_once.max(1)).min(nar.size.div_ceil(SLICE as u64) as usize).max(1);
    let packed = std::thread::scope(|scope| {
        let (tasks, tasks_out) = sync_channel::<Task>(1);
        let (order, order_out) = sync_channel::<(usize, Receiver<io::Result<Vec<u8>>>)>(threads);
        let (used, used_out) = channel::<Vec<u8>>();
        // owned by the scope's threads alone, so that tasks find nobody once these have given up
        let tasks_out = std::sync::Arc::new(Mutex::new(tasks_out));
        for _ in 0..threads {
            let (tasks_out, used, line) = (tasks_out.clone(), used.clone(), sink.line().clone());
            scope.spawn(move || compress_tasks(&tasks_out, &used, &line));
        }
        drop((tasks_out, used));
        let reader = scope.spawn(move || {
            let mut slicer = Slicer { tasks, order, used: used_out };
            Dumper::with_buffer(vec![0; SLICE]).dump(file, &mut slicer)
        });

        let mut written = Ok(());
        for (len, done) in order_out {
            let packed = done.recv().unwrap_or_else(|_| Err(io::Error::other("a compressing thread ended")));
            written = packed.map_err(PackError::Compress).and_then(|bytes| Ok(sink.chunks(bytes)?));
            if written.is_err() {
                // dropping `order_out` ends the reader, and with it the others
                break;
            }
            progress(len as u64);
        }
        // the reader doesn't panic
        let dumped = reader.join().expect("the reading thread");
        written.and_then(|()| whole(dumped, 0, nar))
    });
    match packed {
        Ok(()) => Ok(sink.end()?),
        Err(error @ PackError::Closed(_)) => Err(error),
        Err(error) => {
            sink.abort()?;
            Err(error)
        }
    }
}

fn compress_tasks(tasks: &Mutex<Receiver<Task>>, used: &Sender<Vec<u8>>, line: &Line) {
    let mut level = line.level();
    let mut compressor = Compressor::new(level);
    loop {
        // the lock is held while waiting: the others have nothing to do then either
        let task = match tasks.lock() {
            Ok(tasks) => tasks.recv(),
            Err(_) => return,
        };
        let Ok(Task { slice, filled, done }) = task else { return };
        let packed = match &mut compressor {
            Ok(compressor) => set_level(compressor, &mut level, line.level())
                .and_then(|()| compressor.compress(&slice[..filled]))
                .map(|mut packed| {
                    // it was made for data that doesn't compress
                    packed.shrink_to_fit();
                    packed
                }),
            Err(error) => Err(io::Error::other(error.to_string())),
        };
        // both have gone only where the request has ended
        let _ = done.send(packed);
        let _ = used.send(slice);
    }
}

/// Hands a dumper's buffers on as slices.
struct Slicer {
    tasks: SyncSender<Task>,
    order: SyncSender<(usize, Receiver<io::Result<Vec<u8>>>)>,
    /// Slices that were compressed, to be filled again.
    used: Receiver<Vec<u8>>,
}

impl Taker for Slicer {
    fn take(&mut self, buffer: &mut Vec<u8>, filled: usize) -> io::Result<()> {
        if filled == 0 {
            return Ok(());
        }
        let (done, result) = sync_channel(1);
        let ended = || io::Error::from(io::ErrorKind::BrokenPipe);
        // first the place in the order: it is what bounds how many slices there are
        self.order.send((filled, result)).map_err(|_| ended())?;
        let fresh = self.used.try_recv().unwrap_or_else(|_| vec![0; SLICE]);
        let slice = std::mem::replace(buffer, fresh);
        self.tasks.send(Task { slice, filled, done }).map_err(|_| ended())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::PathBuf,
        sync::atomic::{AtomicU64, Ordering},
    };

    use pushgate_formats::{Sha256, StorePath};

    use super::*;
    use crate::{
        nix::dump::dump,
        push::framing::{self, testing::*},
    };

    struct Tree {
        dir: tempfile::TempDir,
    }

    impl Tree {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        /// A file of so many bytes that compress somewhat, and its NAR.
        fn file(&self, name: &str, len: usize) -> (PathBuf, Nar, Vec<u8>) {
            let path = self.dir.path().join(name);
            let mut state = len as u64 | 1;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 60) as u8
            };
            std::fs::write(&path, (0..len).map(|_| next()).collect::<Vec<_>>()).unwrap();
            let mut bytes = Vec::new();
            let size = dump(&path, &mut bytes).unwrap();
            let store_path = StorePath::from_digest(&[1; 20], "x").unwrap();
            (path, Nar { path: store_path, hash: Sha256::of(&bytes), size }, bytes)
        }
    }

    #[test]
    fn small_nars_of_every_size() {
        let tree = Tree::new();
        // below and above where the bound of the compressed size reaches that of a chunk
        let all: Vec<_> = [0, 1, 1000, 300_000, 1_040_000, 1_060_000, 4_000_000]
            .map(|len| tree.file(&len.to_string(), len))
            .into();
        let body = written(|sink| {
            let mut packer = Packer::new().unwrap();
            all.iter().for_each(|(file, nar, _)| packer.pack(file, nar, sink).unwrap());
        });
        let records = records(&body);
        assert_eq!(records.len(), all.len());
        for (record, (_, nar, bytes)) in records.iter().zip(&all) {
            assert_eq!((record.hash, record.aborted), (nar.hash, false));
            assert!(zstd::decode_all(&record.data[..]).unwrap() == *bytes);
        }
    }

    #[test]
    fn a_small_nar_that_is_not_as_announced_leaves_nothing() {
        let tree = Tree::new();
        let (file, nar, _) = tree.file("x", 5000);
        let body = written(|sink| {
            let mut packer = Packer::new().unwrap();
            let mut wrong = |size| packer.pack(&file, &Nar { size, ..nar.clone() }, sink).unwrap_err();
            assert!(matches!(wrong(nar.size + 8), PackError::Size { .. }));
            assert!(matches!(wrong(nar.size - 8), PackError::Size { .. }));
            let gone = packer.pack(&tree.dir.path().join("gone"), &nar, sink).unwrap_err();
            assert!(matches!(gone, PackError::Dump(DumpError::Vanished(_))));
            packer.pack(&file, &nar, sink).unwrap();
        });
        assert_eq!(records(&body).len(), 1);
    }

    #[test]
    fn a_large_nar_is_several_frames_in_order() {
        let tree = Tree::new();
        let (file, nar, bytes) = tree.file("x", 5 * SLICE / 2);
        let told = AtomicU64::new(0);
        let body = written(|sink| {
            let tell = |n| {
                told.fetch_add(n, Ordering::Relaxed);
            };
            pack_large(&file, &nar, 1, sink, &tell).unwrap();
        });
        let records = records(&body);
        assert_eq!(records.len(), 1);
        assert!(zstd::decode_all(&records[0].data[..]).unwrap() == bytes);
        // each slice stands alone, with its size in its head
        let first = zstd::zstd_safe::find_frame_compressed_size(&records[0].data).unwrap();
        let head = zstd::bulk::decompress(&records[0].data[..first], SLICE).unwrap();
        assert!(head.len() > SLICE / 2 && bytes.starts_with(&head));
        assert_eq!(told.into_inner(), nar.size);
    }

    #[test]
    fn a_large_nar_that_ends_early_is_given_up() {
        let tree = Tree::new();
        let (file, nar, _) = tree.file("x", 2 * SLICE);
        let body = written(|sink| {
            let nar = Nar { size: nar.size + 8, ..nar.clone() };
            let error = pack_large(&file, &nar, 1, sink, &|_| ()).unwrap_err();
            assert!(matches!(error, PackError::Size { .. }));
            let error = pack_large(&tree.dir.path().join("gone"), &nar, 1, sink, &|_| ()).unwrap_err();
            assert!(matches!(error, PackError::Dump(DumpError::Vanished(_))));
        });
        let records = records(&body);
        assert_eq!(records.iter().map(|r| r.aborted).collect::<Vec<_>>(), [true, true]);
    }

    #[test]
    fn a_request_that_ends_stops_a_large_nar() {
        let tree = Tree::new();
        let (file, nar, _) = tree.file("x", 3 * SLICE);
        let (mut sink, pieces) = framing::body(std::sync::Arc::new(Line::new(Some(3))));
        drop(pieces);
        let error = pack_large(&file, &nar, 1, &mut sink, &|_| ()).unwrap_err();
        assert!(matches!(error, PackError::Closed(_)));
    }
}
