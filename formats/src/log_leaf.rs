//! Leaves of a cache's log: canonical JSON, each chained to the one before by hash. Knows nothing of where they are
//! kept; tiles and checkpoints are built over the same bytes.

use serde::{Deserialize, Serialize};
use sha2::Digest;

use crate::{hash::Sha256, store_path::StorePath};

/// What one leaf of kind `publish` says. Fields stand in the order of their names and the JSON has no white space, so
/// that the same leaf has the same bytes everywhere (JCS, RFC 8785, for the subset used here: ASCII keys, integers,
/// strings without characters that JCS escapes otherwise).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PublishLeaf {
    pub cache: String,
    /// Policy words of the evidence that the decision rests on, sorted.
    pub evidence: Vec<String>,
    /// sha256 of the compressed file as published.
    pub file_hash: Sha256,
    /// Always `publish`.
    pub kind: String,
    pub nar_hash: Sha256,
    /// Bytes.
    pub nar_size: u64,
    pub path: StorePath,
    /// Digest of the policy that decided.
    pub policy: Sha256,
    /// Base names, sorted.
    pub references: Vec<String>,
    /// The rule that decided.
    pub rule: String,
    /// Name of the key whose claim was published.
    pub submitter_key: String,
    /// Seconds since 1970, UTC.
    pub time: u64,
    /// Version of this form: 1.
    pub v: u32,
}

impl PublishLeaf {
    /// The canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // a struct of strings and numbers always serialises
        serde_json::to_vec(self).expect("plain data")
    }
}

/// The hash of a leaf in the chain: sha256 of `pushgate-chain-v1`, a NUL, the previous hash (32 zero bytes before the
/// first leaf) and the leaf's bytes.
pub fn chain(previous: &Sha256, leaf: &[u8]) -> Sha256 {
    let mut hasher = sha2::Sha256::new();
    hasher.update(b"pushgate-chain-v1\0");
    hasher.update(previous.0);
    hasher.update(leaf);
    Sha256(hasher.finalize().into())
}

/// What stands for "the leaf before the first".
pub const CHAIN_START: Sha256 = Sha256([0; 32]);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn leaf() -> PublishLeaf {
        let path = StorePath::from_base_name("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a").unwrap();
        PublishLeaf {
            cache: "main".into(),
            evidence: vec!["derivation".into()],
            file_hash: Sha256::of(b"f"),
            kind: "publish".into(),
            nar_hash: Sha256::of(b"n"),
            nar_size: 7,
            references: vec![path.base_name().into()],
            path,
            policy: Sha256::of(b"p"),
            rule: "built-in".into(),
            submitter_key: "alice-1".into(),
            time: 1,
            v: 1,
        }
    }

    #[test]
    fn keys_are_sorted_and_nothing_is_spaced() {
        let bytes = leaf().to_bytes();
        let sorted: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(serde_json::to_vec(&sorted).unwrap(), bytes);
        assert_eq!(serde_json::from_slice::<PublishLeaf>(&bytes).unwrap(), leaf());
    }

    #[test]
    fn the_chain_binds_order_and_contents() {
        let a = chain(&CHAIN_START, b"a");
        assert_ne!(chain(&a, b"b"), chain(&CHAIN_START, b"b"));
        assert_ne!(chain(&a, b"b"), chain(&chain(&CHAIN_START, b"b"), b"a"));
    }
}
