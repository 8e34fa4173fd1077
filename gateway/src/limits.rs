//! What is under way and what is kept, counted before it is begun: places for uploads, memory, bytes in quarantine, free
//! disk space. Knows neither HTTP nor stages: whoever asks gets a place or hears that there is none.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use pushgate_formats::api::ErrorBody;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;

const MIB: u64 = 1 << 20;
/// What the process takes whatever is under way: the program, the database's page caches, checked derivations kept, one
/// session that is loaded, derivations that are read back.
const BASE: u64 = 256 * MIB;
/// A connection with the buffers that it has while nothing comes.
const CONNECTION: u64 = 16 << 10;
/// An upload: the largest window that is taken, a listing being written, pieces of the body in several places.
const UPLOAD: u64 = 16 * MIB;
/// What the rest of the work needs at least.
const LEAST_ROOM: u64 = 256 * MIB;

/// Least memory that a gateway with so many connections can be held to, in bytes.
pub const fn least_memory(connections: usize) -> u64 {
    BASE + connections as u64 * CONNECTION + LEAST_ROOM
}

/// Places for uploads. A share of them is for owners who have none under way, so that no one owner, and no few of them with
/// slow lines, keep out the others.
#[derive(Debug)]
pub struct Places {
    most: usize,
    each: usize,
    taken: Mutex<HashMap<String, usize>>,
}

/// Whose places are all taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    All,
    Owner,
}

/// A place. Free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    owner: String,
}

impl Places {
    pub fn new(most: usize, each: usize) -> Self {
        Self { most, each, taken: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        // every change under the lock is one assignment
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for an owner, if he has fewer than `most`, where that is less than the gateway gives each.
    pub fn take(self: &Arc<Self>, owner: &str, most: Option<u64>) -> Result<Place, Full> {
        let each = most.map_or(self.each, |most| self.each.min(usize::try_from(most).unwrap_or(usize::MAX)));
        let mut taken = self.lock();
        let own = taken.get(owner).copied().unwrap_or(0);
        let all: usize = taken.values().sum();
        let for_newcomers = if own == 0 { 0 } else { self.most / 4 };
        if own >= each {
            return Err(Full::Owner);
        }
        if all + for_newcomers >= self.most {
            return Err(Full::All);
        }
        *taken.entry(owner.to_owned()).or_default() += 1;
        Ok(Place { places: self.clone(), owner: owner.to_owned() })
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.lock().values().sum()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(own) = taken.get_mut(&self.owner) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.owner);
            }
        }
    }
}

/// Memory that isn't set aside for uploads: announcements, questions, derivations, pushes in memory.
#[derive(Debug, Clone)]
pub struct Memory {
    /// In KiB.
    free: Arc<Semaphore>,
    all: u64,
}

/// Memory that is accounted for. Given back when it is dropped.
#[derive(Debug, Default)]
pub struct Held(Option<OwnedSemaphorePermit>);

impl Memory {
    /// Of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let all = kib(bytes);
        Self { free: Arc::new(Semaphore::new(all as usize)), all: bytes }
    }

    /// Bytes, free or not.
    pub const fn all(&self) -> u64 {
        self.all
    }

    /// `None` where there isn't so much.
    pub fn take(&self, bytes: u64) -> Option<Held> {
        let permit = self.free.clone().try_acquire_many_owned(kib(bytes)).ok()?;
        Some(Held(Some(permit)))
    }

    /// Waits until there is so much, first come first served; `None` where that takes too long.
    pub async fn wait(&self, bytes: u64, patience: Duration) -> Option<Held> {
        if bytes > self.all {
            return None;
        }
        let permit = self.free.clone().acquire_many_owned(kib(bytes));
        let permit = tokio::time::timeout(patience, permit).await.ok()?.ok()?;
        Some(Held(Some(permit)))
    }
}

impl Held {
    /// Adds what another holds.
    pub fn add(&mut self, other: Self) {
        match (&mut self.0, other.0) {
            (Some(own), Some(other)) => own.merge(other),
            (own @ None, other) => *own = other,
            (Some(_), None) => {}
        }
    }
}

/// Rounded up.
fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS as u32)
}

/// How the configured memory is shared out: uploads at once, connections, and what is left for the rest.
#[derive(Debug, PartialEq, Eq)]
pub struct Shares {
    pub uploads: usize,
    /// Bytes.
    pub rest: u64,
}

