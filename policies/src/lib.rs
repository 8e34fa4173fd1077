//! Policy files and the pure decision over a claim and its evidence. Takes text and facts, gives values; reads no file,
//! asks no clock, knows no database.

mod decide;
pub mod facts;
mod file;
pub mod record;
pub mod units;

pub use decide::{Claim, Decision, Evidence, Provenance, RULE_BUILT_IN, Wait, decide};
pub use file::{Closure, Limits, MAX_POLICY, Policy, PolicyError, Upstream, starting_policy};
