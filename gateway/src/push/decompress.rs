//! Bounded decompression of NARs: plain bytes, zstd frames one after the other (RFC 8878), or one xz stream. Refuses what
//! readers of the published file might understand differently: skippable frames, dictionaries, large windows, several xz
//! streams, padding, anything after the end.

use std::cell::RefCell;

use liblzma::stream::{Action, Error as XzError, Status, Stream};
use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::intake::Compression;

/// log2 of the largest zstd window taken, in bytes: 8 MiB, what every decoder must support (RFC 8878, 3.1.1.1.2), and
/// what levels up to 19 use. It bounds the memory that one upload can ask for.
pub const WINDOW_LOG: u32 = 23;

/// Memory that reading xz may take, in bytes: a dictionary of 8 MiB, which levels up to 6 use (6 is Nix's own), and what
/// the decoder needs beside it.
const XZ_MEMORY: u64 = (8 << 20) + (1 << 20);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    #[error("the zstd data is broken: {0}")]
    Zstd(String),
    #[error("the bytes at {0} don't start a zstd frame")]
    NotAFrame(u64),
    #[error("the zstd data ends in the middle of a frame")]
    Truncated,
    #[error("the xz data is broken: {0}")]
    Xz(&'static str),
    #[error(
        "reading the xz data takes more than the {} MiB of memory that are allowed; compress at level 6 or lower",
        XZ_MEMORY >> 20
    )]
    XzMemory,
    #[error("bytes follow the end of the xz stream")]
    XzTrailing,
    #[error("the xz data ends before its stream does")]
    XzTruncated,
}

/// Largest idle context kept for a thread, in bytes.
const MAX_IDLE: usize = 1 << 20;

/// First bytes of a zstd frame.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

enum Mode {
    Plain,
    Zstd {
        // boxed by the binding; returned to the pool when done
        context: Option<DCtx<'static>>,
        /// Bytes of the next frame's magic number seen so far, between frames.
        magic: usize,
        in_frame: bool,
        frames: u64,
        taken: u64,
    },
    Xz {
        /// `None` once the stream has ended.
        stream: Option<Stream>,
    },
}

/// Takes compressed chunks and hands on plain ones.
pub struct Decompressor {
    mode: Mode,
}

