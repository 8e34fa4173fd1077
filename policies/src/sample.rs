//! The rebuild sample: how likely a claim is drawn, and whether it is. All in whole numbers, so that everybody who replays
//! the draws gets the same to the bit. Doesn't know where seeds come from, nor when epochs open and close.
//!
//! - The weight is 64 where a mismatch was confirmed and there haven't been [`SUFFICIENT`] matches since. Otherwise, with
//!   `bits` the number of binary digits of the dependants (0 for none), it is `(1 + 2 * bits) * 16 / (16 + matches)`,
//!   rounded up, at most 64. It is never less than 1.
//! - The threshold is the probability `1 - (1 - rate) ^ weight` out of 2^48: with `keep` the share that one unit of weight
//!   leaves, `(1000000 - rate in millionths) * 2^48 / 1000000` rounded down, it is 2^48 less what remains when 2^48 is
//!   multiplied `weight` times by `keep / 2^48`, each time rounded down. Rounding is in favour of drawing. Since no weight is
//!   less than 1, no probability is less than the rate. The first `probation` claims of a submitter have 2^48.
//! - The number drawn is the first six bytes, big-endian, of the sha256 of `pushgate-draw-v1`, a NUL, the seed's 32 bytes,
//!   the cache's name, a NUL, the path's base name, a NUL, and the 32 bytes of the NAR hash. No such text begins with another,
//!   so that nothing can be told of one draw from others.
//! - A claim is drawn if its number is below its threshold.

use std::{collections::BTreeSet, fmt};

pub use pushgate_formats::sample::{Draw, Epoch, Seed, Weighed};
use pushgate_formats::{Sha256, StorePath};

use crate::rule::{Rate, Sample};

/// Largest weight.
pub const MAX_WEIGHT: u32 = 64;
/// The threshold of what is always drawn: thresholds and numbers are out of it.
pub const ALWAYS: u64 = 1 << 48;
/// After so many matches a confirmed mismatch no longer counts.
pub const SUFFICIENT: u32 = 32;
/// So many matches halve a weight.
const HALVING: u64 = 16;

/// [`Weighed::mismatched`]: whether a mismatch was ever confirmed, and how many matches there have been since.
pub const fn is_mismatched(ever: bool, matches: u32) -> bool {
    ever && matches < SUFFICIENT
}

/// From 1 to [`MAX_WEIGHT`].
pub const fn weight(weighed: &Weighed) -> u32 {
    if weighed.mismatched {
        return MAX_WEIGHT;
    }
    let bits = (u32::BITS - weighed.dependants.leading_zeros()) as u64;
    let weight = ((1 + 2 * bits) * HALVING).div_ceil(HALVING + weighed.matches as u64);
    // at most 65, and at least 1 since it is rounded up
    if weight > MAX_WEIGHT as u64 { MAX_WEIGHT } else { weight as u32 }
}

/// The probability of being drawn, out of [`ALWAYS`].
pub fn threshold(sample: &Sample, weighed: &Weighed) -> u64 {
    if weighed.claims < sample.probation {
        return ALWAYS;
    }
    let always = u128::from(ALWAYS);
    let keep = u128::from(1_000_000 - sample.rate.millionths()) * always / 1_000_000;
    // both factors are at most 2^48
    let left = (0..weight(weighed)).fold(always, |left, _| left * keep / always);
    ALWAYS - left as u64
}

/// The number that a claim draws: always the same in one epoch, whatever else is claimed. Below [`ALWAYS`].
pub fn draw(seed: &Seed, cache: &str, path: &StorePath, nar_hash: &Sha256) -> u64 {
    let parts: [&[u8]; 7] = [
        b"pushgate-draw-v1\0",
        &seed.0,
        cache.as_bytes(),
        b"\0",
        path.base_name().as_bytes(),
        b"\0",
        &nar_hash.0,
    ];
    let Sha256([a, b, c, d, e, f, ..]) = Sha256::of(&parts.concat());
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

/// What a draw is about.
#[derive(Debug, Clone, Copy)]
pub struct Drawing<'a> {
    pub cache: &'a str,
    pub path: &'a StorePath,
    pub nar_hash: Sha256,
    /// Name of the rule.
    pub rule: &'a str,
    pub sample: &'a Sample,
    pub weighed: Weighed,
    /// Seconds since 1970.
    pub time: u64,
}

