//! Stage 8: publishing. The only way to the public prefix is a [`Publishable`], and the only way to one is all the proofs.
//!
//! Order: NAR object and listing, made durable; then leaf and row in one transaction; then the narinfo. The narinfo's
//! text is the gateway's own, from values that it verified.

use pushgate_formats::{
    Sha256, StorePath,
    content_address::ContentAddress,
    jobs::Purpose,
    keys::Signature,
    log_leaf::PublishLeaf,
    narinfo::{UnverifiedNarInfo, fingerprint},
};

use super::{
    closure::ClosureServed,
    decide::Admitted,
    intake::{NarIntact, Plan},
    provenance::{Provenance, ProvenanceKind},
    quarantine::{ReexamineError, examine_again},
    references::ReferencesExact,
    signature::SignatureValid,
};
use crate::{
    blobs::Blobs,
    caches::Cache,
    db::{NewPublication, PublishedRow},
};

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Never happens but by a mistake in this program: proofs of two claims were put together.
    #[error("the proofs of `{0}` are about different claims")]
    Mixed(StorePath),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Reexamine(#[from] ReexamineError),
}

impl PublishError {
    /// Whether the quarantined bytes are not what they were, so that trying again is no use but sending again is.
    pub fn is_damage(&self) -> bool {
        use std::io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
        match self {
            Self::Mixed(_) => false,
            Self::Io(e) | Self::Reexamine(ReexamineError::Io(e)) => {
                matches!(e.kind(), InvalidData | NotFound | UnexpectedEof)
            }
            Self::Reexamine(ReexamineError::Changed) => true,
        }
    }
}

/// A path that may be published. Only all proofs together make one, and only if they are about the same path and NAR hash:
///
/// ```compile_fail
/// use pushgate_gateway::push::publish::Publishable;
/// // the fields are private: there is no way around `Publishable::new`
/// fn forge(signed: pushgate_gateway::push::signature::SignatureValid) -> Publishable {
///     Publishable { signed }
/// }
/// ```
///
/// ```compile_fail
/// use pushgate_gateway::push::publish::Publishable;
/// use pushgate_gateway::push::{signature::SignatureValid, intake::NarIntact, references::ReferencesExact};
/// use pushgate_gateway::push::{provenance::Provenance, closure::ClosureServed};
/// // without `Admitted` there is none
/// fn unjudged(a: SignatureValid, b: NarIntact, c: ReferencesExact, d: Provenance, e: ClosureServed) {
///     let _ = Publishable::new(a, b, c, d, e);
/// }
/// ```
///
/// ```
/// use pushgate_gateway::push::publish::{Publishable, PublishError};
/// use pushgate_gateway::push::{signature::SignatureValid, intake::NarIntact, references::ReferencesExact};
/// use pushgate_gateway::push::{provenance::Provenance, closure::ClosureServed, decide::Admitted};
/// fn judged(
///     a: SignatureValid, b: NarIntact, c: ReferencesExact, d: Provenance, e: ClosureServed, f: Admitted,
/// ) -> Result<Publishable, PublishError> {
///     Publishable::new(a, b, c, d, e, f)
/// }
/// ```
#[derive(Debug)]
pub struct Publishable {
    signed: SignatureValid,
    nar: NarIntact,
    references: ReferencesExact,
    provenance: Provenance,
    admitted: Admitted,
}

impl Publishable {
    /// Puts the proofs together.
    pub fn new(
        signed: SignatureValid,
        nar: NarIntact,
        references: ReferencesExact,
        provenance: Provenance,
        closure: ClosureServed,
        admitted: Admitted,
    ) -> Result<Self, PublishError> {
        let about = (signed.path(), signed.nar_hash());
        let same = (nar.path(), nar.nar_hash()) == about
            && (references.path(), references.nar_hash()) == about
            && (provenance.path(), provenance.nar_hash()) == about
            && (closure.path(), closure.nar_hash()) == about
            && (admitted.path(), admitted.nar_hash()) == about;
        if same {
            Ok(Self { signed, nar, references, provenance, admitted })
        } else {
            Err(PublishError::Mixed(signed.path().clone()))
        }
    }

    pub fn path(&self) -> &StorePath {
        self.signed.path()
    }
    pub fn nar_hash(&self) -> Sha256 {
        self.signed.nar_hash()
    }

    /// The NAR's name below the cache: by the hash of the compressed file, so that it never changes its contents.
    fn url(&self) -> String {
        let nar = self.nar.nar();
        format!("nar/{}.nar{}", nar.examined.file_hash.base32(), nar.compression.suffix())
    }

