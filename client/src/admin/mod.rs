//! What admins do: signs acts, sends them, and asks who is there and what was done. Doesn't know the command line's words,
//! nor where its answers are printed.

pub mod claims;
pub mod events;
pub mod sample;
pub mod submitters;
pub mod tokens;

use pushgate_formats::{
    Sha256, StorePath,
    acts::{Act, ActDone, Deed},
    api::MAX_VALIDITY,
    base32,
    dsse::{self, Envelope},
    hash::hex_encode,
    keys::SecretKey,
};
use serde::Serialize;

use crate::{
    api::{json, printable},
    cli::admin::{Admin, Command, Common},
    clock,
    nix::LocationError,
    output,
    session::{Session, SessionError},
};

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
    #[error("the gateway has no {what} `{name}`")]
    Absent { what: &'static str, name: String },
    #[error(transparent)]
    Location(#[from] LocationError),
    #[error("no open claim of `{path}` is in `{cache}`; `pushgate why` says what became of it")]
    NothingClaimed { path: StorePath, cache: String },
    #[error(
        "`{path}` is published in `{cache}` with NAR hash `{nar_hash}`: there is nothing to decide any more"
    )]
    Published { path: StorePath, cache: String, nar_hash: Sha256 },
    #[error("the draws of epoch {epoch} aren't what they have to be:\n{}", words.join("\n"))]
    Dishonest { epoch: u64, words: Vec<String> },
    #[error("`{path}` is claimed with different contents, {claimed}: say with `--nar-hash` which you mean")]
    SeveralClaimed { path: StorePath, claimed: String },
}

/// What a command has to say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// For standard output.
    pub out: String,
    /// For the person beside it, on standard error.
    pub note: String,
}

impl Said {
    /// A document for programs, or words for people.
    fn new(common: &Common, document: &impl Serialize, words: impl FnOnce() -> Self) -> Self {
        if common.json { Self { out: output::json(document), note: String::new() } } else { words() }
    }

    /// Words alone.
    fn words(out: String) -> Self {
        Self { out, note: String::new() }
    }
}

/// Carries a command out. Events are shown page by page: `show` gives false where nobody reads on.
pub async fn run(
    session: &Session,
    admin: &Admin,
    show: impl FnMut(&str) -> bool,
) -> Result<Said, AdminError> {
    match &admin.command {
        Command::Submitter(command) => submitters::run(session, command).await,
        Command::Token(command) => tokens::run(session, command).await,
        Command::Held(command) => claims::held(session, command, show).await,
        Command::Conflict(command) => claims::conflict(session, command, show).await,
        Command::Events(args) => events::run(session, args, show).await,
        Command::Sample(command) => sample::run(session, command).await,
    }
}

/// Signs and sends what is decided.
async fn act(session: &Session, what: Deed, reason: Option<&str>) -> Result<ActDone, AdminError> {
    let greeting = session.greet().await?;
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(AdminError::Random)?;
    let envelope =
        seal(&session.gateway.id, what, reason.unwrap_or_default(), &session.key, clock::now(), nonce);
    Ok(session.api.act(json(&envelope)).await.map_err(|e| greeting.explain(e))?)
}

fn seal(gateway: &str, what: Deed, reason: &str, key: &SecretKey, now: u64, nonce: [u8; 16]) -> Envelope {
    let act = Act {
        version: 1,
        gateway: gateway.to_owned(),
        nonce: hex_encode(&nonce),
        issued: now,
        expires: now + MAX_VALIDITY,
        reason: reason.to_owned(),
        what,
    };
    Envelope::seal(dsse::ACT, &json(&act), key)
}

/// Draws a one-time code or a token: 160 random bits that no shell or netrc file stumbles over, and their sha256, which is
/// all that the gateway gets.
fn draw() -> Result<(String, Sha256), AdminError> {
    let mut bytes = [0; 20];
    getrandom::fill(&mut bytes).map_err(AdminError::Random)?;
    let code = base32::encode(&bytes);
    let hash = Sha256::of(code.as_bytes());
    Ok((code, hash))
}

/// Lines in columns, each as wide as its widest cell. What servers said is made printable.
fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| {
        rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use pushgate_formats::keys::KeyName;

    use super::*;
    use crate::keyfile;

    #[test]
    fn the_gateway_reads_what_was_sealed() {
        let key = keyfile::generate(KeyName::new("ada-1").unwrap()).unwrap();
        let what = Deed::Freeze { name: "alice".into() };
        let envelope = seal("5f", what.clone(), "lost laptop", &key, 1000, [0xab; 16]);
        let payload = envelope.unverified_payload(dsse::ACT).unwrap();
        envelope.verify(&payload, &key.public()).unwrap();
        let act = Act::parse(&payload).unwrap();
        assert_eq!((act.what, act.reason.as_str(), act.gateway.as_str()), (what, "lost laptop", "5f"));
        assert_eq!((act.issued, act.expires, act.nonce), (1000, 1000 + MAX_VALIDITY, "ab".repeat(16)));
    }

    #[test]
    fn codes_are_drawn() {
        let ((one, hash), (two, _)) = (draw().unwrap(), draw().unwrap());
        assert_ne!(one, two);
        assert_eq!((one.len(), hash), (32, Sha256::of(one.as_bytes())));
    }

    #[test]
    fn columns_line_up_and_stay_printable() {
        let rows = [vec!["a".into(), "\u{1b}[1mbold".into()], vec!["longer".into(), String::new()]];
        assert_eq!(columns(&rows), ["a       [1mbold", "longer"]);
    }
}
