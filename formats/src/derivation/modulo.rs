//! `hashDerivationModulo` of Nix's `src/libstore/derivations.cc`: the hash of a derivation that doesn't depend on how its
//! fixed-output inputs are fetched. Works on one derivation whose inputs' hashes are known; never recurses.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::Digest;

use super::{Derivation, Method, OutputName, aterm};
use crate::{NixHash, Sha256, StorePath};

/// A derivation's hash as its dependants use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Modulo {
    /// Input-addressed paths follow from it.
    Known(Sha256),
    /// Floating, deferred or impure, itself or an input: the hash only names realisations, no path follows from it.
    Undecidable(Sha256),
}

impl Modulo {
    pub const fn hash(&self) -> Sha256 {
        match self {
            Self::Known(hash) | Self::Undecidable(hash) => *hash,
        }
    }

    pub const fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }
}

/// What is done with inputs of the same hash from which different outputs are wanted; Nix's versions differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Collision {
    /// No two inputs share a hash, or those which do want the same outputs.
    None,
    /// The union of the outputs (tried first; also where nothing tells).
    Merged,
    /// The outputs wanted of the input whose path sorts last.
    LastWins,
}

/// The hashes of the input derivations with the outputs wanted of each, in the order of the inputs' paths.
#[derive(Debug, Default)]
pub(super) struct Inputs<'a>(Vec<(Sha256, &'a BTreeSet<OutputName>)>);

impl<'a> Inputs<'a> {
    pub(super) fn push(&mut self, hash: Sha256, outputs: &'a BTreeSet<OutputName>) {
        self.0.push((hash, outputs));
    }

    /// Whether the ways of [`Collision`] differ.
    pub(super) fn collide(&self) -> bool {
        self.replaced(Collision::Merged) != self.replaced(Collision::LastWins)
    }

    fn replaced(&self, collision: Collision) -> aterm::HashedInputs<'a> {
        let mut map = aterm::HashedInputs::new();
        for (hash, outputs) in &self.0 {
            if collision == Collision::LastWins {
                map.insert(hash.hex(), outputs.iter().collect());
            } else {
                // as in Nix: an input of which nothing is wanted leaves no trace
                for output in *outputs {
                    map.entry(hash.hex()).or_default().insert(output);
                }
            }
        }
        map
    }

    /// The hash of a derivation that isn't fixed. With `mask` it is the one that its own output paths follow from.
    pub(super) fn modulo(&self, derivation: &Derivation, collision: Collision, mask: bool) -> Sha256 {
        let inputs = self.replaced(collision);
        let mut sha = sha2::Sha256::new();
        aterm::print(derivation, Some(&inputs), mask, &mut |piece| sha.update(piece));
        Sha256(sha.finalize().into())
    }
}

/// The hash of a fixed-output derivation: of what it yields, not of how.
pub(super) fn fixed(method: Method, hash: &NixHash, path: &StorePath) -> Sha256 {
    let text = format!("fixed:out:{}{}:{}:{path}", method.prefix(), hash.algo().name(), hash.hex());
    Sha256::of(text.as_bytes())
}

/// The hash of every impure derivation: never the same twice, so never worth computing.
pub(super) fn impure() -> Sha256 {
    Sha256::of(b"impure")
}
