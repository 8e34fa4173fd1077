//! Faults at the two seams to storage: a gateway in this process stands on decorators of its database and its blob
//! store, which fail or kill it at a chosen write. The library that is shipped knows nothing of it: it is opened on
//! other seams.
//!
//! Killed means: nothing that comes after is written, nobody is answered, nothing is cleaned up. What was under way in
//! other threads at that moment is let finish, as if it had been a moment earlier.

mod blobs;
mod db;
mod life;
mod run;
mod scenario;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

pub use blobs::FaultyBlobs;
pub use db::FaultyDb;
pub use life::{Life, NoLife};
pub use run::{Ran, Template, run};
pub use scenario::{After, Again, OwnPushes, Scenario, StockCopy};

/// What happens at a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It fails, and nothing was stored.
    NotStored,
    /// It is stored, and reported to have failed.
    Stored,
    /// The process dies before it; of a file that is written to, half.
    KilledBefore,
    /// The process dies after it.
    KilledAfter,
    /// The machine loses power after it: published files that nobody has waited for are cut short or gone.
    PowerCut,
}

impl Kind {
    pub const ALL: [Self; 5] =
        [Self::NotStored, Self::Stored, Self::KilledBefore, Self::KilledAfter, Self::PowerCut];

    /// Whether the gateway has to be started again.
    pub const fn kills(self) -> bool {
        matches!(self, Self::KilledBefore | Self::KilledAfter | Self::PowerCut)
    }
}

/// Which write it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// By its number in the gateway's life, from 0.
    Write(usize),
    /// By its name, and its number among those of that name, from 0.
    Call(&'static str, usize),
}

/// A fault that comes once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub at: At,
    pub kind: Kind,
}

/// What a decorator does with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Todo {
    Go,
    Strike(Kind),
}

#[derive(Default)]
struct State {
    /// Every write so far, by name.
    writes: Vec<&'static str>,
    under_way: usize,
    struck: bool,
    dead: bool,
}

/// The faults of one life of a gateway, shared by its decorators.
pub struct Faults {
    fault: Option<Fault>,
    state: Mutex<State>,
    quiet: Condvar,
    died: watch::Sender<bool>,
}

/// A write under way.
struct UnderWay<'a> {
    faults: &'a Faults,
    todo: Todo,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.faults.state().under_way -= 1;
        self.faults.quiet.notify_all();
    }
}

impl Faults {
    pub fn new(fault: Option<Fault>) -> Arc<Self> {
        Arc::new(Self {
            fault,
            state: Mutex::default(),
            quiet: Condvar::new(),
            died: watch::channel(false).0,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // every change is of one field
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write begins; `None` where the process is dead.
    fn enter(&self, what: &'static str) -> Option<UnderWay<'_>> {
        let mut state = self.state();
        if state.dead {
            return None;
        }
        let number = state.writes.len();
        let nth = state.writes.iter().filter(|w| **w == what).count();
        state.writes.push(what);
        state.under_way += 1;
        let todo = match self.fault {
            Some(Fault { at, kind }) if !state.struck => {
                let here = match at {
                    At::Write(n) => n == number,
                    At::Call(name, n) => name == what && n == nth,
                };
                state.struck |= here;
                // from here on nothing else begins
                state.dead |= here && kind == Kind::KilledBefore;
                if here { Todo::Strike(kind) } else { Todo::Go }
            }
            _ => Todo::Go,
        };
        Some(UnderWay { faults: self, todo })
    }

    fn die(&self) {
        self.state().dead = true;
        self.died.send_replace(true);
    }

    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Whether the fault has come.
    pub fn has_struck(&self) -> bool {
        self.state().struck
    }

    /// Every write so far, by name, in order.
    pub fn writes(&self) -> Vec<&'static str> {
        self.state().writes.clone()
    }

    /// Resolves when the gateway was killed.
    pub async fn death(&self) {
        let mut died = self.died.subscribe();
        // the sender lives as long as `self`
        let _ = died.wait_for(|dead| *dead).await;
    }

    /// Waits until no write is under way any more. Blocks.
    pub fn wait_for_quiet(&self) {
        let mut state = self.state();
        while state.under_way > 0 {
            state = self.quiet.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
