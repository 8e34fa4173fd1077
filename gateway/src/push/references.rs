//! Stage 4, second half: are the declared references exactly those in the bytes? By kind, since what "refers to" means
//! depends on what made the path. Works on the findings of the scan; reads no bytes itself.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use pushgate_formats::{
    Sha256, StorePath,
    api::MAX_REFERENCES,
    derivation::{Kind, Method, OutputName, attrs::ReferenceSpec},
};

use super::{
    derivations::{self, Known, Resolved},
    intake::NarIntact,
    provenance::{Provenance, ProvenanceKind},
    quarantine::ScanSet,
    signature::SignatureValid,
};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("the contents of `{path}` mention `{reference}`, which is not declared as a reference")]
    Undeclared { path: StorePath, reference: StorePath },
    #[error("`{path}` declares the reference `{reference}`, which its contents don't mention")]
    Absent { path: StorePath, reference: StorePath },
    #[error(
        "`{path}` declares the reference `{reference}`, which is not in the closure of its derivation's inputs"
    )]
    Outside { path: StorePath, reference: StorePath },
    #[error("`{path}` refers to `{reference}`, against `{rule}` of its derivation")]
    Disallowed { path: StorePath, reference: StorePath, rule: &'static str },
    #[error("the derivation `{path}` declares the reference `{reference}`, which is not among its inputs")]
    DerivationAbsent { path: StorePath, reference: StorePath },
    #[error("the derivation `{path}` has the input `{reference}`, which is not declared as a reference")]
    DerivationUndeclared { path: StorePath, reference: StorePath },
    #[error("`{0}` is named like a derivation, but is not the text of one as Nix prints it")]
    NotDerivation(StorePath),
}

impl ReferenceError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Undeclared { .. } | Self::DerivationUndeclared { .. } => "reference-undeclared",
            Self::Absent { .. } | Self::DerivationAbsent { .. } => "reference-absent",
            Self::Outside { .. } => "reference-outside-inputs",
            Self::Disallowed { .. } => "reference-disallowed",
            Self::NotDerivation(_) => "derivation-malformed",
        }
    }
}

/// Proof that the declared references are exactly right.
#[derive(Debug, Clone)]
pub struct ReferencesExact {
    path: StorePath,
    nar_hash: Sha256,
    references: BTreeSet<StorePath>,
}

impl ReferencesExact {
    pub fn path(&self) -> &StorePath {
        &self.path
    }
    pub const fn nar_hash(&self) -> Sha256 {
        self.nar_hash
    }
    pub fn references(&self) -> &BTreeSet<StorePath> {
        &self.references
    }
}

/// What a push's built outputs are judged against.
pub struct Scope<'a> {
    /// The derivations that this submitter sent.
    pub resolved: &'a Resolved,
    /// Whether these hold every input that they name, so that no closure of theirs has gaps.
    pub complete: bool,
    /// Everything that the NARs have to be scanned for: at least all outputs and sources of `resolved`, and what is known
    /// of the sources' own closures.
    pub scan: &'a ScanSet,
}

/// Whether every input that a derivation needs for its path is among those known. What fixed outputs are made from
/// doesn't matter: they refer to nothing.
pub fn is_complete(known: &HashMap<StorePath, Arc<Known>>) -> bool {
    known
        .values()
        .filter(|k| k.facts.kind() != Kind::Fixed)
        .all(|k| k.inputs.keys().all(|input| known.contains_key(input)))
}

/// The inputs that the closure of `root` lacks.
fn gaps(known: &HashMap<StorePath, Arc<Known>>, root: &StorePath) -> BTreeSet<StorePath> {
    derivations::closure(known, root)
        .into_values()
        .filter(|k| k.facts.kind() != Kind::Fixed)
        .flat_map(|k| k.inputs.keys())
        .filter(|input| !known.contains_key(*input))
        .cloned()
        .collect()
}

