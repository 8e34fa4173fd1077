//! Damage to one NAR, however it is packed.

use std::io::{Read, Write};

use pushgate_formats::nar::Writer;
use rstest::rstest;

use super::*;

fn nar() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    writer.directory().unwrap();
    writer.entry(b"a").unwrap();
    writer.file(true, 100).unwrap();
    writer.contents(&[b'x'; 100]).unwrap();
    writer.entry(b"b").unwrap();
    writer.symlink(b"a").unwrap();
    writer.end().unwrap();
    writer.finish().unwrap()
}

fn zstd_frame(bytes: &[u8], checksum: bool) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(checksum).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd() -> Vec<u8> {
    zstd_frame(&nar(), false)
}

fn zstd_with_checksum() -> Vec<u8> {
    zstd_frame(&nar(), true)
}

/// Cut in the middle, as a client does to use all its processors.
fn zstd_frames() -> Vec<u8> {
    let nar = nar();
    let (head, tail) = nar.split_at(200);
    [zstd_frame(head, false), zstd_frame(tail, true)].concat()
}

fn xz() -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
    encoder.write_all(&nar()).unwrap();
    encoder.finish().unwrap()
}

fn examine(compression: Compression, packed: &[u8], piece: usize) -> Result<Examined, IntakeError> {
    let mut examiner = Examiner::new(compression, Plan { limit: 1 << 16, ..Plan::default() });
    for piece in packed.chunks(piece) {
        examiner.feed(piece)?;
    }
    examiner.finish()
}

/// By other means than the examiner's.
fn unpacked(compression: Compression, packed: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match compression {
        Compression::None => out.extend_from_slice(packed),
        Compression::Zstd => {
            zstd::stream::read::Decoder::new(packed).unwrap().read_to_end(&mut out).map(drop).unwrap();
        }
        Compression::Xz => {
            liblzma::read::XzDecoder::new(packed).read_to_end(&mut out).map(drop).unwrap();
        }
    }
    out
}

#[rstest]
#[case::plain(Compression::None, nar())]
#[case::zstd(Compression::Zstd, zstd())]
#[case::zstd_with_checksum(Compression::Zstd, zstd_with_checksum())]
#[case::zstd_frames(Compression::Zstd, zstd_frames())]
#[case::xz(Compression::Xz, xz())]
fn cut_at_every_byte(#[case] compression: Compression, #[case] packed: Vec<u8>) {
    assert_eq!(examine(compression, &packed, 7).unwrap().nar_hash, Sha256::of(&nar()));
    for end in 0..packed.len() {
        for piece in [1, 7, packed.len()] {
            let cut = examine(compression, &packed[..end], piece);
            let code = cut.map(|found| found.nar_size).expect_err("a refusal").code();
            assert!(["nar-malformed", "compression-invalid"].contains(&code), "{end}: {code}");
        }
    }
}

/// Refused; or it is a NAR still, and everybody else reads the same one out of it.
#[rstest]
#[case::plain(Compression::None, nar())]
#[case::zstd(Compression::Zstd, zstd())]
#[case::zstd_with_checksum(Compression::Zstd, zstd_with_checksum())]
#[case::zstd_frames(Compression::Zstd, zstd_frames())]
#[case::xz(Compression::Xz, xz())]
fn every_changed_byte(#[case] compression: Compression, #[case] packed: Vec<u8>) {
    let mut taken = 0;
    for at in 0..packed.len() {
        for by in 1..=u8::MAX {
            let mut bent = packed.clone();
            bent[at] ^= by;
            match examine(compression, &bent, packed.len()) {
                Err(error) => assert!(!error.code().is_empty()),
                Ok(found) => {
                    taken += 1;
                    let nar = unpacked(compression, &bent);
                    assert_eq!((found.nar_hash, found.nar_size), (Sha256::of(&nar), nar.len() as u64));
                    assert_eq!(found.file_hash, Sha256::of(&bent));
                }
            }
        }
    }
    // contents are free where nothing guards them, and checksums leave nothing free
    assert_eq!(taken > 0, matches!(compression, Compression::None | Compression::Zstd), "{taken}");
}
