//! Stock Nix as a client (`nix copy --to http://HOST/CACHE/push`): the same stages, entered by other doors. Nix sends a NAR
//! file first and says only afterwards, with a narinfo, what it is; a narinfo is a push of one path, and the submitter's
//! signature in it takes the place of a signed announcement.
//!
//! `nar` takes the files, `narinfo` makes claims of narinfos, `drv` takes derivations out of what was pushed as a path,
//! `answers` says what a submitter may read back, `beside` takes build logs and realisations.

pub mod answers;
pub mod beside;
pub mod drv;
pub mod encoding;
pub mod nar;
pub mod narinfo;

use std::{sync::Arc, time::Duration};

use pushgate_formats::{
    StorePath,
    api::{PathState, PathStatus},
};
use pushgate_policies::{Limits, facts::Identity};

use super::{Begun, NewPush, begin, first_states, session::ClaimState, signature};
use crate::{
    app::App,
    caches::Cache,
    db::{PushKind, PushRow},
    error::ApiError,
};
use narinfo::Sent;

/// How long a narinfo's answer waits for the judgement, so that a refusal can be told. Nix gives up after 300 seconds.
const JUDGEMENT: Duration = Duration::from_secs(30);
/// How long a NAR file's name stays good after a narinfo named it, in seconds: Nix may have asked whether the file is here
/// and not have sent it again for another path.
const NAMED: u64 = 600;

/// Who pushes, and where to: what the token says.
#[derive(Clone)]
pub struct Pusher {
    pub identity: i64,
    pub name: String,
    pub owner: Option<String>,
    pub groups: Vec<String>,
    pub cache: Arc<Cache>,
}

impl Pusher {
    /// What he may send, by the policy in force.
    pub fn limits(&self) -> Limits {
        let identity = Identity { name: &self.name, owner: self.owner.as_deref(), groups: &self.groups };
        self.cache.policy().limits_for(&identity)
    }
}

