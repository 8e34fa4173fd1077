//! `pushgate policy test`.

use std::{fmt::Write, io, path::PathBuf};

use pushgate_policies::scenario::TestResult;
use serde::Serialize;

use super::{Mistake, Report, files, read};
use crate::{
    api::printable,
    output::{self, Exit},
};

/// How the tests of a file came out.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TestedFile {
    pub file: String,
    /// Whether it is a policy and each test passed.
    pub ok: bool,
    pub passed: usize,
    pub failed: usize,
    pub tests: Vec<TestResult>,
    /// Why the file is no policy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Mistake>,
}

/// Runs the tests of files and directories of them.
pub fn test(arguments: &[PathBuf]) -> io::Result<Report<TestedFile>> {
    let mut tested = vec![];
    for path in files(arguments)? {
        let file = path.display().to_string();
        let (tests, problems) = match read(&path, None) {
            Err(error) => (None, vec![Mistake::unreadable(&error, &file)]),
            Ok(found) => match found.policy {
                Some(policy) => (Some(policy.run_tests()), vec![]),
                None => (None, found.problems.iter().map(|problem| Mistake::of(problem, &file)).collect()),
            },
        };
        let is_policy = tests.is_some();
        let tests = tests.unwrap_or_default();
        let passed = tests.iter().filter(|test| test.passed).count();
        let failed = tests.len() - passed;
        tested.push(TestedFile { file, ok: is_policy && failed == 0, passed, failed, tests, problems });
    }
    let exit = if tested.iter().all(|file| file.ok) { Exit::Accepted } else { Exit::Error };
    Ok(Report { files: tested, exit })
}

impl Report<TestedFile> {
    /// For people: what failed, and how many passed.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for file in &self.files {
            let name = printable(&file.file);
            for problem in &file.problems {
                let _ = writeln!(out, "{}", problem.shown());
            }
            for test in file.tests.iter().filter(|test| !test.passed) {
                let difference = printable(test.difference.as_deref().unwrap_or_default());
                let _ = writeln!(out, "{name}:{}: `{}`: {difference}", test.line, printable(&test.name));
            }
            let _ = if !file.problems.is_empty() {
                writeln!(out, "{name}: refused")
            } else if file.tests.is_empty() {
                writeln!(out, "{name}: there are no tests")
            } else {
                writeln!(
                    out,
                    "{name}: {} passed, {} failed",
                    output::counted(file.passed, "test"),
                    file.failed
                )
            };
        }
        out
    }
}
