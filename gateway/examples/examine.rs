//! Takes a compressed NAR through stage 3 as an upload does, and prints what it found: for `scripts/bench`, which compares
//! the CPU time with that of `zstd -dc FILE | sha256sum`, and for profilers.
//!
//!     cargo run --release --example examine -- FILE [CANDIDATES]

use std::{fs::File, io::Read, path::Path, sync::Arc};

use pushgate_formats::{Sha256, StorePath};
use pushgate_gateway::push::{
    intake::{Compression, Examiner, Plan},
    quarantine::ScanSet,
};

/// What bodies of uploads come in, in bytes.
const PIECE: usize = 256 << 10;
/// Paths that references are looked for to, where nobody says: a push of some size.
const CANDIDATES: usize = 2000;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or_else(|| anyhow::anyhow!("usage: examine FILE [CANDIDATES]"))?;
    let candidates = arguments.next().map_or(Ok(CANDIDATES), |n| n.parse())?;
    let compression = match Path::new(&file).extension().and_then(|e| e.to_str()) {
        Some("zst") => Compression::Zstd,
        _ => Compression::None,
    };
    let members = (0..candidates as u64).map(|n| {
        let digest = Sha256::of(&n.to_le_bytes());
        let digest = digest.0.first_chunk().ok_or_else(|| anyhow::anyhow!("a sha256 of 20 bytes"))?;
        Ok(StorePath::from_digest(digest, "candidate")?)
    });
    let scan = Arc::new(ScanSet::new(members.collect::<anyhow::Result<_>>()?));
    let plan = Plan { scan: Some(scan), limit: u64::MAX, ..Plan::default() };
    let mut examiner = Examiner::new(compression, plan);
    let (mut source, mut buffer) = (File::open(&file)?, vec![0; PIECE]);
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            n => examiner.feed(&buffer[..n])?,
        }
    }
    let found = examiner.finish()?;
    println!("{} {} bytes, {} references", found.nar_hash.base32(), found.nar_size, found.hits.len());
    Ok(())
}
