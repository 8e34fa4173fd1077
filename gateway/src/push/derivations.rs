//! Derivations that came with pushes: checked one by one as their inputs become known, kept as evidence, never published
//! by themselves. Knows nothing of claims.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io::Read,
    sync::Arc,
};

use pushgate_formats::{
    StorePath,
    content_address::ContentAddress,
    derivation::{
        Attributes, Derivation, DerivationError, Facts, Kind, MAX_DERIVATION, Output, OutputName,
        check::{check, check_own_path},
    },
};

use crate::db::{Db, DbError, DerivationRow};

/// Most bytes of derivation texts in one request, uncompressed.
pub const MAX_BODY: u64 = 64 << 20;
/// Checked derivations kept in memory; the rest is read back when needed.
const KEPT: usize = 50_000;

/// A checked derivation, as far as later stages need it.
#[derive(Debug)]
pub struct Known {
    pub facts: Facts,
    pub inputs: BTreeMap<StorePath, BTreeSet<OutputName>>,
    pub sources: BTreeSet<StorePath>,
    pub attributes: Attributes,
    /// The content address of a fixed output.
    pub fixed: Option<ContentAddress>,
}

impl Known {
    fn new(derivation: Derivation, facts: Facts) -> Result<Self, DerivationError> {
        let fixed = match derivation.outputs.values().next() {
            Some(Output::Fixed { method, hash, .. }) => Some(ContentAddress::new(*method, hash.clone())?),
            _ => None,
        };
        let attributes = derivation.attributes()?;
        Ok(Self { facts, inputs: derivation.input_drvs, sources: derivation.input_srcs, attributes, fixed })
    }

    /// The output that has this path.
    pub fn output(&self, path: &StorePath) -> Option<&OutputName> {
        self.facts.outputs().iter().find(|(_, p)| p.as_ref() == Some(path)).map(|(name, _)| name)
    }
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
    pub refused: Vec<(StorePath, DerivationError)>,
    pub missing: BTreeSet<StorePath>,
}

/// Keeps checked derivations.
pub struct Derivations {
    cache: quick_cache::sync::Cache<StorePath, Arc<Known>>,
}

impl Default for Derivations {
    fn default() -> Self {
        Self { cache: quick_cache::sync::Cache::new(KEPT) }
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
        let mut pending: BTreeMap<StorePath, Vec<u8>> = BTreeMap::new();
        let mut found = HashSet::new();
        // in pieces, so that the texts of a large closure aren't in memory all at once
        for piece in absent.chunks(500) {
            for row in db.derivations(piece).await? {
                found.insert(row.path.clone());
                let facts = row.facts.as_deref().and_then(|f| serde_json::from_str::<Facts>(f).ok());
                match facts {
                    Some(facts) => match Derivation::parse(&row.text).and_then(|d| Known::new(d, facts)) {
                        Ok(known) => self.remember(&mut resolved, row.path, known),
                        Err(_) => {
                            resolved.missing.insert(row.path);
                        }
                    },
                    None => {
                        pending.insert(row.path, row.text);
                    }
                }
            }
        }
        resolved.missing.extend(absent.into_iter().filter(|p| !found.contains(p)));
        self.settle(db, &mut resolved, pending).await?;
        Ok(resolved)
    }

    /// Checks what waited for inputs, as long as something comes of it.
    async fn settle(
        &self,
        db: &dyn Db,
        resolved: &mut Resolved,
        mut pending: BTreeMap<StorePath, Vec<u8>>,
    ) -> Result<(), DbError> {
        let mut rows = Vec::new();
        let mut lacking = BTreeSet::new();
        loop {
            let before = pending.len();
            let mut left = BTreeMap::new();
            lacking.clear();
            for (path, text) in pending {
                match check(&path, &text, |p| resolved.known.get(p).map(|k| FactsOf(k.clone()))) {
                    Ok(checked) => {
                        let facts = serde_json::to_string(&checked.facts).ok();
                        if let Ok(known) = Known::new(checked.derivation, checked.facts) {
                            self.remember(resolved, path.clone(), known);
                            rows.push(DerivationRow { path, text, facts });
                        }
                    }
                    // not looked for outside the asked set: what others have sent is nobody's business
                    Err(DerivationError::MissingInput(input)) => {
                        lacking.insert(input);
                        left.insert(path, text);
                    }
                    // refused when it was sent; never stored
                    Err(_) => {
                        resolved.missing.insert(path);
                    }
                }
            }
            pending = left;
            if pending.is_empty() || pending.len() == before {
                break;
            }
        }
        resolved.missing.extend(pending.into_keys());
        // by name, so that whoever waits for them can be told
        resolved.missing.extend(lacking);
        if !rows.is_empty() {
            db.add_facts(&rows).await?;
        }
        Ok(())
    }

