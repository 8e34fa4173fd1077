//! The parts of a policy file around its rules: cache, groups, limits, upstreams, retention.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use pushgate_formats::{Sha256, keys::PublicKey};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Closure, Enrolled, Policy, Upstream, builds, cases, enrolled,
    problem::{Problems, hint},
    rules, sense,
    tree::{self, Table, Value, cut},
};
use crate::{
    limits::{Limits, Retention, SubmitterLimit},
    names::{Kind, Texts},
    rule::{Group, Members, Rule},
};

/// Fields of the file.
pub const FIELDS: &[&str] = &[
    "version",
    "cache",
    "closure",
    "groups",
    "limits",
    "limit",
    "retention",
    "rebuilds",
    "build",
    "upstream",
    "rule",
    "test",
];
/// Fields of `[limits]`.
pub(crate) const LIMITS: &[&str] =
    &["nar-size", "quarantine-ttl", "quarantine-size", "paths-per-push", "bytes-per-day", "uploads-at-once"];
/// Fields of `[[limit]]`.
pub(crate) const LIMIT: &[&str] =
    &["submitter", "nar-size", "quarantine-size", "paths-per-push", "bytes-per-day", "uploads-at-once"];
pub(crate) const RETENTION: &[&str] = &["unused", "size", "keep"];
pub(crate) const UPSTREAM: &[&str] = &["name", "url", "key"];
/// Words of `closure`.
pub const CLOSURES: &[(&str, Closure)] =
    &[("upstreams", Closure::Upstreams), ("self-contained", Closure::SelfContained)];
/// What stands for the members of a group that is given at enrolment.
pub(crate) const ENROLLED: &str = "enrolled";

/// Reads the whole file. `None` only where a mistake was noted.
pub(crate) fn read(
    file: &Spanned<DeTable<'_>>,
    text: &str,
    cache: Option<&str>,
    known: Option<&Enrolled>,
    problems: &mut Problems,
) -> Option<Policy> {
    let file = Table::root(file);
    // what follows would be measured by another version's rules
    let version = file.need("version", problems)?;
    if tree::number(version, 0, problems)? != 1 {
        problems.error(
            version.span(),
            "this version of the policy language is not known; this program reads version 1",
        );
        return None;
    }
    file.only(FIELDS, problems);
    let name = file.need("cache", problems).and_then(|value| {
        let name = tree::text(value, problems)?;
        if cache.is_some_and(|cache| cache != name) {
            let cache = cache.unwrap_or_default();
            problems.error(
                value.span(),
                format!(
                    "the policy is for the cache `{}`, and lies where that of `{cache}` is looked for",
                    cut(name)
                ),
            );
        }
        Some(name)
    });
    let closure = file.read("closure", problems, |value, problems| tree::word(value, CLOSURES, problems));
    let groups = groups(&file, problems);
    let places = places(&file);
    let limits = file.read("limits", problems, limits).unwrap_or_default();
    let submitter_limits = file
        .tables("limit", problems)
        .into_iter()
        .filter_map(|value| submitter_limit(value, &groups, problems))
        .collect();
    let retention = file.read("retention", problems, retention).unwrap_or_default();
    let rebuilds = file.read("rebuilds", problems, builds::rebuilds).unwrap_or_default();
    let builds = builds::builds(&file, &groups, problems);
    let upstreams = upstreams(&file, problems);
    let spans = rules::read(&file, &groups, &upstreams, problems);
    let rules: Vec<Rule> = spans.iter().map(|(_, rule)| rule.clone()).collect();
    let tests =
        cases::read(&file, text, &cases::Names { groups: &groups, upstreams: &upstreams }, &rules, problems);
    let policy = Policy {
        cache: name?.to_owned(),
        closure: closure.unwrap_or_default(),
        groups,
        limits,
        submitter_limits,
        retention,
        rebuilds,
        builds,
        upstreams,
        rules,
        tests,
        digest: Sha256::of(text.as_bytes()),
    };
    sense::check(&policy, &spans, problems);
    if let Some(known) = known {
        enrolled::check(&policy, &places, &spans, known, problems);
    }
    Some(policy)
}

fn groups(file: &Table<'_, '_>, problems: &mut Problems) -> Vec<Group> {
    let Some(value) = file.get("groups") else { return vec![] };
    let DeValue::Table(table) = value.get_ref() else {
        tree::expected(value, "a table of groups", problems);
        return vec![];
    };
    let mut groups = vec![];
    for (key, value) in table.iter() {
        let name = key.get_ref().to_string();
        if name.is_empty() || name.starts_with('@') || name.starts_with("glob:") {
            problems.error(key.span(), "a group's name is written without `@` or `glob:`, and isn't empty");
        }
        let members = match value.get_ref() {
            DeValue::String(word) if word == ENROLLED => Members::Enrolled,
            DeValue::Array(names) => {
                if names.is_empty() {
                    problems.error(
                        value.span(),
                        format!(
                            "the group `{}` names nobody; list its members, or write `\"{ENROLLED}\"` for those to whom \
                             it was given at enrolment",
                            cut(&name)
                        ),
                    );
                }
                let names = names.iter().filter_map(|member| self::member(member, problems));
                Members::Listed(Arc::new(names.collect::<BTreeSet<String>>()))
            }
            _ => {
                tree::expected(value, format!("a list of names, or `\"{ENROLLED}\"`,"), problems);
                continue;
            }
        };
        groups.push(Group { name, members });
    }
    groups
}

/// Where groups are named.
fn places(file: &Table<'_, '_>) -> Vec<(String, Range<usize>)> {
    match file.get("groups").map(Spanned::get_ref) {
        Some(DeValue::Table(table)) => {
            table.keys().map(|key| (key.get_ref().to_string(), key.span())).collect()
        }
        _ => vec![],
    }
}