thread_local! {
    /// Output is handed on at once, so one buffer a thread does.
    static OUTPUT: RefCell<Vec<u8>> = RefCell::new(vec![0; DCtx::out_size()]);
    /// Contexts for small NARs are made once a thread: making one costs more than such a NAR.
    static IDLE: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

impl Decompressor {
    pub fn new(compression: Compression) -> Self {
        let mode = match compression {
            Compression::None => Mode::Plain,
            Compression::Zstd => Mode::Zstd { context: None, magic: 0, in_frame: false, frames: 0, taken: 0 },
            // fails only where there is no memory, and then takes no byte
            Compression::Xz => Mode::Xz { stream: Stream::new_stream_decoder(XZ_MEMORY, 0).ok() },
        };
        Self { mode }
    }

    /// Decompresses a chunk, handing on plain pieces as they come; stops at the sink's first error.
    pub fn feed<E: From<CompressionError>>(
        &mut self,
        bytes: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (context, magic, in_frame, frames, taken) = match &mut self.mode {
            Mode::Plain => return sink(bytes),
            Mode::Xz { stream } => return feed_xz(stream, bytes, sink),
            Mode::Zstd { context, magic, in_frame, frames, taken } => {
                (context, magic, in_frame, frames, taken)
            }
        };
        if context.is_none() {
            *context = Some(fresh_context()?);
        }
        // set above
        let Some(context) = context.as_mut() else { return Ok(()) };
        OUTPUT.with_borrow_mut(|output| {
            let mut rest = bytes;
            loop {
                if !*in_frame {
                    // the binding would skip a skippable frame silently: look at each frame's first bytes ourselves
                    while *magic < MAGIC.len() {
                        let Some((first, _)) = rest.split_first() else { return Ok(()) };
                        if *first != MAGIC[*magic] {
                            return Err(CompressionError::NotAFrame(*taken).into());
                        }
                        *magic += 1;
                        *taken += 1;
                        rest = &rest[1..];
                    }
                    *in_frame = true;
                    *frames += 1;
                    let mut input = InBuffer::around(&MAGIC);
                    let mut none = OutBuffer::around(&mut output[..]);
                    context.decompress_stream(&mut none, &mut input).map_err(broken)?;
                }
                let mut input = InBuffer::around(rest);
                let mut out = OutBuffer::around(&mut output[..]);
                let left = context.decompress_stream(&mut out, &mut input).map_err(broken)?;
                let (used, made) = (input.pos, out.pos());
                *taken += used as u64;
                rest = &rest[used..];
                sink(&output[..made])?;
                if left == 0 {
                    (*in_frame, *magic) = (false, 0);
                    if rest.is_empty() {
                        return Ok(());
                    }
                } else if rest.is_empty() && made < output.len() {
                    return Ok(());
                }
            }
        })
    }

    /// Ends the input.
    pub fn finish(mut self) -> Result<(), CompressionError> {
        match &mut self.mode {
            Mode::Plain => Ok(()),
            Mode::Xz { stream: None } => Ok(()),
            Mode::Xz { stream: Some(_) } => Err(CompressionError::XzTruncated),
            Mode::Zstd { context, magic, in_frame, frames, .. } => {
                if *in_frame || *magic != 0 || *frames == 0 {
                    return Err(CompressionError::Truncated);
                }
                // one that a large window made large isn't kept
                if let Some(mut done) = context.take()
                    && done.sizeof() <= MAX_IDLE
                    && done.reset(ResetDirective::SessionOnly).is_ok()
                {
                    IDLE.set(Some(done));
                }
                Ok(())
            }
        }
    }
}

/// One stream, checked to its end: the decoder is dropped there, and what follows is refused.
fn feed_xz<E: From<CompressionError>>(
    stream: &mut Option<Stream>,
    bytes: &[u8],
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = bytes;
    OUTPUT.with_borrow_mut(|output| {
        loop {
            let Some(decoder) = stream else {
                return if rest.is_empty() { Ok(()) } else { Err(CompressionError::XzTrailing.into()) };
            };
            let (read, made) = (decoder.total_in(), decoder.total_out());
            let status = decoder.process(rest, output, Action::Run).map_err(broken_xz)?;
            // what one call takes and makes fits the slices that it was given
            let (used, new) = ((decoder.total_in() - read) as usize, (decoder.total_out() - made) as usize);
            rest = &rest[used..];
            sink(&output[..new])?;
            match status {
                Status::StreamEnd => *stream = None,
                Status::MemNeeded => return Err(CompressionError::XzMemory.into()),
                // all was taken, and nothing is left inside that would fill the buffer
                Status::Ok | Status::GetCheck if rest.is_empty() && new < output.len() => return Ok(()),
                Status::Ok | Status::GetCheck if used == 0 && new == 0 => {
                    return Err(CompressionError::Xz("it goes on without contents").into());
                }
                Status::Ok | Status::GetCheck => {}
            }
        }
    })
}

fn broken_xz(error: XzError) -> CompressionError {
    CompressionError::Xz(match error {
        XzError::MemLimit | XzError::Mem => return CompressionError::XzMemory,
        XzError::Format => "it is no xz stream",
        XzError::Options => "it uses options that are not known",
        XzError::UnsupportedCheck | XzError::NoCheck => "its kind of checksum is not known",
        _ => "a checksum or the coding is wrong",
    })
}

fn fresh_context() -> Result<DCtx<'static>, CompressionError> {
    if let Some(context) = IDLE.take() {
        return Ok(context);
    }
    let mut context = DCtx::create();
    context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).map_err(broken)?;
    Ok(context)
}

