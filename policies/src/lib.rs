//! tmp
mod decide;
pub mod explain;
pub mod facts;
mod file;
pub mod record;
pub mod review;
pub mod units;
pub use decide::{Needs, decide, explain};
pub use file::{Closure, Limits, MAX_POLICY, Policy, PolicyError, Upstream, starting_policy};
