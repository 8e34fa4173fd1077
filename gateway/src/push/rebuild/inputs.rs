//! What a derivation is built from, and where the gateway has it: the closure of the outputs and sources that it names, each
//! published, at an upstream, or sent by the submitter and hashing to its own path. Never an output of the derivation itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use pushgate_formats::{
    Sha256, StorePath,
    api::PathState,
    attestation::MAX_INPUTS,
    derivation::{Derivation, Kind, OutputName},
    narinfo::{Dialect, UnverifiedNarInfo},
};
use pushgate_policies::Closure;

use super::RebuildError;
use crate::{
    app::App,
    caches::Cache,
    push::{
        derivations::{Known, Resolved},
        provenance::{self, ProvenanceKind},
        quarantine::Quarantined,
    },
};

/// Where the bytes of an input are.
#[derive(Debug, Clone)]
pub enum Source {
    /// In this cache, as its narinfo says, which is the gateway's own text.
    Published(Box<UnverifiedNarInfo>),
    /// At an upstream that the policy names; its narinfo is asked for when the bytes are.
    Upstream,
    /// In the submitter's quarantine, shown to hash to its path.
    Sent(Arc<Quarantined>),
    /// The text of a derivation.
    Derivation,
}

/// One path that a build may use.
#[derive(Debug, Clone)]
pub struct Input {
    pub path: StorePath,
    /// Of a derivation only those that are inputs too: whatever else it names isn't needed to build.
    pub references: BTreeSet<StorePath>,
    /// `None` of a derivation, whose NAR is made when it is asked for.
    pub nar_hash: Option<Sha256>,
    pub source: Source,
}

/// All that one build needs.
#[derive(Debug)]
pub struct Plan {
    pub derivation: StorePath,
    pub system: String,
    pub features: BTreeSet<String>,
    pub outputs: BTreeMap<String, Option<StorePath>>,
    /// The paths that the derivation names.
    pub direct: Vec<StorePath>,
    /// By hash part.
    pub inputs: HashMap<String, Input>,
}

impl Plan {
    /// NAR hashes of what isn't a derivation's text.
    pub fn hashes(&self) -> BTreeMap<&StorePath, Sha256> {
        self.inputs.values().filter_map(|input| Some((&input.path, input.nar_hash?))).collect()
    }
}

/// Whether a derivation can be built now.
#[derive(Debug)]
pub enum Planned {
    Ready(Box<Plan>),
    Lacks(Lacks),
    /// It can't be built by a verifier, whatever else comes.
    Never {
        code: &'static str,
        message: String,
    },
}

/// What is missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    /// Built paths, to be published first.
    pub unpublished: BTreeSet<StorePath>,
    /// Sources and fixed outputs, to be sent.
    pub wanted: BTreeSet<StorePath>,
    /// Derivations, to be sent.
    pub derivations: BTreeSet<StorePath>,
}

impl Lacks {
    pub fn is_nothing(&self) -> bool {
        self.unpublished.is_empty() && self.wanted.is_empty() && self.derivations.is_empty()
    }

    /// Everything, as far as a claim waits for it.
    pub fn all(&self) -> Vec<StorePath> {
        self.unpublished.iter().chain(&self.wanted).chain(&self.derivations).cloned().collect()
    }
}

/// Most derivations behind one build.
const MAX_DERIVATIONS: usize = 50_000;

