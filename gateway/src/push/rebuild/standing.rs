//! What verifiers' results mean for a claim: the facts that the policy weighs, and the proofs that go into the narinfo.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pushgate_formats::{
    Sha256, StorePath,
    attestation::{PAYLOAD_TYPE, Statement},
    content_address::{ContentAddress, Form, Measured, check_path},
    dsse::Envelope,
    hash::NixHash,
    keys::Signature,
    narinfo::{Dialect, UnverifiedNarInfo},
};
use pushgate_policies::facts::{Outcome, Rebuild};

use super::RebuildError;
use crate::{
    app::App,
    db::{AttestationRow, JobRow, JobState, RebuildRow},
};

/// What one verifier has to say for a claim's contents: goes into the narinfo and beside it.
#[derive(Debug, Clone)]
pub struct Witness {
    pub job: String,
    /// Whose verifier it is; other than the claimant's.
    pub owner: String,
    /// What the signature is over, beside path and NAR hash.
    pub nar_size: u64,
    pub references: BTreeSet<StorePath>,
    pub signature: Signature,
}

/// Groups what verifiers got for one path by verifier, oldest first.
fn by_verifier(rows: &[RebuildRow]) -> Vec<(&str, Vec<&RebuildRow>)> {
    let mut all: Vec<(&str, Vec<&RebuildRow>)> = Vec::new();
    for row in rows {
        match all.iter_mut().find(|(name, _)| *name == row.verifier_name) {
            Some((_, rows)) => rows.push(row),
            None => all.push((&row.verifier_name, vec![row])),
        }
    }
    all
}

/// The facts about a claim's rebuilds. `failed` are the jobs of its derivation that came to nothing; `sound` those whose
/// inputs were all rebuilt too.
pub fn facts(
    rows: &[RebuildRow],
    failed: &[JobRow],
    nar_hash: Sha256,
    sound: &BTreeSet<String>,
) -> Vec<Rebuild> {
    let mut facts: Vec<Rebuild> = by_verifier(rows)
        .into_iter()
        .map(|(verifier, rows)| {
            let got: BTreeSet<Sha256> = rows.iter().map(|row| row.nar_hash).collect();
            let outcome = match (got.len(), got.contains(&nar_hash)) {
                (1, true) => Outcome::Match,
                (1, false) => Outcome::Mismatch,
                _ => Outcome::Inconclusive,
            };
            Rebuild {
                verifier: verifier.to_owned(),
                owner: rows.last().and_then(|row| row.owner.clone()),
                outcome,
                inputs_rebuilt: rows.iter().any(|row| sound.contains(&row.job)),
                nar_hash: rows.last().map(|row| row.nar_hash),
                builds: u32::try_from(rows.len()).unwrap_or(u32::MAX),
            }
        })
        .collect();
    for job in failed.iter().filter(|job| job.state == JobState::Failed) {
        let Some(name) = &job.verifier_name else { continue };
        if facts.iter().all(|fact| fact.verifier != *name) {
            facts.push(Rebuild {
                verifier: name.clone(),
                owner: job.owner.clone(),
                outcome: Outcome::Failed,
                inputs_rebuilt: false,
                nar_hash: None,
                builds: 0,
            });
        }
    }
    facts
}

/// Those who vouch for these contents: of each verifier its last build, where all its builds gave the same.
pub fn witnesses(rows: &[RebuildRow], nar_hash: Sha256) -> Vec<Witness> {
    let agree =
        by_verifier(rows).into_iter().filter(|(_, rows)| rows.iter().all(|row| row.nar_hash == nar_hash));
    agree
        .filter_map(|(_, rows)| {
            let row = rows.last()?;
            Some(Witness {
                job: row.job.clone(),
                owner: row.owner.clone()?,
                nar_size: row.nar_size,
                references: row.references.clone(),
                signature: row.signature.clone(),
            })
        })
        .collect()
}

/// Paths that are looked at for one question at most.
const LOOKED_AT: usize = 100_000;