fn member(value: &Value<'_>, problems: &mut Problems) -> Option<String> {
    let name = tree::text(value, problems)?;
    if name.is_empty() || name.starts_with('@') || name.starts_with("glob:") {
        problems.error(value.span(), "members of a group are names, written out: no `@group`, no `glob:`");
    }
    Some(name.to_owned())
}

/// The group of this name.
pub(crate) fn group(
    name: &str,
    span: Range<usize>,
    groups: &[Group],
    problems: &mut Problems,
) -> Option<Group> {
    let found = groups.iter().find(|group| group.name == name);
    if found.is_none() {
        let hint = match hint(name, groups.iter().map(|group| group.name.as_str())) {
            hint if hint.is_empty() => format!(
                "; add `[groups]` with `{0} = [\"NAME\"]`, or `{0} = \"{ENROLLED}\"` for one that is given at enrolment",
                cut(name)
            ),
            hint => hint,
        };
        problems.error(span, format!("there is no group `{}`{hint}", cut(name)));
    }
    found.cloned()
}

/// Submitters by name, and with `@` by group.
pub(crate) fn people(
    value: &Value<'_>,
    groups: &[Group],
    problems: &mut Problems,
) -> Option<(Texts, Vec<Group>)> {
    let (mut names, mut of) = (Texts::default(), vec![]);
    for (text, span) in tree::list(value, problems)? {
        match text.strip_prefix('@') {
            Some(name) => of.extend(group(name, span, groups, problems)),
            None => tree::add(&mut names, text, span, Kind::Name, problems),
        }
    }
    Some((names, of))
}

fn count(value: &Value<'_>, problems: &mut Problems) -> Option<u64> {
    tree::number(value, 1, problems).map(u64::from)
}

fn limits(value: &Value<'_>, problems: &mut Problems) -> Option<Limits> {
    let table = Table::of(value, "`[limits]`", LIMITS, problems)?;
    let default = Limits::default();
    Some(Limits {
        nar_size: table.read("nar-size", problems, tree::size).unwrap_or(default.nar_size),
        quarantine_ttl: table
            .read("quarantine-ttl", problems, tree::duration)
            .unwrap_or(default.quarantine_ttl),
        quarantine_size: table
            .read("quarantine-size", problems, tree::size)
            .unwrap_or(default.quarantine_size),
        paths_per_push: table.read("paths-per-push", problems, count),
        bytes_per_day: table.read("bytes-per-day", problems, tree::size),
        uploads_at_once: table.read("uploads-at-once", problems, count),
    })
}

fn submitter_limit(value: &Value<'_>, groups: &[Group], problems: &mut Problems) -> Option<SubmitterLimit> {
    let table = Table::of(value, "`[[limit]]`", LIMIT, problems)?;
    if table.which(LIMIT).len() == usize::from(table.has("submitter")) {
        problems.error(table.span.clone(), "the `[[limit]]` limits nothing");
    }
    let submitter = table.need("submitter", problems)?;
    let (names, groups) = people(submitter, groups, problems)?;
    Some(SubmitterLimit {
        names,
        groups,
        nar_size: table.read("nar-size", problems, tree::size),
        quarantine_size: table.read("quarantine-size", problems, tree::size),
        paths_per_push: table.read("paths-per-push", problems, count),
        bytes_per_day: table.read("bytes-per-day", problems, tree::size),
        uploads_at_once: table.read("uploads-at-once", problems, count),
    })
}

fn retention(value: &Value<'_>, problems: &mut Problems) -> Option<Retention> {
    let table = Table::of(value, "`[retention]`", RETENTION, problems)?;
    Some(Retention {
        unused: table.read("unused", problems, tree::duration),
        size: table.read("size", problems, tree::size),
        keep: table
            .read("keep", problems, |value, problems| tree::texts(value, Kind::Name, problems))
            .unwrap_or_default(),
    })
}

fn upstreams(file: &Table<'_, '_>, problems: &mut Problems) -> Vec<Upstream> {
    let mut upstreams: Vec<Upstream> = vec![];
    for value in file.tables("upstream", problems) {
        let Some(table) = Table::of(value, "`[[upstream]]`", UPSTREAM, problems) else { continue };
        let name = table.read("name", problems, tree::text).map(str::to_owned);
        let url = table.need("url", problems).and_then(|value| Some((url(value, problems)?, value.span())));
        let key = table.need("key", problems).and_then(|value| key(value, problems));
        let (Some((url, span)), Some(key)) = (url, key) else { continue };
        if upstreams.iter().any(|upstream| upstream.url == url) {
            problems.error(span, format!("the upstream `{}` is there twice", cut(&url)));
        }
        if name.is_some() && upstreams.iter().any(|upstream| upstream.name == name) {
            let span = table.get("name").map_or(0..0, Spanned::span);
            problems.error(
                span,
                format!("two upstreams are called `{}`", cut(&name.clone().unwrap_or_default())),
            );
        }
        upstreams.push(Upstream { name, url, key });
    }
    upstreams
}

fn url(value: &Value<'_>, problems: &mut Problems) -> Option<String> {
    let text = tree::text(value, problems)?;
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(rest) if !rest.is_empty() && !text.contains(['?', '#', ' ']) => {
            Some(text.trim_end_matches('/').to_owned())
        }
        _ => {
            let message = format!("`{}` is not an `http://` or `https://` address of a cache", cut(text));
            problems.error(value.span(), message);
            None
        }
    }
}

fn key(value: &Value<'_>, problems: &mut Problems) -> Option<PublicKey> {
    let text = tree::text(value, problems)?;
    PublicKey::parse(text).map_err(|error| problems.error(value.span(), error.to_string())).ok()
}