/// Finds out what a build needs. `identity` is whose derivations and quarantined sources may be used; without one only what
/// is public.
pub async fn plan(
    app: &App,
    cache: &Cache,
    identity: Option<i64>,
    derivation: &StorePath,
) -> Result<Planned, RebuildError> {
    let (known, missing) = behind(app, cache, identity, derivation).await?;
    if !missing.is_empty() {
        return Ok(Planned::Lacks(Lacks { derivations: missing, ..Lacks::default() }));
    }
    let Some(root) = known.get(derivation).cloned() else {
        return Ok(Planned::Lacks(Lacks { derivations: [derivation.clone()].into(), ..Lacks::default() }));
    };
    let never = |code, message| Ok(Planned::Never { code, message });
    match root.facts.kind() {
        Kind::InputAddressed | Kind::Fixed => {}
        Kind::Floating | Kind::Deferred | Kind::Impure => {
            let message = format!(
                "what `{derivation}` comes to isn't known before it's built: verifiers don't build it"
            );
            return never("floating-unsupported", message);
        }
    }
    let mut direct: BTreeSet<StorePath> = root.sources.clone();
    if let Some(source) = direct.iter().find(|path| path.is_derivation()) {
        return never(
            "derivation-as-source",
            format!("`{derivation}` reads the derivation `{source}` itself"),
        );
    }
    let mut made: BTreeSet<StorePath> = root.sources.clone();
    for (input, outputs) in &root.inputs {
        let Some(input) = known.get(input) else { continue };
        for output in outputs {
            match input.facts.outputs().get(output) {
                Some(Some(path)) => {
                    direct.insert(path.clone());
                    if input.facts.kind() == Kind::Fixed {
                        made.insert(path.clone());
                    }
                }
                _ => {
                    let message = format!(
                        "`{derivation}` is built from an output whose path isn't known before its build"
                    );
                    return never("floating-unsupported", message);
                }
            }
        }
    }
    let own: BTreeSet<StorePath> = root.facts.outputs().values().flatten().cloned().collect();
    let (inputs, lacks) = closure(app, cache, identity, &known, &direct, made).await?;
    if !lacks.is_nothing() {
        return Ok(Planned::Lacks(lacks));
    }
    if let Some(path) = inputs.values().map(|input| &input.path).find(|path| own.contains(*path)) {
        return never("cycle", format!("`{derivation}` would be built from its own output `{path}`"));
    }
    let text = text_of(app, derivation).await?;
    let parsed = Derivation::parse(&text).map_err(|e| RebuildError::Evidence(e.to_string()))?;
    let mut all = inputs;
    for path in known.keys() {
        let references = match known.get(path) {
            Some(known) if known.facts.kind() != Kind::Fixed || path == derivation => {
                known.inputs.keys().cloned().collect()
            }
            _ => BTreeSet::new(),
        };
        let input = Input { path: path.clone(), references, nar_hash: None, source: Source::Derivation };
        all.insert(path.hash_part().to_owned(), input);
    }
    if all.len() > MAX_INPUTS {
        return never(
            "too-many-inputs",
            format!("`{derivation}` has {} inputs; {MAX_INPUTS} are allowed", all.len()),
        );
    }
    let name = |name: &OutputName| name.as_str().to_owned();
    Ok(Planned::Ready(Box::new(Plan {
        derivation: derivation.clone(),
        system: parsed.system.clone(),
        features: features(&parsed),
        outputs: root.facts.outputs().iter().map(|(n, path)| (name(n), path.clone())).collect(),
        direct: direct.into_iter().collect(),
        inputs: all,
    })))
}

/// The derivations behind one, without what other fixed outputs than its own are made from, and those of them that aren't
/// here for this identity: nobody learns what others have sent.
async fn behind(
    app: &App,
    cache: &Cache,
    identity: Option<i64>,
    root: &StorePath,
) -> Result<(HashMap<StorePath, Arc<Known>>, BTreeSet<StorePath>), RebuildError> {
    let (mut known, mut missing) = (HashMap::new(), BTreeSet::new());
    let mut level = vec![root.clone()];
    while !level.is_empty() && known.len() <= MAX_DERIVATIONS {
        let at_hand = match identity {
            Some(identity) => Some(app.db.derivations_at_hand(&cache.name, identity, &level).await?),
            None => None,
        };
        let (here, gone): (Vec<StorePath>, Vec<StorePath>) =
            level.into_iter().partition(|path| at_hand.as_ref().is_none_or(|here| here.contains(path)));
        missing.extend(gone);
        let Resolved { known: found, missing: absent } =
            app.derivations.resolve(app.db.as_ref(), &here).await?;
        missing.extend(absent);
        let next: BTreeSet<StorePath> = found
            .iter()
            .filter(|(path, known)| known.facts.kind() != Kind::Fixed || *path == root)
            .flat_map(|(_, known)| known.inputs.keys())
            .filter(|input| {
                !known.contains_key(*input) && !found.contains_key(*input) && !missing.contains(*input)
            })
            .cloned()
            .collect();
        known.extend(found);
        level = next.into_iter().collect();
    }
    Ok((known, missing))
}

