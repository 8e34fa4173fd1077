//! What a submitter reads at the push prefix: what he sent himself and isn't refused, what is published, and what an
//! upstream has, so that Nix sends none of it. Nothing of what others have sent shows.

use std::sync::Arc;

use pushgate_formats::{api::PathState, narinfo::UnverifiedNarInfo};
use pushgate_policies::Closure;

use super::{Pusher, narinfo::file_name};
use crate::{
    app::App,
    error::ApiError,
    push::{quarantine::Quarantined, session::Session},
    upstream::Found,
};

/// The narinfo under a hash part, as this submitter may see it. Where an upstream can't be asked: `None` if only the
/// existence is asked for (`head`), so that Nix sends the path itself; else an error that Nix tries again after.
pub async fn narinfo(
    app: &Arc<App>,
    pusher: &Pusher,
    hash_part: &str,
    head: bool,
) -> Result<Option<String>, ApiError> {
    let (db, cache) = (app.db.as_ref(), &pusher.cache);
    if let Some(row) = db.published(&cache.name, &[hash_part]).await?.remove(hash_part) {
        return Ok(Some(row.narinfo));
    }
    for claim in db.own_claims(&cache.name, pusher.identity, hash_part).await? {
        if !matches!(claim.state, PathState::Checking | PathState::Held) {
            continue;
        }
        let session = app.sessions.get(app, &claim.push).await?;
        if let Some(text) = session.and_then(|s| own(&s, s.by_path.get(&claim.path).copied()?)) {
            return Ok(Some(text));
        }
    }
    let policy = cache.policy();
    if policy.closure != Closure::Upstreams {
        return Ok(None);
    }
    match app.upstreams.narinfo(&policy.upstreams, hash_part).await {
        Found::NarInfo(info) => Ok(Some(info.print())),
        Found::Absent => Ok(None),
        Found::Unknown(_) if head => Ok(None),
        Found::Unknown(why) => {
            let mut error = ApiError::new(http::StatusCode::SERVICE_UNAVAILABLE, "upstream-unreachable", why);
            error.retry_after = Some(5);
            Err(error)
        }
    }
}

/// The narinfo of a claim whose bytes are in quarantine, under the submitter's own signature and no other.
fn own(session: &Session, i: usize) -> Option<String> {
    let nar = session.progress().nars[i].clone()?;
    let (signed, nar) = (&session.signed[i], nar.nar().clone());
    let claim = signed.claim();
    let info = UnverifiedNarInfo {
        path: claim.path.clone(),
        url: format!("nar/{}", file_name(&nar.examined.file_hash, nar.compression)),
        compression: nar.compression.as_str().to_owned(),
        file_hash: Some(nar.examined.file_hash),
        file_size: Some(nar.examined.file_size),
        nar_hash: claim.nar_hash,
        nar_size: claim.nar_size,
        references: claim.references.clone(),
        deriver: claim.deriver.clone(),
        signatures: vec![signed.signature()],
        ca: claim.ca.as_ref().map(ToString::to_string),
    };
    Some(info.print())
}

/// A NAR file that this submitter sent and that is still in quarantine.
pub async fn nar(app: &App, pusher: &Pusher, file: &str) -> Result<Option<Quarantined>, ApiError> {
    let row = app.db.stock_nar(pusher.identity, &pusher.cache.name, file).await?;
    row.map(|row| Quarantined::read_back(row).map_err(ApiError::from)).transpose()
}
