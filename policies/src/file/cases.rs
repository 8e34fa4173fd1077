//! Reads `[[test]]` tables.

use std::collections::BTreeMap;

use pushgate_formats::{content_address::Method, derivation::FixedLeaf};
use toml::de::{DeTable, DeValue};

use super::{
    Upstream, head, matches,
    problem::{Problem, Problems, hint},
    requires::SIGSTORE,
    tree::{self, Table, Value, cut},
};
use crate::{
    facts::{CiIdentity, Outcome},
    rule::{Group, Rule},
    scenario::{Expect, Expected, Given, Says, Scenario, TestCase, Unknown},
};

/// Fields of `[[test]]`.
pub(crate) const TEST: &[&str] = &["name", "given", "expect", "rule", "code"];
/// Fields of `given`.
pub(crate) const GIVEN: &[&str] = &[
    "path",
    "submitter",
    "owner",
    "groups",
    "size",
    "content-addressed",
    "output",
    "system",
    "builder",
    "env",
    "sources",
    "evidence",
    "unknown",
    "waited",
];
/// Evidence that is a word.
pub(crate) const EVIDENCE_WORDS: &[&str] =
    &["derivation", "content-address", "content-address-weak", "upstream", "waiver", "drawn"];
/// Evidence that is a table: the field that says which, and what may stand beside it.
pub(crate) const EVIDENCE_TABLES: &[(&str, &[&str])] = &[
    ("upstream", &["says"]),
    ("rebuilds", &["outcome", "inputs", "owner", "got", "builds"]),
    ("submitters", &[]),
    ("approvals", &["from", "by", "owner"]),
    ("refusal", &[]),
    ("sigstore", &[]),
    ("fetched", &[]),
];
pub(crate) const EXPECT: &[(&str, Expect)] = &[
    (Expect::Publish.word(), Expect::Publish),
    (Expect::Hold.word(), Expect::Hold),
    (Expect::Reject.word(), Expect::Reject),
];
pub(crate) const SAYS: &[(&str, Says)] =
    &[("same", Says::Same), ("other", Says::Other), ("absent", Says::Absent), ("unknown", Says::Unknown)];
pub(crate) const OUTCOMES: &[(&str, Outcome)] = &[
    ("match", Outcome::Match),
    ("mismatch", Outcome::Mismatch),
    ("inconclusive", Outcome::Inconclusive),
    ("failed", Outcome::Failed),
];
pub(crate) const UNKNOWN: &[(&str, &[Unknown])] = &[
    ("derivation", &[Unknown::Built, Unknown::Sources, Unknown::ContentAddressed]),
    ("system", &[Unknown::Built]),
    ("output", &[Unknown::Built]),
    ("builder", &[Unknown::Built]),
    ("env", &[Unknown::Built]),
    ("sources", &[Unknown::Sources]),
    ("content-addressed", &[Unknown::ContentAddressed]),
];
/// Most of one kind of evidence: nobody has so many verifiers.
const MOST: u32 = 1000;

/// What tests refer to.
pub(crate) struct Names<'a> {
    pub(crate) groups: &'a [Group],
    pub(crate) upstreams: &'a [Upstream],
}

/// Reads all tests of a file.
pub(crate) fn read(
    file: &Table<'_, '_>,
    text: &str,
    names: &Names<'_>,
    rules: &[Rule],
    problems: &mut Problems,
) -> Vec<TestCase> {
    let values = file.tables("test", problems);
    // places are found by counting lines: once through the text for all of them
    let (mut line, mut at) = (1, 0);
    let mut cases = vec![];
    for value in values {
        let start = value.span().start.clamp(at, text.len());
        line += text.as_bytes()[at..start].iter().filter(|byte| **byte == b'\n').count();
        at = start;
        cases.extend(case(value, line, names, rules, problems));
    }
    cases
}

fn case(
    value: &Value<'_>,
    line: usize,
    names: &Names<'_>,
    rules: &[Rule],
    problems: &mut Problems,
) -> Option<TestCase> {
    let table = Table::of(value, "the test", TEST, problems)?;
    let name = table.need("name", problems).and_then(|value| tree::text(value, problems));
    let given = table.need("given", problems).and_then(|value| names.given(value, problems));
    let verdict = table.need("expect", problems).and_then(|value| tree::word(value, EXPECT, problems));
    let rule = table.read("rule", problems, |value, problems| {
        let name = tree::text(value, problems)?;
        if !rules.iter().any(|rule| rule.name == name) {
            let hint = hint(name, rules.iter().map(|rule| rule.name.as_str()));
            problems.error(value.span(), format!("there is no rule `{}`{hint}", cut(name)));
        }
        Some(name.to_owned())
    });
    let code = table.read("code", problems, tree::text).map(str::to_owned);
    if let (Some(Expect::Publish), Some(code)) = (verdict, table.get("code")) {
        problems.error(code.span(), "what is published has no code");
    }
    let expect = Expected { verdict: verdict?, rule, code };
    Some(TestCase { name: name?.to_owned(), given: given?, expect, line })
}