/// Everything that these paths refer to, themselves included, and what of it can't be had. `made` are those that a
/// submitter can send.
async fn closure(
    app: &App,
    cache: &Cache,
    identity: Option<i64>,
    known: &HashMap<StorePath, Arc<Known>>,
    direct: &BTreeSet<StorePath>,
    mut made: BTreeSet<StorePath>,
) -> Result<(HashMap<String, Input>, Lacks), RebuildError> {
    let policy = cache.policy();
    let resolved = Resolved { known: known.clone(), missing: BTreeSet::new() };
    let (mut inputs, mut lacks) = (HashMap::<String, Input>::new(), Lacks::default());
    let mut level: Vec<StorePath> = direct.iter().cloned().collect();
    let mut seen: BTreeSet<StorePath> = direct.clone();
    while !level.is_empty() && inputs.len() <= MAX_INPUTS {
        let parts: Vec<&str> = level.iter().map(StorePath::hash_part).collect();
        let published = app.db.published(&cache.name, &parts).await?;
        let mut found: Vec<Input> = Vec::new();
        let mut open = Vec::new();
        for path in level {
            match published.get(path.hash_part()).filter(|row| row.path == path) {
                Some(row) => {
                    let narinfo = UnverifiedNarInfo::parse(row.narinfo.as_bytes(), Dialect::Upstream)
                        .map_err(|e| RebuildError::Evidence(e.to_string()))?;
                    found.push(Input {
                        references: row.references.clone(),
                        nar_hash: Some(row.nar_hash),
                        source: Source::Published(Box::new(narinfo)),
                        path,
                    });
                }
                None => open.push(path),
            }
        }
        if let Some(identity) = identity {
            let mut left = Vec::new();
            for path in open {
                match sent(app, cache, identity, &path, &resolved).await? {
                    Some(input) => {
                        // what a source refers to is a source
                        made.extend(input.references.iter().cloned());
                        found.push(input);
                    }
                    None => left.push(path),
                }
            }
            open = left;
        }
        if !open.is_empty() && policy.closure == Closure::Upstreams {
            let answers = app.upstreams.ask(app.db.as_ref(), &policy.upstreams, &open).await?;
            open.retain(|path| match answers.found.get(path) {
                Some(fact) => {
                    found.push(Input {
                        path: path.clone(),
                        references: fact.references.clone(),
                        nar_hash: Some(fact.nar_hash),
                        source: Source::Upstream,
                    });
                    false
                }
                None => true,
            });
        }
        for path in open {
            if made.contains(&path) {
                lacks.wanted.insert(path)
            } else {
                lacks.unpublished.insert(path)
            };
        }
        let mut next = Vec::new();
        for input in found {
            for reference in &input.references {
                if seen.insert(reference.clone()) {
                    next.push(reference.clone());
                }
            }
            inputs.insert(input.path.hash_part().to_owned(), input);
        }
        level = next;
    }
    Ok((inputs, lacks))
}

/// A path that the submitter has in quarantine and that hashes to its own contents.
async fn sent(
    app: &App,
    cache: &Cache,
    identity: i64,
    path: &StorePath,
    derivations: &Resolved,
) -> Result<Option<Input>, RebuildError> {
    for row in app.db.own_claims(&cache.name, identity, path.hash_part()).await? {
        if row.path != *path || !matches!(row.state, PathState::Held | PathState::Checking) {
            continue;
        }
        let Some(session) = app.sessions.get_waiting(app, &row.push).await? else { continue };
        let Some(i) = session.by_path.get(path).copied() else { continue };
        let Some(nar) = session.progress().nars[i].clone() else { continue };
        let Ok(provenance::Verdict::Found(proof)) = provenance::check(&session.signed[i], &nar, derivations)
        else {
            continue;
        };
        if let ProvenanceKind::ContentAddress { weak: false, .. } = proof.kind() {
            return Ok(Some(Input {
                path: path.clone(),
                references: session.signed[i].claim().references.clone(),
                nar_hash: Some(nar.nar_hash()),
                source: Source::Sent(nar.nar().clone()),
            }));
        }
    }
    Ok(None)
}

/// The text of a derivation that is here.
pub async fn text_of(app: &App, path: &StorePath) -> Result<Vec<u8>, RebuildError> {
    let rows = app.db.derivations(std::slice::from_ref(path)).await?;
    let row = rows.into_iter().find(|row| row.path == *path);
    row.map(|row| row.text).ok_or_else(|| RebuildError::Evidence(format!("the text of `{path}` is gone")))
}

/// System features that the derivation requires.
fn features(derivation: &Derivation) -> BTreeSet<String> {
    const NAME: &str = "requiredSystemFeatures";
    let structured = || -> Option<BTreeSet<String>> {
        let json: serde_json::Value = serde_json::from_slice(derivation.env_var("__json")?).ok()?;
        let list = json.get(NAME)?.as_array()?;
        Some(list.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect())
    };
    match derivation.env_var(NAME) {
        Some(words) => String::from_utf8_lossy(words).split_whitespace().map(str::to_owned).collect(),
        None => structured().unwrap_or_default(),
    }
}
