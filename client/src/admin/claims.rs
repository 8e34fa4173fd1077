//! What people say about claims: yes, no, that one may go without a rebuild, and which of several stands. Says only what
//! the gateway may do with it; whether it counts, the policy decides there.

use std::{collections::BTreeSet, time::Duration};

use pushgate_formats::{
    Sha256, StorePath,
    acts::{ActDone, Deed},
    review::{ClaimInfo, Conflict as ConflictShown},
};
use serde::Serialize;

use super::{AdminError, Said, act, columns};
use crate::{
    cli::claims::{Claim, Conflict, ConflictList, Decide, Held, HeldList, Settle},
    clock, output, review,
    session::{Greeting, Session},
};

/// How often the gateway is asked what came of an act, and how long between: it judges in its own time.
const LOOKS: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(200);

/// What was decided, and the claims that it was about as they are then.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Decided {
    path: StorePath,
    nar_hash: Sha256,
    /// Seconds since 1970: until when it counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    #[serde(flatten)]
    done: ActDone,
    claims: Vec<ClaimInfo>,
}

pub(super) async fn held(
    session: &Session,
    command: &Held,
    show: impl FnMut(&str) -> bool,
) -> Result<Said, AdminError> {
    match command {
        Held::List(args) => list(session, args, show).await,
        Held::Approve(args) => {
            let deed = |cache, path, nar_hash, until| Deed::Approve { cache, path, nar_hash, until };
            decide(session, args, show, "approved", deed).await
        }
        Held::Reject(args) => {
            let deed = |cache, path, nar_hash, until| Deed::Reject { cache, path, nar_hash, until };
            decide(session, args, show, "refused", deed).await
        }
        Held::Waive(args) => {
            let waives = || "rebuilds".to_owned();
            let deed =
                |cache, path, nar_hash, until| Deed::Waive { cache, path, nar_hash, until, waives: waives() };
            decide(session, args, show, "let go without rebuilds", deed).await
        }
    }
}

pub(super) async fn conflict(
    session: &Session,
    command: &Conflict,
    show: impl FnMut(&str) -> bool,
) -> Result<Said, AdminError> {
    match command {
        Conflict::List(args) => conflicts(session, args).await,
        Conflict::Settle(args) => settle(session, args, show).await,
    }
}

async fn list(
    session: &Session,
    args: &HeldList,
    mut show: impl FnMut(&str) -> bool,
) -> Result<Said, AdminError> {
    let greeting = session.greet().await?;
    greeting.cache(session, &args.cache)?;
    if let Some(text) = &args.path {
        let path = review::path(text)?;
        let claims = open_claims(session, &greeting, &args.cache, &path).await?;
        let out = match (args.common.json, claims.is_empty()) {
            (true, _) => claims.iter().map(output::json_line).collect(),
            (false, true) => "nothing is held\n".to_owned(),
            (false, false) => in_full(&claims),
        };
        return Ok(Said::words(out));
    }
    let (mut after, mut empty) = (0, true);
    loop {
        let page = session.api.held(&args.cache, after, &session.signer()).await;
        let page = page.map_err(|e| greeting.explain(e))?;
        let text = match args.common.json {
            true => page.claims.iter().map(output::json_line).collect(),
            false => lines(&page.claims, clock::now()),
        };
        empty &= page.claims.is_empty();
        if !text.is_empty() && !show(&text) {
            return Ok(Said::default());
        }
        // numbers only grow, so that an odd gateway can't have the same page shown for ever
        match page.after.filter(|next| *next > after) {
            Some(next) => after = next,
            None => break,
        }
    }
    let note = if empty && !args.common.json { "nothing is held\n" } else { "" };
    Ok(Said { out: String::new(), note: note.to_owned() })
}