/// What is known of runtime references: of published paths, of paths at upstreams, of paths that are being published with
/// this judgement. A claim that isn't published explains nothing: it could be made up to.
#[derive(Debug, Default)]
pub struct Knowledge {
    /// `None`: looked up, and not known.
    references: HashMap<StorePath, Option<Arc<BTreeSet<StorePath>>>>,
    /// Of what this round publishes; the next round may publish something else.
    batch: HashMap<StorePath, Arc<BTreeSet<StorePath>>>,
    /// Asked for and not looked up yet.
    wanted: BTreeSet<StorePath>,
}

impl Knowledge {
    pub fn learn(&mut self, path: StorePath, references: Option<Arc<BTreeSet<StorePath>>>) {
        let slot = self.references.entry(path).or_default();
        if slot.is_none() {
            *slot = references;
        }
    }

    /// Learns of a path that this round publishes.
    pub fn publishing(&mut self, path: StorePath, references: Arc<BTreeSet<StorePath>>) {
        self.batch.insert(path, references);
    }

    /// Begins another round.
    pub fn begin_round(&mut self) {
        self.batch.clear();
    }

    /// Asks for a path to be looked up, if it wasn't.
    pub fn want(&mut self, path: &StorePath) {
        if !self.references.contains_key(path) {
            self.wanted.insert(path.clone());
        }
    }

    pub fn is_looked_up(&self, path: &StorePath) -> bool {
        self.references.contains_key(path)
    }

    /// Takes the list of what should be looked up.
    pub fn take_wanted(&mut self) -> Vec<StorePath> {
        std::mem::take(&mut self.wanted).into_iter().collect()
    }

    /// The closure of `roots` as far as it is known, and the paths at which knowledge ends.
    pub fn closure<'a>(
        &mut self,
        roots: impl IntoIterator<Item = &'a StorePath>,
    ) -> (HashSet<StorePath>, BTreeSet<StorePath>) {
        let mut seen = HashSet::new();
        let mut ends = BTreeSet::new();
        let mut stack: Vec<StorePath> = roots.into_iter().cloned().collect();
        while let Some(path) = stack.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let known = self.references.get(&path).and_then(Option::as_ref);
            match known.or_else(|| self.batch.get(&path)) {
                Some(references) => {
                    stack.extend(references.iter().filter(|r| !seen.contains(*r)).cloned());
                }
                None => {
                    self.want(&path);
                    ends.insert(path);
                }
            }
        }
        (seen, ends)
    }
}

/// What the check came to.
#[derive(Debug)]
pub enum Verdict {
    Exact(ReferencesExact),
    /// The bytes were scanned for other candidates than are known now.
    Rescan,
    /// It can't be told before the references of these paths are known.
    Unknown {
        waits: Vec<StorePath>,
    },
}

/// Checks a claim's references.
pub fn check(
    signed: &SignatureValid,
    nar: &NarIntact,
    provenance: &Provenance,
    scope: &Scope<'_>,
    knowledge: &mut Knowledge,
) -> Result<Verdict, ReferenceError> {
    let claim = signed.claim();
    let exact = || {
        Ok(Verdict::Exact(ReferencesExact {
            path: claim.path.clone(),
            nar_hash: nar.nar_hash(),
            references: claim.references.clone(),
        }))
    };
    // a .drv refers to exactly what it lists; its text also holds its own outputs' paths
    if claim.path.is_derivation() {
        let path = || claim.path.clone();
        let text = matches!(provenance.kind(), ProvenanceKind::ContentAddress { address, .. } if address.method() == Method::Text);
        let examined = &nar.nar().examined;
        let Some(listed) = examined.derivation_references.as_ref().filter(|_| text) else {
            // the bytes may have come for a path of another name, and not been looked at as a derivation
            return if examined.derivation_sought || !text {
                Err(ReferenceError::NotDerivation(path()))
            } else {
                Ok(Verdict::Rescan)
            };
        };
        if let Some(extra) = claim.references.difference(listed).next() {
            return Err(ReferenceError::DerivationAbsent { path: path(), reference: extra.clone() });
        }
        if let Some(lacking) = listed.difference(&claim.references).next() {
            return Err(ReferenceError::DerivationUndeclared { path: path(), reference: lacking.clone() });
        }
        return exact();
    }
    let deriver = claim.deriver.as_ref().and_then(|d| Some((d, scope.resolved.known.get(d)?)));
    match (provenance.kind(), deriver) {
        (ProvenanceKind::Derivation { output, .. }, Some((path, known))) => {
            built(signed, nar, scope, knowledge, path, known, Some(output))
        }
        // a floating output: its path binds the references, its bytes may mention more
        (ProvenanceKind::ContentAddress { .. }, Some((path, known)))
            if known.facts.kind() == Kind::Floating =>
        {
            built(signed, nar, scope, knowledge, path, known, None)
        }
        // text, sources, fixed outputs: the recomputed path binds the references; mentioning isn't referring
        (ProvenanceKind::ContentAddress { .. }, _) => exact(),
        (ProvenanceKind::Unproven { missing }, _) => Ok(Verdict::Unknown { waits: missing.clone() }),
        (ProvenanceKind::Derivation { derivation, .. }, None) => {
            Ok(Verdict::Unknown { waits: vec![derivation.clone()] })
        }
    }
}

