//! Reads what a rule requires.

use toml::de::DeValue;

use super::{
    Upstream, head, matches,
    problem::{Problems, hint},
    tree::{self, Table, Value, cut},
};
use crate::{
    names::{Kind, Texts},
    rule::{Group, Members, Requirement, Sigstore, SourceEntry},
};

/// Requirements that are a word.
pub(crate) const WORDS: &[&str] =
    &["nothing", "derivation", "content-address", "content-address-weak", "upstream"];
/// Requirements that are a table: the field that says which, and what may stand beside it.
pub(crate) const TABLES: &[(&str, &[&str])] = &[
    ("all", &[]),
    ("any", &[]),
    ("at-least", &["of"]),
    ("upstream", &[]),
    ("rebuilds", &[]),
    ("submitters", &[]),
    ("approvals", &["from"]),
    ("sigstore", &[]),
    ("sources", &[]),
];
/// Fields of `rebuilds` where it is a table.
pub(crate) const REBUILDS: &[&str] = &["n", "inputs"];
/// Fields of `sigstore`.
pub(crate) const SIGSTORE: &[&str] =
    &["issuer", "subject", "repository", "owner", "ref", "workflow", "trigger", "runner-environment"];
/// How deep requirements may stand in each other.
const MAX_DEPTH: usize = 8;

/// What requirements refer to.
struct Names<'a> {
    groups: &'a [Group],
    upstreams: &'a [Upstream],
}

/// Reads the value of `require`.
pub(crate) fn read(
    value: &Value<'_>,
    groups: &[Group],
    upstreams: &[Upstream],
    problems: &mut Problems,
) -> Option<Requirement> {
    Names { groups, upstreams }.requirement(value, 0, problems)
}

impl Names<'_> {
    fn requirement(&self, value: &Value<'_>, depth: usize, problems: &mut Problems) -> Option<Requirement> {
        if depth > MAX_DEPTH {
            problems
                .error(value.span(), format!("requirements stand in each other more than {MAX_DEPTH} deep"));
            return None;
        }
        match value.get_ref() {
            DeValue::String(word) => self.word(word, value, depth, problems),
            DeValue::Table(_) => self.table(value, depth, problems),
            DeValue::Array(_) => {
                problems.error(value.span(), "say how these combine: `{ all = […] }` or `{ any = […] }`");
                None
            }
            _ => {
                tree::expected(value, "a requirement", problems);
                None
            }
        }
    }

    fn word(
        &self,
        word: &str,
        value: &Value<'_>,
        depth: usize,
        problems: &mut Problems,
    ) -> Option<Requirement> {
        match word {
            "nothing" if depth > 0 => {
                problems.error(
                    value.span(),
                    "`nothing` stands alone: among others it would change nothing or everything",
                );
                None
            }
            "nothing" => Some(Requirement::Nothing),
            "derivation" => Some(Requirement::Derivation),
            "content-address" => Some(Requirement::ContentAddress),
            "content-address-weak" => Some(Requirement::ContentAddressWeak),
            "upstream" => {
                if self.upstreams.is_empty() {
                    problems.error(value.span(), "there is no `[[upstream]]`, so that this is never met");
                }
                Some(Requirement::Upstream(None))
            }
            _ => {
                let tables: Vec<&str> = TABLES.iter().map(|(name, _)| *name).collect();
                let message = if tables.contains(&word) {
                    format!("`{word}` says how many or which: `{{ {word} = … }}`")
                } else {
                    let hint = hint(word, WORDS.iter().copied().chain(tables.iter().copied()));
                    format!("unknown requirement `{}`{hint}", cut(word))
                };
                problems.error(value.span(), message);
                None
            }
        }
    }

    fn table(&self, value: &Value<'_>, depth: usize, problems: &mut Problems) -> Option<Requirement> {
        let known: Vec<&str> =
            TABLES.iter().flat_map(|(name, more)| [*name].into_iter().chain(more.iter().copied())).collect();
        let table = Table::of(value, "a requirement", &known, problems)?;
        let names: Vec<&str> = TABLES.iter().map(|(name, _)| *name).collect();
        let (name, more) = match table.which(&names)[..] {
            // a misspelt field has been noted
            [] if !table.is_empty() && table.which(&known).is_empty() => return None,
            [] => {
                problems.error(value.span(), "this table names no requirement");
                return None;
            }
            // in the list, since it came from there
            [name] => *TABLES.iter().find(|(known, _)| *known == name)?,
            ref several => {
                let several: Vec<String> = several.iter().map(|name| format!("{{ {name} = … }}")).collect();
                let message =
                    format!("several requirements are combined as `{{ all = [{}] }}`", several.join(", "));
                problems.error(value.span(), message);
                return None;
            }
        };
        for field in table.which(&["of", "from"]) {
            if !more.contains(&field) {
                problems.error(value.span(), format!("`{field}` has no meaning beside `{name}`"));
            }
        }
        let argument = table.get(name)?;
        match name {
            "all" => Some(Requirement::All(self.parts(argument, depth, problems)?)),
            "any" => Some(Requirement::Any(self.parts(argument, depth, problems)?)),
            "at-least" => {
                let n = tree::number(argument, 1, problems)?;
                let of = self.parts(table.need("of", problems)?, depth, problems)?;
                if n as usize > of.len() {
                    problems.error(argument.span(), format!("{n} of {} can't be met", of.len()));
                }
                Some(Requirement::AtLeast { n, of })
            }
            "upstream" => Some(Requirement::Upstream(Some(upstream(argument, self.upstreams, problems)?))),
            "rebuilds" => rebuilds(argument, problems),
            "submitters" => Some(Requirement::Submitters { n: tree::number(argument, 1, problems)? }),
            "approvals" => self.approvals(&table, argument, problems),
            "sigstore" => sigstore(argument, problems),
            _ => sources(argument, problems),
        }
    }

    fn parts(&self, value: &Value<'_>, depth: usize, problems: &mut Problems) -> Option<Vec<Requirement>> {
        let DeValue::Array(values) = value.get_ref() else {
            tree::expected(value, "a list of requirements", problems);
            return None;
        };
        if values.is_empty() {
            problems.error(value.span(), "the list of requirements is empty");
        }
        let parts: Vec<_> =
            values.iter().filter_map(|value| self.requirement(value, depth + 1, problems)).collect();
        (parts.len() == values.len() && !parts.is_empty()).then_some(parts)
    }

    fn approvals(
        &self,
        table: &Table<'_, '_>,
        n: &Value<'_>,
        problems: &mut Problems,
    ) -> Option<Requirement> {
        let Some(from) = table.get("from") else {
            problems.error(n.span(), "say whose: `{ approvals = 1, from = \"GROUP\" }`");
            return None;
        };
        let number = tree::number(n, 1, problems);
        let name = tree::text(from, problems)?;
        let from = head::group(name.strip_prefix('@').unwrap_or(name), from.span(), self.groups, problems)?;
        let number = number?;
        if let Members::Listed(members) = &from.members
            && members.len() < number as usize
        {
            let message = format!(
                "{number} approvals can't be met: the group `{}` has {} member{}",
                from.name,
                members.len(),
                if members.len() == 1 { "" } else { "s" }
            );
            problems.error(n.span(), message);
        }
        Some(Requirement::Approvals { n: number, from })
    }
}

