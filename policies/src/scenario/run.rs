//! The tests of a policy file.

use serde::{Deserialize, Serialize};

use super::Scenario;
use crate::{Policy, facts::Decision};

/// A `[[test]]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestCase {
    pub name: String,
    pub given: Scenario,
    pub expect: Expected,
    /// Line of the file.
    pub line: usize,
}

/// What a test expects; what isn't named may be anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub verdict: Expect,
    /// Name of the rule that decides.
    pub rule: Option<String>,
    /// Code of a hold or rejection.
    pub code: Option<String>,
}

/// What becomes of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    Publish,
    Hold,
    Reject,
}

impl Expect {
    /// As policy files have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Hold => "hold",
            Self::Reject => "reject",
        }
    }

    /// What a decision comes to.
    pub const fn of(decision: &Decision) -> Self {
        match decision {
            Decision::Publish { .. } => Self::Publish,
            Decision::Hold { .. } => Self::Hold,
            Decision::Reject { .. } => Self::Reject,
        }
    }
}

/// How a test came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TestResult {
    pub name: String,
    /// Line of the file.
    pub line: usize,
    pub passed: bool,
    /// Where it failed: what was expected, and what came instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<String>,
}

impl Policy {
    /// Runs the file's tests, in its order.
    pub fn run_tests(&self) -> Vec<TestResult> {
        self.tests.iter().map(|test| test.run(self)).collect()
    }
}

impl TestCase {
    fn run(&self, policy: &Policy) -> TestResult {
        let decision = self.given.judge(policy);
        let verdict = Expect::of(&decision);
        let (rule, code, message) = match &decision {
            Decision::Publish { rule, .. } => (Some(rule.as_str()), None, None),
            Decision::Hold { rule, code, message, .. } | Decision::Reject { rule, code, message } => {
                (rule.as_deref(), Some(*code), Some(message))
            }
        };
        let wanted = &self.expect;
        let passed = wanted.verdict == verdict
            && wanted.rule.as_deref().is_none_or(|wanted| rule == Some(wanted))
            && wanted.code.as_deref().is_none_or(|wanted| code == Some(wanted));
        let difference = (!passed).then(|| {
            let wanted = said(wanted.verdict, wanted.rule.as_deref(), wanted.code.as_deref());
            let why = message.map(|message| format!(": {message}")).unwrap_or_default();
            format!("expected {wanted}, but the policy says {}{why}", said(verdict, rule, code))
        });
        TestResult { name: self.name.clone(), line: self.line, passed, difference }
    }
}

fn said(verdict: Expect, rule: Option<&str>, code: Option<&str>) -> String {
    let rule = rule.map(|rule| format!(" by the rule `{rule}`")).unwrap_or_default();
    let code = code.map(|code| format!(" with `{code}`")).unwrap_or_default();
    format!("`{}`{rule}{code}", verdict.word())
}
