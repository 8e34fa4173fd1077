//! Why a policy says what it says: rule by rule, which condition did or didn't hold and what was found, and which parts of
//! a requirement are met. Data that a gateway can send, and text that people read.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    Policy, decide,
    facts::{Claim, Decision, Evidence, Fact, Moment},
    matching::{Answer, all},
    rule::{Condition, Then},
    scenario::Expect,
    standing::{Case, Standing},
};

/// A decision with its reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub cache: String,
    /// Digest of the policy.
    pub policy: String,
    /// Store path.
    pub path: String,
    pub submitter: String,
    pub verdict: Expect,
    /// The rule that decides, if one does.
    pub rule: Option<String>,
    /// Of a hold or rejection.
    pub code: Option<String>,
    pub message: Option<String>,
    /// Policy words of the evidence that publishing rests on.
    pub evidence: Vec<String>,
    /// What a held claim waits for.
    pub waits: Vec<String>,
    /// Seconds since 1970: when the rule gives up.
    pub until: Option<u64>,
    /// Seconds since 1970: when time alone may change the decision.
    pub again: Option<u64>,
    /// In the order of the file.
    pub rules: Vec<RuleExplained>,
}

/// What a rule says of the claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleExplained {
    pub name: String,
    pub answer: RuleAnswer,
    pub conditions: Vec<ConditionExplained>,
    /// Of the rule that decides.
    pub requirement: Option<RequirementExplained>,
    /// Of the rule that decides, where it denies: why.
    pub denies: Option<String>,
}

/// Whether a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleAnswer {
    /// It decides.
    Matches,
    DoesNotMatch,
    /// What it looks at isn't known yet, so that no later rule is asked.
    Unknown,
    /// An earlier one decided.
    NotReached,
}

/// Whether a condition holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionExplained {
    /// Such as `pname is `glibc``.
    pub condition: String,
    /// What the claim has; `null` where that isn't known.
    pub found: Option<String>,
    /// `null` where it can't be told yet.
    pub holds: Option<bool>,
}

/// How the claim stands to a requirement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequirementExplained {
    /// Such as `2 rebuilds`.
    pub requirement: String,
    pub met: bool,
    /// How many there are of what is counted.
    pub have: Option<u32>,
    /// What it waits for, where it isn't met.
    pub waits: Vec<String>,
    /// The policy words by which it is met.
    pub evidence: Vec<String>,
    pub parts: Vec<RequirementExplained>,
}

/// Judges a claim as [`decide()`] does, and says why.
pub fn explain(policy: &Policy, claim: &Claim<'_>, evidence: &Evidence, moment: Moment) -> Explanation {
    let case = Case { claim, evidence, moment };
    let mut decided = false;
    let rules = policy
        .rules
        .iter()
        .map(|rule| {
            let answer = match all(&rule.conditions, claim) {
                _ if decided => RuleAnswer::NotReached,
                Answer::Yes => RuleAnswer::Matches,
                Answer::No => RuleAnswer::DoesNotMatch,
                Answer::Unknown => RuleAnswer::Unknown,
            };
            decided |= matches!(answer, RuleAnswer::Matches | RuleAnswer::Unknown);
            let conditions = match answer {
                RuleAnswer::NotReached => vec![],
                _ => rule.conditions.iter().map(|condition| condition.explain(claim)).collect(),
            };
            let (requirement, denies) = match (&rule.then, answer) {
                (Then::Require(requirement), RuleAnswer::Matches) => {
                    (Some(RequirementExplained::of(&case.stand(requirement))), None)
                }
                (Then::Deny(reason), RuleAnswer::Matches) => (None, Some(reason.clone())),
                _ => (None, None),
            };
            RuleExplained { name: rule.name.clone(), answer, conditions, requirement, denies }
        })
        .collect();
    let decision = decide(policy, claim, evidence, moment);
    let mut explanation = Explanation {
        cache: policy.cache.clone(),
        policy: policy.digest.to_string(),
        path: claim.path.absolute(),
        submitter: claim.submitter.name.to_owned(),
        verdict: Expect::of(&decision),
        rule: None,
        code: None,
        message: None,
        evidence: vec![],
        waits: vec![],
        until: None,
        again: None,
        rules,
    };
    match decision {
        Decision::Publish { rule, evidence } => {
            explanation.rule = Some(rule);
            explanation.evidence = evidence;
        }
        Decision::Hold { rule, code, message, waits, until, again } => {
            explanation.rule = rule;
            explanation.code = Some(code.to_owned());
            explanation.message = Some(message);
            explanation.waits = waits.iter().map(ToString::to_string).collect();
            (explanation.until, explanation.again) = (until, again);
        }
        Decision::Reject { rule, code, message } => {
            explanation.rule = rule;
            explanation.code = Some(code.to_owned());
            explanation.message = Some(message);
        }
    }
    explanation
}

