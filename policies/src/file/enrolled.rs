//! What a file promises against who is enrolled: a group that names nobody, a requirement that nobody could meet. Warnings
//! only, since people and machines come and go while the file stays.

use std::{collections::BTreeSet, ops::Range};

use super::{
    Policy,
    problem::Problems,
    rules::{Spans, named},
};
use crate::rule::{Group, Members, Requirement, Rule, Then};

/// Somebody whom a gateway knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolledIdentity {
    pub name: String,
    pub owner: Option<String>,
    pub groups: Vec<String>,
    /// Whether it rebuilds, instead of pushing or approving.
    pub is_verifier: bool,
}

/// All whom a gateway knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enrolled {
    pub identities: Vec<EnrolledIdentity>,
}

impl Enrolled {
    fn owners(&self, counts: impl Fn(&EnrolledIdentity) -> bool) -> usize {
        let counted = self.identities.iter().filter(|identity| counts(identity));
        counted.filter_map(|identity| identity.owner.as_deref()).collect::<BTreeSet<_>>().len()
    }

    fn has(&self, group: &Group) -> bool {
        self.identities.iter().any(|identity| group.has(&identity.name, &identity.groups))
    }
}

/// Warns of what nobody enrolled could do.
pub(super) fn check(
    policy: &Policy,
    groups: &[(String, Range<usize>)],
    rules: &[(Spans, Rule)],
    enrolled: &Enrolled,
    problems: &mut Problems,
) {
    for group in &policy.groups {
        let span = groups.iter().find(|(name, _)| *name == group.name).map_or(0..0, |(_, span)| span.clone());
        if !enrolled.has(group) {
            problems.warning(span, format!("the group `{}` names nobody who is enrolled", group.name));
        } else if let Members::Listed(members) = &group.members {
            let known =
                |member: &&String| enrolled.identities.iter().any(|identity| identity.name == **member);
            let strangers: Vec<String> =
                members.iter().filter(|member| !known(member)).map(|member| format!("`{member}`")).collect();
            if !strangers.is_empty() {
                let message =
                    format!("nobody is enrolled as {}, in the group `{}`", strangers.join(", "), group.name);
                problems.warning(span, message);
            }
        }
    }
    for (spans, rule) in rules {
        let Then::Require(requirement) = &rule.then else { continue };
        requirement.walk(&mut |part| {
            let (what, have, need) = match part {
                Requirement::Rebuilds { n, .. } => ("verifiers", enrolled.owners(|who| who.is_verifier), *n),
                Requirement::Submitters { n } => ("submitters", enrolled.owners(|who| !who.is_verifier), *n),
                Requirement::Approvals { n, from } => {
                    ("members of the group", enrolled.owners(|who| from.has(&who.name, &who.groups)), *n)
                }
                _ => return,
            };
            if have < need as usize {
                let message = format!(
                    "nobody enrolled could meet `{part}` of the rule {}: the {what} that are enrolled have {have} different \
                     owners",
                    named(rule)
                );
                problems.warning(spans.then.clone(), message);
            }
        });
    }
}
