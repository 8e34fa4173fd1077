//! Stage 4: NARs in quarantine, keyed by submitter and NAR hash: nobody can use, or learn of, what another has sent.
//! Where more became known after the bytes came (derivations, and with them candidates for references), they are read
//! again from here.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, Read},
    sync::Arc,
};

use pushgate_formats::{Sha256, StorePath, refscan::Candidates};

use super::intake::{Compression, Examined, Examiner, IntakeError, Plan};
use crate::{
    blobs::{Blobs, PackRange},
    db::{Db, DbError, QuarantineRow},
};

/// The paths whose hashes are looked for in the NARs of a push. One set serves the whole push; what of it counts for which
/// path is sorted out later.
pub struct ScanSet {
    digest: Sha256,
    members: BTreeSet<StorePath>,
    candidates: Arc<Candidates>,
}

impl ScanSet {
    pub fn new(members: BTreeSet<StorePath>) -> Self {
        let text: Vec<&str> = members.iter().map(StorePath::base_name).collect();
        Self {
            digest: Sha256::of(text.join("\n").as_bytes()),
            candidates: Arc::new(Candidates::new(members.iter().cloned())),
            members,
        }
    }

    /// Tells sets apart.
    pub const fn digest(&self) -> Sha256 {
        self.digest
    }
    pub fn candidates(&self) -> &Arc<Candidates> {
        &self.candidates
    }
    pub fn members(&self) -> &BTreeSet<StorePath> {
        &self.members
    }
}

/// A NAR in quarantine and what is known of its bytes.
#[derive(Debug)]
pub struct Quarantined {
    pub range: PackRange,
    pub compression: Compression,
    pub examined: Examined,
}

/// Stores the rows of NARs whose pack is durable, and gives them as they are in quarantine now: one that another upload
/// of the same submitter brought first stays where that put it. With them comes the number of bytes that came twice and
/// aren't kept. A crash before leaves a pack that no row names, which is swept; the client sends again.
pub async fn store(
    db: &dyn Db,
    blobs: &Arc<dyn Blobs>,
    identity: i64,
    (expires, now): (u64, u64),
    nars: Vec<Arc<Quarantined>>,
) -> Result<(Vec<Arc<Quarantined>>, u64), DbError> {
    let rows: Vec<QuarantineRow> = nars
        .iter()
        .map(|nar| QuarantineRow {
            nar_hash: nar.examined.nar_hash,
            pack: nar.range.pack.clone(),
            start: nar.range.start,
            length: nar.range.length,
            compression: nar.compression.as_str().to_owned(),
            // plain data
            examined: serde_json::to_string(&nar.examined).unwrap_or_default(),
        })
        .collect();
    let new = db.add_quarantined(identity, &rows, expires, now).await?;
    let (mut stored, second): (Vec<_>, Vec<_>) =
        nars.into_iter().partition(|nar| new.contains(&nar.examined.nar_hash));
    let known: Vec<Sha256> = second.iter().map(|nar| nar.examined.nar_hash).collect();
    let twice = second.iter().map(|nar| nar.range.length).sum();
    if !second.is_empty() {
        let (blobs, alone) = (blobs.clone(), stored.is_empty());
        let freed = tokio::task::spawn_blocking(move || {
            let ranges: Vec<PackRange> = second.iter().map(|nar| nar.range.clone()).collect();
            match ranges.first().filter(|_| alone) {
                Some(range) => blobs.remove_packs(std::slice::from_ref(&range.pack)),
                None => blobs.free(&ranges),
            }
        });
        // best effort: what stays goes with its pack, or is removed as one that no row names
        if let Ok(Err(e)) = freed.await {
            tracing::warn!(error = %e, "bytes that came twice stay for now");
        }
    }
    stored.extend(load(db, identity, &known).await?.into_values());
    Ok((stored, twice))
}

/// What a submitter has in quarantine of these NARs.
pub async fn load(
    db: &dyn Db,
    identity: i64,
    nars: &[Sha256],
) -> Result<HashMap<Sha256, Arc<Quarantined>>, DbError> {
    if nars.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = db.quarantined(identity, nars).await?;
    rows.into_iter().map(|row| Ok((row.nar_hash, Arc::new(Quarantined::read_back(row)?)))).collect()
}

impl Quarantined {
    /// Reads a row, which only this program writes.
    pub fn read_back(row: QuarantineRow) -> Result<Self, DbError> {
        let corrupt = |value: &str| DbError::Corrupt { what: "a quarantined NAR", value: value.to_owned() };
        Ok(Self {
            compression: Compression::parse(&row.compression).ok_or_else(|| corrupt(&row.compression))?,
            examined: serde_json::from_str(&row.examined).map_err(|_| corrupt(&row.examined))?,
            range: PackRange { pack: row.pack, start: row.start, length: row.length },
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ReexamineError {
    #[error("reading a quarantined NAR")]
    Io(#[from] io::Error),
    /// The bytes are not what they were when they came.
    #[error("a quarantined NAR changed since it was checked")]
    Changed,
}

/// Reads a quarantined NAR again, with another plan. Blocks.
pub fn examine_again(
    blobs: &dyn Blobs,
    nar: &Quarantined,
    mut plan: Plan,
) -> Result<Examined, ReexamineError> {
    plan.limit = nar.examined.nar_size;
    let mut source = blobs.read_pack(&nar.range)?;
    let mut examiner = Examiner::new(nar.compression, plan);
    let mut buffer = vec![0; 256 << 10];
    let changed = |_: IntakeError| ReexamineError::Changed;
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => examiner.feed(&buffer[..n]).map_err(changed)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let found = examiner.finish().map_err(changed)?;
    if found.nar_hash == nar.examined.nar_hash && found.file_hash == nar.examined.file_hash {
        Ok(found)
    } else {
        Err(ReexamineError::Changed)
    }
}