fn built(
    signed: &SignatureValid,
    nar: &NarIntact,
    scope: &Scope<'_>,
    knowledge: &mut Knowledge,
    derivation: &StorePath,
    known: &Arc<Known>,
    output: Option<&OutputName>,
) -> Result<Verdict, ReferenceError> {
    let claim = signed.claim();
    let (path, declared) = (&claim.path, &claim.references);
    let outside =
        |reference: &StorePath| ReferenceError::Outside { path: path.clone(), reference: reference.clone() };
    let exact = || {
        Verdict::Exact(ReferencesExact {
            path: path.clone(),
            nar_hash: nar.nar_hash(),
            references: declared.clone(),
        })
    };
    if output.is_some_and(|o| known.attributes.unsafe_discard_references.contains(o)) {
        return declared.first().map_or_else(|| Ok(exact()), |r| Err(outside(r)));
    }
    let examined = &nar.nar().examined;
    // an input that isn't known could be mentioned without anybody having looked for it
    if !scope.complete {
        let gaps = gaps(&scope.resolved.known, derivation);
        if !gaps.is_empty() {
            return Ok(Verdict::Unknown { waits: gaps.into_iter().collect() });
        }
    }
    if examined.scanned != Some(scope.scan.digest()) {
        return Ok(Verdict::Rescan);
    }
    debug_assert!(declared.is_subset(scope.scan.members()));
    let hits = &examined.hits;
    // of so many not all are kept: one that is missing there could be undeclared
    if hits.len() > MAX_REFERENCES
        && let Some(reference) = hits.difference(declared).next()
    {
        return Err(ReferenceError::Undeclared { path: path.clone(), reference: reference.clone() });
    }
    if let Some(absent) = declared.difference(hits).next() {
        return Err(ReferenceError::Absent { path: path.clone(), reference: absent.clone() });
    }
    let mut own: BTreeSet<&StorePath> = known.facts.outputs().values().flatten().collect();
    own.insert(path);
    let mut roots: BTreeSet<&StorePath> = known.sources.iter().collect();
    let mut unknown_inputs: BTreeSet<StorePath> = BTreeSet::new();
    for (input, outputs) in &known.inputs {
        let facts = scope.resolved.known.get(input).map(|k| &k.facts);
        for output in outputs {
            match facts.and_then(|f| f.outputs().get(output)).and_then(Option::as_ref) {
                Some(path) => {
                    roots.insert(path);
                }
                // a floating input's path is known to nobody before its realisation is
                None => {
                    unknown_inputs.insert(input.clone());
                }
            }
        }
    }
    // of a floating output the path itself binds the references; of any other they have to be known
    if output.is_some() && !unknown_inputs.is_empty() {
        return Ok(Verdict::Unknown { waits: unknown_inputs.into_iter().collect() });
    }
    let undeclared: Vec<&StorePath> = hits.difference(declared).collect();
    if let Some(reference) = undeclared.iter().find(|u| own.contains(**u) || roots.contains(**u)) {
        return Err(ReferenceError::Undeclared { path: path.clone(), reference: (*reference).clone() });
    }
    let deep: Vec<&StorePath> = declared.iter().filter(|d| !own.contains(d) && !roots.contains(d)).collect();
    // the direct inputs settle most paths; only the rest needs the inputs' closure
    if !deep.is_empty() || !undeclared.is_empty() {
        let (closure, mut ends) = knowledge.closure(roots.iter().copied());
        ends.extend(unknown_inputs);
        if let Some(reference) = undeclared.iter().find(|u| closure.contains(**u)) {
            return Err(ReferenceError::Undeclared { path: path.clone(), reference: (*reference).clone() });
        }
        let mut unexplained: Vec<&StorePath> = deep.into_iter().filter(|d| !closure.contains(*d)).collect();
        if ends.is_empty() {
            if let Some(reference) = unexplained.first() {
                return Err(outside(reference));
            }
        } else {
            // as long as the closure isn't wholly known, every output and source of the derivation closure is a candidate
            let possible: BTreeSet<&StorePath> = derivations::closure(&scope.resolved.known, derivation)
                .into_values()
                .flat_map(|k| k.facts.outputs().values().flatten().chain(&k.sources))
                .collect();
            unexplained.retain(|d| !possible.contains(d));
            if !unexplained.is_empty() || undeclared.iter().any(|u| possible.contains(u)) {
                return Ok(Verdict::Unknown { waits: ends.into_iter().collect() });
            }
        }
    }
    match output {
        Some(output) => allowed(claim_checks(known, output), path, declared, known, knowledge, exact),
        None => Ok(exact()),
    }
}