impl Drawing<'_> {
    /// Draws, and says all that it rests on.
    pub fn draw(&self, epoch: u64, seed: &Seed) -> Draw {
        let threshold = threshold(self.sample, &self.weighed);
        let draw = draw(seed, self.cache, self.path, &self.nar_hash);
        Draw {
            cache: self.cache.to_owned(),
            draw,
            drawn: draw < threshold,
            epoch,
            kind: "draw".to_owned(),
            nar_hash: self.nar_hash,
            path: self.path.clone(),
            probation: self.sample.probation,
            rate: self.sample.rate.millionths(),
            rule: self.rule.to_owned(),
            threshold,
            time: self.time,
            v: 1,
            weighed: self.weighed,
            weight: weight(&self.weighed),
        }
    }
}

/// Something that isn't as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Which of the draws; `None`: the epoch itself.
    pub place: Option<usize>,
    pub what: Fault,
}

/// What is wrong of an epoch or a draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The seed isn't revealed: numbers can't be checked.
    Unrevealed,
    /// The seed isn't the one that was promised.
    Commitment,
    /// It ends before it begins, or has a seed without an end.
    Times,
    /// Of another kind or version of the form.
    Form,
    /// Of another cache or epoch.
    Foreign,
    /// Made before the epoch opened or after it closed.
    Time,
    /// The claim has drawn before in this epoch; a draw is made once and kept.
    Repeated,
    /// More than all.
    Rate,
    Weight {
        should: u32,
    },
    Threshold {
        should: u64,
    },
    Number {
        should: u64,
    },
    Drawn {
        should: bool,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unrevealed => f.write_str("the seed isn't revealed"),
            Self::Commitment => f.write_str("the seed isn't the one whose hash was logged"),
            Self::Times => f.write_str("its times don't go together"),
            Self::Form => f.write_str("the record is of another kind or version"),
            Self::Foreign => f.write_str("it is of another cache or epoch"),
            Self::Time => f.write_str("it was made outside the epoch"),
            Self::Repeated => f.write_str("the same claim has drawn before"),
            Self::Rate => f.write_str("the rate is more than all"),
            Self::Weight { should } => write!(f, "the weight should be {should}"),
            Self::Threshold { should } => write!(f, "the threshold should be {should}"),
            Self::Number { should } => write!(f, "the number drawn should be {should}"),
            Self::Drawn { should: true } => f.write_str("it should have been drawn"),
            Self::Drawn { should: false } => f.write_str("it shouldn't have been drawn"),
        }
    }
}

/// Draws again all that an epoch drew. Whether the rule had that rate, and the submitter so many matches, isn't told by the
/// draws: the policy and the log's other leaves tell it.
pub fn replay(epoch: &Epoch, draws: &[Draw]) -> Vec<Wrong> {
    let mut wrong = vec![];
    let mut of_epoch = |what| wrong.push(Wrong { place: None, what });
    if epoch.kind != "epoch" || epoch.v != 1 {
        of_epoch(Fault::Form);
    }
    if epoch.closed.is_some_and(|closed| closed < epoch.opened)
        || epoch.seed.is_some() != epoch.closed.is_some()
    {
        of_epoch(Fault::Times);
    }
    match epoch.seed {
        None => of_epoch(Fault::Unrevealed),
        Some(seed) if seed.commitment() != epoch.commitment => of_epoch(Fault::Commitment),
        Some(_) => {}
    }
    let mut seen = BTreeSet::new();
    for (i, draw) in draws.iter().enumerate() {
        let mut faults = faults(epoch, draw);
        if !seen.insert((&draw.path, draw.nar_hash)) {
            faults.push(Fault::Repeated);
        }
        wrong.extend(faults.into_iter().map(|what| Wrong { place: Some(i), what }));
    }
    wrong
}

/// Each part is judged by the record's other parts as they stand, so that one false part is one fault.
fn faults(epoch: &Epoch, record: &Draw) -> Vec<Fault> {
    let mut faults = vec![];
    let mut unless = |right: bool, fault: Fault| {
        if !right {
            faults.push(fault)
        }
    };
    unless(record.kind == "draw" && record.v == 1, Fault::Form);
    unless(record.cache == epoch.cache && record.epoch == epoch.number, Fault::Foreign);
    let ended = epoch.closed.is_some_and(|closed| closed < record.time);
    unless(record.time >= epoch.opened && !ended, Fault::Time);
    let should = weight(&record.weighed);
    unless(record.weight == should, Fault::Weight { should });
    match Rate::of_millionths(record.rate) {
        None => unless(false, Fault::Rate),
        Some(rate) => {
            let should = threshold(&Sample { rate, probation: record.probation }, &record.weighed);
            unless(record.threshold == should, Fault::Threshold { should });
        }
    }
    if let Some(seed) = &epoch.seed {
        let should = draw(seed, &record.cache, &record.path, &record.nar_hash);
        unless(record.draw == should, Fault::Number { should });
    }
    let should = record.draw < record.threshold;
    unless(record.drawn == should, Fault::Drawn { should });
    faults
}

#[cfg(test)]
mod tests;
