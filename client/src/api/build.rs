//! What a client asks while a build at the cache goes on: its log, and what the cache already has.

use std::time::Duration;

use pushgate_formats::StorePath;
use reqwest::{
    StatusCode,
    header::{AUTHORIZATION, HeaderMap},
};

use super::{Answer, Api, ApiError, PATIENCE, PushHandle, Tries, in_url};

/// Says that a log has no more than this piece.
const LOG_ENDED: &str = "pushgate-log-ended";

/// A piece of a build's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPiece {
    /// As the builder wrote them: not fit for a terminal.
    pub bytes: Vec<u8>,
    /// Nothing comes after it.
    pub ended: bool,
}

impl Api {
    /// The log of a build that a push asked for, from an offset on; waits at the gateway for up to `wait` seconds until
    /// there is something. `None` where there is no log yet.
    pub async fn build_log(
        &self,
        push: &PushHandle,
        derivation: &StorePath,
        from: u64,
        wait: u64,
    ) -> Result<Option<LogPiece>, ApiError> {
        let name = in_url(derivation.base_name());
        let url = self.url(&format!("/api/v1/pushes/{}/builds/{name}/log?from={from}&wait={wait}", push.id));
        let patience = PATIENCE + Duration::from_secs(wait);
        let make = || self.http.get(&url).header(AUTHORIZATION, push.authorization.clone()).timeout(patience);
        let read = |url: &str, answer: Answer| {
            if answer.status == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let answer = answer.good(&self.base, url)?;
            Ok(Some(LogPiece { ended: has_ended(&answer.headers), bytes: answer.body }))
        };
        self.repeat(Tries::Many, make, read).await
    }

    /// Whether the cache has published the path, as anybody can see. The cache's name is checked.
    pub async fn is_published(&self, cache: &str, path: &StorePath) -> Result<bool, ApiError> {
        let url = self.url(&format!("/{cache}/{}.narinfo", path.hash_part()));
        let read = |url: &str, answer: Answer| {
            if answer.status == StatusCode::NOT_FOUND {
                return Ok(false);
            }
            answer.good(&self.base, url).map(|_| true)
        };
        self.repeat(Tries::Many, || self.http.get(&url).timeout(PATIENCE), read).await
    }
}

fn has_ended(headers: &HeaderMap) -> bool {
    headers.get(LOG_ENDED).is_some_and(|value| value == "true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_true_ends_a_log() {
        let headers = |value: &'static str| [(LOG_ENDED.parse().unwrap(), value.parse().unwrap())];
        assert!(has_ended(&headers("true").into_iter().collect()));
        assert!(!has_ended(&headers("false").into_iter().collect()));
        assert!(!has_ended(&HeaderMap::new()));
    }
}
