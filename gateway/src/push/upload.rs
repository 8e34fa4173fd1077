//! Streams the body of an upload into stages 3 and 4: unframes records, examines and stores each NAR in one pass, off the
//! async threads. One bad NAR doesn't touch the others; a connection that breaks loses only the NAR that was under way.

use std::{collections::HashSet, io, sync::Arc};

use pushgate_formats::{
    Sha256,
    api::{self, ErrorBody, NarResult, frame},
    derivation::MAX_DERIVATION,
};

use super::{
    intake::{Compression, Examiner, IntakeError},
    quarantine::Quarantined,
    session::Session,
};
pub use crate::limits::Budget;
use crate::{
    app::App,
    blobs::{Blobs, PackRange, PackWriter},
    limits::{Counted, Held, Memory},
};

/// Records of one upload, refused ones included: no push wants more NARs than it has paths.
const MAX_RECORDS: usize = api::MAX_PATHS;
/// Listings that an upload keeps for publishing; later ones are dropped and made again when they are needed. Bytes.
const MAX_LISTINGS: usize = 16 << 20;
/// Texts of derivations that an upload keeps until they are taken out; those beyond count as not sent. Bytes.
const MAX_TEXTS: usize = 64 << 20;

/// NARs from this size on lie in packs of their own, from which they are published without being copied. Bytes.
const ALONE: u64 = 1 << 20;
/// Such packs of one upload, each an open file until its end; further NARs go into the common one.
const MAX_ALONE: usize = 8;

/// Bytes that compressed data may have beyond the NAR's own: a zstd frame that compresses nothing adds a few to each block.
const OVERHEAD: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The body can't be unframed any further.
    #[error("the upload is not framed as the protocol describes: {0}")]
    Framing(String),
    #[error("the disk is nearly full")]
    DiskFull,
    #[error("no memory for a record")]
    NoMemory,
    #[error("blob store")]
    Io(#[from] io::Error),
}

/// A running upload: takes pieces of the body, blocking.
pub struct Upload {
    session: Arc<Session>,
    blobs: Arc<dyn Blobs>,
    memory: Memory,
    counted: Counted,
    /// For small NARs.
    pack: Option<Box<dyn PackWriter>>,
    /// Whole NARs, each by itself.
    alone: Vec<Box<dyn PackWriter>>,
    /// Header or length bytes that came so far.
    partial: Vec<u8>,
    record: Option<Record>,
    /// Bytes of the current chunk still to come.
    chunk: usize,
    done: Vec<Done>,
    /// The hashes of `done`.
    taken: HashSet<Sha256>,
    /// Bytes of the listings in `done`.
    listings: usize,
    texts: Vec<(Sha256, Vec<u8>)>,
    /// For the texts.
    held: Held,
    /// Bytes of the texts.
    text_bytes: usize,
    pub results: Vec<NarResult>,
}

/// A NAR that came whole.
struct Done {
    /// Which of the packs that hold one; else the common one.
    alone: Option<usize>,
    start: u64,
    length: u64,
    compression: Compression,
    examined: super::intake::Examined,
}

/// A record under way.
struct Record {
    nar_hash: Sha256,
    /// A pack of its own.
    pack: Option<Box<dyn PackWriter>>,
    /// Where it begins in the common pack, if it lies there.
    start: Option<u64>,
    /// Bytes that were taken from the budget.
    counted: u64,
    /// Bytes that may still come.
    left: u64,
    /// For the text, where it may be a derivation's.
    held: Held,
    compression: Compression,
    /// `None` once the record is refused: the rest of it is read and dropped.
    examiner: Option<Box<Examiner>>,
    refused: Option<ErrorBody>,
}

