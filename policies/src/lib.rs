//! tmp
mod decide;
pub mod facts;
mod file;
pub mod record;
pub mod units;
pub use decide::{Needs, decide};
pub use file::{Closure, Limits, MAX_POLICY, Policy, PolicyError, Upstream, starting_policy};