fn broken(code: zstd_safe::ErrorCode) -> CompressionError {
    CompressionError::Zstd(zstd_safe::get_error_name(code).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn plain(chunks: &[&[u8]]) -> Result<Vec<u8>, CompressionError> {
        let mut out = Vec::new();
        let mut decompressor = Decompressor::new(Compression::Zstd);
        for chunk in chunks {
            decompressor.feed(chunk, |piece| {
                out.extend_from_slice(piece);
                Ok::<_, CompressionError>(())
            })?;
        }
        decompressor.finish().map(|()| out)
    }

    fn pack(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, 3).unwrap()
    }

    #[test]
    fn frames_follow_each_other_in_any_chunks() {
        let big: Vec<u8> = (0..500_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        let two = [pack(b"hello "), pack(&big), pack(b"")].concat();
        let want = [b"hello ".as_slice(), &big].concat();
        for size in [1, 3, 4, 5, 1000, two.len()] {
            let chunks: Vec<_> = two.chunks(size).collect();
            assert_eq!(plain(&chunks).unwrap(), want, "{size}");
        }
    }

    #[test]
    fn every_cut_is_truncated_unless_it_falls_between_frames() {
        let first = pack(b"hello ");
        let two = [first.clone(), pack(b"world")].concat();
        for cut in 0..two.len() {
            let whole = cut == first.len();
            assert_eq!(plain(&[&two[..cut]]).is_ok(), whole, "{cut}");
        }
    }

    #[rstest]
    #[case::skippable([&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9][..], &pack(b"x")].concat())]
    #[case::skippable_after([&pack(b"x")[..], &[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9]].concat())]
    #[case::trailing([&pack(b"x")[..], b"tail"].concat())]
    #[case::xz(b"\xfd7zXZ\0".to_vec())]
    #[case::plain_nar(b"\x0d\0\0\0\0\0\0\0nix-archive-1".to_vec())]
    fn what_is_not_a_frame(#[case] bytes: Vec<u8>) {
        assert!(matches!(plain(&[&bytes]), Err(CompressionError::NotAFrame(_))));
    }

    #[test]
    fn large_windows_are_refused() {
        let frame = |log: u32| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            std::io::Write::write_all(&mut encoder, &vec![7; 40 << 20]).unwrap();
            encoder.finish().unwrap()
        };
        assert!(plain(&[&frame(WINDOW_LOG)]).is_ok());
        assert!(matches!(plain(&[&frame(WINDOW_LOG + 1)]), Err(CompressionError::Zstd(_))));
    }

    fn unpack_xz(chunks: &[&[u8]]) -> Result<Vec<u8>, CompressionError> {
        let mut out = Vec::new();
        let mut decompressor = Decompressor::new(Compression::Xz);
        for chunk in chunks {
            decompressor.feed(chunk, |piece| {
                out.extend_from_slice(piece);
                Ok::<_, CompressionError>(())
            })?;
        }
        decompressor.finish().map(|()| out)
    }

    fn pack_xz(bytes: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), level);
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn one_xz_stream_in_any_chunks() {
        let big: Vec<u8> = (0..500_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        for text in [&b""[..], b"x", &big] {
            let packed = pack_xz(text, 6);
            for size in [1, 7, 1000, packed.len()] {
                let chunks: Vec<_> = packed.chunks(size).collect();
                assert_eq!(unpack_xz(&chunks).unwrap(), text, "{size}");
            }
        }
    }

    #[test]
    fn every_cut_and_every_changed_byte_of_xz_is_found() {
        let packed = pack_xz(b"some text that is checked, some text", 6);
        for cut in 0..packed.len() {
            assert_eq!(unpack_xz(&[&packed[..cut]]), Err(CompressionError::XzTruncated), "{cut}");
        }
        for at in 0..packed.len() {
            let mut bad = packed.clone();
            bad[at] ^= 1;
            assert!(unpack_xz(&[&bad]).is_err(), "{at}");
        }
    }

    #[test]
    fn nothing_follows_an_xz_stream() {
        let packed = pack_xz(b"x", 6);
        for tail in [&b"\0\0\0\0"[..], b"tail", &packed] {
            assert_eq!(unpack_xz(&[&packed, tail]), Err(CompressionError::XzTrailing));
            let whole = [&packed[..], tail].concat();
            assert_eq!(unpack_xz(&[&whole]), Err(CompressionError::XzTrailing));
        }
        assert!(matches!(unpack_xz(&[b"no xz at all"]), Err(CompressionError::Xz(_))));
    }

    #[test]
    fn xz_that_needs_much_memory_is_refused() {
        assert!(unpack_xz(&[&pack_xz(b"x", 6)]).is_ok());
        assert_eq!(unpack_xz(&[&pack_xz(b"x", 7)]), Err(CompressionError::XzMemory));
        assert_eq!(unpack_xz(&[&pack_xz(b"x", 9)]), Err(CompressionError::XzMemory));
    }

    #[test]
    fn a_wrong_byte_in_the_second_frame_is_found() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        std::io::Write::write_all(&mut encoder, b"some text that is checked").unwrap();
        let mut two = [pack(b"x"), encoder.finish().unwrap()].concat();
        let last = two.len() - 1;
        two[last] ^= 1;
        assert!(matches!(plain(&[&two]), Err(CompressionError::Zstd(_))));
    }
}