fn claim_checks(known: &Known, output: &OutputName) -> pushgate_formats::derivation::attrs::ReferenceChecks {
    known.attributes.checks(output)
}

/// `allowedReferences` and its like.
fn allowed(
    checks: pushgate_formats::derivation::attrs::ReferenceChecks,
    path: &StorePath,
    declared: &BTreeSet<StorePath>,
    known: &Known,
    knowledge: &mut Knowledge,
    exact: impl Fn() -> Verdict,
) -> Result<Verdict, ReferenceError> {
    if checks.is_empty() {
        return Ok(exact());
    }
    let within = |specs: &BTreeSet<ReferenceSpec>, reference: &StorePath| {
        specs.iter().any(|spec| match spec {
            ReferenceSpec::Path(path) => path == reference,
            ReferenceSpec::Output(name) => {
                known.facts.outputs().get(name).and_then(Option::as_ref) == Some(reference)
            }
            ReferenceSpec::Placeholder(_) => false,
        })
    };
    let disallowed = |reference: &StorePath, rule| {
        Err(ReferenceError::Disallowed { path: path.clone(), reference: reference.clone(), rule })
    };
    for reference in declared {
        if checks.allowed_references.as_ref().is_some_and(|specs| !within(specs, reference)) {
            return disallowed(reference, "allowedReferences");
        }
        if within(&checks.disallowed_references, reference) {
            return disallowed(reference, "disallowedReferences");
        }
    }
    if checks.allowed_requisites.is_none() && checks.disallowed_requisites.is_empty() {
        return Ok(exact());
    }
    let (mut closure, ends) = knowledge.closure(declared.iter().filter(|r| *r != path));
    closure.remove(path);
    for requisite in &closure {
        if checks.allowed_requisites.as_ref().is_some_and(|specs| !within(specs, requisite)) {
            return disallowed(requisite, "allowedRequisites");
        }
        if within(&checks.disallowed_requisites, requisite) {
            return disallowed(requisite, "disallowedRequisites");
        }
    }
    if ends.is_empty() { Ok(exact()) } else { Ok(Verdict::Unknown { waits: ends.into_iter().collect() }) }
}
