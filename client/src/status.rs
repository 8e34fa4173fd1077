//! Asks what became of pushes and paths. Doesn't wait and doesn't send anything.

use pushgate_formats::{
    StorePath,
    api::{PathState, PathStatus, PushStatus, PushSummary},
    jobs::{BuildState, BuildStatus},
};
use serde::Serialize;

use crate::{
    api::is_push_id,
    nix::{LocationError, StoreLocation},
    session::{Session, SessionError},
};

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Location(#[from] LocationError),
    #[error(
        "`{0}` is neither the id of a push nor a store path nor a link to one; `pushgate status` lists your pushes"
    )]
    Neither(String),
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// What did I push lately?
    Recent,
    /// What became of this push?
    Push(String),
    /// What became of this path?
    Path(StorePath),
}

impl Question {
    /// Tells ids of pushes from paths: a path has a slash, is a store path's base name, or is the name of a link.
    pub fn parse(text: Option<&str>, location: &StoreLocation) -> Result<Self, StatusError> {
        let Some(text) = text else { return Ok(Self::Recent) };
        if let Ok(path) = StorePath::from_base_name(text) {
            return Ok(Self::Path(path));
        }
        if text.contains('/') || std::fs::symlink_metadata(text).is_ok() {
            return Ok(Self::Path(location.resolve_root(text)?));
        }
        if is_push_id(text) {
            return Ok(Self::Push(text.to_owned()));
        }
        Err(StatusError::Neither(text.escape_debug().to_string()))
    }
}

/// The answer; as JSON it's what the gateway sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    Recent(Vec<PushSummary>),
    Push(PushStatus),
    Path(PathStatus),
}

impl Answer {
    /// Whether something in it was rejected.
    pub fn has_rejections(&self) -> bool {
        let rejected = |path: &PathStatus| path.state == PathState::Rejected;
        match self {
            Self::Recent(_) => false,
            Self::Push(push) => {
                let refused = |build: &BuildStatus| build.state == BuildState::Refused;
                push.paths.iter().any(rejected) || push.builds.iter().any(refused)
            }
            Self::Path(path) => rejected(path),
        }
    }
}

/// Asks the gateway; `cache` matters for paths only.
pub async fn ask(session: &Session, question: &Question, cache: &str) -> Result<Answer, StatusError> {
    let greeting = session.greet().await?;
    let signer = session.signer();
    let answer = match question {
        Question::Recent => session.api.pushes(&signer).await.map(Answer::Recent),
        Question::Push(id) => session.api.own_push(id, &signer).await.map(Answer::Push),
        Question::Path(path) => {
            greeting.cache(session, cache)?;
            session.api.path(cache, path, &signer).await.map(Answer::Path)
        }
    };
    Ok(answer.map_err(|e| greeting.explain(e))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_paths() {
        let location = StoreLocation::from_uri("/nowhere").unwrap();
        let parse = |text: &str| Question::parse(Some(text), &location);
        let base = "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-2.12";
        let path = StorePath::from_base_name(base).unwrap();
        assert_eq!(Question::parse(None, &location).unwrap(), Question::Recent);
        assert_eq!(parse(base).unwrap(), Question::Path(path.clone()));
        assert_eq!(parse(&format!("/nix/store/{base}/bin/hello")).unwrap(), Question::Path(path));
        assert_eq!(parse("01jd8x").unwrap(), Question::Push("01jd8x".into()));
        assert!(matches!(parse("a b"), Err(StatusError::Neither(_))));
        assert!(matches!(parse("./not-there"), Err(StatusError::Location(_))));
    }
}
