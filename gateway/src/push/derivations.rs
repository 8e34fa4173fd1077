//! Derivations that came with pushes: checked one by one as their inputs become known, kept as evidence, never published
//! by themselves. Knows nothing of claims.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io::Read,
    sync::Arc,
};

use pushgate_formats::{
    StorePath,
    api::MAX_DERIVATIONS,
    content_address::ContentAddress,
    derivation::{
        Attributes, Derivation, DerivationError, Facts, FixedLeaf, Kind, MAX_DERIVATION, Output, OutputName,
        check::{check, check_own_path},
    },
};

use crate::db::{Db, DbError, DerivationRow};

/// Most bytes of derivation texts in one request, uncompressed.
pub const MAX_BODY: u64 = 64 << 20;
/// Checked derivations kept in memory, as expected; the rest is read back when needed.
const KEPT: usize = 20_000;
/// Bytes of memory that they may take, as estimated.
const KEPT_BYTES: u64 = 64 << 20;
/// Derivations that the database is asked for at once.
const PIECE: usize = 500;
/// Texts that are kept while their inputs are looked for; those beyond count as missing. Bytes.
const MAX_PENDING: usize = 64 << 20;

/// A checked derivation, as far as later stages need it.
#[derive(Debug)]
pub struct Known {
    pub facts: Facts,
    pub inputs: BTreeMap<StorePath, BTreeSet<OutputName>>,
    pub sources: BTreeSet<StorePath>,
    pub attributes: Attributes,
    /// The content address of a fixed output.
    pub fixed: Option<ContentAddress>,
    /// Such as `x86_64-linux`.
    pub system: Box<str>,
    /// The builder's path; what isn't UTF-8 is U+FFFD.
    pub builder: Box<str>,
    /// Of memory, as estimated.
    bytes: u64,
}

impl Known {
    fn new(derivation: Derivation, facts: Facts) -> Result<Self, DerivationError> {
        let fixed = match derivation.outputs.values().next() {
            Some(Output::Fixed { method, hash, .. }) => Some(ContentAddress::new(*method, hash.clone())?),
            _ => None,
        };
        let attributes = derivation.attributes()?;
        let bytes = memory(&derivation);
        Ok(Self {
            facts,
            inputs: derivation.input_drvs,
            sources: derivation.input_srcs,
            attributes,
            fixed,
            system: derivation.system.into(),
            builder: String::from_utf8_lossy(&derivation.builder).into(),
            bytes,
        })
    }

    /// The fixed output, if it has one.
    pub fn leaf(&self) -> Option<FixedLeaf> {
        let address = self.fixed.as_ref()?;
        let path = self.facts.outputs().values().flatten().next()?.clone();
        let (method, hash) = (address.method(), address.hash().clone());
        Some(FixedLeaf { path, method, hash, urls: self.attributes.urls.clone() })
    }

    /// The output that has this path.
    pub fn output(&self, path: &StorePath) -> Option<&OutputName> {
        self.facts.outputs().iter().find(|(_, p)| p.as_ref() == Some(path)).map(|(name, _)| name)
    }
}

/// Roughly the bytes that are kept of a derivation: paths and names with their share of tree and allocation, and the
/// attributes that are looked at, short words of which cost several times their text.
fn memory(derivation: &Derivation) -> u64 {
    const ATTRIBUTES: [&str; 5] = ["__json", "allowed", "disallowed", "unsafeDiscard", "url"];
    let names: usize = derivation.input_drvs.values().map(BTreeSet::len).sum();
    let kept = |name: &[u8]| ATTRIBUTES.iter().any(|a| name.starts_with(a.as_bytes()));
    let attributes: usize =
        derivation.env.iter().filter(|(n, _)| kept(n)).map(|(_, value)| value.len()).sum();
    (512 + derivation.input_drvs.len() * 400
        + derivation.system.len()
        + derivation.builder.len()
        + names * 64
        + derivation.input_srcs.len() * 128
        + derivation.outputs.len() * 256
        + attributes * 16) as u64
}

/// What is known of a set of derivations.
#[derive(Debug, Default, Clone)]
pub struct Resolved {
    pub known: HashMap<StorePath, Arc<Known>>,
    /// Not here, or an input of theirs isn't.
    pub missing: BTreeSet<StorePath>,
}

