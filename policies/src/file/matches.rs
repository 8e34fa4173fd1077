//! Reads what a rule matches.

use pushgate_formats::NixHash;
use toml::de::DeValue;

use super::{
    head,
    problem::Problems,
    tree::{self, Table, Value, cut},
};
use crate::{
    names::{Kind, Texts},
    rule::{Condition, Field, Group, SourceMatch},
};

/// Fields of `match`.
pub(crate) const MATCH: &[&str] = &[
    "pname",
    "version",
    "output",
    "system",
    "submitter",
    "group",
    "owner",
    "cache",
    "content-addressed",
    "size",
    "sources",
    "env",
    "builder",
    "not",
];
pub(crate) const SIZE: &[&str] = &["min", "max"];
/// Fields of `sources` in a match.
pub(crate) const SOURCES: &[&str] = &["every", "any"];
/// Fields of its `every` and `any`.
pub(crate) const SOURCE: &[&str] = &["url", "hash"];
/// How deep `not` may stand in `not`.
const MAX_DEPTH: usize = 8;

const TEXTS: &[(&str, Field)] = &[
    ("pname", Field::Pname),
    ("version", Field::Version),
    ("output", Field::Output),
    ("system", Field::System),
    ("owner", Field::Owner),
    ("cache", Field::Cache),
    ("builder", Field::Builder),
];

/// Reads a `match` table.
pub(crate) fn read(value: &Value<'_>, groups: &[Group], problems: &mut Problems) -> Option<Vec<Condition>> {
    conditions(value, groups, 0, problems)
}

fn conditions(
    value: &Value<'_>,
    groups: &[Group],
    depth: usize,
    problems: &mut Problems,
) -> Option<Vec<Condition>> {
    if depth > MAX_DEPTH {
        problems.error(value.span(), format!("`not` stands in `not` more than {MAX_DEPTH} times"));
        return None;
    }
    let table = Table::of(value, "`match`", MATCH, problems)?;
    let mut all = vec![];
    for (name, field) in TEXTS {
        if let Some(value) = table.get(name) {
            all.extend(text(field.clone(), value, problems));
        }
    }
    if let Some(value) = table.get("submitter") {
        let (not, value) = negated(value, problems)?;
        let people = head::people(value, groups, problems);
        all.extend(people.map(|(names, groups)| Condition::Submitter { not, names, groups }));
    }
    if let Some(value) = table.get("group") {
        all.extend(group(value, groups, problems));
    }
    if let Some(value) = table.get("content-addressed") {
        all.extend(tree::boolean(value, problems).map(Condition::ContentAddressed));
    }
    all.extend(table.read("size", problems, size));
    if let Some(value) = table.get("sources") {
        all.extend(sources(value, problems));
    }
    if let Some(value) = table.get("env") {
        match value.get_ref() {
            DeValue::Table(variables) if !variables.is_empty() => {
                for (name, value) in variables.iter() {
                    all.extend(text(Field::Env(name.get_ref().to_string()), value, problems));
                }
            }
            _ => problems.error(value.span(), "variables are matched as `env.NAME = \"VALUE\"`"),
        }
    }
    if let Some(value) = table.get("not") {
        let not = conditions(value, groups, depth + 1, problems)?;
        if not.is_empty() {
            problems.error(value.span(), "`not = {}` excludes everything, so that the rule never matches");
        }
        all.push(Condition::Not(not));
    }
    Some(all)
}

/// What `{ not = … }` negates, or the value itself.
fn negated<'a, 't>(value: &'a Value<'t>, problems: &mut Problems) -> Option<(bool, &'a Value<'t>)> {
    if !matches!(value.get_ref(), DeValue::Table(_)) {
        return Some((false, value));
    }
    let table = Table::of(value, "a text, a list or `{ not = … }`", &["not"], problems)?;
    table.need("not", problems).map(|value| (true, value))
}

/// Names of systems. A typing error would make something that never matches.
pub(crate) fn systems(list: &Value<'_>, problems: &mut Problems) -> Option<Texts> {
    let values = tree::texts(list, Kind::Name, problems)?;
    for (text, span) in tree::list(list, problems)? {
        if !text.contains('-') {
            let message = format!("`{}` is no system; they are like `x86_64-linux`", cut(text));
            problems.error(span, message);
        }
    }
    Some(values)
}

fn text(field: Field, value: &Value<'_>, problems: &mut Problems) -> Option<Condition> {
    let (not, list) = negated(value, problems)?;
    let values = match field {
        Field::System => systems(list, problems)?,
        _ => tree::texts(list, Kind::Name, problems)?,
    };
    if matches!(field, Field::Pname) {
        for (text, span) in tree::list(list, problems)? {
            let (pname, version) = crate::names::package(text);
            if !text.starts_with(crate::names::GLOB) && !version.is_empty() {
                problems.error(
                    span,
                    format!(
                        "a package name has no version, so `{}` matches nothing; write `pname = \"{}\", version = \"{}\"`",
                        cut(text),
                        cut(pname),
                        cut(version)
                    ),
                );
            }
        }
    }
    Some(Condition::Text { field, not, values })
}

fn group(value: &Value<'_>, groups: &[Group], problems: &mut Problems) -> Option<Condition> {
    let (not, value) = negated(value, problems)?;
    let names = tree::list(value, problems)?;
    let groups = names
        .into_iter()
        .filter_map(|(name, span)| {
            head::group(name.strip_prefix('@').unwrap_or(name), span, groups, problems)
        })
        .collect();
    Some(Condition::Submitter { not, names: Texts::default(), groups })
}

fn size(value: &Value<'_>, problems: &mut Problems) -> Option<Condition> {
    let table = Table::of(value, "`size`, such as `{ min = \"1 GiB\" }`,", SIZE, problems)?;
    let min = table.read("min", problems, tree::size);
    let max = table.read("max", problems, tree::size);
    if table.is_empty() {
        problems.error(value.span(), "`size` has neither `min` nor `max`");
    }
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        problems.error(value.span(), "`min` is larger than `max`, so that the rule never matches");
    }
    Some(Condition::Size { min, max })
}

fn sources(value: &Value<'_>, problems: &mut Problems) -> Option<Condition> {
    let what = "`sources`, such as `{ every = { hash = [\"sha256-…\"] } }`,";
    let table = Table::of(value, what, SOURCES, problems)?;
    let (every, value) = match (table.get("every"), table.get("any")) {
        (Some(value), None) => (true, value),
        (None, Some(value)) => (false, value),
        _ => {
            problems.error(value.span(), "`sources` has either `every` or `any`");
            return None;
        }
    };
    let table = Table::of(value, "a source, such as `{ hash = [\"sha256-…\"] }`,", SOURCE, problems)?;
    if table.is_empty() {
        problems.error(value.span(), "a source is told by `url`, `hash` or both");
    }
    let urls = table.read("url", problems, |value, problems| tree::texts(value, Kind::Url, problems));
    let hashes = table.read("hash", problems, hashes);
    Some(Condition::Sources(SourceMatch { every, urls, hashes }))
}

fn hashes(value: &Value<'_>, problems: &mut Problems) -> Option<Vec<NixHash>> {
    let texts = tree::list(value, problems)?;
    Some(texts.into_iter().filter_map(|(text, span)| hash(text, span, problems)).collect())
}

/// A hash in any of Nix's spellings, with its algorithm.
pub(crate) fn hash(text: &str, span: std::ops::Range<usize>, problems: &mut Problems) -> Option<NixHash> {
    NixHash::parse(text).map_err(|error| problems.error(span, error.to_string())).ok()
}
