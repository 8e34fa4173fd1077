//! Reads values out of a TOML tree whose every value knows its place, and notes what is wrong instead of stopping at the
//! first mistake.

use std::{fmt, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::{Problems, hint};
use crate::{
    names::{Kind, Texts},
    units,
};

pub(crate) type Value<'t> = Spanned<DeValue<'t>>;

/// A table whose fields are known.
#[derive(Clone)]
pub(crate) struct Table<'a, 't> {
    table: &'a DeTable<'t>,
    pub(crate) span: Range<usize>,
    /// What it is, for messages: `[limits]`, `the rule`.
    what: &'a str,
}

/// What a value is, for messages.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Notes that something else was expected.
pub(crate) fn expected(value: &Value<'_>, what: impl fmt::Display, problems: &mut Problems) {
    problems.error(value.span(), format!("{what} is expected here, not {}", kind(value.get_ref())));
}

impl<'a, 't> Table<'a, 't> {
    /// The whole file.
    pub(crate) fn root(table: &'a Spanned<DeTable<'t>>) -> Self {
        Self { table: table.get_ref(), span: 0..0, what: "the file" }
    }

    /// A value that should be a table. Fields other than `known` are noted.
    pub(crate) fn of(
        value: &'a Value<'t>,
        what: &'a str,
        known: &[&str],
        problems: &mut Problems,
    ) -> Option<Self> {
        let DeValue::Table(table) = value.get_ref() else {
            expected(value, what, problems);
            return None;
        };
        let table = Self { table, span: value.span(), what };
        table.only(known, problems);
        Some(table)
    }

    /// Notes fields other than `known`.
    pub(crate) fn only(&self, known: &[&str], problems: &mut Problems) {
        for (key, _) in self.table.iter() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let hint = hint(name, known.iter().copied());
                problems.error(key.span(), format!("unknown field `{}` in {}{hint}", cut(name), self.what));
            }
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value<'t>> {
        self.table.get(key)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A field that has to be there.
    pub(crate) fn need(&self, key: &str, problems: &mut Problems) -> Option<&'a Value<'t>> {
        let value = self.get(key);
        if value.is_none() {
            problems.error(self.span.clone(), format!("{} has no `{key}`", self.what));
        }
        value
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The names of those of `of` that are there.
    pub(crate) fn which<'k>(&self, of: &[&'k str]) -> Vec<&'k str> {
        of.iter().copied().filter(|key| self.has(key)).collect()
    }

    /// A field by one of the functions below, if it is there and right.
    pub(crate) fn read<T>(
        &self,
        key: &str,
        problems: &mut Problems,
        read: impl FnOnce(&'a Value<'t>, &mut Problems) -> Option<T>,
    ) -> Option<T> {
        self.get(key).and_then(|value| read(value, problems))
    }

    /// The elements of an array of tables, `[[key]]`.
    pub(crate) fn tables(&self, key: &str, problems: &mut Problems) -> Vec<&'a Value<'t>> {
        match self.get(key) {
            None => vec![],
            Some(value) => match value.get_ref() {
                DeValue::Array(values) => values.iter().collect(),
                _ => {
                    problems.error(value.span(), format!("write `[[{key}]]`: there can be several"));
                    vec![]
                }
            },
        }
    }
}

/// Long foreign text, shortened.
pub(crate) fn cut(text: &str) -> String {
    const MOST: usize = 80;
    let cut: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().count() > MOST { format!("{cut}…") } else { cut }
}

pub(crate) fn text<'a>(value: &'a Value<'_>, problems: &mut Problems) -> Option<&'a str> {
    if let DeValue::String(text) = value.get_ref() {
        return Some(text);
    }
    expected(value, "a text", problems);
    None
}

pub(crate) fn boolean(value: &Value<'_>, problems: &mut Problems) -> Option<bool> {
    if let DeValue::Boolean(is) = value.get_ref() {
        return Some(*is);
    }
    expected(value, "`true` or `false`", problems);
    None
}

/// A whole number from `least` to 2^31 - 1.
pub(crate) fn number(value: &Value<'_>, least: u32, problems: &mut Problems) -> Option<u32> {
    if let DeValue::Integer(number) = value.get_ref() {
        let number = u32::from_str_radix(number.as_str(), number.radix()).ok();
        if let Some(number) = number.filter(|n| *n >= least && *n <= i32::MAX as u32) {
            return Some(number);
        }
        problems.error(value.span(), format!("a whole number of at least {least} is expected here"));
        return None;
    }
    expected(value, "a whole number", problems);
    None
}

/// A number with or without decimals.
pub(crate) fn decimal(value: &Value<'_>, problems: &mut Problems) -> Option<f64> {
    let text = match value.get_ref() {
        DeValue::Float(number) => number.as_str(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
        _ => {
            expected(value, "a number", problems);
            return None;
        }
    };
    text.parse().ok()
}

/// Bytes, such as `"4 GiB"`.
pub(crate) fn size(value: &Value<'_>, problems: &mut Problems) -> Option<u64> {
    let text = text(value, problems)?;
    let size = units::size(text);
    if size.is_none() {
        problems.error(value.span(), units::not_a_size(&cut(text)));
    }
    size
}

/// Seconds, such as `"7d"`.
pub(crate) fn duration(value: &Value<'_>, problems: &mut Problems) -> Option<u64> {
    let text = text(value, problems)?;
    let duration = units::duration(text);
    if duration.is_none() {
        problems.error(value.span(), units::not_a_duration(&cut(text)));
    }
    duration
}

/// One of some words.
pub(crate) fn word<T: Copy>(value: &Value<'_>, words: &[(&str, T)], problems: &mut Problems) -> Option<T> {
    let text = text(value, problems)?;
    let found = words.iter().find(|(word, _)| *word == text);
    if found.is_none() {
        let hint = hint(text, words.iter().map(|(word, _)| *word));
        problems.error(value.span(), format!("unknown word `{}`{hint}", cut(text)));
    }
    found.map(|(_, value)| *value)
}

/// A text or a list of texts, which can't be empty. `None` only where nothing was read; the mistake is noted then.
pub(crate) fn list<'a, 't>(
    value: &'a Value<'t>,
    problems: &mut Problems,
) -> Option<Vec<(&'a str, Range<usize>)>> {
    match value.get_ref() {
        DeValue::String(text) => Some(vec![(text.as_ref(), value.span())]),
        DeValue::Array(values) => {
            if values.is_empty() {
                problems.error(value.span(), "the list is empty: nothing is among none");
                return None;
            }
            let texts: Vec<_> =
                values.iter().filter_map(|value| Some((text(value, problems)?, value.span()))).collect();
            (texts.len() == values.len()).then_some(texts)
        }
        _ => {
            expected(value, "a text or a list of texts", problems);
            None
        }
    }
}

/// A text or list of texts, exact or with `glob:` in front.
pub(crate) fn texts(value: &Value<'_>, kind: Kind, problems: &mut Problems) -> Option<Texts> {
    let mut texts = Texts::default();
    for (text, span) in list(value, problems)? {
        add(&mut texts, text, span, kind, problems);
    }
    Some(texts)
}

pub(crate) fn add(texts: &mut Texts, text: &str, span: Range<usize>, kind: Kind, problems: &mut Problems) {
    if let Err(error) = texts.add(text, kind) {
        problems.error(span, error.to_string());
    }
}
