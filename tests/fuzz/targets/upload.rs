//! Uploads: records, decompression and the pass over each NAR. The first byte of the input says what the rest is: the body
//! of an upload, or one NAR, plain or packed by zstd or xz.

#![no_main]

use std::{
    collections::BTreeSet,
    io::Read,
    sync::{Arc, LazyLock, atomic::AtomicU64, atomic::Ordering::Relaxed},
};

use libfuzzer_sys::fuzz_target;
use pushgate_formats::{
    Sha256, StorePath,
    api::frame,
    derivation::Derivation,
    nar::{ListingWriter, Parser},
    refscan::Candidates,
};
use pushgate_fuzz::{
    app::App,
    assert_code, assert_message, blobs,
    limits::{Budget, Memory},
    pieces,
    push::{
        intake::{Compression, DigestWanted, Examined, Examiner, HashAlgoName, IntakeError, Plan},
        quarantine::{Quarantined, ScanSet, examine_again},
        session::Session,
        upload::{Upload, UploadError},
    },
};
use pushgate_policies::Policy;

/// Largest NAR, in bytes.
const LIMIT: u64 = 1 << 20;
/// Compressed bytes that may be kept.
const BUDGET: u64 = 8 << 10;

/// Bytes of memory for what is kept of NARs until the end: room for one text that may be a derivation's, and for what was
/// found in a few NARs.
const MEMORY: u64 = 3 * LIMIT + (8 << 10);

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let text = format!(
        "version = 1\ncache = \"main\"\n[limits]\nnar-size = \"{LIMIT} B\"\n\
         [[rule]]\nname = \"r\"\nmatch = {{}}\nrequire = \"derivation\"\n"
    );
    Policy::parse(&text, "main.toml", "main").expect("a policy")
});
static PLAN: LazyLock<Plan> = LazyLock::new(|| {
    let paths = ["0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a"]
        .map(|base| StorePath::from_base_name(base).expect("a store path"));
    Plan {
        digests: BTreeSet::from([
            DigestWanted::Flat(HashAlgoName::Sha1),
            DigestWanted::Nar(HashAlgoName::Md5),
            DigestWanted::Modulo(paths[0].clone()),
        ]),
        scan: Some(Arc::new(ScanSet::new(paths.into()))),
        capture: true,
        limit: LIMIT,
    }
});

/// Unpacks by other means, up to a byte more than may be. `None` where the bytes are broken.
fn unpack(compression: Compression, packed: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let reader: Box<dyn Read> = match compression {
        Compression::None => Box::new(packed),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).ok()?;
            decoder.window_log_max(23).ok()?;
            Box::new(decoder)
        }
        Compression::Xz => Box::new(liblzma::bufread::XzDecoder::new(packed)),
    };
    reader.take(LIMIT + 1).read_to_end(&mut out).ok()?;
    Some(out)
}

/// What was found in a NAR is what others find.
fn assert_found(compression: Compression, packed: &[u8], found: &Examined) {
    let nar = unpack(compression, packed).expect("others can unpack it too");
    assert!(nar.len() as u64 <= LIMIT);
    assert_eq!((found.nar_size, found.nar_hash), (nar.len() as u64, Sha256::of(&nar)));
    assert_eq!((found.file_size, found.file_hash), (packed.len() as u64, Sha256::of(packed)));
    let mut listing = ListingWriter::new(Vec::new());
    let mut parser = Parser::new();
    parser.feed(&nar, &mut listing).and_then(|()| parser.finish()).expect("a NAR");
    let mut kept = Vec::new();
    if let Some(found) = &found.listing {
        found.reader().expect("a listing").read_to_end(&mut kept).expect("a listing");
    }
    assert_eq!(kept, listing.finish().unwrap_or_default());
    let scan = PLAN.scan.as_ref().expect("a set");
    for path in scan.members() {
        let hash = path.hash_part().as_bytes();
        let there = nar.windows(hash.len()).any(|w| w == hash);
        assert_eq!(found.hits.contains(path), there, "{path}");
    }
    assert_eq!(found.contents.is_some(), found.derivation_references.is_some());
    if let Some(text) = &found.contents {
        assert_eq!(Derivation::parse(text).ok().map(|d| d.references()), found.derivation_references);
    }
    assert_eq!(found.digests.len(), PLAN.digests.len());
    // what is stored of it can be read back
    let stored = serde_json::to_string(found).expect("plain data");
    let back: Examined = serde_json::from_str(&stored).expect("as it was stored");
    assert_eq!(serde_json::to_string(&back).expect("plain data"), stored);
}

fn examine<'a>(
    compression: Compression,
    mut parts: impl Iterator<Item = &'a [u8]>,
) -> Result<Examined, IntakeError> {
    let mut examiner = Examiner::new(compression, PLAN.clone());
    parts.try_for_each(|part| examiner.feed(part))?;
    examiner.finish()
}