/// Takes a narinfo: stages 1 and 2, and what a push is from there on. `hash_part` is that of the file's name. The answer is
/// the path's state once it is judged, or as it is after [`JUDGEMENT`].
pub async fn take_narinfo(
    app: &Arc<App>,
    pusher: &Pusher,
    hash_part: &str,
    text: Vec<u8>,
) -> Result<PathStatus, ApiError> {
    let (db, cache) = (app.db.as_ref(), &pusher.cache);
    let sent = Sent::parse(&text, hash_part)?;
    let path = sent.info.path.clone();
    let (key, signature) = {
        let who = (pusher.identity, pusher.name.as_str());
        signature::own_signature(db, who, &cache.name, app.clock.now(), &sent.info).await?
    };
    let public = key.key.clone();
    let limits = pusher.limits();
    let signed = signature::verify_claim(sent.claim(signature), &public)?;
    // the same claim again, because the answer was lost or the copy repeated
    if let Some(status) = known(app, pusher, &signed).await? {
        db.release_stock_nar(pusher.identity, &cache.name, &sent.file, app.clock.now() + NAMED).await?;
        return answer(status);
    }
    let row = db.stock_nar(pusher.identity, &cache.name, &sent.file).await?;
    let row = row.ok_or_else(|| sent.foreign())?;
    if row.nar_hash != signed.nar_hash() {
        db.release_stock_nar(pusher.identity, &cache.name, &sent.file, app.clock.now() + NAMED).await?;
        let error = super::intake::IntakeError::Hash { found: row.nar_hash, claimed: signed.nar_hash() };
        return Err(refusal(&path, error.code(), format!("the NAR file `{}`: {error}", sent.file)));
    }
    let signed = vec![signed];
    let (states, conflicts, notices) = first_states(app, cache, &signed, limits.nar_size).await?;
    let now = app.clock.now();
    // it is at an upstream: there is nothing to claim
    if states.iter().all(|s| s.state == PathState::Upstream) {
        db.release_stock_nar(pusher.identity, &cache.name, &sent.file, now + NAMED).await?;
        return Ok(plain(path, PathState::Upstream));
    }
    let bytes = text.len() as u64;
    super::bounded(app, pusher.identity, PushKind::NarInfo, (1, bytes), &limits).await?;
    let memory = app.sessions.memory(app, text.len()).await?;
    if path.is_derivation() {
        drv::take(app, pusher, &path, super::quarantine::Quarantined::read_back(row)?).await?;
    }
    let nonce = crate::random::hex(16);
    let push = PushRow {
        id: crate::random::hex(12),
        digest: narinfo::digest(&cache.name, &nonce, &text),
        identity: pusher.identity,
        key: public,
        cache: cache.name.clone(),
        nonce,
        kind: PushKind::NarInfo,
        envelope: text,
        created: now,
        expires: now + cache.policy().limits.quarantine_ttl,
    };
    let new =
        NewPush { push, submitter: key, signed, asked: Default::default(), realisations: vec![], memory };
    // a push of its own: a crash after it leaves a claim with its bytes, which the next start judges
    let Begun::New(session) = begin(app, cache, new, (states, conflicts, notices)).await? else {
        // both are random
        return Err(ApiError::unavailable(&std::io::Error::other("a nonce came twice")));
    };
    tracing::debug!(push = session.id, cache = cache.name, submitter = pusher.name, %path, "narinfo taken");
    db.release_stock_nar(pusher.identity, &cache.name, &sent.file, now + NAMED).await?;
    // swept in the moment between: nothing will bring the bytes for this claim, and Nix tries again
    if session.progress().claims.iter().any(|c| c.state == PathState::Wanted) {
        let message = format!("the bytes of `{path}` ran out before its narinfo came; copy it again");
        let gone = ClaimState::with(PathState::Rejected, "quarantine-damaged", message, vec![]);
        super::end(app, &session, vec![session.update(0, &gone, vec![])]).await?;
        session.progress().claims[0] = gone;
        return answer(plain(path, PathState::Wanted));
    }
    // sizes are compared when the bytes meet the claim
    let refused = {
        let progress = session.progress();
        let refused = progress.claims.iter().enumerate().filter(|(_, c)| c.state == PathState::Rejected);
        refused.map(|(i, c)| session.update(i, c, vec![])).collect()
    };
    super::end(app, &session, refused).await?;
    let mut changed = session.watch();
    let mut stopping = app.stopping.subscribe();
    let settled = async {
        while !session.is_settled(false) {
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                // the judges stop as well: what is stored is judged at the next start
                () = super::recover::stopped(&mut stopping) => return,
            }
        }
    };
    // over or not, the answer is the state as it is
    let _ = tokio::time::timeout(JUDGEMENT, settled).await;
    answer(session.status().paths.pop().unwrap_or_else(|| plain(path, PathState::Checking)))
}

/// The state of an earlier claim of the same by the same submitter, if it is any use.
async fn known(
    app: &App,
    pusher: &Pusher,
    signed: &signature::SignatureValid,
) -> Result<Option<PathStatus>, ApiError> {
    let part = signed.path().hash_part();
    let claims = app.db.own_claims(&pusher.cache.name, pusher.identity, part).await?;
    let claim = claims.into_iter().find(|c| {
        let good = matches!(c.state, PathState::Checking | PathState::Held | PathState::Published);
        good && c.path == *signed.path() && c.nar_hash == signed.nar_hash()
    });
    Ok(claim.map(PathStatus::from))
}

fn plain(path: StorePath, state: PathState) -> PathStatus {
    PathStatus { path, state, code: None, message: None, waits_for: vec![] }
}

/// Held is good news to Nix: it retries a 202 and gives up on a 4xx.
fn answer(status: PathStatus) -> Result<PathStatus, ApiError> {
    match status.state {
        PathState::Rejected => {
            let code = status.code.as_deref().unwrap_or("rejected");
            Err(refusal(&status.path, code, status.message.unwrap_or_default()))
        }
        // its bytes were lost while it was judged: Nix tries again after a 5xx
        PathState::Wanted => {
            let mut error = ApiError::new(
                http::StatusCode::SERVICE_UNAVAILABLE,
                "quarantine-damaged",
                format!("the bytes of `{}` were damaged in the gateway's store; copy it again", status.path),
            );
            error.retry_after = Some(1);
            Err(error)
        }
        _ => Ok(status),
    }
}

/// A refusal that Nix shows to its user and doesn't try again.
fn refusal(path: &StorePath, code: &str, message: String) -> ApiError {
    let mut error = ApiError::with_code(http::StatusCode::UNPROCESSABLE_ENTITY, code, message);
    error.path = Some(path.absolute());
    error
}
