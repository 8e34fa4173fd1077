//! Mistakes that a file as a whole shows: each rule is well formed, and yet can't do what it is there for. Only what is
//! sure is noted.

use super::{
    Policy,
    problem::Problems,
    rules::{Spans, named},
};
use crate::rule::{Condition, Requirement, Rule, SourceMatch, Then};

pub(crate) fn check(policy: &Policy, rules: &[(Spans, Rule)], problems: &mut Problems) {
    for (i, (spans, rule)) in rules.iter().enumerate() {
        let earlier = &rules[..i];
        if earlier.iter().any(|(_, other)| other.name == rule.name) {
            problems.error(spans.name.clone(), format!("two rules are called {}", named(rule)));
        } else if let Some((_, taker)) =
            earlier.iter().find(|(_, other)| takes(&other.conditions, &rule.conditions))
        {
            problems.error(
                spans.matches.clone(),
                format!(
                    "the rule {} never decides: the earlier rule {} takes all that it matches; move it up or delete it",
                    named(rule),
                    named(taker)
                ),
            );
        }
        if !sources_are_sound(rule) {
            problems.error(
                spans.matches.clone(),
                "where sources come from is the submitter's word, and he can add a source as he likes: a rule that \
                 matches by them has to `deny`, or to require `{ sources = […] }` too; \
                 only `sources = { every = { hash = […] } }` needs nothing more",
            );
        }
        let limits = policy.submitter_limits.iter().filter_map(|limit| limit.nar_size);
        if rule.nar_size.is_some_and(|size| limits.chain([policy.limits.nar_size]).all(|limit| size > limit))
        {
            problems.warning(
                spans.nar_size.clone(),
                "no submitter may send so much: a rule's `nar-size` only narrows that of `[limits]` and `[[limit]]`",
            );
        }
    }
}

/// Whether surely everything that `of` matches is matched by `by`, or can't be told for either.
fn takes(by: &[Condition], of: &[Condition]) -> bool {
    by.iter().all(|condition| of.iter().any(|narrower| follows(condition, narrower)))
}

/// Whether `condition` surely holds where `narrower` does.
fn follows(condition: &Condition, narrower: &Condition) -> bool {
    match (condition, narrower) {
        (
            Condition::Text { field: a, not: false, values: wide },
            Condition::Text { field: b, not: false, values: narrow },
        )
        | (
            Condition::Text { field: a, not: true, values: narrow },
            Condition::Text { field: b, not: true, values: wide },
        ) => a == b && wide.covers(narrow),
        (
            Condition::Submitter { not: false, names: wide, groups: wide_groups },
            Condition::Submitter { not: false, names: narrow, groups: narrow_groups },
        )
        | (
            Condition::Submitter { not: true, names: narrow, groups: narrow_groups },
            Condition::Submitter { not: true, names: wide, groups: wide_groups },
        ) => wide.covers(narrow) && narrow_groups.iter().all(|group| wide_groups.contains(group)),
        (Condition::Size { min: a, max: b }, Condition::Size { min: c, max: d }) => {
            a.is_none_or(|a| c.is_some_and(|c| a <= c)) && b.is_none_or(|b| d.is_some_and(|d| d <= b))
        }
        (Condition::Not(narrow), Condition::Not(wide)) => takes(wide, narrow),
        _ => condition == narrower,
    }
}

/// Whether what the rule matches by sources, if anything, can't be brought about by a submitter.
fn sources_are_sound(rule: &Rule) -> bool {
    let safe = match &rule.then {
        Then::Deny(_) => true,
        Then::Require(requirement) => requirement.surely(&|part| matches!(part, Requirement::Sources(_))),
    };
    safe || rule.conditions.iter().all(|condition| match condition {
        Condition::Sources(sources) => sources.is_sound(),
        Condition::Not(conditions) => !names_sources(conditions),
        _ => true,
    })
}

fn names_sources(conditions: &[Condition]) -> bool {
    conditions.iter().any(|condition| match condition {
        Condition::Sources(SourceMatch { .. }) => true,
        Condition::Not(conditions) => names_sources(conditions),
        _ => false,
    })
}