/// One line for each claim: since when it is held, whose it is, what it waits for.
fn lines(claims: &[ClaimInfo], now: u64) -> String {
    let rows: Vec<Vec<String>> = claims
        .iter()
        .map(|claim| {
            let code = claim.code.as_ref().map_or_else(String::new, |code| format!(" [{code}]"));
            vec![
                review::since(claim.announced, now),
                claim.submitter.clone(),
                claim.path.absolute(),
                format!("waits for {}{code}", review::waits(claim)),
            ]
        })
        .collect();
    columns(&rows).into_iter().map(|line| line + "\n").collect()
}

fn in_full(claims: &[ClaimInfo]) -> String {
    let mut out = String::new();
    for claim in claims {
        review::claim(&mut out, claim, clock::now());
    }
    out
}

async fn open_claims(
    session: &Session,
    greeting: &Greeting,
    cache: &str,
    path: &StorePath,
) -> Result<Vec<ClaimInfo>, AdminError> {
    let page = session.api.open_claims(cache, path, &session.signer()).await;
    Ok(page.map_err(|e| greeting.explain(e))?.claims)
}

/// Says something about the one open claim of a path, or about the contents that were named.
async fn decide(
    session: &Session,
    args: &Decide,
    show: impl FnMut(&str) -> bool,
    said: &str,
    deed: impl FnOnce(String, StorePath, Sha256, Option<u64>) -> Deed,
) -> Result<Said, AdminError> {
    let Decide { claim: Claim { cache, .. }, nar_hash, until } = args;
    let path = review::path(&args.claim.path)?;
    let greeting = session.greet().await?;
    greeting.cache(session, cache)?;
    let claims = open_claims(session, &greeting, cache, &path).await?;
    let nar_hash = match nar_hash {
        // the gateway has its own words where nobody claims that
        Some(hash) => *hash,
        None => the_only(session, &greeting, &args.claim, &path, &claims).await?,
    };
    let before = claims.into_iter().filter(|claim| claim.nar_hash == nar_hash).collect();
    let until = until.map(|until| until.from(clock::now()));
    let deed = deed(cache.clone(), path.clone(), nar_hash, until);
    carry_out(session, &args.claim, About { path, nar_hash, until, before }, deed, said, show).await
}

async fn settle(
    session: &Session,
    args: &Settle,
    show: impl FnMut(&str) -> bool,
) -> Result<Said, AdminError> {
    let Settle { claim: Claim { cache, .. }, nar_hash } = args;
    let path = review::path(&args.claim.path)?;
    let greeting = session.greet().await?;
    greeting.cache(session, cache)?;
    let claims = open_claims(session, &greeting, cache, &path).await?;
    let deed = Deed::Settle { cache: cache.clone(), path: path.clone(), nar_hash: *nar_hash };
    let about = About { path, nar_hash: *nar_hash, until: None, before: claims };
    carry_out(session, &args.claim, about, deed, "settled", show).await
}

/// The contents that are claimed, where it's one.
async fn the_only(
    session: &Session,
    greeting: &Greeting,
    args: &Claim,
    path: &StorePath,
    claims: &[ClaimInfo],
) -> Result<Sha256, AdminError> {
    let hashes: BTreeSet<[u8; 32]> = claims.iter().map(|claim| claim.nar_hash.0).collect();
    if let (Some(hash), 1) = (hashes.first(), hashes.len()) {
        return Ok(Sha256(*hash));
    }
    if hashes.len() > 1 {
        let claimed: Vec<String> =
            claims.iter().map(|claim| format!("`{}` by {}", claim.nar_hash, claim.submitter)).collect();
        return Err(AdminError::SeveralClaimed { path: path.clone(), claimed: claimed.join(", ") });
    }
    let cache = args.cache.clone();
    match session.api.why(&cache, path, &session.signer()).await {
        Ok(why) => Err(match why.published {
            Some(published) => {
                AdminError::Published { path: path.clone(), cache, nar_hash: published.nar_hash }
            }
            None => AdminError::NothingClaimed { path: path.clone(), cache },
        }),
        Err(error) if error.code() == Some("not-found") => {
            Err(AdminError::NothingClaimed { path: path.clone(), cache })
        }
        Err(error) => Err(greeting.explain(error).into()),
    }
}