impl RequirementExplained {
    fn of(standing: &Standing<'_>) -> Self {
        Self {
            requirement: standing.requirement.to_string(),
            met: standing.met,
            have: standing.have,
            waits: standing.waits.iter().map(ToString::to_string).collect(),
            evidence: standing.words.iter().map(|word| (*word).to_owned()).collect(),
            parts: standing.parts.iter().map(Self::of).collect(),
        }
    }
}

impl Condition {
    fn explain(&self, claim: &Claim<'_>) -> ConditionExplained {
        let holds = match self.holds(claim) {
            Answer::Yes => Some(true),
            Answer::No => Some(false),
            Answer::Unknown => None,
        };
        ConditionExplained { condition: self.to_string(), found: self.found(claim), holds }
    }

    /// What the claim has of what the condition looks at; `None` where that isn't known.
    fn found(&self, claim: &Claim<'_>) -> Option<String> {
        let fact = |fact: Fact<String>| match fact {
            Fact::Known(text) => Some(text),
            Fact::Absent => Some("there is none".to_owned()),
            Fact::Unknown => None,
        };
        match self {
            Self::Text { field, .. } => fact(field.of(claim).map(|text| format!("`{text}`"))),
            Self::Submitter { .. } => {
                let who = &claim.submitter;
                let groups: Vec<String> = who.groups.iter().map(|group| format!("`@{group}`")).collect();
                let groups = if groups.is_empty() {
                    String::new()
                } else {
                    format!(", enrolled in {}", groups.join(", "))
                };
                Some(format!("`{}`{groups}", who.name))
            }
            Self::ContentAddressed(_) => {
                let words = |is| if is { "content-addressed" } else { "not content-addressed" };
                fact(claim.content_addressed.map(|is| words(is).to_owned()))
            }
            Self::Size { .. } => Some(format!("{} bytes", claim.nar_size)),
            Self::Sources(_) => fact(claim.sources.map(|leaves| match leaves.len() {
                1 => "1 source".to_owned(),
                n => format!("{n} sources"),
            })),
            Self::Not(conditions) => {
                let found: Option<Vec<String>> =
                    conditions.iter().map(|condition| condition.found(claim)).collect();
                found.map(|found| found.join(", "))
            }
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.as_ref().map(|code| format!(" [{code}]")).unwrap_or_default();
        writeln!(f, "{} {}{code}", self.verdict.word(), self.path)?;
        if let Some(message) = &self.message {
            writeln!(f, "  {message}")?;
        }
        if !self.waits.is_empty() {
            writeln!(f, "  waits for {}", self.waits.join(", "))?;
        }
        if !self.evidence.is_empty() {
            writeln!(f, "  rests on {}", self.evidence.join(", "))?;
        }
        writeln!(f, "rules of `{}`, in order, for a claim by `{}`:", self.cache, self.submitter)?;
        self.rules.iter().try_for_each(|rule| rule.fmt(f))
    }
}

impl fmt::Display for RuleExplained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answer = match self.answer {
            RuleAnswer::Matches => "matches",
            RuleAnswer::DoesNotMatch => "doesn't match",
            RuleAnswer::Unknown => "can't be told yet",
            RuleAnswer::NotReached => return writeln!(f, "  {}: not reached", self.name),
        };
        writeln!(f, "  {}: {answer}", self.name)?;
        for condition in &self.conditions {
            let holds = match condition.holds {
                Some(true) => "yes",
                Some(false) => "no",
                None => "unknown",
            };
            let found = condition.found.as_deref().unwrap_or("not known yet");
            writeln!(f, "    {holds}: {} (found: {found})", condition.condition)?;
        }
        if let Some(reason) = &self.denies {
            writeln!(f, "    denies: {reason}")?;
        }
        self.requirement.iter().try_for_each(|requirement| requirement.lines(f, 4))
    }
}

impl RequirementExplained {
    fn lines(&self, f: &mut fmt::Formatter<'_>, indent: usize) -> fmt::Result {
        let met = if self.met { "met" } else { "missing" };
        let have = match self.have {
            Some(have) if self.parts.is_empty() => format!(" (there are {have})"),
            _ => String::new(),
        };
        writeln!(f, "{:indent$}{met}: {}{have}", "", self.requirement)?;
        self.parts.iter().try_for_each(|part| part.lines(f, indent + 2))
    }
}
