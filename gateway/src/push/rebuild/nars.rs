//! The NARs of what verifiers built: taken after their hash was attested, into quarantine. Of a build that somebody asked for
//! they are his, to be claimed; of a rebuild that differs they are the verifier's, to be compared.

use std::{collections::HashMap, sync::Arc};

use pushgate_formats::{
    Sha256, StorePath,
    api::PathState,
    jobs::{BuiltOutput, Purpose},
};
use pushgate_policies::Limits;

use super::{RebuildError, follow};
use crate::{
    app::App,
    db::{JobRow, StockNarRow},
    error::ApiError,
    limits::Counted,
    push::quarantine::{self, Quarantined},
};

/// Whose quarantine a job's NARs go to.
pub const fn keeper(job: &JobRow) -> Option<i64> {
    match job.purpose {
        Purpose::Build => job.identity,
        Purpose::Rebuild | Purpose::Audit => job.verifier,
    }
}

/// The NARs of these outputs that the gateway wants to have.
pub async fn wanted(app: &App, job: &JobRow, outputs: &[BuiltOutput]) -> Result<Vec<Sha256>, RebuildError> {
    let Some(identity) = keeper(job) else { return Ok(vec![]) };
    let hashes: Vec<Sha256> = outputs.iter().map(|output| output.nar_hash).collect();
    let here: Vec<Sha256> =
        app.db.quarantined(identity, &hashes).await?.into_iter().map(|row| row.nar_hash).collect();
    let published = published(app, &job.cache, outputs.iter().map(|output| &output.path)).await?;
    let mut wanted = Vec::new();
    for output in outputs.iter().filter(|output| !here.contains(&output.nar_hash)) {
        let differs = match job.purpose {
            Purpose::Build => published.get(&output.path) != Some(&output.nar_hash),
            Purpose::Rebuild | Purpose::Audit => {
                let claims = app.db.claims_of_path(&job.cache, &output.path).await?;
                let open = claims.iter().filter(|claim| {
                    matches!(claim.state, PathState::Held | PathState::Checking | PathState::Wanted)
                });
                let others = open.map(|claim| &claim.nar_hash).chain(published.get(&output.path));
                others.into_iter().any(|hash| *hash != output.nar_hash)
            }
        };
        if differs && !wanted.contains(&output.nar_hash) {
            wanted.push(output.nar_hash);
        }
    }
    Ok(wanted)
}

/// NAR hashes of what is, or was, published of these paths.
async fn published<'a>(
    app: &App,
    cache: &str,
    paths: impl Iterator<Item = &'a StorePath>,
) -> Result<HashMap<StorePath, Sha256>, RebuildError> {
    let parts: Vec<&str> = paths.map(StorePath::hash_part).collect();
    let mut published: HashMap<StorePath, Sha256> =
        app.db.published_hashes(cache, &parts).await?.into_values().collect();
    published
        .extend(app.db.withdrawn(cache, &parts).await?.into_values().map(|row| (row.path, row.nar_hash)));
    Ok(published)
}

/// The largest NAR that a job may come to, in bytes: what the policy takes from anybody.
pub fn largest(app: &App, job: &JobRow) -> u64 {
    let cache = app.caches.all().into_iter().find(|cache| cache.name == job.cache);
    let Some(cache) = cache else { return 0 };
    let policy = cache.policy();
    let more = policy.submitter_limits.iter().filter_map(|limit| limit.nar_size);
    more.chain([policy.limits.nar_size]).max().unwrap_or(0)
}

/// How much a verifier may have in quarantine: it sends only what was asked of it, which is bounded by what was claimed.
pub fn limits(app: &App, job: &JobRow, size: u64) -> Limits {
    let cache = app.caches.all().into_iter().find(|cache| cache.name == job.cache);
    let limits = cache.map(|cache| cache.policy().limits.clone()).unwrap_or_default();
    Limits { nar_size: size, bytes_per_day: None, ..limits }
}

/// Stores a NAR that came whole and has the attested hash. Its name keeps it; a crash before the second row leaves a name
/// that says nothing and runs out.
pub async fn store(
    app: &Arc<App>,
    job: &JobRow,
    nar: Arc<Quarantined>,
    mut counted: Counted,
) -> Result<(), ApiError> {
    let Some(identity) = keeper(job) else { return Err(ApiError::not_found("keeper of the job", &job.id)) };
    let now = app.clock.now();
    let expires = now + limits(app, job, 0).quarantine_ttl;
    let row = StockNarRow {
        identity,
        cache: job.cache.clone(),
        // no name that stock Nix could ask for
        file: format!("job/{}/{}", job.id, nar.examined.nar_hash.base32()),
        nar_hash: nar.examined.nar_hash,
        expires,
    };
    app.db.add_stock_nar(&row).await?;
    let twice = quarantine::store(app.db.as_ref(), &app.blobs, identity, (expires, now), vec![nar]).await?.1;
    counted.give_back(twice);
    counted.keep();
    app.rebuilds.tell();
    if job.purpose != Purpose::Build {
        follow::compare(app, job).await?;
    }
    Ok(())
}