/// What became of derivations sent.
#[derive(Debug, Default)]
pub struct Taken {
    pub taken: usize,
    /// Bytes that the database has more now.
    pub stored: u64,
    pub refused: Vec<(StorePath, DerivationError)>,
    pub missing: BTreeSet<StorePath>,
}

type Cache = quick_cache::sync::Cache<StorePath, Arc<Known>, Weight>;

/// Weighs what is kept by what it takes in memory.
#[derive(Clone)]
struct Weight;

impl quick_cache::Weighter<StorePath, Arc<Known>> for Weight {
    fn weight(&self, _: &StorePath, known: &Arc<Known>) -> u64 {
        known.bytes
    }
}

/// Keeps checked derivations.
pub struct Derivations {
    cache: Arc<Cache>,
    /// Texts are read back by one at a time: they may be many.
    reading: tokio::sync::Mutex<()>,
}

impl Default for Derivations {
    fn default() -> Self {
        let cache = Arc::new(Cache::with_weighter(KEPT, KEPT_BYTES, Weight));
        Self { cache, reading: tokio::sync::Mutex::default() }
    }
}

impl Derivations {
    /// Finds out what is known of these derivations, checking those whose inputs came later than they did.
    pub async fn resolve(&self, db: &dyn Db, wanted: &[StorePath]) -> Result<Resolved, DbError> {
        let mut resolved = Resolved::default();
        let mut absent = Vec::new();
        for path in wanted {
            match self.cache.get(path) {
                Some(known) => {
                    resolved.known.insert(path.clone(), known);
                }
                None => absent.push(path.clone()),
            }
        }
        if absent.is_empty() {
            return Ok(resolved);
        }
        let _one_at_a_time = self.reading.lock().await;
        let mut pending: Vec<(StorePath, Vec<u8>)> = Vec::new();
        let mut bytes = 0;
        // in pieces, so that the texts of a large closure aren't in memory all at once
        for piece in absent.chunks(PIECE) {
            let mut open = piece.to_vec();
            // the database gives a part of what is large: the others are asked for again until none of them is found
            while !open.is_empty() {
                let rows = db.derivations(&open).await?;
                if rows.is_empty() {
                    break;
                }
                let found: HashSet<StorePath> = rows.iter().map(|row| row.path.clone()).collect();
                open.retain(|path| !found.contains(path));
                let cache = self.cache.clone();
                let read =
                    blocking(move || rows.into_iter().map(|r| read_back(&cache, r)).collect::<Vec<_>>());
                for (path, read) in read.await? {
                    match read {
                        ReadBack::Known(known) => {
                            resolved.known.insert(path, known);
                        }
                        ReadBack::Unchecked(text) if bytes + text.len() <= MAX_PENDING => {
                            bytes += text.len();
                            pending.push((path, text));
                        }
                        ReadBack::Unchecked(_) | ReadBack::Damaged => {
                            resolved.missing.insert(path);
                        }
                    }
                }
            }
            resolved.missing.extend(open);
        }
        if pending.is_empty() {
            return Ok(resolved);
        }
        // looked for inside the asked set only: what others have sent is nobody's business
        let cache = self.cache.clone();
        let (mut resolved, rows) = blocking(move || {
            let settled = settle(&cache, &mut resolved.known, &pending);
            // by name, so that whoever waits for them can be told
            resolved.missing.extend(settled.lacking);
            let mut rows = Vec::new();
            for ((path, _), facts) in pending.into_iter().zip(settled.facts) {
                if facts.is_some() {
                    // facts are added to rows that have their texts
                    rows.push(DerivationRow { path, text: Vec::new(), facts });
                } else {
                    resolved.missing.insert(path);
                }
            }
            (resolved, rows)
        })
        .await?;
        resolved.missing.retain(|path| !resolved.known.contains_key(path));
        if !rows.is_empty() {
            db.add_facts(&rows).await?;
        }
        Ok(resolved)
    }

