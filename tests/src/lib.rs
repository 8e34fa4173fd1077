//! What the whole-system tests share.

pub mod forge;
pub mod formats_corpus;
pub mod process;