impl Shares {
    pub fn of(limits: &Limits) -> Self {
        let fixed = BASE + limits.connections as u64 * CONNECTION;
        let room = limits.memory.saturating_sub(fixed).max(LEAST_ROOM);
        // a quarter is never an upload's: what came has to be judged, whoever sends
        let fitting = usize::try_from(room / 4 * 3 / UPLOAD).unwrap_or(usize::MAX);
        let uploads = limits.uploads.min(fitting);
        Self { uploads, rest: room - uploads as u64 * UPLOAD }
    }
}

/// Compressed bytes that may still be put into quarantine: of one submitter, and of all. Shared by all uploads of the
/// submitter; taken before bytes are stored.
#[derive(Debug, Clone)]
pub struct Budget {
    pub own: Arc<AtomicU64>,
    /// Bytes.
    pub most: u64,
    pub all: Arc<AtomicU64>,
    /// Bytes.
    pub all_most: u64,
    /// What came within the last day, and the most that may.
    pub day: Option<(Arc<AtomicU64>, u64)>,
}

impl Budget {
    /// False where they don't fit; [`Budget::refusal`] says why.
    pub fn take(&self, bytes: u64) -> bool {
        if !add(&self.own, bytes, self.most) {
            return false;
        }
        if !add(&self.all, bytes, self.all_most) {
            sub(&self.own, bytes);
            return false;
        }
        if let Some((sent, most)) = &self.day
            && !add(sent, bytes, *most)
        {
            sub(&self.own, bytes);
            sub(&self.all, bytes);
            return false;
        }
        true
    }

    /// Counts down what was taken for bytes that aren't kept.
    pub fn give_back(&self, bytes: u64) {
        sub(&self.own, bytes);
        sub(&self.all, bytes);
        if let Some((sent, _)) = &self.day {
            sub(sent, bytes);
        }
    }

    /// What to say when [`Budget::take`] was false.
    pub fn refusal(&self, bytes: u64) -> ErrorBody {
        let full = |count: &AtomicU64, most: u64| count.load(Relaxed).saturating_add(bytes) > most;
        let own = full(&self.own, self.most);
        let day = self.day.as_ref().filter(|(sent, most)| full(sent, *most));
        let (code, message) = if let Some((_, most)) = day.filter(|_| !own) {
            (
                "daily-quota-exceeded",
                format!(
                    "the submitter has sent what the policy allows within 24 hours ({most} bytes): go on later"
                ),
            )
        } else if own {
            let most = self.most;
            (
                "quota-exceeded",
                format!(
                    "the submitter's quarantine is full ({most} bytes are allowed): wait for held paths to be decided, or ask the admin"
                ),
            )
        } else {
            (
                "gateway-full",
                "the gateway's quarantine is full: try again later, or tell the admin".to_owned(),
            )
        };
        ErrorBody { code: code.to_owned(), message, path: None }
    }
}

fn add(count: &AtomicU64, bytes: u64, most: u64) -> bool {
    let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= most);
    count.fetch_update(Relaxed, Relaxed, fits).is_ok()
}

/// Never below zero: what is freed may have been counted before this process began.
pub fn sub(count: &AtomicU64, bytes: u64) {
    let _ = count.fetch_update(Relaxed, Relaxed, |used| Some(used.saturating_sub(bytes)));
}

/// Bytes taken from a budget for what isn't in the database yet. Given back unless they are kept.
#[derive(Debug)]
pub struct Counted {
    budget: Budget,
    bytes: u64,
}

impl Counted {
    pub const fn new(budget: Budget) -> Self {
        Self { budget, bytes: 0 }
    }

    pub const fn budget(&self) -> &Budget {
        &self.budget
    }

    pub fn take(&mut self, bytes: u64) -> bool {
        let taken = self.budget.take(bytes);
        self.bytes += if taken { bytes } else { 0 };
        taken
    }

    pub fn give_back(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.budget.give_back(bytes);
    }

    /// From here on the database counts them.
    pub fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// The file systems that are written to.
#[derive(Debug)]
pub struct Disk {
    dirs: Vec<PathBuf>,
    floor: u64,
}

impl Disk {
    pub const fn new(dirs: Vec<PathBuf>, floor: u64) -> Self {
        Self { dirs, floor }
    }

