//! What follows from rebuilds that differ: the report of what differs, and what the policy's `on-mismatch` says.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    sync::Arc,
};

use pushgate_formats::{
    Sha256, StorePath, difference,
    narinfo::{Dialect, UnverifiedNarInfo},
    review::{DifferenceInfo, Differences},
};

use super::{RebuildError, demand::Need, nars};
use crate::{
    app::App,
    blobs::{Blobs, PublicBody},
    db::{DifferenceRow, Due, GATEWAY, JobRow, MismatchRow, NewEvent, PublishedRow},
    push::{
        intake::Compression,
        quarantine::{self, Quarantined},
    },
};

/// How far back what a key has published is due for a rebuild once it claimed something wrong. Seconds.
const RECENT: u64 = 30 * 86_400;
/// How many of them at most.
const DUE: u32 = 200;

/// Carries out what a confirmed mismatch leads to. Once for each claim's contents and key: whatever an admin undoes stays
/// undone.
pub(super) async fn confirmed(app: &Arc<App>, need: &Need, got: Sha256) -> Result<(), RebuildError> {
    let session = &need.session;
    let claim = session.signed[need.index].claim();
    let follows = need.standing.on_mismatch.unwrap_or_default().word();
    let submitter = &session.submitter.identity_name;
    let row = MismatchRow {
        cache: session.cache.name.clone(),
        path: claim.path.clone(),
        nar_hash: claim.nar_hash,
        identity: session.identity,
        key: session.key.clone(),
        follows,
    };
    let event = NewEvent {
        cache: Some(session.cache.name.clone()),
        path: Some(claim.path.clone()),
        nar_hash: Some(claim.nar_hash),
        subject: Some(submitter.clone()),
        detail: format!(
            "verifiers agree on `{got}` for `{}`, `{submitter}` claims `{}`: {follows}",
            claim.path, claim.nar_hash
        ),
        ..NewEvent::new(app.clock.now(), GATEWAY, "rebuild-mismatch")
    };
    let due = Due { since: app.clock.now().saturating_sub(RECENT), most: DUE };
    if !app.db.add_mismatch(&row, &event, due).await? {
        return Ok(());
    }
    app.tell_of_events();
    metrics::counter!("pushgate_mismatches_total", "cache" => session.cache.name.clone()).increment(1);
    tracing::error!(path = %claim.path, submitter, follows, "verifiers agree on other contents than a submitter claims");
    app.report_pushes_of(submitter).await;
    Ok(())
}

/// Claims that one verifier's output is compared with at most.
const COMPARED: usize = 8;

/// Compares what a verifier got with what is claimed or published otherwise, and keeps a report of each. A crash leaves some
/// of them unmade; the next verifier that sends the same has them made.
pub(super) async fn compare(app: &Arc<App>, job: &JobRow) -> Result<(), RebuildError> {
    let Some(keeper) = nars::keeper(job) else { return Ok(()) };
    for output in app.db.built(&job.id).await? {
        let Some(rebuilt) = quarantined(app, keeper, output.nar_hash).await? else { continue };
        let mut known: BTreeSet<Sha256> = (app.db.differences(&job.cache, &output.path).await?.into_iter())
            .filter(|row| row.rebuilt == output.nar_hash && row.report.is_some())
            .map(|row| row.claimed)
            .collect();
        known.insert(output.nar_hash);
        let mut others: Vec<(Sha256, Stored)> = Vec::new();
        for claim in app.db.claims_of_path(&job.cache, &output.path).await? {
            if known.contains(&claim.nar_hash) {
                continue;
            }
            if let Some(nar) = quarantined(app, claim.identity, claim.nar_hash).await? {
                known.insert(claim.nar_hash);
                others.push((claim.nar_hash, nar));
            }
        }
        let part = [output.path.hash_part()];
        let mut published = app.db.published(&job.cache, &part).await?;
        // its NAR stays, to be looked at
        published.extend(app.db.withdrawn(&job.cache, &part).await?);
        for row in
            published.into_values().filter(|row| row.path == output.path && !known.contains(&row.nar_hash))
        {
            if let Some(nar) = public(app, &job.cache, &row).await? {
                others.push((row.nar_hash, nar));
            }
        }
        for (claimed, nar) in others.into_iter().take(COMPARED) {
            let (blobs, rebuilt) = (app.blobs.clone(), rebuilt.clone());
            // not those of intake: a comparison may take long
            let permit = app.rebuilds.comparing.clone().acquire_owned().await;
            let comparing = tokio::task::spawn_blocking(move || -> Result<String, String> {
                let _permit = permit;
                let words = |e: &dyn std::fmt::Display| e.to_string();
                let claimed = nar.open(blobs.as_ref()).map_err(|e| words(&e))?;
                let rebuilt = rebuilt.open(blobs.as_ref()).map_err(|e| words(&e))?;
                let report = difference::compare(claimed, rebuilt).map_err(|e| words(&e))?;
                serde_json::to_string(&report).map_err(|e| words(&e))
            });
            let (report, problem) = match comparing.await {
                Ok(Ok(report)) => (Some(report), None),
                Ok(Err(problem)) => (None, Some(problem)),
                Err(e) => (None, Some(e.to_string())),
            };
            let row = DifferenceRow {
                path: output.path.clone(),
                claimed,
                rebuilt: output.nar_hash,
                report,
                problem,
                found: app.clock.now(),
            };
            app.db.add_difference(&job.cache, &row).await?;
        }
    }
    Ok(())
}