    /// Takes derivations that a submitter sent, of those announced, inputs first or not. A bad one is refused alone; one
    /// whose inputs are missing is kept until they come.
    pub async fn take(
        &self,
        db: &dyn Db,
        identity: i64,
        announced: &[StorePath],
        sent: Vec<(StorePath, Vec<u8>)>,
        now: u64,
    ) -> Result<Taken, DbError> {
        let new: HashSet<&StorePath> = sent.iter().map(|(p, _)| p).collect();
        let before: Vec<StorePath> = announced.iter().filter(|p| !new.contains(p)).cloned().collect();
        drop(new);
        let mut known = self.resolve(db, &before).await?.known;
        let cache = self.cache.clone();
        let (mut taken, rows) = blocking(move || {
            let mut settled = settle(&cache, &mut known, &sent);
            let mut taken = Taken::default();
            let mut rows = Vec::with_capacity(sent.len());
            for (i, ((path, text), facts)) in sent.into_iter().zip(settled.facts).enumerate() {
                match settled.refused.remove(&i) {
                    Some(error) => taken.refused.push((path, error)),
                    None => rows.push(DerivationRow { path, text, facts }),
                }
            }
            taken.taken = rows.len();
            taken.missing = settled.lacking;
            (taken, rows)
        })
        .await?;
        if !rows.is_empty() {
            taken.stored = db.add_derivations(identity, &rows, now).await?;
        }
        // those that came wait for others, which are named
        for row in &rows {
            taken.missing.remove(&row.path);
        }
        Ok(taken)
    }
}

/// Runs what takes long, off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, DbError> {
    let died = |e| DbError::Sqlx(sqlx::Error::Io(std::io::Error::other(e)));
    tokio::task::spawn_blocking(work).await.map_err(died)
}

/// What a stored derivation is.
enum ReadBack {
    Known(Arc<Known>),
    /// Its inputs weren't known.
    Unchecked(Vec<u8>),
    Damaged,
}

fn read_back(cache: &Cache, row: DerivationRow) -> (StorePath, ReadBack) {
    let facts = row.facts.as_deref().and_then(|f| serde_json::from_str::<Facts>(f).ok());
    let Some(facts) = facts else { return (row.path, ReadBack::Unchecked(row.text)) };
    let read = match Derivation::parse(&row.text).and_then(|d| Known::new(d, facts)) {
        Ok(known) => {
            let known = Arc::new(known);
            cache.insert(row.path.clone(), known.clone());
            ReadBack::Known(known)
        }
        Err(_) => ReadBack::Damaged,
    };
    (row.path, read)
}

/// What came of a set of texts, by their numbers.
#[derive(Default)]
struct Settled {
    /// JSON of the facts of those that were checked.
    facts: Vec<Option<String>>,
    refused: HashMap<usize, DerivationError>,
    /// Inputs that texts wait for.
    lacking: BTreeSet<StorePath>,
}

/// Checks texts as their inputs become known, whatever their order: each is read a fixed number of times, once to find
/// what it lacks and once when it lacks nothing. Blocks.
fn settle(
    cache: &Cache,
    known: &mut HashMap<StorePath, Arc<Known>>,
    texts: &[(StorePath, Vec<u8>)],
) -> Settled {
    let mut settled = Settled { facts: vec![None; texts.len()], ..Settled::default() };
    let mut waiting: HashMap<StorePath, Vec<usize>> = HashMap::new();
    let mut lacks = vec![0usize; texts.len()];
    for first in 0..texts.len() {
        let mut ready = vec![first];
        while let Some(i) = ready.pop() {
            let (path, text) = &texts[i];
            match check_one(cache, known, path, text) {
                Ok(checked) => {
                    settled.facts[i] = serde_json::to_string(&checked.facts).ok();
                    known.insert(path.clone(), checked);
                    for dependant in waiting.remove(path).unwrap_or_default() {
                        lacks[dependant] -= 1;
                        if lacks[dependant] == 0 {
                            ready.push(dependant);
                        }
                    }
                }
                // all that it lacks, not only the first: else a hostile order would have it read once for each
                Err(DerivationError::MissingInput(_)) => {
                    let inputs = Derivation::parse(text).map(|d| d.input_drvs).unwrap_or_default();
                    for input in inputs.into_keys().filter(|input| !known.contains_key(input)) {
                        lacks[i] += 1;
                        waiting.entry(input).or_default().push(i);
                    }
                }
                Err(error) => {
                    settled.refused.insert(i, error);
                }
            }
        }
    }
    settled.lacking = waiting.into_keys().collect();
    settled
}

