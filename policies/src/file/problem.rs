//! What is wrong with a policy file, shown where it is.

use std::{fmt, ops::Range};

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is taken; it probably doesn't do what is meant.
    Warning,
}

impl Severity {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Where a problem is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// The line, fit for a terminal, shortened where it is long.
    pub source: String,
    /// Characters of `source` before the marker, and of the marker.
    pub marker: (usize, usize),
}

/// Something wrong with a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    pub message: String,
    /// `None` where it concerns the file as a whole.
    pub place: Option<Place>,
}

/// Most characters of a line that are shown, before and after a problem's beginning.
const BEFORE: usize = 60;
const AFTER: usize = 60;

impl Place {
    /// The place of a range of bytes.
    pub(crate) fn of(text: &str, span: Range<usize>) -> Self {
        let mut at = span.start.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        let before = &text[..at];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = text[at..].find('\n').map_or(text.len(), |length| at + length);
        let column = text[start..at].chars().count();
        let mut stop = span.end.clamp(at, end);
        while !text.is_char_boundary(stop) {
            stop += 1;
        }
        let width = text[at..stop].trim_end().chars().count().clamp(1, AFTER);
        let line: Vec<char> = text[start..end].trim_end().chars().map(shown).collect();
        let from = column.saturating_sub(BEFORE).min(line.len());
        let to = (column + AFTER).min(line.len()).max(from);
        Self {
            line: before.matches('\n').count() + 1,
            column: column + 1,
            source: line[from..to].iter().collect(),
            marker: (column - from, width),
        }
    }
}

/// One column each, and nothing that a terminal acts on.
fn shown(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
        {
            '\u{fffd}'
        }
        c => c,
    }
}

impl Problem {
    /// As it is shown, with the file's name in front: what is wrong, then the line with a marker.
    pub fn render(&self, file: &str) -> String {
        let warning = if self.severity == Severity::Warning { "warning: " } else { "" };
        let Some(place) = &self.place else { return format!("{file}: {warning}{}", self.message) };
        let number = place.line.to_string();
        let (gap, space) = (" ".repeat(number.len()), " ".repeat(place.marker.0));
        format!(
            "{file}:{number}:{}: {warning}{}\n{gap} |\n{number} | {}\n{gap} | {space}{}",
            place.column,
            self.message,
            place.source,
            "^".repeat(place.marker.1)
        )
    }
}

/// A policy file that was refused, with all that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PolicyError {
    pub file: String,
    /// At least one of them is an error; in the order of the file.
    pub problems: Vec<Problem>,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.problems.iter().filter(|problem| problem.severity == Severity::Error);
        let texts: Vec<String> = errors.map(|problem| problem.render(&self.file)).collect();
        f.write_str(&texts.join("\n"))
    }
}

/// Collects problems while a file is read.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    list: Vec<(Range<usize>, Severity, String)>,
}

impl Problems {
    pub(crate) fn error(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.list.push((span, Severity::Error, message.into()));
    }

    pub(crate) fn warning(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.list.push((span, Severity::Warning, message.into()));
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.list.iter().any(|(_, severity, _)| *severity == Severity::Error)
    }

    /// With places, in the order of the file.
    pub(crate) fn placed(mut self, text: &str) -> Vec<Problem> {
        self.list.sort_by_key(|(span, severity, _)| (span.start, *severity));
        self.list.dedup();
        let place =
            |(span, severity, message)| Problem { severity, message, place: Some(Place::of(text, span)) };
        self.list.into_iter().map(place).collect()
    }
}

/// The one of `known` that was probably meant.
pub(crate) fn meant<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let plain = |text: &str| text.to_lowercase().replace('_', "-");
    let word = plain(word);
    let close = |known: &&str| {
        let distance = strsim::damerau_levenshtein(&word, &plain(known));
        // one slip in a short word, more in a long one
        (distance <= word.len().max(known.len()) / 3).then_some(distance)
    };
    // a long word is no slip, and comparing costs the product of the lengths
    let known = known.into_iter().filter(|_| word.len() <= 64);
    known.filter_map(|known| Some((close(&known)?, known))).min().map(|(_, known)| known)
}

/// `; did you mean `x`?`, or a list of what there is.
pub(crate) fn hint<'k>(word: &str, known: impl IntoIterator<Item = &'k str> + Clone) -> String {
    match meant(word, known.clone()) {
        Some(known) => format!("; did you mean `{known}`?"),
        None => {
            let names: Vec<String> = known.into_iter().take(20).map(|name| format!("`{name}`")).collect();
            if names.is_empty() { String::new() } else { format!("; there is {}", names.join(", ")) }
        }
    }
}