/// Why a record isn't taken.
enum Problem {
    Refused(ErrorBody),
    Io(io::Error),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The pack that all records share that have none of their own.
type Common = Option<Box<dyn PackWriter>>;

impl Record {
    /// Takes bytes as they came: examines and stores them.
    fn take(&mut self, bytes: &[u8], common: &mut Common, counted: &mut Counted) -> Result<(), Problem> {
        if !counted.take(bytes.len() as u64) {
            return Err(Problem::Refused(counted.budget().refusal(bytes.len() as u64)));
        }
        self.counted += bytes.len() as u64;
        if let Some(examiner) = &mut self.examiner {
            examiner.feed(bytes).map_err(|e| Problem::Refused(body(&e, &self.nar_hash)))?;
        }
        // one of them there is, since the record began
        match self.pack.as_mut().or(common.as_mut()) {
            Some(pack) => Ok(pack.write(bytes)?),
            None => Ok(()),
        }
    }

    /// Forgets what was stored of it.
    fn take_back(&mut self, common: &mut Common, counted: &mut Counted) -> io::Result<()> {
        counted.give_back(std::mem::take(&mut self.counted));
        // dropped, one of its own leaves nothing
        self.pack = None;
        match (self.start, common) {
            (Some(start), Some(common)) if common.position() > start => common.rollback(start),
            _ => Ok(()),
        }
    }
}

/// What came of an upload that ended.
pub struct Finished {
    /// In a pack that is durable; no row names them yet.
    pub nars: Vec<Arc<Quarantined>>,
    pub results: Vec<NarResult>,
    /// What the NARs took of the budget.
    pub counted: Counted,
}

impl Upload {
    pub fn new(app: &App, session: Arc<Session>, budget: Budget) -> Self {
        Self {
            session,
            blobs: app.blobs.clone(),
            memory: app.memory.clone(),
            counted: Counted::new(budget),
            pack: None,
            alone: Vec::new(),
            partial: Vec::new(),
            record: None,
            chunk: 0,
            done: Vec::new(),
            taken: HashSet::new(),
            listings: 0,
            texts: Vec::new(),
            held: Held::default(),
            text_bytes: 0,
            results: Vec::new(),
        }
    }

