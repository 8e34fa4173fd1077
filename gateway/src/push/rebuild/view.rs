//! A job's own binary cache: exactly what its build may use, signed by a key made for the job. What isn't an input isn't there,
//! and an output of the derivation under test never is.

use std::sync::Arc;

use pushgate_formats::{
    Sha256, StorePath, nar,
    narinfo::{UnverifiedNarInfo, fingerprint},
    store_path::is_hash_part,
};

use super::{
    RebuildError,
    inputs::{Input, Source, text_of},
    plan_of, view_key,
};
use crate::{
    app::App,
    blobs::{PackRange, PublicFile},
    db::JobRow,
    upstream::{Foreign, Found},
};

/// What is served of a view.
pub enum Served {
    Info,
    NarInfo(String),
    /// A NAR made for the question.
    Bytes(Vec<u8>),
    Published(PublicFile),
    Quarantined(PackRange),
    Upstream(Foreign),
}

/// Why a question of a job's Nix isn't answered.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    #[error("the job can't be done any more: {0}")]
    Unavailable(String),
    #[error("the upstream `{url}` doesn't give `{path}`: {why}")]
    Upstream { url: String, path: StorePath, why: String },
}

/// Answers a question of a job's Nix; `None` where the view doesn't have it.
pub async fn serve(app: &Arc<App>, job: &JobRow, name: &str) -> Result<Option<Served>, ViewError> {
    if name == "nix-cache-info" {
        return Ok(Some(Served::Info));
    }
    let plan = plan_of(app, job).await?.map_err(ViewError::Unavailable)?;
    if let Some(part) = name.strip_suffix(".narinfo") {
        return match plan.inputs.get(part) {
            Some(input) => Ok(narinfo(app, job, input).await?.map(Served::NarInfo)),
            None => Ok(None),
        };
    }
    let part = name.strip_prefix("nar/").and_then(|file| file.split_once('.')).map(|(part, _)| part);
    match part.filter(|part| is_hash_part(part)).and_then(|part| plan.inputs.get(part)) {
        Some(input) => served(app, job, input).await,
        None => Ok(None),
    }
}

/// The NAR of a derivation's text.
async fn derivation_nar(app: &App, path: &StorePath) -> Result<Vec<u8>, RebuildError> {
    let text = text_of(app, path).await?;
    let mut out = nar::Writer::new(Vec::with_capacity(text.len() + 200));
    let whole = |e: nar::WriteError| RebuildError::Evidence(e.to_string());
    out.file(false, text.len() as u64).map_err(whole)?;
    out.contents(&text).map_err(whole)?;
    out.finish().map_err(whole)
}

/// The upstream's narinfo of a path that it has, if it still says the same, and the upstream's URL.
async fn upstream(app: &App, job: &JobRow, input: &Input) -> Option<(String, Box<UnverifiedNarInfo>)> {
    let cache = app.caches.get(app.db.as_ref(), &job.cache).await.ok()??;
    let policy = cache.policy();
    for upstream in &policy.upstreams {
        let found = app.upstreams.narinfo(std::slice::from_ref(upstream), input.path.hash_part()).await;
        if let Found::NarInfo(info) = found
            && info.path == input.path
            && Some(info.nar_hash) == input.nar_hash
        {
            return Some((upstream.url.clone(), info));
        }
    }
    None
}

/// A narinfo of the view. The same values as where the path comes from, checked when the plan was made; the signature is the
/// job's.
async fn narinfo(app: &App, job: &JobRow, input: &Input) -> Result<Option<String>, RebuildError> {
    let part = input.path.hash_part();
    let (nar_hash, nar_size, compression, suffix) = match &input.source {
        Source::Published(info) => {
            (info.nar_hash, info.nar_size, info.compression.clone(), suffix(&info.compression))
        }
        Source::Upstream => match upstream(app, job, input).await {
            Some((_, info)) => (info.nar_hash, info.nar_size, info.compression.clone(), ""),
            None => return Ok(None),
        },
        Source::Sent(nar) => (
            nar.examined.nar_hash,
            nar.examined.nar_size,
            nar.compression.as_str().to_owned(),
            nar.compression.suffix(),
        ),
        Source::Derivation => {
            let nar = derivation_nar(app, &input.path).await?;
            (Sha256::of(&nar), nar.len() as u64, "none".to_owned(), "")
        }
    };
    let print = fingerprint(&input.path, &nar_hash, nar_size, &input.references);
    let info = UnverifiedNarInfo {
        path: input.path.clone(),
        url: format!("nar/{part}.nar{suffix}"),
        compression,
        file_hash: None,
        file_size: None,
        nar_hash,
        nar_size,
        references: input.references.clone(),
        deriver: None,
        signatures: vec![view_key(app, &job.id).sign(print.as_bytes())],
        ca: None,
    };
    Ok(Some(info.print()))
}

/// What files of a compression are called; upstreams have more kinds than this gateway takes.
fn suffix(compression: &str) -> &'static str {
    match compression {
        "zstd" => ".zst",
        "xz" => ".xz",
        _ => "",
    }
}

async fn served(app: &Arc<App>, job: &JobRow, input: &Input) -> Result<Option<Served>, ViewError> {
    Ok(match &input.source {
        Source::Published(info) => {
            app.blobs.open(&job.cache, &info.url).await.map_err(RebuildError::Io)?.map(Served::Published)
        }
        Source::Sent(nar) => Some(Served::Quarantined(nar.range.clone())),
        Source::Derivation => Some(Served::Bytes(derivation_nar(app, &input.path).await?)),
        Source::Upstream => {
            let Some((url, info)) = upstream(app, job, input).await else { return Ok(None) };
            match app.upstreams.file(&url, &info).await {
                Ok(file) => Some(Served::Upstream(file)),
                Err(why) => return Err(ViewError::Upstream { url, path: input.path.clone(), why }),
            }
        }
    })
}