    /// Whether there is more space than has to stay free. Blocks for a system call. Where the system doesn't say, writing
    /// will tell.
    pub fn has_room(&self) -> bool {
        self.dirs.iter().all(|dir| {
            rustix::fs::statvfs(dir).map_or(true, |fs| fs.f_bavail.saturating_mul(fs.f_frsize) > self.floor)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_leaves_places_for_others() {
        let places = Arc::new(Places::new(8, 7));
        let mut held: Vec<Place> = (0..6).map(|_| places.take("a", None).unwrap()).collect();
        // the last quarter is for those who have none
        assert_eq!(places.take("a", None).unwrap_err(), Full::All);
        held.push(places.take("b", None).unwrap());
        assert_eq!(places.take("b", None).unwrap_err(), Full::All);
        held.push(places.take("c", None).unwrap());
        assert_eq!(places.take("d", None).unwrap_err(), Full::All);
        assert_eq!(places.taken(), 8);
        drop(held);
        assert_eq!(places.taken(), 0);
        let places = Arc::new(Places::new(8, 2));
        let _held: Vec<Place> = (0..2).map(|_| places.take("a", None).unwrap()).collect();
        assert_eq!(places.take("a", None).unwrap_err(), Full::Owner);
        // by the policy he may have fewer, and no more
        let _one = places.take("b", Some(1)).unwrap();
        assert_eq!(places.take("b", Some(1)).unwrap_err(), Full::Owner);
        let _two = places.take("b", Some(100)).unwrap();
        assert_eq!(places.take("b", Some(100)).unwrap_err(), Full::Owner);
    }

    #[test]
    fn a_single_place_is_for_anybody() {
        let places = Arc::new(Places::new(1, 16));
        let held = places.take("a", None).unwrap();
        assert_eq!(places.take("b", None).unwrap_err(), Full::All);
        drop(held);
        places.take("b", None).unwrap();
    }

    #[tokio::test]
    async fn memory_is_given_back() {
        let memory = Memory::new(10 << 10);
        let mut held = memory.take(4 << 10).unwrap();
        held.add(memory.take(6 << 10).unwrap());
        assert!(memory.take(1).is_none());
        assert!(memory.wait(1, Duration::from_millis(1)).await.is_none());
        drop(held);
        assert!(memory.wait(10 << 10, Duration::from_millis(1)).await.is_some());
        assert!(memory.wait(11 << 10, Duration::from_secs(1000)).await.is_none(), "it could wait for ever");
    }

    #[test]
    fn shares_keep_to_the_ceiling() {
        for memory in [least_memory(4096), 640 * MIB, 2048 * MIB, 64 * 1024 * MIB] {
            let limits = Limits { memory, ..Limits::default() };
            let shares = Shares::of(&limits);
            let fixed = BASE + limits.connections as u64 * CONNECTION;
            let sum =
                BASE + limits.connections as u64 * CONNECTION + shares.uploads as u64 * UPLOAD + shares.rest;
            assert!(sum <= memory && shares.uploads >= 3, "{memory}: {shares:?}");
            assert!(shares.rest >= (memory - fixed) / 4, "{memory}: {shares:?}");
        }
        assert_eq!(Shares::of(&Limits::default()).uploads, 64);
        let small = Limits { uploads: 2, ..Limits::default() };
        assert_eq!(Shares::of(&small).uploads, 2);
    }

    fn budget(most: u64, all_most: u64) -> Budget {
        Budget { own: Arc::default(), most, all: Arc::default(), all_most, day: None }
    }

    #[test]
    fn a_budget_is_of_one_and_of_all() {
        let own = budget(10, 100);
        assert!(own.take(10) && !own.take(1));
        assert_eq!(own.refusal(1).code, "quota-exceeded");
        own.give_back(1);
        assert!(own.take(1));
        let all = budget(100, 10);
        assert!(all.take(10) && !all.take(1));
        assert_eq!(all.refusal(1).code, "gateway-full");
        // what was refused isn't counted
        assert_eq!((all.own.load(Relaxed), all.all.load(Relaxed)), (10, 10));
        assert!(!budget(u64::MAX, u64::MAX - 1).take(u64::MAX));
        sub(&all.own, 11);
        assert_eq!(all.own.load(Relaxed), 0);
    }

    #[test]
    fn what_is_not_kept_is_given_back() {
        let budget = budget(10, 10);
        let mut counted = Counted::new(budget.clone());
        assert!(counted.take(6) && !counted.take(6));
        counted.give_back(2);
        assert_eq!(budget.own.load(Relaxed), 4);
        drop(counted);
        assert_eq!(budget.own.load(Relaxed), 0);
        let mut counted = Counted::new(budget.clone());
        assert!(counted.take(6));
        counted.keep();
        assert_eq!(budget.all.load(Relaxed), 6);
    }

    #[test]
    fn space_that_has_to_stay_free() {
        let dir = tempfile::tempdir().unwrap();
        let disk = |floor| Disk::new(vec![dir.path().to_owned()], floor);
        assert!(disk(1).has_room());
        assert!(!disk(u64::MAX).has_room());
        assert!(Disk::new(vec![dir.path().join("gone")], u64::MAX).has_room());
    }
}
