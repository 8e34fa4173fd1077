//! What verifiers report: an attestation is taken only from the verifier that has the job, signed by its key, about exactly
//! this job, these outputs and the inputs that its view had.

use std::{collections::BTreeMap, sync::Arc};

use pushgate_formats::{
    Sha256, StorePath,
    attestation::{AttestationError, PAYLOAD_TYPE, Statement},
    dsse::{DsseError, Envelope},
    jobs::{BuiltOutput, Failure, JobResult, MAX_MESSAGE, Purpose, ResultTaken},
    narinfo::fingerprint,
};

use super::{
    RebuildError,
    demand::Ask,
    inputs::{Plan, Source},
    lease::ATTEMPTS,
    plan_of,
};
use crate::{
    app::App,
    db::{BuildLogRow, EnrolledKey, JobEnd, JobRow, JobState, MAX_BUILD_LOG, NewEvent},
    error::{ApiError, clean},
    push::evidence,
};

/// Why an attestation isn't taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    #[error(transparent)]
    Envelope(#[from] DsseError),
    #[error(transparent)]
    Statement(#[from] AttestationError),
    #[error("the statement says `{found}` for the {what}, not `{expected}`")]
    Other { what: &'static str, found: String, expected: String },
    #[error("the statement has other outputs than the derivation")]
    Outputs,
    #[error("the statement and the outputs beside it differ")]
    Subjects,
    #[error("the output `{output}` is `{found}`; the derivation says `{expected}`")]
    Path { output: String, found: StorePath, expected: StorePath },
    #[error("`{0}` is named as an input, but the job's view doesn't have it")]
    ForeignInput(StorePath),
    #[error(
        "the input `{path}` has the NAR hash `{found}` in the statement and `{expected}` in the job's view"
    )]
    InputHash { path: StorePath, found: Sha256, expected: Sha256 },
    #[error("the derivation is built from `{0}`, which the statement doesn't name")]
    MissingInput(StorePath),
    #[error("the signature of the output `{0}` doesn't fit")]
    Signature(String),
}

/// What an attestation has to be about.
pub struct Expected<'a> {
    pub gateway: &'a str,
    pub job: &'a str,
    pub key: &'a EnrolledKey,
    pub plan: &'a Plan,
}

/// Checks an attestation and the outputs beside it.
pub fn check(
    envelope: &Envelope,
    outputs: &[BuiltOutput],
    expected: &Expected<'_>,
) -> Result<(), ResultError> {
    let Expected { gateway, job, key, plan } = expected;
    let payload = envelope.unverified_payload(PAYLOAD_TYPE)?;
    envelope.verify(&payload, &key.key)?;
    let statement = Statement::parse(&payload)?;
    let same = |what, found: &str, expected: &str| match found == expected {
        true => Ok(()),
        false => Err(ResultError::Other { what, found: clean(found), expected: expected.to_owned() }),
    };
    same("verifier", statement.verifier()?, &key.identity_name)?;
    let definition = &statement.predicate.build_definition;
    same("gateway", &definition.internal_parameters.gateway, gateway)?;
    same("job", &definition.internal_parameters.job, job)?;
    same("invocation", &statement.predicate.run_details.metadata.invocation_id, job)?;
    same("system", &definition.internal_parameters.system, &plan.system)?;
    let derivation = &definition.external_parameters.derivation;
    same("derivation", derivation.base_name(), plan.derivation.base_name())?;
    if !definition.external_parameters.outputs.iter().eq(plan.outputs.keys())
        || !outputs.iter().map(|output| &output.name).eq(plan.outputs.keys())
    {
        return Err(ResultError::Outputs);
    }
    let mut subjects = BTreeMap::new();
    for output in outputs {
        if let Some(Some(path)) = plan.outputs.get(&output.name)
            && output.path != *path
        {
            let (output, found) = (output.name.clone(), output.path.clone());
            return Err(ResultError::Path { output, found, expected: path.clone() });
        }
        let print = fingerprint(&output.path, &output.nar_hash, output.nar_size, &output.references);
        key.key
            .verify(print.as_bytes(), &output.signature)
            .map_err(|_| ResultError::Signature(output.name.clone()))?;
        subjects.insert(output.path.clone(), output.nar_hash);
    }
    let said: BTreeMap<StorePath, Sha256> = statement
        .subject
        .iter()
        .map(|s| Ok((s.name.clone(), s.nar_hash()?)))
        .collect::<Result<_, AttestationError>>()?;
    if said != subjects {
        return Err(ResultError::Subjects);
    }
    let inputs = statement.inputs()?;
    for (path, found) in &inputs {
        let input = plan.inputs.get(path.hash_part()).filter(|input| input.path == *path);
        let input = input.ok_or_else(|| ResultError::ForeignInput(path.clone()))?;
        if let Some(expected) = input.nar_hash.filter(|expected| expected != found) {
            return Err(ResultError::InputHash { path: path.clone(), found: *found, expected });
        }
    }
    let built_from = plan.inputs.values().filter(|input| !matches!(input.source, Source::Derivation));
    match built_from.map(|input| &input.path).find(|path| !inputs.contains_key(*path)) {
        Some(path) => Err(ResultError::MissingInput(path.clone())),
        None => Ok(()),
    }
}

