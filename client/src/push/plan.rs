//! How work is cut: a closure into announcements, wanted NARs into requests. Pure; knows neither files nor the network.

use std::collections::{HashSet, VecDeque};

use pushgate_formats::{Sha256, StorePath};

use crate::nix::PathInfo;

/// NARs up to this size share requests and are compressed in one call.
pub(super) const SMALL_NAR: u64 = 4 << 20;
/// Most NARs and most bytes of NARs in one request; what goes beyond is another core's work.
const MAX_BATCH_NARS: usize = 400;
const MAX_BATCH_BYTES: u64 = 8 << 20;
/// What a NAR costs besides its bytes, in bytes: opening files takes its time too.
const NAR_COST: u64 = 16 << 10;
/// Fewer NARs than this, of fewer bytes than that, aren't worth another request.
const LEAST_BATCH_NARS: usize = 16;
const LEAST_BATCH_BYTES: u64 = 1 << 20;
/// Most bytes that the paths take in an announcement. With 200,000 derivations of common length, and as base 64, it
/// stays below [`pushgate_formats::api::MAX_ANNOUNCEMENT`].
const MAX_ANNOUNCED_BYTES: usize = 12 << 20;

/// A NAR that the gateway wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nar {
    pub(super) path: StorePath,
    pub(super) hash: Sha256,
    /// Bytes, as the store's database has it.
    pub(super) size: u64,
}

/// NARs by the way in which they are sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Each is one request.
    pub(super) batches: VecDeque<Vec<Nar>>,
    /// Each is one request of its own, compressed on all cores.
    pub(super) large: VecDeque<Nar>,
}

/// Cuts a closure into announcements of at most so many paths, in its order.
pub(super) fn announcements(paths: Vec<PathInfo>, most: usize) -> Vec<Vec<PathInfo>> {
    let weight = |info: &PathInfo| 600 + 90 * info.references.len() + info.ca.as_ref().map_or(0, String::len);
    let mut out: Vec<Vec<PathInfo>> = Vec::new();
    let mut bytes = 0;
    for info in paths {
        let more = weight(&info);
        match out.last_mut() {
            Some(last) if last.len() < most && bytes + more <= MAX_ANNOUNCED_BYTES => {
                bytes += more;
                last.push(info);
            }
            _ => {
                bytes = more;
                out.push(vec![info]);
            }
        }
    }
    out
}

/// The NARs to be sent for paths, in their order, each once.
pub(super) fn wanted(paths: &[PathInfo], wanted: &[Sha256]) -> Vec<Nar> {
    let mut wanted: HashSet<Sha256> = wanted.iter().copied().collect();
    paths
        .iter()
        .filter(|info| wanted.remove(&info.nar_hash))
        .map(|info| Nar { path: info.path.clone(), hash: info.nar_hash, size: info.nar_size })
        .collect()
}

