//! `pushgate policy check`.

use std::{fmt::Write, io, path::PathBuf};

use pushgate_policies::file::{Enrolled, Problem, Severity};
use serde::Serialize;

use super::{Report, files, read};
use crate::output::{self, Exit};

/// What is wrong with a file, if anything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckedFile {
    pub file: String,
    /// Whether a gateway would take it.
    pub ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    pub rules: usize,
    pub tests: usize,
    pub problems: Vec<Mistake>,
}

/// Something wrong with a file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mistake {
    /// `error` or `warning`.
    pub severity: &'static str,
    pub message: String,
    /// From 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// From 1, in characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    #[serde(skip)]
    shown: String,
}

impl Mistake {
    pub(super) fn of(problem: &Problem, file: &str) -> Self {
        Self {
            severity: problem.severity.word(),
            message: problem.message.clone(),
            line: problem.place.as_ref().map(|place| place.line),
            column: problem.place.as_ref().map(|place| place.column),
            shown: problem.render(file),
        }
    }

    pub(super) fn unreadable(error: &io::Error, file: &str) -> Self {
        let message = error.to_string();
        let shown = format!("{file}: {message}");
        Self { severity: Severity::Error.word(), message, line: None, column: None, shown }
    }

    /// For people, on several lines.
    pub fn shown(&self) -> String {
        output::printable_lines(&self.shown)
    }
}

/// Checks files and directories of them; also against those whom a gateway knows, where it is known who they are.
pub fn check(arguments: &[PathBuf], enrolled: Option<&Enrolled>) -> io::Result<Report<CheckedFile>> {
    let mut checked = vec![];
    for path in files(arguments)? {
        let file = path.display().to_string();
        checked.push(match read(&path, enrolled) {
            Err(error) => CheckedFile {
                problems: vec![Mistake::unreadable(&error, &file)],
                file,
                ok: false,
                cache: None,
                rules: 0,
                tests: 0,
            },
            Ok(found) => {
                let policy = found.policy.as_ref();
                CheckedFile {
                    ok: policy.is_some(),
                    cache: policy.map(|policy| policy.cache.clone()),
                    rules: policy.map_or(0, |policy| policy.rules.len()),
                    tests: policy.map_or(0, |policy| policy.tests.len()),
                    problems: found.problems.iter().map(|problem| Mistake::of(problem, &file)).collect(),
                    file,
                }
            }
        });
    }
    let exit = if checked.iter().all(|file| file.ok) { Exit::Accepted } else { Exit::Error };
    Ok(Report { files: checked, exit })
}

impl Report<CheckedFile> {
    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for file in &self.files {
            for problem in &file.problems {
                let _ = writeln!(out, "{}", problem.shown());
            }
            let name = crate::api::printable(&file.file);
            let _ = if file.ok {
                let cache = crate::api::printable(file.cache.as_deref().unwrap_or_default());
                let (rules, tests) =
                    (output::counted(file.rules, "rule"), output::counted(file.tests, "test"));
                writeln!(out, "{name}: ok, for the cache {cache}: {rules}, {tests}")
            } else {
                let errors = file.problems.iter().filter(|problem| problem.severity == "error").count();
                writeln!(out, "{name}: refused: {}", output::counted(errors, "error"))
            };
        }
        out
    }
}