    fn remember(&self, resolved: &mut Resolved, path: StorePath, known: Known) {
        let known = Arc::new(known);
        self.cache.insert(path.clone(), known.clone());
        resolved.known.insert(path, known);
    }

    /// Takes derivations that a submitter sent, inputs first, of those announced. A bad one is refused alone; one whose
    /// inputs are missing is kept until they come.
    pub async fn take(
        &self,
        db: &dyn Db,
        identity: i64,
        announced: &[StorePath],
        sent: Vec<(StorePath, Vec<u8>)>,
    ) -> Result<Taken, DbError> {
        let mut inputs = BTreeSet::new();
        let mut resolved = Resolved::default();
        let mut taken = Taken::default();
        let mut rows = Vec::with_capacity(sent.len());
        let new: HashSet<&StorePath> = sent.iter().map(|(p, _)| p).collect();
        let before: Vec<StorePath> = announced.iter().filter(|p| !new.contains(p)).cloned().collect();
        drop(new);
        resolved.known = self.resolve(db, &before).await?.known;
        for (path, text) in sent {
            let facts = match self.cache.get(&path) {
                // the text is bound by the path; only the sender is new
                Some(known) if check_text(&path, &text).is_ok() => {
                    resolved.known.insert(path.clone(), known.clone());
                    serde_json::to_string(&known.facts).ok()
                }
                _ => match check(&path, &text, |p| resolved.known.get(p).map(|k| FactsOf(k.clone()))) {
                    Ok(checked) => {
                        let facts = serde_json::to_string(&checked.facts).ok();
                        match Known::new(checked.derivation, checked.facts) {
                            Ok(known) => self.remember(&mut resolved, path.clone(), known),
                            Err(e) => {
                                taken.refused.push((path, e));
                                continue;
                            }
                        }
                        facts
                    }
                    Err(DerivationError::MissingInput(input)) => {
                        inputs.insert(input);
                        None
                    }
                    Err(e) => {
                        taken.refused.push((path, e));
                        continue;
                    }
                },
            };
            taken.taken += 1;
            rows.push(DerivationRow { path, text, facts });
        }
        if !rows.is_empty() {
            db.add_derivations(identity, &rows).await?;
        }
        taken.missing = inputs.into_iter().filter(|i| !resolved.known.contains_key(i)).collect();
        Ok(taken)
    }
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
}

impl BodyError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "derivations-malformed",
            Self::TooLarge => "derivations-too-large",
        }
    }
}

/// Reads the body of `POST /api/v1/pushes/ID/derivations` (see docs/protocol.md). Bounded before anything is allocated.
pub fn read_body(body: &[u8]) -> Result<Vec<(StorePath, Vec<u8>)>, BodyError> {
    let malformed = |e: &dyn std::fmt::Display| BodyError::Malformed(e.to_string());
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(|e| malformed(&e))?;
    decoder.window_log_max(super::decompress::WINDOW_LOG).map_err(|e| malformed(&e))?;
    let mut reader = std::io::BufReader::new(decoder.take(MAX_BODY + 1));
    let mut out = Vec::new();
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
        let mut length = [0; 4];
        reader.read_exact(&mut length).map_err(|e| malformed(&e))?;
        let length = u32::from_le_bytes(length) as usize;
        total += (name.len() + 6 + length) as u64;
        if length > MAX_DERIVATION || total > MAX_BODY {
            return Err(BodyError::TooLarge);
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

    #[test]
    fn a_body_reads_back_and_every_cut_is_refused() {
        let plain = [record(NAME, b"one"), record(NAME, b"")].concat();
        let read = read_body(&zstd::bulk::compress(&plain, 1).unwrap()).unwrap();
        assert_eq!(read.iter().map(|(_, t)| t.as_slice()).collect::<Vec<_>>(), [b"one".as_slice(), b""]);
        let first = record(NAME, b"one").len();
        for cut in 1..plain.len() {
            let body = zstd::bulk::compress(&plain[..cut], 1).unwrap();
            assert_eq!(read_body(&body).is_ok(), cut == first, "{cut}");
        }
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
