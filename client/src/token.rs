//! Tokens for stock Nix: asks the gateway for one and writes netrc lines. Keeps none.

use pushgate_formats::api::TokenMade;

use crate::session::{Session, SessionError};

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the gateway's answer can't stand in a netrc file: login and token must be without spaces")]
    NotForNetrc,
    #[error("the gateway's address `{0}` names no host")]
    NoHost(String),
}

/// Has the gateway make a token for this cache.
pub async fn make(session: &Session, cache: &str) -> Result<TokenMade, TokenError> {
    let greeting = session.greet().await?;
    greeting.cache(session, cache)?;
    let made = session.api.make_token(cache, &session.signer()).await.map_err(|e| greeting.explain(e))?;
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if plain(&made.login) && plain(&made.token) { Ok(made) } else { Err(TokenError::NotForNetrc) }
}

/// The line for a netrc file, which knows hosts but no ports (`man netrc`).
pub fn netrc_line(url: &str, made: &TokenMade) -> Result<String, TokenError> {
    let no_host = || TokenError::NoHost(url.to_owned());
    let host =
        reqwest::Url::parse(url).ok().and_then(|u| u.host_str().map(str::to_owned)).ok_or_else(no_host)?;
    Ok(format!("machine {host} login {} password {}", made.login, made.token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netrc_line_names_the_host_alone() {
        let made = TokenMade { login: "alice".into(), token: "t0k".into() };
        let line = netrc_line("http://cache.example.org:8080/", &made).unwrap();
        assert_eq!(line, "machine cache.example.org login alice password t0k");
        assert!(netrc_line("nonsense", &made).is_err());
    }
}
