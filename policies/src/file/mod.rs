//! The policy file: parsed whole or refused whole, with line and column of all that is wrong.

mod builds;
mod cases;
mod enrolled;
mod head;
mod matches;
mod problem;
mod requires;
mod rules;
mod sense;
mod tree;

use std::collections::BTreeSet;

use pushgate_formats::{Sha256, keys::PublicKey};
use toml::de::DeTable;

pub use enrolled::{Enrolled, EnrolledIdentity};
pub use head::{CLOSURES, FIELDS};
use problem::Problems;
pub use problem::{Place, PolicyError, Problem, Severity};

use crate::{
    builds::BuildLimits,
    limits::{Limits, Retention, SubmitterLimit},
    rebuilds::Rebuilds,
    rule::{Condition, Field, Group, Requirement, Rule, Then},
    scenario::{Given, TestCase},
};

/// Largest policy file read, in bytes.
pub const MAX_POLICY: usize = 4 << 20;

/// A policy in force for one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Name of the cache.
    pub cache: String,
    pub closure: Closure,
    /// By name.
    pub groups: Vec<Group>,
    /// Of everybody; [`Policy::limits_for`] knows more.
    pub limits: Limits,
    /// In the order of the file.
    pub submitter_limits: Vec<SubmitterLimit>,
    pub retention: Retention,
    pub rebuilds: Rebuilds,
    /// In the order of the file; [`Policy::builds_for`] looks there. None: nobody may ask for builds.
    pub builds: Vec<BuildLimits>,
    pub upstreams: Vec<Upstream>,
    /// In the order of the file; at least one.
    pub rules: Vec<Rule>,
    /// In the order of the file; [`Policy::run_tests`] runs them.
    pub tests: Vec<TestCase>,
    /// sha256 of the file's text, by which decisions name the policy that made them.
    pub digest: Sha256,
}

/// What counts as "every reference is served".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Closure {
    /// Published in this cache, or at one of the policy's upstreams.
    #[default]
    Upstreams,
    /// Published in this cache, always.
    SelfContained,
}

/// A cache that is trusted to serve references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// By which rules name it.
    pub name: Option<String>,
    /// `http://…` or `https://…`, without a slash at its end.
    pub url: String,
    /// The key whose signature its narinfos must carry.
    pub key: PublicKey,
}

/// What a gateway has to load so that its claims can be judged: what no rule looks at costs nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Variables of the derivation's environment.
    pub env: BTreeSet<String>,
    /// Output, system, builder or environment.
    pub built: bool,
    /// The fixed-output leaves of the derivation closure.
    pub sources: bool,
    /// URLs of the upstreams that can meet a requirement. Of the others too a differing hash counts, where it is known.
    pub upstreams: Vec<String>,
    /// Whether a rule asks for rebuilds, or draws claims for them.
    pub rebuilds: bool,
    /// Who else claims the same.
    pub submitters: bool,
    pub approvals: bool,
    pub sigstore: bool,
    /// Attested fetches of sources.
    pub fetches: bool,
}

/// What came of reading a file.
#[derive(Debug, Clone)]
pub struct Checked {
    /// `None` where a problem is an error.
    pub policy: Option<Policy>,
    /// Errors and warnings, in the order of the file.
    pub problems: Vec<Problem>,
}

impl Policy {
    /// Parses the text of the policy file of the cache `cache`; `file` is only shown in messages.
    pub fn parse(text: &str, file: &str, cache: &str) -> Result<Self, PolicyError> {
        let checked = Self::check(text, Some(cache));
        checked.policy.ok_or_else(|| PolicyError { file: file.into(), problems: checked.problems })
    }

    /// Parses the text of a policy file, and gives warnings too. `cache`: which cache's file it has to be.
    pub fn check(text: &str, cache: Option<&str>) -> Checked {
        Self::check_with(text, cache, None)
    }

    /// The same, and warns of what nobody who is enrolled could do.
    pub fn check_with(text: &str, cache: Option<&str>, enrolled: Option<&Enrolled>) -> Checked {
        let whole = |message| Checked {
            policy: None,
            problems: vec![Problem { severity: Severity::Error, message, place: None }],
        };
        if text.len() > MAX_POLICY {
            return whole(format!("the file has {} bytes; {MAX_POLICY} are allowed", text.len()));
        }
        let mut problems = Problems::default();
        let (table, mistakes) = DeTable::parse_recoverable(text);
        for mistake in &mistakes {
            problems.error(mistake.span().unwrap_or(0..0), mistake.message());
        }
        // what is missing after a mistake of the form is no mistake of its own
        if problems.has_errors() {
            return Checked { policy: None, problems: problems.placed(text) };
        }
        let policy = head::read(&table, text, cache, enrolled, &mut problems);
        let policy = policy.filter(|_| !problems.has_errors());
        Checked { policy, problems: problems.placed(text) }
    }

    /// Reads a piece of evidence as a command line has it: a word, `rebuilds=1`, `approvals=1@core`, or a table as in a test.
    pub fn evidence(&self, text: &str) -> Result<Given, PolicyError> {
        let names = cases::Names { groups: &self.groups, upstreams: &self.upstreams };
        cases::evidence(text, &names).map_err(|problems| PolicyError { file: "evidence".into(), problems })
    }

    /// What a gateway has to load for [`crate::decide()`].
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        for rule in &self.rules {
            rule.conditions.iter().for_each(|condition| needs.condition(condition));
            needs.rebuilds |= rule.sample.is_some();
            let Then::Require(requirement) = &rule.then else { continue };
            requirement.walk(&mut |part| match part {
                Requirement::Upstream(Some(url)) => needs.upstreams.push(url.clone()),
                Requirement::Upstream(None) => {
                    needs.upstreams.extend(self.upstreams.iter().map(|upstream| upstream.url.clone()));
                }
                Requirement::Rebuilds { .. } => needs.rebuilds = true,
                Requirement::Submitters { .. } => needs.submitters = true,
                Requirement::Approvals { .. } => needs.approvals = true,
                Requirement::Sigstore(_) => needs.sigstore = true,
                Requirement::Sources(entries) => {
                    needs.sources = true;
                    needs.fetches |= entries.iter().any(|entry| entry.hash.is_none());
                }
                _ => {}
            });
        }
        // in the file's order, each once
        let wanted = std::mem::take(&mut needs.upstreams);
        let urls = self.upstreams.iter().map(|upstream| &upstream.url);
        needs.upstreams = urls.filter(|url| wanted.contains(url)).cloned().collect();
        needs
    }
}

impl Needs {
    fn condition(&mut self, condition: &Condition) {
        match condition {
            Condition::Text { field: Field::Env(name), .. } => {
                self.built = true;
                self.env.insert(name.clone());
            }
            Condition::Text { field: Field::Output | Field::System | Field::Builder, .. } => {
                self.built = true
            }
            Condition::Sources(_) => self.sources = true,
            Condition::Not(conditions) => conditions.iter().for_each(|condition| self.condition(condition)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tests;