impl Names<'_> {
    fn given(&self, value: &Value<'_>, problems: &mut Problems) -> Option<Scenario> {
        let table = Table::of(value, "`given`", GIVEN, problems)?;
        let path = table.need("path", problems).and_then(|value| {
            let text = tree::text(value, problems)?;
            let path = Scenario::path(text);
            if path.is_none() {
                problems.error(value.span(), format!("`{}` is no store path and no name of one", cut(text)));
            }
            path
        });
        let submitter = table.need("submitter", problems).and_then(|value| tree::text(value, problems));
        let own = |key, problems: &mut Problems| table.read(key, problems, tree::text).map(str::to_owned);
        let mut scenario = Scenario::new(path?, submitter?);
        scenario.owner = own("owner", problems);
        scenario.output = own("output", problems);
        scenario.system = own("system", problems);
        scenario.builder = own("builder", problems);
        if let Some(groups) = table.read("groups", problems, tree::list) {
            scenario.groups = groups.into_iter().map(|(name, _)| name.to_owned()).collect();
        }
        scenario.size = table.read("size", problems, tree::size).unwrap_or(scenario.size);
        scenario.waited = table.read("waited", problems, tree::duration).unwrap_or(0);
        scenario.content_addressed = table.read("content-addressed", problems, tree::boolean);
        scenario.env = table.read("env", problems, texts).unwrap_or_default();
        scenario.sources = table.read("sources", problems, sources);
        for value in elements(&table, "evidence", problems) {
            scenario.evidence.extend(self.evidence(value, problems));
        }
        for value in elements(&table, "unknown", problems) {
            scenario.unknown.extend(tree::word(value, UNKNOWN, problems).into_iter().flatten());
        }
        Some(scenario)
    }

    fn evidence(&self, value: &Value<'_>, problems: &mut Problems) -> Option<Given> {
        if let DeValue::String(word) = value.get_ref() {
            let given = match word.as_ref() {
                "derivation" => Given::Derivation,
                "content-address" => Given::ContentAddress,
                "content-address-weak" => Given::ContentAddressWeak,
                "upstream" => Given::Upstream { url: None, says: Says::Same },
                "waiver" => Given::Waiver,
                "drawn" => Given::Drawn,
                _ => {
                    let tables = EVIDENCE_TABLES.iter().map(|(name, _)| *name);
                    let hint = hint(word, EVIDENCE_WORDS.iter().copied().chain(tables));
                    problems.error(value.span(), format!("unknown evidence `{}`{hint}", cut(word)));
                    return None;
                }
            };
            return Some(given);
        }
        let known: Vec<&str> = EVIDENCE_TABLES
            .iter()
            .flat_map(|(name, more)| std::iter::once(*name).chain(more.iter().copied()))
            .collect();
        let table = Table::of(value, "a piece of evidence", &known, problems)?;
        let names: Vec<&str> = EVIDENCE_TABLES.iter().map(|(name, _)| *name).collect();
        let [name] = table.which(&names)[..] else {
            problems.error(value.span(), "each table names one piece of evidence");
            return None;
        };
        let more =
            EVIDENCE_TABLES.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, more)| *more);
        for field in table.which(&["says", "outcome", "inputs", "owner", "got", "builds", "from", "by"]) {
            if !more.contains(&field) {
                problems.error(value.span(), format!("`{field}` has no meaning beside `{name}`"));
            }
        }
        let argument = table.get(name)?;
        let own = |key, problems: &mut Problems| table.read(key, problems, tree::text).map(str::to_owned);
        match name {
            "upstream" => {
                let says = table.read("says", problems, |value, problems| tree::word(value, SAYS, problems));
                let url = super::requires::upstream(argument, self.upstreams, problems)?;
                Some(Given::Upstream { url: Some(url), says: says.unwrap_or(Says::Same) })
            }
            "rebuilds" => Some(Given::Rebuilds {
                n: few(argument, problems)?,
                outcome: table
                    .read("outcome", problems, |value, problems| tree::word(value, OUTCOMES, problems))
                    .unwrap_or(Outcome::Match),
                inputs_rebuilt: table
                    .read("inputs", problems, |value, problems| {
                        tree::word(value, &[("any", false), ("rebuilt", true)], problems)
                    })
                    .unwrap_or(false),
                owner: own("owner", problems),
                got: own("got", problems),
                builds: table.read("builds", problems, few),
            }),
            "submitters" => Some(Given::Submitters { n: few(argument, problems)? }),
            "approvals" => {
                let from = table.need("from", problems)?;
                let from = head::group(tree::text(from, problems)?, from.span(), self.groups, problems)?.name;
                let (by, owner) = (own("by", problems), own("owner", problems));
                Some(Given::Approvals { n: few(argument, problems)?, from, by, owner })
            }
            "refusal" => Some(Given::Refusal(tree::text(argument, problems)?.to_owned())),
            "sigstore" => {
                Table::of(argument, "`sigstore`", SIGSTORE, problems)?;
                let mut claims = texts(argument, problems)?;
                let mut take = |key: &str| claims.remove(key).unwrap_or_default();
                let (issuer, subject) = (take("issuer"), take("subject"));
                Some(Given::Sigstore(CiIdentity { issuer, subject, claims }))
            }
            _ => {
                let table = Table::of(argument, "`fetched`", matches::SOURCE, problems)?;
                let url = table.need("url", problems).and_then(|value| tree::text(value, problems))?;
                let hash = table.need("hash", problems)?;
                let hash = matches::hash(tree::text(hash, problems)?, hash.span(), problems)?;
                Some(Given::Fetched(url.to_owned(), hash.sri()))
            }
        }
    }
}

