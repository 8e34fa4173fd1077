//! Acts that are about claims: approve, reject, waive, settle. An act is evidence: it is stored with its event, and the
//! claims that it is about are judged again by the policy. Nothing is published or refused here.

use std::sync::Arc;

use http::StatusCode;
use pushgate_formats::{
    Sha256, StorePath,
    acts::{Act, Deed},
};

use super::{answer, event, may_act, may_administer, record};
use crate::{
    app::App,
    caches::Cache,
    db::{Change, EnrolledKey, EvidenceKind, NewEvidence, Role},
    error::ApiError,
    push::evidence,
};

/// Carries out an act about a claim. Its signature, audience and time are checked, and the key is good; whether it may is
/// checked here. `envelope` is the JSON of the DSSE envelope, as sent.
pub async fn act(
    app: &Arc<App>,
    key: &EnrolledKey,
    act: &Act,
    envelope: &[u8],
) -> Result<serde_json::Value, ApiError> {
    let Some((name, path, nar_hash)) = act.what.claim() else {
        return Err(ApiError::not_found("claim", act.what.kind()));
    };
    let cache = app.caches.get(app.db.as_ref(), name).await.map_err(|e| ApiError::unavailable(&e))?;
    let cache = cache.ok_or_else(|| ApiError::not_found("cache", &crate::error::clean(name)))?;
    let (kind, until, word) = match &act.what {
        Deed::Approve { until, .. } => (EvidenceKind::Approval, *until, None),
        Deed::Reject { until, .. } => (EvidenceKind::Refusal, *until, None),
        Deed::Waive { until, waives, .. } => (EvidenceKind::Waiver, *until, Some(waives.clone())),
        _ => (EvidenceKind::Settlement, None, None),
    };
    match kind {
        EvidenceKind::Approval => may_review(&cache, key)?,
        _ => may_administer(key)?,
    }
    if until.is_some_and(|until| until <= app.clock.now()) {
        let message =
            format!("`until` is `{}`, which is over: the act would never count", until.unwrap_or(0));
        return Err(ApiError::bad_request("act-malformed", message));
    }
    is_open(app, &cache, path, nar_hash, kind).await?;
    let row = NewEvidence {
        cache: cache.name.clone(),
        path: path.clone(),
        nar_hash,
        kind,
        identity: key.identity,
        key: key.key.clone(),
        until,
        word,
        reason: act.reason.clone(),
        envelope: Some(envelope.to_vec()),
    };
    let done = record(app, key, act, &event(app, key, act, envelope), &Change::Evidence(row)).await?;
    evidence::arrived(app, &cache, path).await?;
    Ok(answer(done))
}

/// Whether somebody may look at what is held in a cache and approve of it: admins, and members of the groups that the
/// policy asks for approvals. Whether an approval counts for a claim, the policy decides.
pub fn may_review(cache: &Cache, key: &EnrolledKey) -> Result<(), ApiError> {
    may_act(key)?;
    if key.role == Role::Admin {
        return Ok(());
    }
    if cache.policy().may_approve(&evidence::identity(key)) {
        return Ok(());
    }
    Err(ApiError::forbidden(format!(
        "`{}` is neither an admin nor in a group that the policy of `{}` asks for approvals",
        key.identity_name, cache.name
    )))
}

/// Refuses words about what nobody claims, or what is past changing.
async fn is_open(
    app: &App,
    cache: &Cache,
    path: &StorePath,
    nar_hash: Sha256,
    kind: EvidenceKind,
) -> Result<(), ApiError> {
    let at = |error: ApiError| ApiError { path: Some(path.absolute()), ..error };
    let claims = app.db.claims_shown(&cache.name, std::slice::from_ref(path)).await?;
    let published = app.db.published_hashes(&cache.name, &[path.hash_part()]).await?;
    let published = published.into_values().find(|(found, _)| found == path).map(|(_, hash)| hash);
    if let Some(published) = published {
        if kind == EvidenceKind::Settlement && published == nar_hash {
            return Ok(());
        }
        let message = match published == nar_hash {
            true => format!("`{path}` is published with this NAR hash already"),
            false => {
                format!("`{path}` is published with NAR hash `{published}`, and what is published stays")
            }
        };
        return Err(at(ApiError::new(StatusCode::CONFLICT, "already-published", message)));
    }
    let open = claims.iter().any(|c| {
        use pushgate_formats::api::PathState::{Checking, Held, Wanted};
        c.claim.nar_hash == nar_hash && matches!(c.claim.state, Wanted | Checking | Held)
    });
    if open {
        return Ok(());
    }
    let message =
        format!("no open claim says that `{path}` has NAR hash `{nar_hash}` in the cache `{}`", cache.name);
    Err(at(ApiError::new(StatusCode::NOT_FOUND, "claim-unknown", message)))
}