    /// Takes the next bytes of the body.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), UploadError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.chunk > 0 {
                let n = self.chunk.min(rest.len());
                self.contents(&rest[..n])?;
                self.chunk -= n;
                rest = &rest[n..];
                continue;
            }
            let want = if self.record.is_some() { 4 } else { frame::HEADER };
            let n = (want - self.partial.len()).min(rest.len());
            self.partial.extend_from_slice(&rest[..n]);
            rest = &rest[n..];
            if self.partial.len() < want {
                return Ok(());
            }
            let head = std::mem::take(&mut self.partial);
            if self.record.is_none() {
                self.begin(&head)?;
            } else {
                // four bytes, as `want` says
                match u32::from_le_bytes([head[0], head[1], head[2], head[3]]) {
                    0 => self.end(None)?,
                    frame::ABORT => self.end(Some("aborted by the sender"))?,
                    n if n > frame::MAX_CHUNK => {
                        return Err(UploadError::Framing(format!(
                            "a chunk of {n} bytes; {} are allowed",
                            frame::MAX_CHUNK
                        )));
                    }
                    n => self.chunk = n as usize,
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, head: &[u8]) -> Result<(), UploadError> {
        let mut hash = [0; 32];
        hash.copy_from_slice(&head[..32]);
        let nar_hash = Sha256(hash);
        let compression = match head[32] {
            frame::NONE => Compression::None,
            frame::ZSTD => Compression::Zstd,
            other => return Err(UploadError::Framing(format!("compression `{other}` is not known"))),
        };
        if self.results.len() >= MAX_RECORDS {
            return Err(UploadError::Framing(format!("more than {MAX_RECORDS} records")));
        }
        // before it is asked whether the NAR is wanted: another upload may bring it between the two
        let plan = self.session.plan(&nar_hash);
        let message = if self.taken.contains(&nar_hash) {
            Some(format!("the NAR `{nar_hash}` came in this upload already"))
        } else if !self.session.wants(&nar_hash) {
            Some(format!("no path of this push waits for the NAR `{nar_hash}`"))
        } else {
            None
        };
        let refused =
            message.map(|message| ErrorBody { code: "nar-not-wanted".to_owned(), message, path: None });
        // compressed or not, more than that is no form of the NAR; of one that isn't wanted it is read over
        let size = if refused.is_none() { plan.limit } else { self.session.limits().nar_size };
        let left = size.saturating_add(size / 128).saturating_add(OVERHEAD);
        let held = if refused.is_none() && plan.capture {
            // the text, and what it is parsed into
            let bytes = 3 * plan.limit.min(MAX_DERIVATION as u64);
            self.memory.take(bytes).ok_or(UploadError::NoMemory)?
        } else {
            Held::default()
        };
        let (mut pack, mut start) = (None, None);
        if refused.is_none() && plan.limit >= ALONE && self.alone.len() < MAX_ALONE {
            pack = Some(self.blobs.begin_pack()?);
        } else {
            if self.pack.is_none() {
                self.pack = Some(self.blobs.begin_pack()?);
            }
            start = self.pack.as_ref().map(|p| p.position());
        }
        let examiner = match refused {
            Some(_) => None,
            None => Some(Box::new(Examiner::new(compression, plan))),
        };
        self.record =
            Some(Record { nar_hash, pack, start, counted: 0, left, held, compression, examiner, refused });
        Ok(())
    }

    fn contents(&mut self, bytes: &[u8]) -> Result<(), UploadError> {
        let Some(record) = &mut self.record else { return Ok(()) };
        let fits = record.left.checked_sub(bytes.len() as u64);
        if record.examiner.is_none() {
            record.left = fits.ok_or_else(|| {
                let nar = record.nar_hash;
                UploadError::Framing(format!("the record of the NAR `{nar}`, which is refused, doesn't end"))
            })?;
            return Ok(());
        }
        record.left = fits.unwrap_or(0);
        let taken = match fits {
            Some(_) => record.take(bytes, &mut self.pack, &mut self.counted),
            None => Err(Problem::Refused(ErrorBody {
                code: "nar-too-large".to_owned(),
                message: format!("the NAR `{}` comes in more bytes than it can have", record.nar_hash),
                path: None,
            })),
        };
        self.refuse(taken)
    }

    /// Gives up the record under way where there is a problem with it. What is left of it is read over, so that the records
    /// behind it come in.
    fn refuse(&mut self, taken: Result<(), Problem>) -> Result<(), UploadError> {
        let (Some(record), Err(problem)) = (&mut self.record, taken) else { return Ok(()) };
        let refused = match problem {
            Problem::Io(e) => return Err(e.into()),
            Problem::Refused(refused) => refused,
        };
        record.left = record.left.max(self.session.limits().nar_size);
        record.examiner = None;
        record.refused = Some(refused);
        record.take_back(&mut self.pack, &mut self.counted)?;
        Ok(())
    }

    fn end(&mut self, aborted: Option<&str>) -> Result<(), UploadError> {
        let Some(mut record) = self.record.take() else { return Ok(()) };
        let mut held = std::mem::take(&mut record.held);
        let outcome = match (record.refused.take(), record.examiner.take(), aborted) {
            (Some(refused), _, _) => Err(refused),
            (None, _, Some(why)) => Err(ErrorBody {
                code: "nar-aborted".to_owned(),
                message: format!("the NAR `{}` was {why}", record.nar_hash),
                path: None,
            }),
            (None, Some(examiner), None) => examiner.finish().map_err(|e| body(&e, &record.nar_hash)),
            // an examiner is dropped only when a reason is set
            (None, None, None) => return Ok(()),
        };
        let outcome = outcome.and_then(|examined| {
            if examined.nar_hash == record.nar_hash {
                Ok(examined)
            } else {
                let error = IntakeError::Hash { found: examined.nar_hash, claimed: record.nar_hash };
                Err(body(&error, &record.nar_hash))
            }
        });
        let error = match outcome {
            Ok(mut examined) => {
                let size = examined.listing.as_ref().map_or(0, super::intake::Listing::size);
                if self.listings + size <= MAX_LISTINGS && examined.hold(&self.memory) {
                    self.listings += size;
                } else {
                    examined.listing = None;
                    if !examined.hold(&self.memory) {
                        record.take_back(&mut self.pack, &mut self.counted)?;
                        return Err(UploadError::NoMemory);
                    }
                }
                if let Some(text) = examined.contents.take()
                    && self.text_bytes + text.len() <= MAX_TEXTS
                {
                    self.text_bytes += text.len();
                    self.held.add(std::mem::take(&mut held));
                    self.texts.push((record.nar_hash, text));
                }
                self.taken.insert(record.nar_hash);
                let alone = record.pack.take().map(|pack| {
                    self.alone.push(pack);
                    self.alone.len() - 1
                });
                self.done.push(Done {
                    alone,
                    start: record.start.unwrap_or(0),
                    length: examined.file_size,
                    compression: record.compression,
                    examined,
                });
                None
            }
            Err(error) => {
                record.take_back(&mut self.pack, &mut self.counted)?;
                Some(error)
            }
        };
        self.results.push(NarResult { nar_hash: record.nar_hash, error });
        Ok(())
    }

    /// Bytes of the derivations' texts that weren't taken out.
    pub const fn text_bytes(&self) -> usize {
        self.text_bytes
    }

    /// The texts of NARs that are files with a derivation's form, by NAR hash: each once. With the memory that they take.
    pub fn take_texts(&mut self) -> (Vec<(Sha256, Vec<u8>)>, Held) {
        self.text_bytes = 0;
        (std::mem::take(&mut self.texts), std::mem::take(&mut self.held))
    }

    /// Whether the body ended where a record ended.
    pub fn is_complete(&self) -> bool {
        self.record.is_none() && self.partial.is_empty()
    }

    /// Makes what came whole durable, dropping a record that didn't. Blocks. A crash before it loses the upload, which the
    /// client repeats; one after it leaves a pack without rows, which is swept.
    pub fn finish(mut self) -> io::Result<Finished> {
        let Self { mut results, mut counted, .. } = self;
        if let Some(mut record) = self.record.take() {
            record.take_back(&mut self.pack, &mut counted)?;
            // what is wrong with it was found before it broke off
            results.extend(record.refused.map(|e| NarResult { nar_hash: record.nar_hash, error: Some(e) }));
        }
        if self.done.is_empty() {
            return Ok(Finished { nars: vec![], results, counted });
        }
        let mut whole: Vec<Option<Sha256>> = vec![None; self.alone.len()];
        for done in &self.done {
            if let Some(i) = done.alone {
                whole[i] = Some(done.examined.file_hash);
            }
        }
        let (mut common, mut alone) = (String::new(), Vec::with_capacity(whole.len()));
        for (pack, hash) in self.alone.drain(..).zip(&whole) {
            alone.push(pack.finish(hash.as_ref())?);
        }
        if let Some(pack) = self.pack.take().filter(|pack| pack.position() > 0) {
            common = pack.finish(None)?;
        }
        let nars = self
            .done
            .drain(..)
            .map(|done| {
                let pack = done.alone.map_or_else(|| common.clone(), |i| alone[i].clone());
                let range = PackRange { pack, start: done.start, length: done.length };
                Arc::new(Quarantined { range, compression: done.compression, examined: done.examined })
            })
            .collect();
        Ok(Finished { nars, results, counted })
    }
}

fn body(error: &IntakeError, nar_hash: &Sha256) -> ErrorBody {
    ErrorBody { code: error.code().to_owned(), message: format!("the NAR `{nar_hash}`: {error}"), path: None }
}
