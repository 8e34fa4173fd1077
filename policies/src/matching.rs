//! Whether a rule matches a claim: yes, no, or not to be told yet. A fact that isn't known never makes a rule that is about
//! it fail, so that withholding it leads to no other rule.

use std::ops::Not;

use crate::{
    Policy,
    facts::{Built, Claim, Fact},
    names::package,
    rule::{Condition, Field, SourceMatch},
};

/// An answer in three-valued logic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
    Unknown,
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl Not for Answer {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
        }
    }
}

/// What is there and fits: what isn't there equals nothing.
fn of<T>(fact: Fact<T>, fits: impl FnOnce(T) -> bool) -> Answer {
    match fact {
        Fact::Known(value) => fits(value).into(),
        Fact::Absent => Answer::No,
        Fact::Unknown => Answer::Unknown,
    }
}

/// No as soon as one says no, whatever isn't known.
pub(crate) fn all(conditions: &[Condition], claim: &Claim<'_>) -> Answer {
    let mut answer = Answer::Yes;
    for condition in conditions {
        match condition.holds(claim) {
            Answer::Yes => {}
            Answer::No => return Answer::No,
            Answer::Unknown => answer = Answer::Unknown,
        }
    }
    answer
}

impl Condition {
    /// Whether it holds of the claim.
    pub fn holds(&self, claim: &Claim<'_>) -> Answer {
        match self {
            Self::Text { field, not, values } => {
                let fits = of(field.of(claim), |text| values.matches(text));
                if *not { !fits } else { fits }
            }
            Self::Submitter { not, names, groups } => {
                let who = &claim.submitter;
                let fits = names.matches(who.name) || groups.iter().any(|g| g.has(who.name, who.groups));
                (fits != *not).into()
            }
            // what has no such fact is none
            Self::ContentAddressed(wanted) => match claim.content_addressed {
                Fact::Known(is) => (is == *wanted).into(),
                Fact::Absent => (!wanted).into(),
                Fact::Unknown => Answer::Unknown,
            },
            Self::Size { min, max } => (min.is_none_or(|min| min <= claim.nar_size)
                && max.is_none_or(|max| claim.nar_size <= max))
            .into(),
            Self::Sources(sources) => of(claim.sources, |leaves| {
                let mut fitting = leaves.iter().map(|leaf| sources.fits(&leaf.urls, &leaf.hash));
                if sources.every {
                    !leaves.is_empty() && fitting.all(|fits| fits)
                } else {
                    fitting.any(|fits| fits)
                }
            }),
            Self::Not(conditions) => !all(conditions, claim),
        }
    }
}

impl SourceMatch {
    fn fits(&self, urls: &[String], hash: &pushgate_formats::NixHash) -> bool {
        self.urls.as_ref().is_none_or(|texts| urls.iter().any(|url| texts.matches(url)))
            && self.hashes.as_ref().is_none_or(|hashes| hashes.contains(hash))
    }
}

impl Field {
    /// The claim's value of it.
    pub fn of<'a>(&self, claim: &Claim<'a>) -> Fact<&'a str> {
        let built = |part: fn(Built<'a>) -> &'a str| claim.built.map(part);
        match self {
            Self::Pname => Fact::Known(package(claim.path.name()).0),
            Self::Version => Fact::Known(package(claim.path.name()).1),
            Self::Output => built(|b| b.output),
            Self::System => built(|b| b.system),
            Self::Builder => built(|b| b.builder),
            Self::Owner => claim.submitter.owner.map_or(Fact::Absent, Fact::Known),
            Self::Cache => Fact::Known(claim.cache),
            Self::Env(name) => match claim.built.map(|b| b.env.get(name)) {
                Fact::Known(Some(value)) => Fact::Known(value.as_str()),
                Fact::Known(None) | Fact::Absent => Fact::Absent,
                Fact::Unknown => Fact::Unknown,
            },
        }
    }
}

/// Which rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The rule with this place in the file.
    Rule(usize),
    /// This rule may match; what it looks at isn't known yet.
    Unknown(usize),
    Nothing,
}

impl Policy {
    /// The first rule that matches, or may.
    pub fn find(&self, claim: &Claim<'_>) -> Found {
        for (i, rule) in self.rules.iter().enumerate() {
            match all(&rule.conditions, claim) {
                Answer::Yes => return Found::Rule(i),
                Answer::Unknown => return Found::Unknown(i),
                Answer::No => {}
            }
        }
        Found::Nothing
    }
}