fn few(value: &Value<'_>, problems: &mut Problems) -> Option<u32> {
    let n = tree::number(value, 1, problems)?;
    if n > MOST {
        problems.error(value.span(), format!("more than {MOST} are no test of anything"));
    }
    Some(n.min(MOST))
}

/// The elements of a list that may be missing.
fn elements<'a, 't>(table: &Table<'a, 't>, key: &str, problems: &mut Problems) -> Vec<&'a Value<'t>> {
    match table.get(key) {
        None => vec![],
        Some(value) => match value.get_ref() {
            DeValue::Array(values) => values.iter().collect(),
            _ => {
                tree::expected(value, "a list", problems);
                vec![]
            }
        },
    }
}

/// Texts by name.
fn texts(value: &Value<'_>, problems: &mut Problems) -> Option<BTreeMap<String, String>> {
    let DeValue::Table(table) = value.get_ref() else {
        tree::expected(value, "a table of texts", problems);
        return None;
    };
    let entry = |(key, value): (&toml::Spanned<toml::de::DeString<'_>>, &Value<'_>),
                 problems: &mut Problems| {
        Some((key.get_ref().to_string(), tree::text(value, problems)?.to_owned()))
    };
    Some(table.iter().filter_map(|pair| entry(pair, problems)).collect())
}

fn sources(value: &Value<'_>, problems: &mut Problems) -> Option<Vec<FixedLeaf>> {
    let DeValue::Array(values) = value.get_ref() else {
        tree::expected(value, "a list of sources", problems);
        return None;
    };
    let mut leaves = vec![];
    for value in values {
        let Some(table) = Table::of(value, "a source", matches::SOURCE, problems) else { continue };
        let urls = table.read("url", problems, tree::list).unwrap_or_default();
        let hash = table
            .need("hash", problems)
            .and_then(|value| matches::hash(tree::text(value, problems)?, value.span(), problems));
        let (Some(hash), Some(path)) = (hash, Scenario::path("source")) else { continue };
        let urls = urls.into_iter().map(|(url, _)| url.to_owned()).collect();
        leaves.push(FixedLeaf { path, method: Method::Flat, hash, urls });
    }
    Some(leaves)
}

/// Reads a piece of evidence as a command line has it: a word, `rebuilds=1`, `approvals=1@core`, or a table as in a test.
pub(crate) fn evidence(text: &str, names: &Names<'_>) -> Result<Given, Vec<Problem>> {
    let is_word = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    let spelt = match text.split_once('=') {
        None => format!("\"{}\"", text.escape_default()),
        Some((word, rest)) if is_word(word) => match rest.split_once('@') {
            Some((n, group)) => format!("{{ {word} = {n}, from = \"{}\" }}", group.escape_default()),
            None => format!("{{ {word} = {rest} }}"),
        },
        Some(_) => text.to_owned(),
    };
    let line = format!("evidence = {spelt}");
    let mut problems = Problems::default();
    let (table, mistakes) = DeTable::parse_recoverable(&line);
    for mistake in &mistakes {
        problems.error(mistake.span().unwrap_or(0..0), mistake.message());
    }
    let given = table.get_ref().get("evidence").and_then(|value| names.evidence(value, &mut problems));
    match given {
        Some(given) if !problems.has_errors() => Ok(given),
        _ => Err(problems.placed(&line)),
    }
}
