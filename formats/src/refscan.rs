//! The reference scan: which of the candidate store paths does a NAR refer to? Nix's rule (`search` in
//! `src/libstore/references.cc`): the 32 characters of a path's hash part anywhere in the NAR's bytes, names and link
//! targets included; `/nix/store/` need not stand before them, and matches may overlap.
//!
//! Knows neither the NAR's grammar nor what candidates there should be, and doesn't look into compressed files, as Nix
//! doesn't.
//!
//! Submitters choose the bytes and, within limits, the candidates. So the time is linear in the bytes: each is
//! classified once, and a window of 32 digits costs one hash and at most one look-up, also where every offset is one.

use std::sync::Arc;

use sha2::Digest;

use crate::{
    base32,
    store_path::{HASH_CHARS, StorePath},
};

/// Bits of the filter per distinct hash part: at most one in 32 windows that are no candidate's passes.
const FILTER_BITS: usize = 32;

/// The paths to look for, indexed by hash part.
#[derive(Debug)]
pub struct Candidates {
    /// In order and without duplicates, so that paths of one hash part are neighbours.
    paths: Vec<StorePath>,
    /// The distinct hash parts, in order.
    parts: Vec<Part>,
    /// One bit for each value of the hash's top bits, set if a part has it: small enough for the processor's caches.
    filter: Vec<u64>,
    filter_shift: u32,
    /// Open addressing: low half of a part's hash, then its index plus one; or 0. At most half of the slots are taken.
    slots: Vec<u64>,
    rolling: Rolling,
}

#[derive(Debug)]
struct Part {
    chars: [u8; HASH_CHARS],
    /// Index of its first path.
    first_path: usize,
}

impl Candidates {
    /// Builds the index; duplicates are fine. Takes about 60 bytes per path besides the paths.
    pub fn new(paths: impl IntoIterator<Item = StorePath>) -> Self {
        let mut paths: Vec<StorePath> = paths.into_iter().collect();
        paths.sort_unstable();
        paths.dedup();

        let mut parts: Vec<Part> = Vec::with_capacity(paths.len());
        let mut digest = sha2::Sha256::new();
        for (first_path, path) in paths.iter().enumerate() {
            let chars =
                *path.hash_part().as_bytes().first_chunk().expect("store paths have 32 such characters");
            if parts.last().is_none_or(|part| part.chars != chars) {
                digest.update(chars);
                parts.push(Part { chars, first_path });
            }
        }
        // The key comes from the set itself: another choice of candidates makes another key, so none can be chosen to
        // collide, and no source of randomness is needed. Whoever knows the set can make windows that pass the
        // filter, but each costs one look-up, as a true hit does.
        let rolling = Rolling::new(&digest.finalize().into());

        let bits = (parts.len() * FILTER_BITS).next_power_of_two().max(4096);
        let slots = (parts.len() * 2).next_power_of_two();
        let mut this = Self {
            filter: vec![0; bits / 64],
            filter_shift: 64 - bits.trailing_zeros(),
            slots: vec![0; slots],
            paths,
            parts,
            rolling,
        };
        for (i, part) in this.parts.iter().enumerate() {
            let hash = this.rolling.hash(&part.chars);
            let bit = hash >> this.filter_shift;
            this.filter[(bit / 64) as usize] |= 1 << (bit % 64);
            let mut slot = first_slot(hash) & (slots - 1);
            while this.slots[slot] != 0 {
                slot = (slot + 1) & (slots - 1);
            }
            let index = u32::try_from(i + 1).expect("fewer than 2^32 store paths fit into memory");
            this.slots[slot] = hash << 32 | u64::from(index);
        }
        this
    }

    /// Number of distinct paths.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// The paths, in order.
    pub fn paths(&self) -> &[StorePath] {
        &self.paths
    }

    /// Whether a window with this hash may be a candidate.
    #[inline]
    fn may_have(&self, hash: u64) -> bool {
        let bit = hash >> self.filter_shift;
        self.filter[(bit / 64) as usize] >> (bit % 64) & 1 != 0
    }

    #[inline]
    fn look_up(&self, hash: u64, window: &[u8; HASH_CHARS]) -> Option<usize> {
        let mask = self.slots.len() - 1;
        let mut slot = first_slot(hash) & mask;
        while self.slots[slot] != 0 {
            let (tag, index) = (self.slots[slot] >> 32, self.slots[slot] as u32);
            let part = index as usize - 1;
            if tag == hash & 0xffff_ffff && self.parts[part].chars == *window {
                return Some(part);
            }
            slot = (slot + 1) & mask;
        }
        None
    }

    /// All paths of a hash part.
    fn of_part(&self, part: usize) -> &[StorePath] {
        let end = self.parts.get(part + 1).map_or(self.paths.len(), |next| next.first_path);
        &self.paths[self.parts[part].first_path..end]
    }
}

