//! What is logged of the rebuild sample: when a seed is in force, and every draw that was made with it. Plain data; what a
//! draw should have come to is told by whoever knows the rules.
//!
//! Fields stand in the order of their names and all numbers are below 2^53, as with [`crate::log_leaf`].

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::{
    hash::{Sha256, hex_decode, hex_encode},
    store_path::StorePath,
};

/// What the draws of an epoch are made with: 32 random bytes, secret until the epoch is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub [u8; 32]);

impl Seed {
    /// What is logged of it before the epoch opens: sha256 of `pushgate-seed-v1`, a NUL and the seed.
    pub fn commitment(&self) -> Sha256 {
        Sha256::of(&[b"pushgate-seed-v1\0".as_slice(), &self.0].concat())
    }
}

impl fmt::Debug for Seed {
    /// Without the bytes: who knows them knows what isn't drawn.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(…)")
    }
}

impl Serialize for Seed {
    /// 64 hexadecimal digits.
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex_encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let bytes = hex_decode(&text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| D::Error::custom("a seed is 64 hexadecimal digits"))
    }
}

/// A time in which draws are made with one seed. Logged without `closed` and `seed` before its first draw, and with them
/// after its last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Epoch {
    pub cache: String,
    /// Seconds since 1970, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<u64>,
    /// [`Seed::commitment`].
    pub commitment: Sha256,
    /// Always `epoch`.
    pub kind: String,
    /// Counted from 1 in each cache.
    pub number: u64,
    /// Seconds since 1970, UTC.
    pub opened: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
    /// Version of this form: 1.
    pub v: u32,
}

/// What the weight of a draw is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Weighed {
    /// Claims of the submitter that a rebuild has shown to be right, before this one.
    pub claims: u32,
    /// Paths that refer to one of this package, by its history.
    pub dependants: u32,
    /// Rebuilds that matched a claim of the submitter's, since the last confirmed mismatch.
    pub matches: u32,
    /// A mismatch was confirmed, and there haven't been enough matches since.
    pub mismatched: bool,
}

/// Whether a claim was drawn for a rebuild, and how that came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Draw {
    pub cache: String,
    /// The number drawn, below 2^48.
    pub draw: u64,
    /// Whether that is below the threshold.
    pub drawn: bool,
    /// Number of the epoch.
    pub epoch: u64,
    /// Always `draw`.
    pub kind: String,
    pub nar_hash: Sha256,
    pub path: StorePath,
    /// As the rule has it.
    pub probation: u32,
    /// As the rule has it, in millionths.
    pub rate: u32,
    pub rule: String,
    /// The probability, out of 2^48.
    pub threshold: u64,
    /// Seconds since 1970, UTC.
    pub time: u64,
    /// Version of this form: 1.
    pub v: u32,
    pub weighed: Weighed,
    pub weight: u32,
}

/// An epoch that is over, with a page of its draws (`GET /api/v1/caches/CACHE/epochs/NUMBER`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Draws {
    pub epoch: Epoch,
    /// In the order that they were made.
    pub draws: Vec<Draw>,
    /// Where the next page begins, if there may be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<i64>,
}

impl Epoch {
    /// The canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // a struct of strings and numbers always serialises
        serde_json::to_vec(self).expect("plain data")
    }
}

impl Draw {
    /// The canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // a struct of strings and numbers always serialises
        serde_json::to_vec(self).expect("plain data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_canonical(bytes: &[u8]) {
        // a map of this kind keeps its keys sorted
        let sorted: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        assert_eq!(serde_json::to_string(&sorted).unwrap().as_bytes(), bytes);
    }

    #[test]
    fn keys_are_sorted_and_nothing_is_spaced() {
        let seed = Seed([7; 32]);
        let epoch = Epoch {
            cache: "main".into(),
            closed: Some(2),
            commitment: seed.commitment(),
            kind: "epoch".into(),
            number: 1,
            opened: 1,
            seed: Some(seed),
            v: 1,
        };
        is_canonical(&epoch.to_bytes());
        assert_eq!(serde_json::from_slice::<Epoch>(&epoch.to_bytes()).unwrap(), epoch);
        let open = Epoch { closed: None, seed: None, ..epoch };
        is_canonical(&open.to_bytes());
        assert!(!String::from_utf8(open.to_bytes()).unwrap().contains("seed"));
        let draw = Draw {
            cache: "main".into(),
            draw: 1,
            drawn: true,
            epoch: 1,
            kind: "draw".into(),
            nar_hash: Sha256::of(b"n"),
            path: StorePath::from_base_name("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a").unwrap(),
            probation: 1,
            rate: 1,
            rule: "r".into(),
            threshold: 1 << 48,
            time: 1,
            v: 1,
            weighed: Weighed::default(),
            weight: 1,
        };
        is_canonical(&draw.to_bytes());
        assert_eq!(serde_json::from_slice::<Draw>(&draw.to_bytes()).unwrap(), draw);
    }

    #[test]
    fn a_seed_is_not_shown_by_accident() {
        assert_eq!(format!("{:?}", Seed([7; 32])), "Seed(…)");
        assert_eq!(
            Seed([0; 32]).commitment(),
            Sha256::of(&[b"pushgate-seed-v1\0".as_slice(), &[0; 32]].concat())
        );
        assert!(serde_json::from_str::<Seed>("\"00\"").is_err());
    }
}