/// What is decided about.
struct About {
    path: StorePath,
    nar_hash: Sha256,
    /// Seconds since 1970.
    until: Option<u64>,
    /// The open claims that it may change.
    before: Vec<ClaimInfo>,
}

/// Shows what is decided about, signs and sends the act, and looks what comes of it. `said`: the act in a word.
async fn carry_out(
    session: &Session,
    args: &Claim,
    about: About,
    deed: Deed,
    said: &str,
    mut show: impl FnMut(&str) -> bool,
) -> Result<Said, AdminError> {
    let About { path, nar_hash, until, before } = about;
    if !args.common.json && !before.is_empty() {
        show(&(in_full(&before) + "\n"));
    }
    let done = act(session, deed, Some(&args.reason.text)).await?;
    let claims = what_came(session, &args.cache, &path, &before).await;
    let decided = Decided { path, nar_hash, until, done, claims };
    Ok(Said::new(&args.common, &decided, || Said::words(in_words(&decided, said))))
}

/// The same claims after the act. What can't be learnt isn't: the act is done.
async fn what_came(session: &Session, cache: &str, path: &StorePath, before: &[ClaimInfo]) -> Vec<ClaimInfo> {
    let fate = |claims: &[ClaimInfo]| -> Vec<_> {
        claims.iter().map(|c| (c.claim, c.state, c.code.clone(), c.waits_for.clone())).collect()
    };
    let mut last = before.to_vec();
    for _ in 0..LOOKS {
        let Ok(why) = session.api.why(cache, path, &session.signer()).await else { break };
        let mut now: Vec<ClaimInfo> = why.claims.into_iter().map(|one| one.claim).collect();
        now.retain(|claim| before.iter().any(|b| b.claim == claim.claim));
        now.sort_by_key(|claim| before.iter().position(|b| b.claim == claim.claim));
        let changed = fate(&now) != fate(before);
        last = now;
        if changed || before.is_empty() {
            break;
        }
        tokio::time::sleep(BETWEEN).await;
    }
    last
}

fn in_words(decided: &Decided, said: &str) -> String {
    let until = decided.until.map_or_else(String::new, |until| format!(" until {}", clock::utc(until)));
    let mut out = format!("{said}{until}: {} with {}\n", decided.path, decided.nar_hash);
    for claim in &decided.claims {
        let waits = match claim.waits_for.is_empty() {
            true => String::new(),
            false => format!(", waits for {}", review::waits(claim)),
        };
        let code = claim.code.as_ref().map_or_else(String::new, |code| format!(" [{code}]"));
        let line = format!(
            "claim {} by {} is {} now{waits}{code}",
            claim.claim,
            claim.submitter,
            claim.state.as_str()
        );
        out += &crate::api::printable(&line);
        out.push('\n');
    }
    out
}

async fn conflicts(session: &Session, args: &ConflictList) -> Result<Said, AdminError> {
    let greeting = session.greet().await?;
    greeting.cache(session, &args.cache)?;
    let mut all: Vec<ConflictShown> = vec![];
    loop {
        let after = all.last().map(|conflict| &conflict.path);
        let page = session.api.conflicts(&args.cache, after, &session.signer()).await;
        let page = page.map_err(|e| greeting.explain(e))?;
        // paths only grow, so that an odd gateway can't have the same page shown for ever
        match page.first() {
            Some(first)
                if after.is_none_or(|after| *after < first.path) && page.is_sorted_by_key(|c| &c.path) => {}
            _ => break,
        }
        all.extend(page);
    }
    Ok(Said::new(&args.common, &all, || {
        let mut out = String::new();
        for conflict in &all {
            review::conflict(&mut out, conflict, clock::now());
        }
        let note = if all.is_empty() { "nothing is in conflict\n" } else { "" };
        Said { out, note: note.to_owned() }
    }))
}
