//! What people look at before they decide about claims: what is held, what is in conflict, what was decided and why.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Extension, Json,
    extract::{Path, State},
};
use pushgate_formats::{
    StorePath,
    api::PathState,
    log_leaf::PublishLeaf,
    review::{ClaimInfo, Conflict, DecisionInfo, Differences, EvidenceInfo, HeldClaims, PublishedInfo},
};
use pushgate_policies::{
    record::Recorded,
    review::{RecordedDecision, RecordedDecisions, Why, WhyClaim},
};
use serde::Deserialize;

use super::admin::{Asked, asked};
use crate::{
    app::App,
    caches::Cache,
    db::{ClaimShown, Decided, EnrolledKey, EvidenceKind, EvidenceRow},
    error::ApiError,
    push::rebuild::{audit, follow},
};

/// Claims on one page, and conflicts.
const PAGE: u32 = 200;
/// Claims of one path of which `why` says what each rule says: an explanation is as long as the policy.
const EXPLAINED: usize = 20;
/// Decisions on one page.
const DECISIONS: u32 = 2000;

#[derive(Debug, Deserialize)]
pub struct Held {
    #[serde(default)]
    after: i64,
    path: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct After {
    #[serde(default)]
    after: i64,
}

/// `GET /api/v1/caches/CACHE/held?after=CLAIM`, or `?path=HASH-NAME` for all open claims of one path.
pub async fn held(
    State(app): State<Arc<App>>,
    Extension(cache): Extension<Arc<Cache>>,
    page: Asked<Held>,
) -> Result<Json<HeldClaims>, ApiError> {
    let page = asked(page)?;
    if let Some(text) = page.path {
        let mut rows = app.db.claims_shown(&cache.name, &[store_path(&text)?]).await?;
        rows.retain(|row| is_open(row.claim.state));
        rows.reverse();
        return Ok(Json(HeldClaims { claims: with_evidence(&app, &cache, rows).await?, after: None }));
    }
    let rows = app.db.held_claims(&cache.name, page.after, PAGE).await?;
    let after = rows.last().filter(|_| rows.len() == PAGE as usize).map(|row| row.claim.id);
    Ok(Json(HeldClaims { claims: with_evidence(&app, &cache, rows).await?, after }))
}

#[derive(Debug, Deserialize)]
pub struct AfterPath {
    after: Option<String>,
}

/// `GET /api/v1/caches/CACHE/conflicts?after=HASH-NAME`
pub async fn conflicts(
    State(app): State<Arc<App>>,
    Extension(cache): Extension<Arc<Cache>>,
    page: Asked<AfterPath>,
) -> Result<Json<Vec<Conflict>>, ApiError> {
    let after = asked(page)?.after.as_deref().map(store_path).transpose()?;
    let paths = app.db.conflict_paths(&cache.name, after.as_ref(), PAGE).await?;
    let rows = app.db.claims_shown(&cache.name, &paths).await?;
    let parts: Vec<&str> = paths.iter().map(StorePath::hash_part).collect();
    let published = app.db.published_hashes(&cache.name, &parts).await?;
    let mut claims: HashMap<StorePath, Vec<ClaimInfo>> = HashMap::new();
    for claim in with_evidence(&app, &cache, rows).await? {
        claims.entry(claim.path.clone()).or_default().push(claim);
    }
    let conflict = |path: StorePath| Conflict {
        published: published.get(path.hash_part()).map(|(_, hash)| *hash),
        claims: claims.remove(&path).unwrap_or_default(),
        path,
    };
    Ok(Json(paths.into_iter().map(conflict).collect()))
}

/// `GET /api/v1/caches/CACHE/decisions?after=DECISION`
pub async fn decisions(
    State(app): State<Arc<App>>,
    Extension(cache): Extension<Arc<Cache>>,
    page: Asked<After>,
) -> Result<Json<RecordedDecisions>, ApiError> {
    let page = asked(page)?;
    let rows = app.db.decisions(&cache.name, page.after, DECISIONS).await?;
    // how many are one page depends on what they rest on
    let after = rows.last().map(|row| row.id);
    let decisions = rows
        .into_iter()
        .map(|row| {
            let facts: Recorded = serde_json::from_str(&row.facts).map_err(|e| ApiError::unavailable(&e))?;
            let Decided { policy, outcome, .. } = row.decided;
            Ok(RecordedDecision {
                id: row.id,
                made: row.made,
                superseded: row.superseded,
                policy,
                outcome,
                facts,
            })
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    Ok(Json(RecordedDecisions { decisions, after }))
}

/// `GET /api/v1/caches/CACHE/paths/HASH-NAME/why`: to submitters of their own claims, to those who review of all.
pub async fn why(
    State(app): State<Arc<App>>,
    Extension(key): Extension<EnrolledKey>,
    Path((name, path)): Path<(String, String)>,
) -> Result<Json<Why>, ApiError> {
    let cache = super::pushes::cache(&app, &name).await?;
    let path = store_path(&path)?;
    let reviews = crate::acts::claims::may_review(&cache, &key).is_ok();
    let mut rows = app.db.claims_shown(&cache.name, std::slice::from_ref(&path)).await?;
    rows.retain(|row| reviews || row.claim.identity == key.identity);
    let published = published(&app, &cache, &path).await?;
    if rows.is_empty() && published.is_none() {
        return Err(ApiError::not_found("claim of yours of the path", &path.absolute()));
    }
    let (policy, now) = (cache.policy(), app.clock.now());
    let needs = policy.needs();
    let (mut claims, mut explained) = (Vec::new(), 0);
    for mut claim in with_evidence(&app, &cache, rows).await? {
        if !reviews {
            // nobody learns what others have sent, nor by a mere claim what people think of theirs
            let decided = claim.decided.is_some();
            claim.evidence.retain(|e| {
                e.by == key.identity_name || (decided && e.kind != EvidenceKind::Submitter.as_str())
            });
        }
        let last = match explained < EXPLAINED && claim.decided.is_some() {
            true => app.db.last_decision(claim.claim).await?,
            false => None,
        };
        explained += usize::from(last.is_some());
        let facts = last.and_then(|row| serde_json::from_str::<Recorded>(&row.facts).ok());
        let explanation = facts.map(|facts| {
            facts.replay(now, &needs.env, |claim, evidence, moment| {
                pushgate_policies::explain(&policy, claim, evidence, moment)
            })
        });
        claims.push(WhyClaim { claim, explanation });
    }
    Ok(Json(Why { path, cache: cache.name.clone(), policy: policy.digest, published, claims }))
}

/// `GET /api/v1/caches/CACHE/paths/HASH-NAME/differences`: to submitters about their own claims, to those who review of all.
pub async fn differences(
    State(app): State<Arc<App>>,
    Extension(key): Extension<EnrolledKey>,
    Path((name, path)): Path<(String, String)>,
) -> Result<Json<Differences>, ApiError> {
    let cache = super::pushes::cache(&app, &name).await?;
    let reviews = crate::acts::claims::may_review(&cache, &key).is_ok();
    let only_of = (!reviews).then_some(key.identity);
    let path = store_path(&path)?;
    let found = follow::differences(&app, &cache.name, &path, only_of).await?;
    found.map(Json).ok_or_else(|| ApiError::not_found("claim of yours of the path", &path.absolute()))
}

fn store_path(text: &str) -> Result<StorePath, ApiError> {
    StorePath::from_base_name(text).map_err(|e| ApiError::bad_request("store-path-invalid", e.to_string()))
}

/// Whether words about a claim in this state can still count.
const fn is_open(state: PathState) -> bool {
    matches!(state, PathState::Wanted | PathState::Checking | PathState::Held)
}

async fn published(app: &App, cache: &Cache, path: &StorePath) -> Result<Option<PublishedInfo>, ApiError> {
    let Some((number, body)) = app.db.leaf_of(&cache.name, path).await? else { return Ok(None) };
    let leaf: PublishLeaf = serde_json::from_slice(&body).map_err(|e| ApiError::unavailable(&e))?;
    Ok(Some(PublishedInfo {
        nar_hash: leaf.nar_hash,
        rule: leaf.rule,
        evidence: leaf.evidence,
        policy: leaf.policy,
        submitter_key: leaf.submitter_key,
        time: leaf.time,
        leaf: number,
        incident: audit::known_incident(app, &cache.name, path).await?,
    }))
}

async fn with_evidence(app: &App, cache: &Cache, rows: Vec<ClaimShown>) -> Result<Vec<ClaimInfo>, ApiError> {
    let mut paths: Vec<StorePath> = rows.iter().map(|row| row.claim.path.clone()).collect();
    paths.sort();
    paths.dedup();
    let mut evidence: HashMap<StorePath, Vec<EvidenceRow>> = HashMap::new();
    for row in app.db.evidence(&cache.name, &paths).await? {
        evidence.entry(row.path.clone()).or_default().push(row);
    }
    let of = |row: &ClaimShown| -> Vec<EvidenceInfo> {
        let all = evidence.get(&row.claim.path).into_iter().flatten();
        all.filter(|e| e.nar_hash == row.claim.nar_hash).cloned().map(evidence_info).collect()
    };
    Ok(rows.into_iter().map(|row| (of(&row), row)).map(|(evidence, row)| claim_info(row, evidence)).collect())
}

fn evidence_info(row: EvidenceRow) -> EvidenceInfo {
    EvidenceInfo {
        kind: row.kind.as_str().to_owned(),
        nar_hash: row.nar_hash,
        by: row.by,
        owner: row.owner,
        at: row.created,
        until: row.until,
        reason: row.reason,
    }
}

fn claim_info(row: ClaimShown, evidence: Vec<EvidenceInfo>) -> ClaimInfo {
    let ClaimShown { claim, nar_size, submitter, owner, announced, expires } = row;
    let decided = claim.decided.map(|decided| DecisionInfo {
        policy: decided.policy,
        decision: decided.outcome.decision.into_owned(),
        rule: decided.outcome.rule,
        code: decided.outcome.code,
    });
    ClaimInfo {
        claim: claim.id,
        push: claim.push,
        path: claim.path,
        nar_hash: claim.nar_hash,
        nar_size,
        submitter,
        owner,
        announced,
        expires,
        state: claim.state,
        code: claim.code,
        message: claim.message,
        waits_for: if claim.state == PathState::Wanted { vec!["bytes".to_owned()] } else { claim.waits },
        decided,
        evidence,
    }
}
