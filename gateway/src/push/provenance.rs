//! Stage 5: what binds the path to what made it: a derivation that yields exactly it, or contents that hash to it. The
//! claim's deriver and CA field only say where to look.

use pushgate_formats::{
    Sha256, StorePath,
    content_address::{ContentAddress, ContentAddressError, Form, Measure, Measured, check_path},
    derivation::{Kind, OutputName},
    hash::{HashAlgo, NixHash},
};

use super::{
    announce::Claim,
    derivations::Resolved,
    intake::{DigestWanted, NarIntact},
    signature::SignatureValid,
};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProvenanceError {
    #[error("the derivation `{derivation}` doesn't yield `{path}`; it yields {yields}")]
    Mismatch { derivation: StorePath, path: StorePath, yields: String },
    #[error(transparent)]
    ContentAddress(#[from] ContentAddressError),
    #[error("`{0}` refers to itself more often than is counted")]
    TooManySelfReferences(StorePath),
}

impl ProvenanceError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Mismatch { .. } => "derivation-mismatch",
            Self::ContentAddress(e) => e.code(),
            Self::TooManySelfReferences(_) => "content-address-too-many-self-references",
        }
    }
}

/// Proof of what the path follows from, or of the lack of it.
#[derive(Debug, Clone)]
pub struct Provenance {
    path: StorePath,
    nar_hash: Sha256,
    kind: ProvenanceKind,
}

/// See [`Provenance`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProvenanceKind {
    Derivation {
        derivation: StorePath,
        output: OutputName,
    },
    ContentAddress {
        address: ContentAddress,
        weak: bool,
    },
    /// Derivations that would be needed; none where the claim names no deriver.
    Unproven {
        missing: Vec<StorePath>,
    },
}

impl Provenance {
    pub fn path(&self) -> &StorePath {
        &self.path
    }
    pub const fn nar_hash(&self) -> Sha256 {
        self.nar_hash
    }
    pub const fn kind(&self) -> &ProvenanceKind {
        &self.kind
    }
}

/// What the check came to.
pub enum Verdict {
    Found(Provenance),
    /// The bytes have to be read again for this.
    Needs(DigestWanted),
}

/// Checks where a path comes from. `derivations` are those that this submitter sent.
pub fn check(
    signed: &SignatureValid,
    nar: &NarIntact,
    derivations: &Resolved,
) -> Result<Verdict, ProvenanceError> {
    let claim = signed.claim();
    let found =
        |kind| Ok(Verdict::Found(Provenance { path: claim.path.clone(), nar_hash: nar.nar_hash(), kind }));
    if let Some(address) = &claim.ca {
        return content_address(claim, nar, address);
    }
    let Some(deriver) = &claim.deriver else {
        return found(ProvenanceKind::Unproven { missing: vec![] });
    };
    let Some(known) = derivations.known.get(deriver) else {
        let mut missing = vec![deriver.clone()];
        missing.extend(derivations.missing.iter().filter(|m| *m != deriver).take(20).cloned());
        return found(ProvenanceKind::Unproven { missing });
    };
    let output = known.output(&claim.path);
    match (known.facts.kind(), output, &known.fixed) {
        (Kind::Fixed, Some(_), Some(address)) => content_address(claim, nar, address),
        (Kind::InputAddressed, Some(output), _) => {
            found(ProvenanceKind::Derivation { derivation: deriver.clone(), output: output.clone() })
        }
        // no path follows from these before the build, and the claim says nothing of its contents' address
        (Kind::Floating | Kind::Deferred | Kind::Impure, _, _) => {
            found(ProvenanceKind::Unproven { missing: vec![] })
        }
        _ => {
            let yields: Vec<String> = known
                .facts
                .outputs()
                .values()
                .take(10)
                .map(|p| p.as_ref().map_or_else(|| "a path not known yet".into(), |p| format!("`{p}`")))
                .collect();
            Err(ProvenanceError::Mismatch {
                derivation: deriver.clone(),
                path: claim.path.clone(),
                yields: yields.join(", "),
            })
        }
    }
}

fn content_address(
    claim: &Claim,
    nar: &NarIntact,
    address: &ContentAddress,
) -> Result<Verdict, ProvenanceError> {
    let self_reference = claim.references.contains(&claim.path);
    let examined = &nar.nar().examined;
    let measured = match DigestWanted::for_address(&claim.path, address, self_reference) {
        // what was hashed anyway; for git's hash the check itself says that it can't be done
        None => Measured::Nar(NixHash::from(nar.nar_hash())),
        Some(wanted) => match examined.digests.get(&wanted) {
            None => return Ok(Verdict::Needs(wanted)),
            Some(found) => {
                found.measured().ok_or_else(|| ProvenanceError::TooManySelfReferences(claim.path.clone()))?
            }
        },
    };
    debug_assert!(
        address.measure(self_reference) != Measure::Nar(HashAlgo::Sha256)
            || matches!(measured, Measured::Nar(_))
    );
    let form = check_path(&claim.path, address, &claim.references, &measured)?;
    let weak = address.is_weak() || form == Form::WithoutPositions;
    Ok(Verdict::Found(Provenance {
        path: claim.path.clone(),
        nar_hash: nar.nar_hash(),
        kind: ProvenanceKind::ContentAddress { address: address.clone(), weak },
    }))
}