/// Inputs that were shown to hash to their paths: they say what they are.
fn addressed(plan: &Plan) -> Vec<StorePath> {
    let sent = plan.inputs.values().filter(|input| matches!(input.source, Source::Sent(_)));
    sent.map(|input| input.path.clone()).collect()
}

fn lost(job: &JobRow) -> ApiError {
    let message = format!("the lease of job `{}` ran out, and the job was given to another", job.id);
    ApiError::new(http::StatusCode::CONFLICT, "lease-lost", message)
}

/// Takes a result. The rows come first; a crash after them leaves claims that are judged again with all that are open.
pub async fn take(
    app: &Arc<App>,
    job: &JobRow,
    key: &EnrolledKey,
    result: JobResult,
) -> Result<ResultTaken, ApiError> {
    let token = job.token.ok_or_else(|| lost(job))?;
    let now = app.clock.now();
    let (end, outputs) = match result {
        JobResult::Built { attestation, mut outputs } => {
            let plan = plan_of(app, job).await?.map_err(|why| {
                let message = format!("the job can't be checked any more: {why}");
                ApiError::new(http::StatusCode::CONFLICT, "inputs-unavailable", message)
            })?;
            outputs.sort_by(|a, b| a.name.cmp(&b.name));
            let addressed = addressed(&plan);
            let (gateway, id, key) = (app.gateway_id.clone(), job.id.clone(), key.clone());
            let checking = tokio::task::spawn_blocking(move || {
                let expected = Expected { gateway: &gateway, job: &id, key: &key, plan: &plan };
                check(&attestation, &outputs, &expected).map(|()| (attestation, outputs))
            });
            match checking.await.map_err(|e| ApiError::unavailable(&e))? {
                Ok((attestation, outputs)) => {
                    // an envelope always serialises
                    let raw = serde_json::to_vec(&attestation).unwrap_or_default();
                    (JobEnd::Built { outputs: outputs.clone(), attestation: raw, addressed }, outputs)
                }
                Err(e) => return refuse(app, job, &token, e).await,
            }
        }
        JobResult::Failed(failure) => (failed(job, failure, now), vec![]),
    };
    if !app.db.end_job(&job.id, &token, &end, now).await? {
        return Err(lost(job));
    }
    app.rebuilds.plans.remove(&job.id);
    app.rebuilds.tell();
    let word = match &end {
        JobEnd::Built { .. } => "built",
        JobEnd::Failed { .. } => "failed",
        JobEnd::Returned { .. } => "returned",
    };
    metrics::counter!("pushgate_jobs_total", "result" => word).increment(1);
    tracing::info!(job = job.id, derivation = %job.derivation, verifier = job.verifier_name, result = word, "a verifier reported");
    if matches!(end, JobEnd::Built { .. }) && job.purpose == Purpose::Build {
        keep_log(app, job).await?;
    }
    match end {
        JobEnd::Returned { .. } => app.rebuilds.tell_of_work(),
        JobEnd::Failed { .. } | JobEnd::Built { .. } => {
            if let Some(job) = app.db.job(&job.id).await? {
                ended(app, &job).await?;
            }
        }
    }
    let wanted = super::nars::wanted(app, job, &outputs).await?;
    Ok(ResultTaken { wanted })
}