/// Cuts NARs into requests, of which `jobs` are sent at once. Small NARs are spread evenly, so that no job ends long
/// after the others.
pub(super) fn requests(nars: Vec<Nar>, jobs: usize) -> Work {
    let (small, mut large): (VecDeque<Nar>, VecDeque<Nar>) =
        nars.into_iter().partition(|nar| nar.size <= SMALL_NAR);
    // the last one goes alone, when half of what could be busy isn't: it had better be the smallest
    large.make_contiguous().sort_by_key(|nar| std::cmp::Reverse(nar.size));
    let cost = |nar: &Nar| nar.size + NAR_COST;
    let bytes: u64 = small.iter().map(|nar| nar.size).sum();
    let least = small.len().div_ceil(MAX_BATCH_NARS).max(bytes.div_ceil(MAX_BATCH_BYTES) as usize).max(1);
    let most = small.len().div_ceil(LEAST_BATCH_NARS).max((bytes / LEAST_BATCH_BYTES) as usize);
    let even = least.next_multiple_of(jobs.max(1)).min(most).max(least);
    let share = small.iter().map(cost).sum::<u64>().div_ceil(even as u64);

    let mut batches: VecDeque<Vec<Nar>> = VecDeque::new();
    let (mut batch_cost, mut batch_bytes) = (0, 0);
    for nar in small {
        let fits = |batch: &Vec<Nar>| {
            batch.len() < MAX_BATCH_NARS && batch_bytes + nar.size <= MAX_BATCH_BYTES && batch_cost < share
        };
        match batches.back_mut().filter(|batch| fits(batch)) {
            Some(batch) => {
                (batch_cost, batch_bytes) = (batch_cost + cost(&nar), batch_bytes + nar.size);
                batch.push(nar);
            }
            None => {
                (batch_cost, batch_bytes) = (cost(&nar), nar.size);
                batches.push_back(vec![nar]);
            }
        }
    }
    Work { batches, large }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pushgate_formats::api::MAX_PATHS;
    use rstest::rstest;

    use super::*;

    fn path(n: usize) -> StorePath {
        StorePath::from_digest(&Sha256::of(&n.to_le_bytes()).0[..20].try_into().unwrap(), "x").unwrap()
    }

    fn info(n: usize, references: usize) -> PathInfo {
        PathInfo {
            path: path(n),
            deriver: None,
            nar_hash: Sha256::of(&n.to_le_bytes()),
            references: (0..references).map(path).collect::<BTreeSet<_>>(),
            registration_time: 0,
            nar_size: 120,
            ultimate: false,
            signatures: vec![],
            ca: None,
        }
    }

    fn nars(sizes: impl IntoIterator<Item = u64>) -> Vec<Nar> {
        let nar = |(n, size)| Nar { path: path(n), hash: Sha256::of(&n.to_le_bytes()), size };
        sizes.into_iter().enumerate().map(nar).collect()
    }

    #[test]
    fn announcements_keep_the_order_and_the_bounds() {
        let all: Vec<_> = (0..MAX_PATHS + 5).map(|n| info(n, 0)).collect();
        let cut = announcements(all.clone(), MAX_PATHS);
        assert!(cut.iter().all(|c| c.len() <= MAX_PATHS && c.len() * 600 <= MAX_ANNOUNCED_BYTES));
        assert_eq!(cut.concat(), all);
        assert!(announcements(vec![], 1).is_empty());

        let cut = announcements((0..40).map(|n| info(n, 10_000)).collect(), MAX_PATHS);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [13, 13, 13, 1]);
        let cut = announcements((0..7).map(|n| info(n, 0)).collect(), 3);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
    }

    #[test]
    fn what_is_wanted_is_sent_once_and_nothing_else() {
        let mut twin = info(7, 0);
        twin.path = path(8);
        let paths = [info(1, 0), info(7, 0), twin, info(3, 0)];
        let asked = [paths[3].nar_hash, paths[1].nar_hash, Sha256::of(b"never announced")];
        let nars = wanted(&paths, &asked);
        assert_eq!(nars.iter().map(|n| n.path.clone()).collect::<Vec<_>>(), [path(7), path(3)]);
    }

    #[rstest]
    #[case::none(0, 0, 2, &[])]
    #[case::few(10, 9_000, 8, &[10])]
    #[case::two_for_two_jobs(700, 9_000, 2, &[350, 350])]
    #[case::few_but_not_tiny(10, 900_000, 4, &[3, 3, 3, 1])]
    #[case::a_thousand(1000, 9_000, 2, &[250, 250, 250, 250])]
    #[case::by_bytes(10, 3 << 20, 2, &[2, 2, 2, 2, 2])]
    fn batches(#[case] count: usize, #[case] size: u64, #[case] jobs: usize, #[case] lengths: &[usize]) {
        let work = requests(nars(std::iter::repeat_n(size, count)), jobs);
        assert_eq!(work.batches.iter().map(Vec::len).collect::<Vec<_>>(), lengths);
        assert!(work.large.is_empty());
    }

    #[test]
    fn every_nar_is_in_one_request_small_ones_in_order_large_ones_by_size() {
        let sizes = (0..3000u64).map(|n| (n * n * 7919) % (6 << 20));
        let all = nars(sizes);
        let work = requests(all.clone(), 4);
        assert!(work.large.iter().all(|nar| nar.size > SMALL_NAR));
        for batch in &work.batches {
            assert!(batch.len() <= MAX_BATCH_NARS);
            assert!(batch.iter().map(|nar| nar.size).sum::<u64>() <= MAX_BATCH_BYTES);
        }
        let small: Vec<Nar> = work.batches.into_iter().flatten().collect();
        assert!(small.iter().eq(all.iter().filter(|nar| nar.size <= SMALL_NAR)));
        let mut large: Vec<&Nar> = all.iter().filter(|nar| nar.size > SMALL_NAR).collect();
        large.sort_by_key(|nar| std::cmp::Reverse(nar.size));
        assert!(work.large.iter().eq(large));
    }
}
