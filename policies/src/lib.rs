//! Policy files and the pure decision over a claim and its evidence. Takes text and facts, gives values; reads no file,
//! asks no clock, knows no database.

pub mod builds;
mod decide;
pub mod explain;
pub mod facts;
pub mod file;
pub mod limits;
pub mod matching;
pub mod names;
pub mod rebuilds;
pub mod record;
pub mod review;
mod reviewers;
pub mod rule;
pub mod sample;
pub mod scenario;
mod standing;
mod starting;
pub mod units;

pub use builds::BuildLimits;
pub use decide::decide;
pub use explain::explain;
pub use file::{Closure, MAX_POLICY, Needs, Policy, PolicyError, Upstream};
pub use limits::Limits;
pub use rebuilds::{RebuildStanding, Rebuilds, Verdict};
pub use starting::starting_policy;

/// The JSON schema of policy files, for editors.
pub const fn schema() -> &'static str {
    include_str!("../schema.json")
}
