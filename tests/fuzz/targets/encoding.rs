//! Small files of stock Nix that were compressed for the way. The first byte of the input picks the encoding.

#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use pushgate_fuzz::{
    assert_code, assert_message,
    push::encoding::{EncodingError, decode},
};

/// Most bytes that are wanted, as for a narinfo.
const MOST: usize = 64 << 10;

/// The same by the library alone, without a bound but one byte more.
fn plain(encoding: &str, raw: &[u8]) -> Option<Vec<u8>> {
    let reader: Box<dyn Read> = match encoding {
        "gzip" => Box::new(flate2::bufread::GzDecoder::new(raw)),
        "br" => Box::new(brotli_decompressor::Decompressor::new(raw, 512)),
        "zstd" => Box::new(zstd::stream::read::Decoder::with_buffer(raw).ok()?),
        "xz" => Box::new(liblzma::bufread::XzDecoder::new(raw)),
        _ => Box::new(raw),
    };
    let mut out = Vec::new();
    reader.take(MOST as u64 + 1).read_to_end(&mut out).ok()?;
    Some(out)
}

fuzz_target!(|data: &[u8]| {
    let Some((pick, raw)) = data.split_first() else { return };
    let encodings = ["identity", "gzip", "br", "zstd", "xz"];
    let encoding = encodings[usize::from(*pick) % encodings.len()];
    match decode(Some(encoding), raw, MOST) {
        Ok(text) => {
            assert!(text.len() <= MOST);
            assert_eq!(plain(encoding, raw).as_ref(), Some(&text));
            // the bound is exact
            assert_eq!(decode(Some(encoding), raw, text.len()).as_ref(), Ok(&text));
            if let Some(less) = text.len().checked_sub(1) {
                assert_eq!(decode(Some(encoding), raw, less), Err(EncodingError::TooLarge(less)));
            }
        }
        Err(error) => {
            assert_code(error.code());
            assert_message(&error);
        }
    }
});