/// The URL of an upstream that is named by name or URL.
pub(crate) fn upstream(value: &Value<'_>, upstreams: &[Upstream], problems: &mut Problems) -> Option<String> {
    let wanted = tree::text(value, problems)?;
    let url = wanted.trim_end_matches('/');
    let found =
        upstreams.iter().find(|upstream| upstream.name.as_deref() == Some(wanted) || upstream.url == url);
    if found.is_none() {
        let known = upstreams.iter().map(|upstream| upstream.name.as_ref().unwrap_or(&upstream.url).as_str());
        let message =
            format!("no `[[upstream]]` has the name or url `{}`{}", cut(wanted), hint(wanted, known));
        problems.error(value.span(), message);
    }
    found.map(|upstream| upstream.url.clone())
}

fn rebuilds(value: &Value<'_>, problems: &mut Problems) -> Option<Requirement> {
    if !matches!(value.get_ref(), DeValue::Table(_)) {
        return Some(Requirement::Rebuilds { n: tree::number(value, 1, problems)?, inputs_rebuilt: false });
    }
    let table = Table::of(value, "`rebuilds`", REBUILDS, problems)?;
    let n = table.need("n", problems).and_then(|value| tree::number(value, 1, problems));
    let inputs = table.read("inputs", problems, |value, problems| {
        tree::word(value, &[("any", false), ("rebuilt", true)], problems)
    });
    Some(Requirement::Rebuilds { n: n?, inputs_rebuilt: inputs.unwrap_or(false) })
}

fn sigstore(value: &Value<'_>, problems: &mut Problems) -> Option<Requirement> {
    let table = Table::of(value, "`sigstore`", SIGSTORE, problems)?;
    let texts = |value: &Value<'_>, problems: &mut Problems| tree::texts(value, Kind::Name, problems);
    let urls = |value: &Value<'_>, problems: &mut Problems| tree::texts(value, Kind::Url, problems);
    let issuer = table.need("issuer", problems).and_then(|value| urls(value, problems));
    if table.which(&["subject", "repository", "owner"]).is_empty() {
        problems.error(
            value.span(),
            "anybody can have an identity of this issuer: say whose, by `subject`, `repository` or `owner`",
        );
    }
    let claims: Vec<(String, Texts)> = SIGSTORE[2..]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), table.read(name, problems, texts)?)))
        .collect();
    Some(Requirement::Sigstore(Sigstore {
        issuer: issuer?,
        subject: table.read("subject", problems, texts),
        claims,
    }))
}

fn sources(value: &Value<'_>, problems: &mut Problems) -> Option<Requirement> {
    let DeValue::Array(values) = value.get_ref() else {
        tree::expected(
            value,
            "a list of sources, such as `[{ url = \"https://…\", hash = \"sha256-…\" }]`,",
            problems,
        );
        return None;
    };
    if values.is_empty() {
        problems.error(value.span(), "the list of sources is empty");
    }
    let mut entries = vec![];
    for value in values {
        let Some(table) = Table::of(value, "a source", matches::SOURCE, problems) else { continue };
        if table.is_empty() {
            problems.error(value.span(), "a source is told by `url`, `hash` or both");
        }
        let urls = table.read("url", problems, |value, problems| tree::texts(value, Kind::Url, problems));
        let hash = table.read("hash", problems, |value, problems| {
            matches::hash(tree::text(value, problems)?, value.span(), problems)
        });
        entries.push(SourceEntry { urls, hash });
    }
    Some(Requirement::Sources(entries))
}
