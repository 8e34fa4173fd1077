//! `pushgate policy explain`.

use std::{
    io,
    path::{Path, PathBuf},
};

use pushgate_policies::{PolicyError, explain::Explanation, file::Severity, scenario::Scenario, units};

use super::read;
use crate::cli::PolicyExplain;

#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error("{path}")]
    Read { path: PathBuf, source: io::Error },
    /// On several lines.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("`{0}` is neither a store path nor a name of one")]
    Path(String),
    #[error("`{0}` is not a size, such as `4 GiB`")]
    Size(String),
    #[error("`{0}` is not `NAME=VALUE`")]
    Env(String),
}

/// A policy and a claim to judge by it.
pub type Question = PolicyExplain;

/// Says what a policy file says of such a claim, and why.
pub fn explain(question: &Question, policy: &Path) -> Result<Explanation, ExplainError> {
    let file = policy.display().to_string();
    let checked =
        read(policy, None).map_err(|source| ExplainError::Read { path: policy.to_owned(), source })?;
    let Some(policy) = checked.policy else {
        let mut problems = checked.problems;
        problems.retain(|problem| problem.severity == Severity::Error);
        return Err(PolicyError { file, problems }.into());
    };
    let path = Scenario::path(&question.path).ok_or_else(|| ExplainError::Path(question.path.clone()))?;
    let mut scenario = Scenario::new(path, question.submitter.as_deref().unwrap_or_default());
    scenario.owner.clone_from(&question.owner);
    scenario.groups.clone_from(&question.groups);
    scenario.system.clone_from(&question.system);
    scenario.output.clone_from(&question.output);
    for variable in &question.env {
        let (name, value) = variable.split_once('=').ok_or_else(|| ExplainError::Env(variable.clone()))?;
        scenario.env.insert(name.to_owned(), value.to_owned());
    }
    if let Some(text) = &question.size {
        scenario.size = units::size(text).ok_or_else(|| ExplainError::Size(text.clone()))?;
    }
    for text in &question.evidence {
        scenario.evidence.push(policy.evidence(text)?);
    }
    Ok(scenario.explain(&policy))
}