fn check_one(
    cache: &Cache,
    known: &HashMap<StorePath, Arc<Known>>,
    path: &StorePath,
    text: &[u8],
) -> Result<Arc<Known>, DerivationError> {
    // the text is bound by the path; only the sender is new
    if let Some(known) = cache.get(path).filter(|_| check_text(path, text).is_ok()) {
        return Ok(known);
    }
    let checked = check(path, text, |p| known.get(p).map(|k| FactsOf(k.clone())))?;
    let known = Arc::new(Known::new(checked.derivation, checked.facts)?);
    cache.insert(path.clone(), known.clone());
    Ok(known)
}

/// Lends facts out of a shared derivation.
struct FactsOf(Arc<Known>);

impl std::borrow::Borrow<Facts> for FactsOf {
    fn borrow(&self) -> &Facts {
        &self.0.facts
    }
}

fn check_text(path: &StorePath, text: &[u8]) -> Result<(), DerivationError> {
    check_own_path(path, text, &Derivation::parse(text)?)
}

/// All paths that built outputs of these derivations could refer to: every output and every source.
pub fn outputs_and_sources(known: &HashMap<StorePath, Arc<Known>>) -> BTreeSet<StorePath> {
    known.values().flat_map(|k| k.facts.outputs().values().flatten().chain(&k.sources)).cloned().collect()
}

/// The derivation closure of one derivation among those known, without what only fixed outputs are made from: a fixed
/// output refers to nothing.
pub fn closure<'a>(
    known: &'a HashMap<StorePath, Arc<Known>>,
    root: &'a StorePath,
) -> HashMap<&'a StorePath, &'a Arc<Known>> {
    let mut seen = HashMap::new();
    let mut stack = vec![root];
    while let Some(path) = stack.pop() {
        let Some(derivation) = known.get(path) else { continue };
        if seen.insert(path, derivation).is_none() && derivation.facts.kind() != Kind::Fixed {
            stack.extend(derivation.inputs.keys());
        }
    }
    seen
}

#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the derivations are not one zstd stream of records: {0}")]
    Malformed(String),
    #[error("the derivations have more than {MAX_BODY} bytes; send them in several requests")]
    TooLarge,
    #[error("the gateway has no memory for them beside what is under way")]
    NoMemory,
}

impl BodyError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "derivations-malformed",
            Self::TooLarge => "derivations-too-large",
            Self::NoMemory => "gateway-busy",
        }
    }
}

/// Reads the body of `POST /api/v1/pushes/ID/derivations` (see docs/protocol.md). Bounded before anything is allocated.
pub fn read_body(body: &[u8]) -> Result<Vec<(StorePath, Vec<u8>)>, BodyError> {
    read_body_within(body, |_| true)
}