/// Of these rebuilds' jobs, those all of whose inputs were themselves rebuilt with a match, or hash to their own contents,
/// down to the first source.
pub async fn sound(app: &App, cache: &str, jobs: BTreeSet<String>) -> Result<BTreeSet<String>, RebuildError> {
    // path with its hash → jobs by which it was rebuilt so
    let mut rebuilt: HashMap<(StorePath, Sha256), Vec<String>> = HashMap::new();
    let mut addressed: BTreeSet<(StorePath, Sha256)> = BTreeSet::new();
    let mut inputs: BTreeMap<String, Vec<(StorePath, Sha256)>> = BTreeMap::new();
    let mut open: Vec<String> = jobs.iter().cloned().collect();
    let mut seen: BTreeSet<(StorePath, Sha256)> = BTreeSet::new();
    while !open.is_empty() && seen.len() < LOOKED_AT {
        let mut next: BTreeSet<StorePath> = BTreeSet::new();
        for piece in open.chunks(16) {
            for AttestationRow { job, envelope, addressed: sent } in app.db.attestations(piece).await? {
                let used = used(&envelope)?;
                addressed.extend(used.iter().filter(|(path, _)| sent.contains(path)).cloned());
                next.extend(
                    used.iter().filter(|input| seen.insert((*input).clone())).map(|(path, _)| path.clone()),
                );
                inputs.insert(job, used);
            }
        }
        let paths: Vec<StorePath> = next.into_iter().collect();
        let mut more = BTreeSet::new();
        for row in app.db.rebuilds(cache, &paths).await? {
            if row.owner.is_some() {
                let key = (row.path.clone(), row.nar_hash);
                rebuilt.entry(key).or_default().push(row.job.clone());
                if !inputs.contains_key(&row.job) {
                    more.insert(row.job);
                }
            }
        }
        addressed.extend(content_addressed(app, cache, &paths, &seen).await?);
        open = more.into_iter().collect();
    }
    // from the sources upwards, until nothing more becomes sound
    let mut sound: BTreeSet<String> = BTreeSet::new();
    loop {
        let good = |input: &(StorePath, Sha256)| {
            addressed.contains(input)
                || rebuilt.get(input).is_some_and(|jobs| jobs.iter().any(|job| sound.contains(job)))
        };
        let new: Vec<String> = (inputs.iter())
            .filter(|(job, used)| !sound.contains(*job) && used.iter().all(good))
            .map(|(job, _)| job.clone())
            .collect();
        if new.is_empty() {
            sound.retain(|job| jobs.contains(job));
            return Ok(sound);
        }
        sound.extend(new);
    }
}

/// What a build used, but for derivations' texts, which their own paths bind.
fn used(envelope: &[u8]) -> Result<Vec<(StorePath, Sha256)>, RebuildError> {
    let broken = |e: &dyn std::fmt::Display| RebuildError::Evidence(format!("an attestation: {e}"));
    let envelope: Envelope = serde_json::from_slice(envelope).map_err(|e| broken(&e))?;
    let payload = envelope.unverified_payload(PAYLOAD_TYPE).map_err(|e| broken(&e))?;
    let inputs = Statement::parse(&payload).and_then(|s| s.inputs()).map_err(|e| broken(&e))?;
    Ok(inputs.into_iter().filter(|(path, _)| !path.is_derivation()).collect())
}

/// Which of these paths follow from their contents: published so by this gateway, or recomputed from their NAR hash.
async fn content_addressed(
    app: &App,
    cache: &str,
    paths: &[StorePath],
    seen: &BTreeSet<(StorePath, Sha256)>,
) -> Result<Vec<(StorePath, Sha256)>, RebuildError> {
    let parts: Vec<&str> = paths.iter().map(StorePath::hash_part).collect();
    let published = app.db.published(cache, &parts).await?;
    let mut addressed = Vec::new();
    for (path, hash) in seen.iter().filter(|(path, _)| paths.binary_search(path).is_ok()) {
        let by_hash = || {
            // a source without references, or a recursive fixed output
            let nar = NixHash::from(*hash);
            let address =
                ContentAddress::new(pushgate_formats::content_address::Method::Recursive, nar.clone())
                    .ok()?;
            let form = check_path(path, &address, &BTreeSet::new(), &Measured::Nar(nar)).ok()?;
            Some(form != Form::WithoutPositions)
        };
        let as_published = || {
            let row =
                published.get(path.hash_part()).filter(|row| row.path == *path && row.nar_hash == *hash)?;
            let info = UnverifiedNarInfo::parse(row.narinfo.as_bytes(), Dialect::Upstream).ok()?;
            let address = ContentAddress::parse(&info.ca?).ok()?;
            Some(!address.is_weak())
        };
        if as_published().or_else(by_hash).unwrap_or(false) {
            addressed.push((path.clone(), *hash));
        }
    }
    Ok(addressed)
}
