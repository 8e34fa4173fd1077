//! What came of a push, for whoever shows it.

use std::collections::BTreeMap;

use pushgate_formats::{
    StorePath,
    api::{PathState, PathStatus},
};
use serde::Serialize;

use super::upload::Sent;

/// A path that didn't get to the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    pub path: StorePath,
    pub message: String,
}

/// How much was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    pub nars: u64,
    pub nar_bytes: u64,
    /// After compression.
    pub body_bytes: u64,
}

impl Traffic {
    pub(super) fn add(&mut self, sent: &Sent) {
        self.nars += sent.nars;
        self.nar_bytes += sent.nar_bytes;
        self.body_bytes += sent.body_bytes;
    }
}

/// What came of a push; also the document of `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub gateway: String,
    pub cache: String,
    /// The ids of the pushes that it took: several for very large closures, none where nothing was missing.
    pub pushes: Vec<String>,
    /// Every path of the closure, references first.
    pub paths: Vec<PathStatus>,
    /// Paths that couldn't be sent.
    pub failed: Vec<Failed>,
    /// What the person should know but what refuses nothing.
    pub notices: Vec<String>,
    #[serde(rename = "sent")]
    pub traffic: Traffic,
    /// Whether waiting ended for want of time.
    pub timed_out: bool,
}

impl Report {
    pub(super) fn new(gateway: String, cache: String) -> Self {
        Self {
            gateway,
            cache,
            pushes: vec![],
            paths: vec![],
            failed: vec![],
            notices: vec![],
            traffic: Traffic::default(),
            timed_out: false,
        }
    }

    /// How many paths are in each state.
    pub fn counts(&self) -> BTreeMap<PathState, usize> {
        let mut counts = BTreeMap::new();
        for path in &self.paths {
            *counts.entry(path.state).or_default() += 1;
        }
        counts
    }
}