/// [`read_body`], as long as there is room for so many bytes more.
pub fn read_body_within(
    body: &[u8],
    mut room: impl FnMut(u64) -> bool,
) -> Result<Vec<(StorePath, Vec<u8>)>, BodyError> {
    let malformed = |e: &dyn std::fmt::Display| BodyError::Malformed(e.to_string());
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(|e| malformed(&e))?;
    decoder.window_log_max(super::decompress::WINDOW_LOG).map_err(|e| malformed(&e))?;
    let mut reader = std::io::BufReader::new(decoder.take(MAX_BODY + 1));
    let mut out = Vec::new();
    let mut seen = HashSet::new();
    let mut total = 0u64;
    loop {
        let mut length = [0; 2];
        match reader.read(&mut length[..1]) {
            Ok(0) => return if total > MAX_BODY { Err(BodyError::TooLarge) } else { Ok(out) },
            Ok(_) => {}
            Err(e) => return Err(malformed(&e)),
        }
        reader.read_exact(&mut length[1..]).map_err(|e| malformed(&e))?;
        let mut name = vec![0; usize::from(u16::from_le_bytes(length))];
        reader.read_exact(&mut name).map_err(|e| malformed(&e))?;
        let path = std::str::from_utf8(&name)
            .map_err(|e| malformed(&e))
            .and_then(|n| StorePath::from_base_name(n).map_err(|e| malformed(&e)))?;
        if !seen.insert(path.clone()) {
            return Err(BodyError::Malformed(format!("`{path}` comes twice")));
        }
        if seen.len() > MAX_DERIVATIONS {
            return Err(BodyError::Malformed(format!("more than {MAX_DERIVATIONS} records")));
        }
        let mut length = [0; 4];
        reader.read_exact(&mut length).map_err(|e| malformed(&e))?;
        let length = u32::from_le_bytes(length) as usize;
        total += (name.len() + 6 + length) as u64;
        if length > MAX_DERIVATION || total > MAX_BODY {
            return Err(BodyError::TooLarge);
        }
        if !room((name.len() + length) as u64) {
            return Err(BodyError::NoMemory);
        }
        let mut text = Vec::new();
        let got = reader.by_ref().take(length as u64).read_to_end(&mut text).map_err(|e| malformed(&e))?;
        if got != length {
            return Err(BodyError::Malformed("it ends in the middle of a text".into()));
        }
        out.push((path, text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, text: &[u8]) -> Vec<u8> {
        let mut out = (name.len() as u16).to_le_bytes().to_vec();
        out.extend(name.as_bytes());
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text);
        out
    }

    const NAME: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a.drv";
    const OTHER: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-b.drv";

    #[test]
    fn a_body_reads_back_and_every_cut_is_refused() {
        let plain = [record(NAME, b"one"), record(OTHER, b"")].concat();
        let read = read_body(&zstd::bulk::compress(&plain, 1).unwrap()).unwrap();
        assert_eq!(read.iter().map(|(_, t)| t.as_slice()).collect::<Vec<_>>(), [b"one".as_slice(), b""]);
        let first = record(NAME, b"one").len();
        for cut in 1..plain.len() {
            let body = zstd::bulk::compress(&plain[..cut], 1).unwrap();
            assert_eq!(read_body(&body).is_ok(), cut == first, "{cut}");
        }
    }

    #[test]
    fn a_derivation_comes_once() {
        let plain = [record(NAME, b"one"), record(NAME, b"one")].concat();
        let error = read_body(&zstd::bulk::compress(&plain, 1).unwrap()).unwrap_err();
        assert_eq!(error.code(), "derivations-malformed");
        let plain = [record(NAME, b"one"), record(OTHER, b"one")].concat();
        assert_eq!(read_body(&zstd::bulk::compress(&plain, 1).unwrap()).unwrap().len(), 2);
    }

    #[test]
    fn what_is_kept_in_memory_is_bounded_by_bytes() {
        let derivations = Derivations::default();
        let text = b"Derive([(\"out\",\"\",\"r:sha256\",\"\")],[],[],\"s\",\"/b\",[],[(\"out\",\"\")])";
        let known = |bytes| {
            let derivation = Derivation::parse(text).unwrap();
            let path = pushgate_formats::derivation::text_path("a.drv", text, &BTreeSet::new()).unwrap();
            let facts = check(&path, text, |_| None::<Facts>).unwrap().facts;
            let mut known = Known::new(derivation, facts).unwrap();
            assert!((512..4096).contains(&known.bytes));
            known.bytes = bytes;
            Arc::new(known)
        };
        for n in 0..2000u32 {
            let mut digest = [0; 20];
            digest[..4].copy_from_slice(&n.to_le_bytes());
            let path = StorePath::from_digest(&digest, "a.drv").unwrap();
            derivations.cache.insert(path.clone(), known(1 << 20));
            assert!(derivations.cache.get(&path).is_some());
        }
        assert!(derivations.cache.weight() <= KEPT_BYTES && derivations.cache.len() <= 64);
    }

    #[test]
    fn sizes_are_bounded_before_they_are_allocated() {
        let mut huge = record(NAME, b"");
        let at = huge.len() - 4;
        huge[at..].copy_from_slice(&u32::MAX.to_le_bytes());
        let body = zstd::bulk::compress(&huge, 1).unwrap();
        assert!(matches!(read_body(&body), Err(BodyError::TooLarge)));
        assert!(matches!(read_body(b"no zstd"), Err(BodyError::Malformed(_))));
    }
}
