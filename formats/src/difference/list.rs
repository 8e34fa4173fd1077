//! The report while it grows: counts everything, keeps what fits.

use super::{FileDifference, MAX_FILES, MAX_JSON, Report};

/// Bytes of JSON for all but the files: the names and twelve numbers of at most twenty digits.
const HEAD: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct List {
    report: Report,
    bytes: usize,
}

impl List {
    /// Both sides have it, and it is the same.
    pub(super) fn same(&mut self) {
        self.report.counts.same = self.report.counts.same.saturating_add(1);
    }

    pub(super) fn differs(&mut self, file: FileDifference) {
        self.report.counts.add(file.kind);
        // once one is left out all later ones are: what is listed is what comes first
        if self.report.omitted == 0 && self.report.files.len() < MAX_FILES {
            // a struct of text and numbers always has JSON; the comma is counted too
            let length = serde_json::to_vec(&file).map_or(MAX_JSON, |json| json.len() + 1);
            if self.bytes + length <= MAX_JSON - HEAD {
                self.bytes += length;
                self.report.files.push(file);
                return;
            }
        }
        self.report.omitted = self.report.omitted.saturating_add(1);
    }

    pub(super) fn finish(mut self) -> Report {
        self.report.identical = self.report.counts.different() == 0;
        self.report.truncated = self.report.omitted > 0;
        self.report
    }
}
