//! Tokens with which stock Nix pushes for a submitter.

use pushgate_formats::acts::{ActDone, Deed, TokenInfo};
use serde::Serialize;

use super::{AdminError, Said, act, columns, draw};
use crate::{cli::admin::Token, clock, session::Session};

/// A token as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Made<'a> {
    login: &'a str,
    token: &'a str,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    #[serde(flatten)]
    done: ActDone,
}

pub(super) async fn run(session: &Session, command: &Token) -> Result<Said, AdminError> {
    match command {
        Token::List(args) => {
            let greeting = session.greet().await?;
            let all = session.api.tokens(args.name.as_deref(), &session.signer()).await;
            let all = all.map_err(|e| greeting.explain(e))?;
            Ok(Said::new(&args.common, &all, || Said::words(lines(&all, clock::now()))))
        }
        Token::Make(args) => {
            let (text, token) = draw()?;
            let expires = args.days.map(|days| clock::now() + days * 86_400);
            let (name, cache) = (args.name.clone(), args.cache.clone());
            let deed = Deed::MakeToken { name, cache, token, token_expires: expires };
            let done = act(session, deed, args.reason.text.as_deref()).await?;
            let made = Made { login: &args.name, token: &text, expires, done };
            Ok(Said::new(&args.common, &made, || Said {
                out: format!("{text}\n"),
                note: format!("for a netrc file: machine HOST login {} password TOKEN\n", args.name),
            }))
        }
        Token::Revoke(args) => {
            let deed = Deed::RevokeToken { name: args.name.clone(), token: args.token };
            let done = act(session, deed, args.reason.text.as_deref()).await?;
            let tokens = if done.changed == 1 { "token" } else { "tokens" };
            Ok(Said::new(&args.common, &done, || {
                Said::words(format!("revoked {} {tokens} of {}\n", done.changed, args.name))
            }))
        }
    }
}

fn lines(all: &[TokenInfo], now: u64) -> String {
    if all.is_empty() {
        return "no tokens\n".to_owned();
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|token| {
            let state = match (token.revoked, token.expires) {
                (Some(revoked), _) => format!("revoked {}", clock::utc(revoked)),
                (None, Some(expires)) if expires <= now => format!("expired {}", clock::utc(expires)),
                (None, Some(expires)) => format!("good until {}", clock::utc(expires)),
                (None, None) => "good".to_owned(),
            };
            let made = format!("made {}", clock::utc(token.created));
            vec![token.token.base32(), token.name.clone(), token.cache.clone(), made, state]
        })
        .collect();
    columns(&rows).into_iter().map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use pushgate_formats::Sha256;

    use super::*;

    #[test]
    fn a_list() {
        let token = TokenInfo {
            token: Sha256::of(b"x"),
            name: "alice".into(),
            cache: "main".into(),
            created: 0,
            expires: Some(100),
            revoked: None,
        };
        let all = [token.clone(), TokenInfo { name: "bo".into(), revoked: Some(50), ..token }];
        let hash = Sha256::of(b"x").base32();
        assert_eq!(
            lines(&all, 99),
            format!(
                "{hash}  alice  main  made 1970-01-01 00:00:00Z  good until 1970-01-01 00:01:40Z\n\
                 {hash}  bo     main  made 1970-01-01 00:00:00Z  revoked 1970-01-01 00:00:50Z\n"
            )
        );
        assert!(lines(&all, 100).contains("expired 1970-01-01 00:01:40Z"));
        assert_eq!(lines(&[], 0), "no tokens\n");
    }
}