/// The hash is linear in its key; the multiplication breaks that up, lest families of similar hash parts crowd together.
#[inline]
const fn first_slot(hash: u64) -> usize {
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

/// A keyed hash of 32 bytes that moves on by one byte in two steps: each byte has a random word, and the hash is the
/// exclusive or of the words, rotated by their distance from the end (a cyclic polynomial; its upper bits are pairwise
/// independent: Lemire and Kaser, Recursive n-gram hashing is pairwise independent, at best).
#[derive(Debug)]
struct Rolling {
    enter: [u64; 256],
    /// What a byte's word has become once it is 32 bytes behind.
    leave: [u64; 256],
}

impl Rolling {
    fn new(key: &[u8; 32]) -> Self {
        let enter = std::array::from_fn(|byte| {
            let digest = sha2::Sha256::new().chain_update(key).chain_update([byte as u8]).finalize();
            u64::from_le_bytes(*digest.first_chunk().expect("a sha256 has 32 bytes"))
        });
        Self { enter, leave: enter.map(|word: u64| word.rotate_left(HASH_CHARS as u32)) }
    }

    fn hash(&self, window: &[u8; HASH_CHARS]) -> u64 {
        window.iter().fold(0, |hash: u64, byte| hash.rotate_left(1) ^ self.enter[usize::from(*byte)])
    }

    #[inline]
    fn next(&self, hash: u64, leaves: u8, enters: u8) -> u64 {
        hash.rotate_left(1) ^ self.leave[usize::from(leaves)] ^ self.enter[usize::from(enters)]
    }
}

/// A scan of one NAR. Feed it chunks cut anywhere.
#[derive(Debug)]
pub struct Scanner {
    candidates: Arc<Candidates>,
    /// For each part whether it was found.
    found: Vec<bool>,
    missing: usize,
    /// The last bytes of the input so far: one fewer than a hash part, or all if there were fewer.
    tail: [u8; HASH_CHARS - 1],
    tail_len: usize,
}

impl Scanner {
    pub fn new(candidates: Arc<Candidates>) -> Self {
        let parts = candidates.parts.len();
        Self { candidates, found: vec![false; parts], missing: parts, tail: [0; HASH_CHARS - 1], tail_len: 0 }
    }

    /// Scans the next bytes of the NAR.
    pub fn feed(&mut self, chunk: &[u8]) {
        const TAIL: usize = HASH_CHARS - 1;
        if self.missing == 0 {
            return;
        }
        // the windows that begin in the tail and end in the chunk
        let mut joint = [0; TAIL * 2];
        let head = &chunk[..chunk.len().min(TAIL)];
        let joint_len = self.tail_len + head.len();
        joint[..self.tail_len].copy_from_slice(&self.tail[..self.tail_len]);
        joint[self.tail_len..joint_len].copy_from_slice(head);
        self.scan(&joint[..joint_len]);

        self.scan(chunk);

        let last = if chunk.len() < TAIL { &joint[..joint_len] } else { chunk };
        let last = &last[last.len().saturating_sub(TAIL)..];
        self.tail[..last.len()].copy_from_slice(last);
        self.tail_len = last.len();
    }

    /// The candidates found so far, in order. Where several have the same hash part, the scan can't tell them apart and
    /// reports all.
    pub fn found(&self) -> impl Iterator<Item = &StorePath> {
        let parts = self.found.iter().enumerate().filter(|(_, found)| **found);
        parts.flat_map(|(part, _)| self.candidates.of_part(part))
    }

    fn scan(&mut self, bytes: &[u8]) {
        let Self { candidates, found, missing, .. } = self;
        let candidates = &**candidates;
        let mut check = |hash: u64, window: &[u8; HASH_CHARS]| {
            if candidates.may_have(hash)
                && let Some(part) = candidates.look_up(hash, window)
                && !std::mem::replace(&mut found[part], true)
            {
                *missing -= 1;
            }
        };
        let mut rest = bytes;
        // bytes at the start of `rest` that are known to be digits
        let mut known = 0;
        while let Some(window) = rest.first_chunk::<HASH_CHARS>() {
            if let Some(last) = window[known..].iter().rposition(|b| !base32::is_digit(*b)) {
                // no window that holds this byte can match
                rest = &rest[known + last + 1..];
                known = HASH_CHARS - 1 - known - last;
                continue;
            }
            let mut hash = candidates.rolling.hash(window);
            check(hash, window);
            // from here on each further digit ends a window
            let mut windows = 1;
            for (leaves, window) in rest.iter().zip(rest[1..].windows(HASH_CHARS)) {
                let window: &[u8; HASH_CHARS] = window.first_chunk().expect("windows of this length");
                let enters = window[HASH_CHARS - 1];
                if !base32::is_digit(enters) {
                    break;
                }
                hash = candidates.rolling.next(hash, *leaves, enters);
                check(hash, window);
                windows += 1;
            }
            // after the byte that ended the run, if one did
            rest = rest.get(windows + HASH_CHARS..).unwrap_or_default();
            known = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    const HASH: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr";

    fn path(base: &str) -> StorePath {
        StorePath::from_base_name(base).unwrap()
    }

    fn scan(candidates: &[StorePath], chunks: &[&[u8]]) -> Vec<StorePath> {
        let mut scanner = Scanner::new(Arc::new(Candidates::new(candidates.iter().cloned())));
        for chunk in chunks {
            scanner.feed(chunk);
        }
        scanner.found().cloned().collect()
    }

    #[rstest]
    #[case::after_the_store_directory("x/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a/bin", true)]
    #[case::bare("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr", true)]
    #[case::within_other_digits("zzz0mdqa9w1p6cmli6976v4wi0sw9r4p5przzz", true)]
    #[case::one_digit_short("\u{0}0mdqa9w1p6cmli6976v4wi0sw9r4p5p", false)]
    #[case::one_digit_wrong("0mdqa9w1p6cmli6976v4wi0sw9r4p5pq", false)]
    #[case::cut_by_a_byte("0mdqa9w1p6cmli69\u{0}76v4wi0sw9r4p5pr", false)]
    #[case::upper_case("0MDQA9W1P6CMLI6976V4WI0SW9R4P5PR", false)]
    #[case::empty("", false)]
    fn one_candidate(#[case] text: &str, #[case] expected: bool) {
        let candidate = path(&format!("{HASH}-a"));
        let found = scan(std::slice::from_ref(&candidate), &[text.as_bytes()]);
        assert_eq!(found.contains(&candidate), expected);
    }

    #[test]
    fn a_hash_part_of_two_paths_reports_both_once() {
        let (a, b, other) =
            (path(&format!("{HASH}-a")), path(&format!("{HASH}-b")), path(&format!("1{}-c", &HASH[1..])));
        let found = scan(&[b.clone(), a.clone(), other, b.clone()], &[format!("{HASH}{HASH}").as_bytes()]);
        assert_eq!(found, [a, b]);
    }

    #[test]
    fn a_hash_part_cut_at_any_byte_is_found() {
        let candidate = path(&format!("{HASH}-a"));
        for cut in 0..=HASH.len() {
            let (a, b) = HASH.as_bytes().split_at(cut);
            assert_eq!(scan(std::slice::from_ref(&candidate), &[b"/", a, b"", b]).len(), 1, "{cut}");
        }
        let bytes: Vec<&[u8]> = HASH.as_bytes().chunks(1).collect();
        assert_eq!(scan(std::slice::from_ref(&candidate), &bytes).len(), 1);
    }

    #[test]
    fn no_candidates() {
        assert!(Candidates::new([]).is_empty());
        assert_eq!(scan(&[], &[HASH.as_bytes()]), []);
    }

    #[test]
    fn overlapping_matches() {
        let all_zero = "0".repeat(32);
        let shifted = format!("{}1", "0".repeat(31));
        let found = scan(
            &[path(&format!("{all_zero}-a")), path(&format!("{shifted}-b"))],
            &[format!("{all_zero}1").as_bytes()],
        );
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn many_candidates_are_all_found() {
        let all: Vec<StorePath> = (0u32..5000)
            .map(|i| {
                StorePath::from_digest(sha2::Sha256::digest(i.to_le_bytes()).first_chunk().unwrap(), "x")
                    .unwrap()
            })
            .collect();
        let (planted, others) = all.split_at(2000);
        let text: String = planted.iter().map(|p| p.hash_part()).collect();
        let mut found = scan(&all, &[text.as_bytes()]);
        found.retain(|p| !planted.contains(p));
        assert_eq!(found, []);
        assert_eq!(scan(planted, &[text.as_bytes()]).len(), planted.len());
        assert_eq!(scan(others, &[text.as_bytes()]), []);
    }

    fn naive(candidates: &[StorePath], bytes: &[u8]) -> Vec<StorePath> {
        let mut found: Vec<StorePath> = candidates
            .iter()
            .filter(|c| bytes.windows(32).any(|w| w == c.hash_part().as_bytes()))
            .cloned()
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// Texts of few distinct characters, so that hash parts overlap, almost match and stand beside each other.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(prop_oneof![20 => Just(b'0'), 1 => Just(b'1'), 1 => Just(b'e')], 0..80),
            proptest::collection::vec(any::<u8>(), 0..40),
            Just(HASH.as_bytes().to_vec()),
            (0usize..32).prop_map(|n| HASH.as_bytes()[n..].to_vec()),
            (0usize..32).prop_map(|n| HASH.as_bytes()[..n].to_vec()),
        ]
    }

    proptest! {
        #[test]
        fn as_the_naive_scan(
            pieces in proptest::collection::vec(piece(), 0..8),
            cuts in proptest::collection::vec(1usize..70, 1..20),
            ones in proptest::collection::vec(0usize..40, 0..6),
        ) {
            let mut candidates = vec![path(&format!("{HASH}-a"))];
            candidates.extend(ones.iter().map(|i| {
                let mut digits = [b'0'; 32];
                if let Some(digit) = digits.get_mut(*i) {
                    *digit = b'1';
                }
                path(&format!("{}-b", str::from_utf8(&digits).unwrap()))
            }));
            let bytes = pieces.concat();
            let mut chunks = Vec::new();
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                let (chunk, more) = rest.split_at((*cut).min(rest.len()));
                chunks.push(chunk);
                rest = more;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(scan(&candidates, &chunks), naive(&candidates, &bytes));
        }
    }
}