/// Keeps the log of a build that somebody asked for until its output is published, and then with it.
async fn keep_log(app: &App, job: &JobRow) -> Result<(), ApiError> {
    let Some(identity) = job.identity else { return Ok(()) };
    let text = app.db.job_log(&job.id, 0, MAX_BUILD_LOG as u64).await?;
    let row = BuildLogRow { cache: job.cache.clone(), derivation: job.derivation.clone(), identity, text };
    let expires = app.clock.now() + super::nars::limits(app, job, 0).quarantine_ttl;
    Ok(app.db.add_build_log(&row, expires).await?)
}

/// Refuses an attestation, and ends the job: the same verifier would say the same again.
async fn refuse(
    app: &Arc<App>,
    job: &JobRow,
    token: &Sha256,
    error: ResultError,
) -> Result<ResultTaken, ApiError> {
    let message = error.to_string();
    let name = job.verifier_name.clone().unwrap_or_default();
    tracing::warn!(job = job.id, verifier = name, error = message, "an attestation is not valid");
    let now = app.clock.now();
    let end =
        JobEnd::Failed { code: "attestation-invalid".to_owned(), message: message.clone(), exit_code: None };
    if app.db.end_job(&job.id, token, &end, now).await? {
        let event = NewEvent {
            cache: Some(job.cache.clone()),
            subject: Some(name),
            detail: format!("an attestation about `{}` was refused: {message}", job.derivation),
            ..NewEvent::new(now, crate::db::GATEWAY, "attestation-invalid")
        };
        app.event(&event).await?;
        if let Some(job) = app.db.job(&job.id).await? {
            ended(app, &job).await?;
        }
    }
    app.rebuilds.tell();
    Err(ApiError::new(http::StatusCode::UNPROCESSABLE_ENTITY, "attestation-invalid", message))
}

/// How a failure ends its job. Only faults of the verifier or the network are tried again, with growing patience.
fn failed(job: &JobRow, failure: Failure, now: u64) -> JobEnd {
    let Failure { code, message, exit_code, retry } = failure;
    let bounded = |text: String, most: usize| -> String {
        text.chars().filter(|c| !c.is_control() || *c == '\n').take(most).collect()
    };
    let code = if is_code(&code) { code } else { "verifier-fault".to_owned() };
    let message = bounded(message, MAX_MESSAGE);
    if retry && job.attempts < ATTEMPTS {
        let after = now + (5_u64 << job.attempts.min(6));
        return JobEnd::Returned { code, message, after };
    }
    JobEnd::Failed { code, message, exit_code }
}

fn is_code(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Tells those whom the end of a job concerns.
pub async fn ended(app: &Arc<App>, job: &JobRow) -> Result<(), RebuildError> {
    let cache = app.caches.get(app.db.as_ref(), &job.cache).await.ok().flatten();
    let Some(cache) = cache else { return Ok(()) };
    if job.state == JobState::Done {
        for output in app.db.built(&job.id).await? {
            evidence::arrived(app, &cache, &output.path).await?;
        }
    } else if job.purpose != Purpose::Build {
        // whoever waits for the derivation's outputs asks another verifier, or is told that none can do it
        let known =
            app.derivations.resolve(app.db.as_ref(), std::slice::from_ref(&job.derivation)).await?.known;
        for path in known.values().flat_map(|known| known.facts.outputs().values().flatten()) {
            evidence::arrived(app, &cache, path).await?;
        }
    }
    app.rebuilds.ask(Ask::Builds(cache));
    app.rebuilds.tell();
    Ok(())
}