    /// Puts NAR and listing in place. Blocks. A crash here leaves a NAR that nothing names: publishing again takes it
    /// up, and it is the bytes that its name says.
    pub fn place_nar(&self, cache: &Cache, blobs: &dyn Blobs) -> Result<(), PublishError> {
        let nar = self.nar.nar();
        // also where a file of that name is there: after a power cut it may be shorter than its name says
        blobs.publish_pack(&cache.name, &self.url(), &nar.range, &nar.examined.file_hash)?;
        let again;
        let listing = match &nar.examined.listing {
            Some(listing) => Some(listing),
            // not kept over a restart: made again from the same bytes
            None => {
                again = examine_again(blobs, nar, Plan::default())?;
                again.listing.as_ref()
            }
        };
        if let Some(listing) = listing {
            let name = format!("{}.ls", self.path().hash_part());
            blobs.publish_stream(&cache.name, &name, &mut listing.reader()?)?;
        }
        Ok(())
    }

    /// The signatures of cache, submitter, and those verifiers that got the same.
    fn signatures(&self, cache: &Cache, print: &str) -> Vec<Signature> {
        let (examined, references) = (&self.nar.nar().examined, self.references.references());
        let mut signatures = vec![cache.key.sign(print.as_bytes()), self.signed.signature()];
        for witness in self.admitted.witnesses() {
            // each was checked when it came, over the same values
            let same = witness.nar_size == examined.nar_size && witness.references == *references;
            if same && signatures.iter().all(|s| s.name != witness.signature.name) {
                signatures.push(witness.signature.clone());
            }
        }
        signatures
    }

    /// Whether a verifier was asked to check it, rather than to build it in the first place.
    pub fn is_checked(&self) -> bool {
        self.admitted.witnesses().iter().any(|witness| witness.purpose != Purpose::Build)
    }

    /// Jobs of the verifiers that got the same.
    pub fn witnesses(&self) -> impl Iterator<Item = &str> {
        self.admitted.witnesses().iter().map(|witness| witness.job.as_str())
    }

    /// Composes and signs the narinfo, and the leaf that goes before it.
    pub fn compose(&self, cache: &Cache, now: u64) -> NewPublication {
        let (claim, examined) = (self.signed.claim(), &self.nar.nar().examined);
        let references = self.references.references();
        let print = fingerprint(&claim.path, &examined.nar_hash, examined.nar_size, references);
        let (deriver, ca): (Option<StorePath>, Option<&ContentAddress>) = match self.provenance.kind() {
            ProvenanceKind::Derivation { derivation, .. } => (Some(derivation.clone()), None),
            ProvenanceKind::ContentAddress { address, .. } => (None, Some(address)),
            ProvenanceKind::Unproven { .. } => (None, None),
        };
        let narinfo = UnverifiedNarInfo {
            path: claim.path.clone(),
            url: self.url(),
            compression: self.nar.nar().compression.as_str().to_owned(),
            file_hash: Some(examined.file_hash),
            file_size: Some(examined.file_size),
            nar_hash: examined.nar_hash,
            nar_size: examined.nar_size,
            references: references.clone(),
            deriver,
            signatures: self.signatures(cache, &print),
            ca: ca.map(ToString::to_string),
        };
        let leaf = PublishLeaf {
            cache: cache.name.clone(),
            evidence: self.admitted.evidence().to_vec(),
            file_hash: examined.file_hash,
            kind: "publish".to_owned(),
            nar_hash: examined.nar_hash,
            nar_size: examined.nar_size,
            path: claim.path.clone(),
            policy: self.admitted.policy(),
            references: references.iter().map(|r| r.base_name().to_owned()).collect(),
            rule: self.admitted.rule().to_owned(),
            submitter_key: self.signed.key().name().to_string(),
            time: now,
            v: 1,
        };
        let row = PublishedRow {
            path: claim.path.clone(),
            nar_hash: examined.nar_hash,
            references: references.clone(),
            narinfo: narinfo.print(),
        };
        NewPublication { row, leaf: leaf.to_bytes() }
    }
}

/// A path that is published: its row and leaf are committed.
#[derive(Debug)]
pub struct Published {
    row: PublishedRow,
}

impl Published {
    /// From rows that the database committed, on the hot path and at recovery alike.
    pub(super) const fn committed(row: PublishedRow) -> Self {
        Self { row }
    }

    pub fn path(&self) -> &StorePath {
        &self.row.path
    }

    /// Writes the narinfo. Blocks. Repeatable: a crash before it leaves a row that is not marked visible, from which the
    /// next start writes the same text.
    pub fn reveal(&self, cache: &str, blobs: &dyn Blobs) -> std::io::Result<()> {
        let name = format!("{}.narinfo", self.row.path.hash_part());
        blobs.publish_bytes(cache, &name, self.row.narinfo.as_bytes())
    }
}