fn one_nar(compression: Compression, packed: &[u8]) {
    let whole = examine(compression, std::iter::once(packed));
    let cut = examine(compression, pieces(packed));
    match (whole, cut) {
        (Ok(whole), Ok(cut)) => {
            assert_eq!(serde_json::to_string(&whole).ok(), serde_json::to_string(&cut).ok());
            assert_found(compression, packed, &whole);
            let end = packed.len() - 1;
            assert!(examine(compression, pieces(&packed[..end])).is_err(), "the last byte is needed");
        }
        (Err(whole), Err(cut)) => {
            assert_code(whole.code());
            assert_message(&whole);
            assert_code(cut.code());
        }
        (whole, cut) => panic!("it depends on where the input is cut: {whole:?}, {cut:?}"),
    }
}

/// Puts the right hash into the headers of records that can be unpacked, but for every fourth value of their last byte: no
/// fuzzer finds a hash.
fn mend(body: &[u8]) -> Vec<u8> {
    let mut out = body.to_vec();
    let mut at = 0;
    while let Some(header) = body.get(at..at + frame::HEADER) {
        let start = at;
        at += frame::HEADER;
        let mut packed = Vec::new();
        loop {
            let Some(length) = body.get(at..at + 4) else { return out };
            let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
            at += 4;
            if length == 0 || length == frame::ABORT {
                break;
            }
            let Some(chunk) = body.get(at..).and_then(|rest| rest.get(..length as usize)) else { return out };
            packed.extend_from_slice(chunk);
            at += length as usize;
        }
        let compression = match header[32] {
            frame::NONE => Compression::None,
            frame::ZSTD => Compression::Zstd,
            _ => return out,
        };
        if header[31] % 4 != 3
            && let Some(nar) = unpack(compression, &packed)
        {
            out[start..start + 32].copy_from_slice(&Sha256::of(&nar).0);
        }
    }
    out
}

struct Uploaded {
    error: Option<String>,
    complete: bool,
    /// For each record: its hash and the code where it was refused.
    results: Vec<(Sha256, Option<String>)>,
    nars: Vec<Arc<Quarantined>>,
    blobs: Arc<blobs::Memory>,
    used: u64,
}

fn upload<'a>(mut parts: impl Iterator<Item = &'a [u8]>) -> Uploaded {
    let blobs = Arc::new(blobs::Memory::default());
    let app = App { blobs: blobs.clone(), memory: Memory::new(MEMORY) };
    let used = Arc::new(AtomicU64::new(0));
    let budget = Budget { own: used.clone(), most: BUDGET, all: Arc::default(), all_most: BUDGET, day: None };
    let session = Session { plan: PLAN.clone(), policy: POLICY.clone() };
    let mut upload = Upload::new(&app, Arc::new(session), budget);
    let error = parts
        .try_for_each(|part| {
            upload.feed(part)?;
            assert!(used.load(Relaxed) <= BUDGET);
            Ok::<_, UploadError>(())
        })
        .err();
    let complete = upload.is_complete();
    let (texts, held) = upload.take_texts();
    assert!(texts.iter().all(|(_, text)| Derivation::parse(text).is_ok()));
    drop(held);
    let finished = upload.finish().expect("memory doesn't fail");
    let results = finished
        .results
        .into_iter()
        .map(|result| {
            if let Some(error) = &result.error {
                assert_code(&error.code);
                assert_message(&error.message);
            }
            (result.nar_hash, result.error.map(|e| e.code))
        })
        .collect();
    let nars = finished.nars;
    // as if rows were written
    finished.counted.keep();
    Uploaded { error: error.map(|e| e.to_string()), complete, results, nars, blobs, used: used.load(Relaxed) }
}

fn body(bytes: &[u8]) {
    let mended = mend(bytes);
    let whole = upload(std::iter::once(&mended[..]));
    let cut = upload(pieces(&mended));
    assert_eq!(whole.error, cut.error);
    assert_eq!(whole.complete, cut.complete);
    let hashes = |u: &Uploaded| u.results.iter().map(|r| (r.0, r.1.is_none())).collect::<Vec<_>>();
    assert_eq!(hashes(&whole), hashes(&cut), "what is taken depends on where the body is cut");
    for one in [&whole, &cut] {
        // each NAR that was taken is kept, once, and nothing else is
        let mut kept = 0;
        for nar in &one.nars {
            let packed = one.blobs.bytes(&nar.range);
            kept += packed.len() as u64;
            // an upload takes the contents out
            let mut found = nar.examined.clone();
            found.contents = examine(nar.compression, pieces(&packed)).expect("it was taken").contents;
            assert_found(nar.compression, &packed, &found);
            examine_again(one.blobs.as_ref(), nar, PLAN.clone()).expect("the same again");
        }
        assert_eq!((one.blobs.size(), one.used), (kept, kept));
        let taken: Vec<Sha256> = one.results.iter().filter(|r| r.1.is_none()).map(|r| r.0).collect();
        let stored: Vec<Sha256> = one.nars.iter().map(|nar| nar.examined.nar_hash).collect();
        assert_eq!(taken, stored);
        let distinct: BTreeSet<Sha256> = stored.iter().copied().collect();
        assert_eq!(distinct.len(), stored.len());
    }
}

fuzz_target!(|data: &[u8]| {
    // built once, so that its memory doesn't count for an input
    let _: &Arc<Candidates> = PLAN.scan.as_ref().expect("a set").candidates();
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => body(rest),
        1 => one_nar(Compression::None, rest),
        2 => one_nar(Compression::Zstd, rest),
        _ => one_nar(Compression::Xz, rest),
    }
});