/// A NAR that is here, and how it is packed.
#[derive(Clone)]
enum Stored {
    Quarantined(Arc<Quarantined>),
    Public(Arc<std::fs::File>, Compression),
    Small(bytes::Bytes, Compression),
}

impl Stored {
    /// Reads the NAR. Blocks.
    fn open(self, blobs: &dyn Blobs) -> io::Result<Box<dyn Read + Send>> {
        let (packed, compression): (Box<dyn Read + Send>, Compression) = match self {
            Self::Quarantined(nar) => (blobs.read_pack(&nar.range)?, nar.compression),
            Self::Public(file, compression) => (Box::new(file.try_clone()?), compression),
            Self::Small(bytes, compression) => (Box::new(io::Cursor::new(bytes)), compression),
        };
        // checked when it came: frames, windows, size
        Ok(match compression {
            Compression::None => packed,
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(packed)?),
            Compression::Xz => Box::new(liblzma::read::XzDecoder::new(packed)),
        })
    }
}

async fn quarantined(app: &App, identity: i64, hash: Sha256) -> Result<Option<Stored>, RebuildError> {
    let nars = quarantine::load(app.db.as_ref(), identity, &[hash]).await?;
    Ok(nars.into_values().next().map(Stored::Quarantined))
}

async fn public(app: &App, cache: &str, row: &PublishedRow) -> Result<Option<Stored>, RebuildError> {
    let info = UnverifiedNarInfo::parse(row.narinfo.as_bytes(), Dialect::Upstream)
        .map_err(|e| RebuildError::Evidence(e.to_string()))?;
    let Some(compression) = Compression::parse(&info.compression) else { return Ok(None) };
    let file = app.blobs.open(cache, &info.url).await?;
    Ok(file.map(|file| match file.body {
        PublicBody::Whole(bytes) => Stored::Small(bytes, compression),
        PublicBody::File(file) => Stored::Public(Arc::new(file), compression),
    }))
}

/// The reports about a path: all for those who review, for others only those about what they claimed themselves or what is
/// published; `None` where there is nothing that they may know of.
pub async fn differences(
    app: &App,
    cache: &str,
    path: &StorePath,
    only_of: Option<i64>,
) -> Result<Option<Differences>, RebuildError> {
    let mut rows = app.db.differences(cache, path).await?;
    if let Some(identity) = only_of {
        let claims = app.db.claims_of_path(cache, path).await?;
        let mut own: BTreeSet<Sha256> = claims
            .into_iter()
            .filter(|claim| claim.identity == identity)
            .map(|claim| claim.nar_hash)
            .collect();
        let part = [path.hash_part()];
        own.extend(app.db.published_hashes(cache, &part).await?.into_values().map(|(_, hash)| hash));
        own.extend(app.db.withdrawn(cache, &part).await?.into_values().map(|row| row.nar_hash));
        if own.is_empty() {
            return Ok(None);
        }
        rows.retain(|row| own.contains(&row.claimed));
    }
    let rebuilds = app.db.rebuilds(cache, std::slice::from_ref(path)).await?;
    let differences = rows.into_iter().map(|row| {
        let got = rebuilds.iter().filter(|rebuild| rebuild.nar_hash == row.rebuilt);
        let mut verifiers: Vec<String> = got.map(|rebuild| rebuild.verifier_name.clone()).collect();
        verifiers.sort();
        verifiers.dedup();
        let report = row.report.as_deref().map(serde_json::from_str).transpose();
        Ok(DifferenceInfo {
            claimed: row.claimed,
            rebuilt: row.rebuilt,
            verifiers,
            at: row.found,
            report: report.map_err(|e| RebuildError::Evidence(e.to_string()))?,
            problem: row.problem,
            html: false,
        })
    });
    Ok(Some(Differences { differences: differences.collect::<Result<_, RebuildError>>()? }))
}
