//! Reads `[[rule]]` tables.

use std::ops::Range;

use toml::Spanned;

use super::{
    Upstream, matches,
    problem::Problems,
    requires,
    tree::{self, Table, Value, cut},
};
use crate::rule::{Group, OnMismatch, Rate, Rule, Sample, Then};

/// Fields of `[[rule]]`.
pub(crate) const RULE: &[&str] =
    &["name", "match", "require", "deny", "sample", "on-mismatch", "hold", "limits"];
pub(crate) const SAMPLE: &[&str] = &["rate", "probation"];
/// Fields of a rule's `limits`.
pub(crate) const RULE_LIMITS: &[&str] = &["nar-size"];
/// Words of `on-mismatch`.
pub(crate) const ON_MISMATCH: &[(&str, OnMismatch)] = &[
    (OnMismatch::Reject.word(), OnMismatch::Reject),
    (OnMismatch::HoldKey.word(), OnMismatch::HoldKey),
    (OnMismatch::Freeze.word(), OnMismatch::Freeze),
];
/// Longest name of a rule and longest reason, in characters: both stand in log leaves and messages.
const MAX_TEXT: usize = 200;

/// Where the parts of a rule stand.
pub(crate) struct Spans {
    pub(crate) name: Range<usize>,
    pub(crate) matches: Range<usize>,
    pub(crate) nar_size: Range<usize>,
    /// Of `require` or `deny`.
    pub(crate) then: Range<usize>,
}

/// Reads all rules.
pub(crate) fn read(
    file: &Table<'_, '_>,
    groups: &[Group],
    upstreams: &[Upstream],
    problems: &mut Problems,
) -> Vec<(Spans, Rule)> {
    let values = file.tables("rule", problems);
    if values.is_empty() {
        problems.error(
            0..0,
            "there is no `[[rule]]`, so that nothing could ever be published; \
             `match = {}` with `require = \"derivation\"` is a rule for all that a derivation provably yields",
        );
    }
    values.into_iter().filter_map(|value| rule(value, groups, upstreams, problems)).collect()
}

fn rule(
    value: &Value<'_>,
    groups: &[Group],
    upstreams: &[Upstream],
    problems: &mut Problems,
) -> Option<(Spans, Rule)> {
    let table = Table::of(value, "the rule", RULE, problems)?;
    let name = table.need("name", problems).and_then(|value| line(value, problems));
    let conditions = match table.get("match") {
        Some(value) => matches::read(value, groups, problems),
        None => {
            problems
                .error(table.span.clone(), "the rule has no `match`; one for everything says `match = {}`");
            None
        }
    };
    let then = match (table.get("require"), table.get("deny")) {
        (Some(value), None) => requires::read(value, groups, upstreams, problems).map(Then::Require),
        (None, Some(value)) => line(value, problems).map(|reason| Then::Deny(reason.to_owned())),
        (Some(_), Some(deny)) => {
            problems.error(deny.span(), "a rule has either `require` or `deny`");
            None
        }
        (None, None) => {
            problems.error(
                table.span.clone(),
                "the rule neither says what it requires nor denies: add `require = …` or `deny = \"REASON\"`",
            );
            None
        }
    };
    let sample = table.read("sample", problems, sample);
    let on_mismatch = table
        .read("on-mismatch", problems, |value, problems| tree::word(value, ON_MISMATCH, problems))
        .unwrap_or_default();
    let hold = table.read("hold", problems, tree::duration);
    if matches!(then, Some(Then::Deny(_))) {
        for field in table.which(&["sample", "on-mismatch", "hold", "limits"]) {
            let span = table.get(field).map_or(0..0, Spanned::span);
            problems.error(span, format!("a rule that denies has no use for `{field}`"));
        }
    }
    let limits =
        table.get("limits").and_then(|value| Table::of(value, "the rule's `limits`", RULE_LIMITS, problems));
    let nar_size = limits.as_ref().and_then(|limits| limits.read("nar-size", problems, tree::size));
    let spans = Spans {
        name: table.get("name").map_or(0..0, Spanned::span),
        then: table.get("require").or_else(|| table.get("deny")).map_or(0..0, Spanned::span),
        matches: table.get("match").map_or(0..0, Spanned::span),
        nar_size: limits.and_then(|limits| limits.get("nar-size").map(Spanned::span)).unwrap_or(0..0),
    };
    let name = name?.to_owned();
    Some((spans, Rule { name, conditions: conditions?, then: then?, sample, on_mismatch, hold, nar_size }))
}

/// A text that fits on a line.
fn line<'a>(value: &'a Value<'_>, problems: &mut Problems) -> Option<&'a str> {
    let text = tree::text(value, problems)?;
    if text.trim().is_empty() || text.chars().count() > MAX_TEXT || text.chars().any(char::is_control) {
        problems.error(value.span(), format!("one line of 1 to {MAX_TEXT} characters is expected here"));
        return None;
    }
    Some(text)
}

fn sample(value: &Value<'_>, problems: &mut Problems) -> Option<Sample> {
    let table = Table::of(value, "the rule's `sample`", SAMPLE, problems)?;
    let share = table.need("rate", problems)?;
    let rate = Rate::new(tree::decimal(share, problems)?);
    if rate.is_none() {
        problems
            .error(share.span(), "a rate is a number from 0 to 1 with at most six decimals, such as 0.05");
    }
    let probation = table.read("probation", problems, |value, problems| tree::number(value, 0, problems));
    Some(Sample { rate: rate?, probation: probation.unwrap_or(0) })
}

/// For messages about a rule.
pub(crate) fn named(rule: &Rule) -> String {
    format!("`{}`", cut(&rule.name))
}
