//! `Content-Encoding` of the small files that stock Nix compresses for the way (`narinfo-compression` and its like). Bounded:
//! what it expands to is counted, not believed.

use std::io::Read;

use crate::push::{
    decompress::{CompressionError, Decompressor, WINDOW_LOG},
    intake::Compression,
};

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    #[error("`Content-Encoding: {0}` is not taken here; br, gzip, xz and zstd are")]
    Unknown(String),
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
    #[error("the body is not what its `Content-Encoding: {encoding}` says: {why}")]
    Broken { encoding: &'static str, why: String },
}

impl EncodingError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "encoding-unsupported",
            Self::TooLarge(_) => "body-too-large",
            Self::Broken { .. } => "encoding-invalid",
        }
    }
}

/// Decodes a body to at most `most` bytes. Blocks.
pub fn decode(encoding: Option<&str>, raw: &[u8], most: usize) -> Result<Vec<u8>, EncodingError> {
    match encoding.unwrap_or("identity") {
        "identity" | "" => plain(raw, most),
        "gzip" | "x-gzip" => read("gzip", flate2::bufread::GzDecoder::new(raw), most),
        "br" => read("br", brotli_decompressor::Decompressor::new(raw, 4096), most),
        "zstd" => {
            let broken = |e: std::io::Error| EncodingError::Broken { encoding: "zstd", why: e.to_string() };
            let mut decoder = zstd::stream::read::Decoder::with_buffer(raw).map_err(broken)?;
            decoder.window_log_max(WINDOW_LOG).map_err(broken)?;
            read("zstd", decoder, most)
        }
        "xz" => xz(raw, most),
        other => Err(EncodingError::Unknown(crate::error::clean(other))),
    }
}

fn plain(raw: &[u8], most: usize) -> Result<Vec<u8>, EncodingError> {
    if raw.len() > most { Err(EncodingError::TooLarge(most)) } else { Ok(raw.to_vec()) }
}

fn read(encoding: &'static str, reader: impl Read, most: usize) -> Result<Vec<u8>, EncodingError> {
    let mut out = Vec::new();
    match reader.take(most as u64 + 1).read_to_end(&mut out) {
        Ok(_) if out.len() > most => Err(EncodingError::TooLarge(most)),
        Ok(_) => Ok(out),
        Err(e) => Err(EncodingError::Broken { encoding, why: e.to_string() }),
    }
}

fn xz(raw: &[u8], most: usize) -> Result<Vec<u8>, EncodingError> {
    enum Stop {
        Broken(CompressionError),
        TooLarge,
    }
    impl From<CompressionError> for Stop {
        fn from(error: CompressionError) -> Self {
            Self::Broken(error)
        }
    }
    let mut out = Vec::new();
    let mut decompressor = Decompressor::new(Compression::Xz);
    let fed = decompressor.feed(raw, |piece| {
        if out.len() + piece.len() > most {
            return Err(Stop::TooLarge);
        }
        out.extend_from_slice(piece);
        Ok(())
    });
    match fed.and_then(|()| decompressor.finish().map_err(Stop::Broken)) {
        Ok(()) => Ok(out),
        Err(Stop::TooLarge) => Err(EncodingError::TooLarge(most)),
        Err(Stop::Broken(e)) => Err(EncodingError::Broken { encoding: "xz", why: e.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use rstest::rstest;

    /// "hello hello hello\n" as brotli makes it at its lowest level: one uncompressed block.
    const BROTLI: &[u8] = b"\x8b\x08\x80hello hello hello\n\x03";

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn xz_of(text: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[rstest]
    #[case::none(None, b"hello hello hello\n".to_vec())]
    #[case::identity(Some("identity"), b"hello hello hello\n".to_vec())]
    #[case::gzip(Some("gzip"), gzip(b"hello hello hello\n"))]
    #[case::zstd(Some("zstd"), zstd::bulk::compress(b"hello hello hello\n", 3).unwrap())]
    #[case::xz(Some("xz"), xz_of(b"hello hello hello\n"))]
    #[case::br(Some("br"), BROTLI.to_vec())]
    fn each_is_read_and_bounded(#[case] encoding: Option<&str>, #[case] raw: Vec<u8>) {
        assert_eq!(decode(encoding, &raw, 18).unwrap(), b"hello hello hello\n");
        assert_eq!(decode(encoding, &raw, 17), Err(EncodingError::TooLarge(17)));
        if encoding.is_some_and(|e| e != "identity") {
            let cut = &raw[..raw.len() - 2];
            assert!(matches!(decode(encoding, cut, 100), Err(EncodingError::Broken { .. })), "{encoding:?}");
        }
    }

    #[test]
    fn bombs_and_unknown_encodings_are_refused() {
        let zeros = vec![0; 4 << 20];
        assert_eq!(decode(Some("gzip"), &gzip(&zeros), 1000), Err(EncodingError::TooLarge(1000)));
        assert_eq!(decode(Some("xz"), &xz_of(&zeros), 1000), Err(EncodingError::TooLarge(1000)));
        assert_eq!(decode(Some("lz4"), b"x", 10).unwrap_err().code(), "encoding-unsupported");
        assert_eq!(decode(Some("gzip, br"), b"x", 10).unwrap_err().code(), "encoding-unsupported");
    }
}
