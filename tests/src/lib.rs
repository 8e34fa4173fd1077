//! What the whole-system tests share.

pub mod faults;
pub mod forge;
pub mod formats_corpus;
pub mod invariants;
pub mod process;
