//! Looks at published paths again while verifiers have nothing else to do: draws some of each cache, has them built, and
//! carries out what follows where verifiers agree that something else comes of the derivation. Uses only what is public:
//! nobody's quarantine helps an audit.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use pushgate_formats::{
    Sha256, StorePath,
    jobs::{LeaseQuery, Purpose},
    keys::KeyName,
    log_leaf::PublishLeaf,
    narinfo::{Dialect, UnverifiedNarInfo},
    review::Incident,
};
use pushgate_policies::{
    facts::{Claim, Evidence, Fact, Identity, Moment, Provenance},
    rebuilds::{OnAuditMismatch, RebuildStanding, Verdict, audited},
};

use super::{
    RebuildError,
    demand::{FAILURES, job, priority},
    inputs::{self, Plan, Planned},
    standing,
};
use crate::{
    app::App,
    blobs::Blobs,
    caches::Cache,
    db::{
        AuditOutcome, AuditRow, DbError, GATEWAY, IncidentRow, JobRow, JobState, MismatchRow, NewEvent,
        NewJob, PublishedRow, RebuildRow,
    },
    push::recover,
};

const DAY: u64 = 86_400;
/// How long what was audited is left alone. Seconds.
const RESTS: u64 = 30 * DAY;
/// How long an audit waits for a verifier that takes it. Seconds.
const UNTAKEN: u64 = DAY;
/// How long an audit waits for verifiers that confirm it. Seconds.
const UNCONFIRMED: u64 = 7 * DAY;
/// Leaves that are drawn for one audit: some are of paths that can't be built, or were audited lately.
const TRIES: u32 = 32;
/// Audits that were due and are begun in one go.
const BEGUN: usize = 8;
/// Dependants that an incident names.
pub const DEPENDANTS: usize = 10_000;
/// How long a verifier that asked for work counts as one that waits for some, in seconds: it asks again at the latest after
/// [`pushgate_formats::jobs::MAX_WAIT`].
const WAITING: u64 = 90;
/// How often it is looked whether something can be audited.
const LOOK: Duration = Duration::from_secs(10);
/// Looks between two at all audits without an outcome, whether anything was heard of them or not.
const OPEN: u32 = 60;

/// What of a published path follows from an audit.
pub const MISMATCH: &str = "audit-mismatch";
const INCONCLUSIVE: &str = "audit-inconclusive";

/// A verifier that asked for work.
pub struct Asker {
    asked: u64,
    owner: String,
    query: LeaseQuery,
}

/// Notes who could build something.
pub fn asked(app: &App, identity: i64, owner: &str, query: &LeaseQuery) {
    let asker = Asker { asked: app.clock.now(), owner: owner.to_owned(), query: query.clone() };
    app.rebuilds.askers().insert(identity, asker);
}

/// Whether a verifier that waits for work may and can build this: with the system and features, and of an owner who hasn't
/// lately.
fn is_buildable(app: &App, plan: &Plan, jobs: &[JobRow], now: u64) -> bool {
    let mut askers = app.rebuilds.askers();
    askers.retain(|_, asker| asker.asked + WAITING >= now);
    let has_built = |owner: &str| {
        jobs.iter().any(|job| {
            matches!(job.state, JobState::Leased | JobState::Done)
                && job.owner.as_deref() == Some(owner)
                && job.created + RESTS > now
        })
    };
    askers.values().any(|asker| {
        asker.query.systems.contains(&plan.system)
            && plan.features.is_subset(&asker.query.features)
            && !has_built(&asker.owner)
    })
}

/// Audits as long as the gateway runs.
pub async fn run(app: Arc<App>) {
    let mut stopping = app.stopping.subscribe();
    let mut looks: u32 = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = recover::stopped(&mut stopping) => return,
        }
        if looks.is_multiple_of(OPEN) {
            app.rebuilds.unfollowed.store(true, Relaxed);
        }
        looks = looks.wrapping_add(1);
        if let Err(e) = look(&app).await {
            tracing::warn!(error = &e as &dyn std::error::Error, "audits can't be looked after; tried again");
        }
    }
}

/// Finishes what failed, begins what is due, and draws what can be audited now.
pub async fn look(app: &Arc<App>) -> Result<(), RebuildError> {
    finish_withdrawals(app).await?;
    if app.rebuilds.unfollowed.swap(false, Relaxed) {
        for cache in app.caches.all() {
            for audit in app.db.open_audits(&cache.name).await? {
                follow(app, &cache, &audit.derivation).await;
            }
        }
    }
    for cache in app.caches.all() {
        let _one = app.rebuilds.auditing.lock().await;
        let open = app.db.open_audits(&cache.name).await?;
        let mut left = Vec::with_capacity(open.len());
        for audit in open {
            if !give_up(app, &cache, &audit).await? {
                left.push(audit);
            }
        }
        for audit in left.iter().filter(|audit| audit.job.is_none()).take(BEGUN) {
            begin(app, &cache, audit).await?;
        }
        if left.iter().all(|audit| audit.due) && is_time(app, &cache).await? {
            draw(app, &cache).await?;
        }
    }
    Ok(())
}

/// Whether a cache may draw one more: the policy's number, spread over the day.
async fn is_time(app: &App, cache: &Cache) -> Result<bool, RebuildError> {
    let most = u64::from(cache.policy().rebuilds.audit_per_day);
    if most == 0 {
        return Ok(false);
    }
    let now = app.clock.now();
    let (count, last) = app.db.drawn_audits(&cache.name, now.saturating_sub(DAY)).await?;
    let rested = last.is_none_or(|last| now >= last + DAY / most);
    Ok(count < most && rested && app.db.is_idle().await?)
}

/// Has a published path built that is drawn at random.
async fn draw(app: &Arc<App>, cache: &Cache) -> Result<(), RebuildError> {
    let leaves = app.db.leaf_count(&cache.name).await?;
    let mut tried = BTreeSet::new();
    for _ in 0..TRIES {
        // the remainder makes the first ones likelier by a part in 2^64 / leaves; there may be none at all
        let number = u64::from_le_bytes(crate::random::bytes()).checked_rem(leaves);
        let Some(number) = number.filter(|number| tried.insert(*number)) else { continue };
        let Some(derivation) = deriver(app, cache, number).await? else { continue };
        let now = app.clock.now();
        let jobs = app.db.jobs_of(&cache.name, std::slice::from_ref(&derivation)).await?;
        if jobs.iter().any(|job| job.purpose == Purpose::Audit && job.created + RESTS > now) {
            continue;
        }
        let why = match inputs::plan(app, cache, None, &derivation).await? {
            Planned::Ready(plan) if is_buildable(app, &plan, &jobs, now) => {
                let new = first(cache, &plan, &jobs);
                if app.db.add_audit(&new, now).await? {
                    tracing::info!(cache = cache.name, %derivation, "a published path is audited");
                    began(app, cache, 1);
                }
                return Ok(());
            }
            Planned::Ready(plan) => format!("no verifier waits that may build it for `{}`", plan.system),
            other => lacking(other),
        };
        skipped(cache, &derivation, &why);
    }
    Ok(())
}

/// The derivation of the path that a leaf is about.
async fn deriver(app: &App, cache: &Cache, number: u64) -> Result<Option<StorePath>, RebuildError> {
    let leaves = app.db.leaves(&cache.name, number, 1).await?;
    // leaves of other kinds are about nothing that can be built
    let leaf = leaves.first().and_then(|(_, body, _)| serde_json::from_slice::<PublishLeaf>(body).ok());
    let Some(PublishLeaf { path, .. }) = leaf else { return Ok(None) };
    let row = app.db.published(&cache.name, &[path.hash_part()]).await?.remove(path.hash_part());
    Ok(row.and_then(|row| narinfo(&row).ok()?.deriver))
}

fn narinfo(row: &PublishedRow) -> Result<UnverifiedNarInfo, RebuildError> {
    UnverifiedNarInfo::parse(row.narinfo.as_bytes(), Dialect::Upstream)
        .map_err(|e| RebuildError::Evidence(e.to_string()))
}

fn first(cache: &Cache, plan: &Plan, jobs: &[JobRow]) -> NewJob {
    job(&cache.name, plan, (Purpose::Audit, priority::AUDIT), next_turn(jobs))
}

fn next_turn(jobs: &[JobRow]) -> u32 {
    jobs.iter().map(|job| job.turn + 1).max().unwrap_or(0)
}

fn lacking(planned: Planned) -> String {
    match planned {
        Planned::Lacks(lacks) => {
            format!("{} of its inputs are neither published nor at an upstream", lacks.all().len())
        }
        Planned::Never { message, .. } => message,
        Planned::Ready(_) => String::new(),
    }
}

fn skipped(cache: &Cache, derivation: &StorePath, why: &str) {
    metrics::counter!("pushgate_audits_skipped_total", "cache" => cache.name.clone()).increment(1);
    tracing::debug!(cache = cache.name, %derivation, why, "not audited");
}

fn began(app: &App, cache: &Cache, jobs: u64) {
    metrics::counter!("pushgate_audits_asked_total", "cache" => cache.name.clone()).increment(jobs);
    app.rebuilds.tell_of_work();
}

/// Has a path built that is due.
async fn begin(app: &Arc<App>, cache: &Cache, audit: &AuditRow) -> Result<(), RebuildError> {
    let plan = match inputs::plan(app, cache, None, &audit.derivation).await? {
        Planned::Ready(plan) => plan,
        other => {
            skipped(cache, &audit.derivation, &lacking(other));
            app.db.end_audit(audit.id, AuditOutcome::Failed, None).await?;
            return Ok(());
        }
    };
    let jobs = app.db.jobs_of(&cache.name, std::slice::from_ref(&audit.derivation)).await?;
    app.db.begin_audit(audit.id, &first(cache, &plan, &jobs), app.clock.now()).await?;
    began(app, cache, 1);
    Ok(())
}

/// Ends an audit that nobody takes or confirms; whether it is over. A crash between the two writes leaves a job that
/// somebody may build for nothing.
async fn give_up(app: &App, cache: &Cache, audit: &AuditRow) -> Result<bool, RebuildError> {
    let (now, Some(job)) = (app.clock.now(), &audit.job) else { return Ok(false) };
    let patience = if audit.due { UNCONFIRMED } else { UNTAKEN };
    let (untaken, unconfirmed) = (now >= audit.created + patience, now >= audit.created + UNCONFIRMED);
    if !untaken {
        return Ok(false);
    }
    let first = app.db.job(job).await?;
    if !unconfirmed && first.is_some_and(|job| job.state != JobState::Open) {
        return Ok(false);
    }
    let jobs = app.db.jobs_of(&cache.name, std::slice::from_ref(&audit.derivation)).await?;
    let built = jobs.iter().any(|job| job.state == JobState::Done && job.created >= audit.created);
    let event = built.then(|| NewEvent {
        cache: Some(cache.name.clone()),
        detail: format!(
            "verifiers got something else for `{}` than is published, and not enough others built it to tell why",
            audit.derivation
        ),
        ..NewEvent::new(now, GATEWAY, INCONCLUSIVE)
    });
    let outcome = if built { AuditOutcome::Inconclusive } else { AuditOutcome::Failed };
    if app.db.end_audit(audit.id, outcome, event.as_ref()).await? && event.is_some() {
        app.tell_of_events();
    }
    for job in jobs.iter().filter(|job| job.purpose == Purpose::Audit && job.state == JobState::Open) {
        app.db.cancel_job(&job.id, "audit-over", "no verifier took it in time", now).await?;
    }
    skipped(cache, &audit.derivation, "no verifier took it in time");
    Ok(true)
}

/// A job of this derivation came to its end: carries on the audit that it may be for. What fails is tried again.
pub(super) async fn follow(app: &Arc<App>, cache: &Arc<Cache>, derivation: &StorePath) {
    let one = app.rebuilds.auditing.lock().await;
    let followed = carry_on(app, cache, derivation).await;
    drop(one);
    if let Err(e) = followed {
        app.rebuilds.unfollowed.store(true, Relaxed);
        tracing::error!(
            %derivation,
            error = &e as &dyn std::error::Error,
            "what follows from an audit can't be carried out; tried again"
        );
    }
}

/// A published output of an audited derivation, and how its rebuilds stand.
struct Output {
    row: PublishedRow,
    rebuilds: Vec<RebuildRow>,
    standing: RebuildStanding,
}

async fn carry_on(app: &Arc<App>, cache: &Cache, derivation: &StorePath) -> Result<(), RebuildError> {
    let Some(audit) = app.db.open_audit(&cache.name, derivation).await? else { return Ok(()) };
    if audit.job.is_none() {
        return Ok(());
    }
    let outputs = outputs(app, cache, derivation).await?;
    for output in &outputs {
        if let Verdict::Confirmed { got } = output.standing.verdict {
            incident(app, cache, output, got).await?;
        }
    }
    let jobs = app.db.jobs_of(&cache.name, std::slice::from_ref(derivation)).await?;
    let verdicts = || outputs.iter().map(|output| output.standing.verdict);
    let pending = jobs.iter().filter(|job| job.purpose == Purpose::Audit && job.state.is_pending());
    let end = async |outcome, event: Option<NewEvent>| -> Result<(), RebuildError> {
        if app.db.end_audit(audit.id, outcome, event.as_ref()).await? {
            metrics::counter!("pushgate_audits_total", "cache" => cache.name.clone(), "result" => outcome.as_str())
                .increment(1);
            if event.is_some() {
                app.tell_of_events();
            }
        }
        Ok(())
    };
    if verdicts().any(|verdict| verdict == Verdict::Unconfirmed) {
        if ask(app, cache, &audit, &outputs, &jobs).await? || pending.count() > 0 {
            return Ok(());
        }
        return end(AuditOutcome::Inconclusive, unclear(app, cache, &outputs, Verdict::Unconfirmed)).await;
    }
    if verdicts().any(|verdict| verdict == Verdict::Irreproducible) {
        return end(AuditOutcome::Inconclusive, unclear(app, cache, &outputs, Verdict::Irreproducible)).await;
    }
    if verdicts().any(|verdict| matches!(verdict, Verdict::Confirmed { .. })) {
        return end(AuditOutcome::Mismatch, None).await;
    }
    let first = jobs.iter().find(|job| Some(&job.id) == audit.job.as_ref());
    match first.map(|job| job.state) {
        Some(JobState::Open | JobState::Leased) => Ok(()),
        Some(JobState::Done) => end(AuditOutcome::Match, None).await,
        Some(JobState::Failed | JobState::Cancelled) | None => end(AuditOutcome::Failed, None).await,
    }
}

/// The published outputs of a derivation.
async fn outputs(app: &App, cache: &Cache, derivation: &StorePath) -> Result<Vec<Output>, RebuildError> {
    let (policy, now) = (cache.policy(), app.clock.now());
    let known = app.derivations.resolve(app.db.as_ref(), std::slice::from_ref(derivation)).await?.known;
    let paths: Vec<StorePath> =
        known.values().flat_map(|known| known.facts.outputs().values().flatten().cloned()).collect();
    let parts: Vec<&str> = paths.iter().map(StorePath::hash_part).collect();
    let published = app.db.published(&cache.name, &parts).await?;
    let mut rebuilds: BTreeMap<StorePath, Vec<RebuildRow>> = BTreeMap::new();
    for row in app.db.rebuilds(&cache.name, &paths).await? {
        rebuilds.entry(row.path.clone()).or_default().push(row);
    }
    let mut outputs = Vec::new();
    for row in published.into_values().filter(|row| paths.contains(&row.path)) {
        let rebuilds = rebuilds.remove(&row.path).unwrap_or_default();
        let mut evidence = Evidence::only(Provenance::Derivation);
        evidence.rebuilds = standing::facts(&rebuilds, &[], row.nar_hash, &BTreeSet::new());
        let claim = Claim {
            cache: &cache.name,
            path: &row.path,
            nar_hash: row.nar_hash,
            nar_size: narinfo(&row)?.nar_size,
            // nobody: every verifier with an owner is another
            submitter: Identity { name: "", owner: None, groups: &[] },
            content_addressed: Fact::Known(false),
            built: Fact::Unknown,
            sources: Fact::Unknown,
        };
        let standing = audited(&policy, &claim, &evidence, Moment { now, announced: now });
        outputs.push(Output { row, rebuilds, standing });
    }
    outputs.sort_by(|a, b| a.row.path.cmp(&b.row.path));
    Ok(outputs)
}

/// Asks for what a mismatch that isn't confirmed needs: whether there was somebody to ask for anything.
async fn ask(
    app: &Arc<App>,
    cache: &Cache,
    audit: &AuditRow,
    outputs: &[Output],
    jobs: &[JobRow],
) -> Result<bool, RebuildError> {
    let of_audit = || jobs.iter().filter(|job| job.purpose == Purpose::Audit && job.created >= audit.created);
    if of_audit().filter(|job| job.state == JobState::Failed).count() >= FAILURES {
        return Ok(false);
    }
    let pending = of_audit().filter(|job| job.state.is_pending());
    let mut again = BTreeSet::new();
    for output in outputs {
        for row in &output.rebuilds {
            let asked = pending.clone().any(|job| job.only_by == Some(row.verifier));
            if output.standing.again.contains(&row.verifier_name) && !asked {
                again.insert(row.verifier);
            }
        }
    }
    let most = outputs.iter().map(|output| output.standing.further).max().unwrap_or(0) as usize;
    let further = most.saturating_sub(pending.filter(|job| job.only_by.is_none()).count());
    if further == 0 && again.is_empty() {
        return Ok(false);
    }
    let plan = match inputs::plan(app, cache, None, &audit.derivation).await? {
        Planned::Ready(plan) => plan,
        other => {
            skipped(cache, &audit.derivation, &lacking(other));
            return Ok(false);
        }
    };
    let mut new: Vec<NewJob> = Vec::new();
    for only_by in again.into_iter().map(Some).chain(std::iter::repeat_n(None, further)) {
        let turn = next_turn(jobs) + new.len() as u32;
        new.push(NewJob { only_by, ..job(&cache.name, &plan, (Purpose::Audit, priority::AUDIT), turn) });
    }
    app.db.add_jobs(&new, app.clock.now()).await?;
    began(app, cache, new.len() as u64);
    for output in outputs.iter().filter(|output| output.standing.verdict == Verdict::Unconfirmed) {
        tracing::warn!(path = %output.row.path, "a verifier got something else than is published; others are asked");
    }
    Ok(true)
}

/// The event of an audit that tells nothing.
fn unclear(app: &App, cache: &Cache, outputs: &[Output], verdict: Verdict) -> Option<NewEvent> {
    let output = outputs.iter().find(|output| output.standing.verdict == verdict)?;
    let got: BTreeSet<String> =
        output.rebuilds.iter().map(|row| format!("`{}` got `{}`", row.verifier_name, row.nar_hash)).collect();
    let got: Vec<String> = got.into_iter().take(8).collect();
    Some(NewEvent {
        cache: Some(cache.name.clone()),
        path: Some(output.row.path.clone()),
        nar_hash: Some(output.row.nar_hash),
        detail: format!("`{}` was rebuilt with different results: {}", output.row.path, got.join(", ")),
        ..NewEvent::new(app.clock.now(), GATEWAY, INCONCLUSIVE)
    })
}

/// Verifiers agree that a published path isn't what its derivation yields. The rows come first, then the file goes: a crash
/// in between leaves a narinfo that the next start removes.
async fn incident(app: &Arc<App>, cache: &Cache, output: &Output, got: Sha256) -> Result<(), RebuildError> {
    let (path, published, now) = (&output.row.path, output.row.nar_hash, app.clock.now());
    if app.db.incident(&cache.name, path).await?.is_some() {
        return Ok(());
    }
    let follows = cache.policy().rebuilds.on_audit_mismatch;
    let agree: BTreeSet<&str> = (output.rebuilds.iter())
        .filter(|row| row.nar_hash == got && row.owner.is_some())
        .map(|row| row.verifier_name.as_str())
        .collect();
    let row = IncidentRow {
        cache: cache.name.clone(),
        path: path.clone(),
        nar_hash: published,
        rebuilt: got,
        verifiers: agree.into_iter().map(str::to_owned).collect(),
        dependants: app.db.dependants_of(&cache.name, path, DEPENDANTS).await?,
        found: now,
        withdrawn: follows == OnAuditMismatch::Withdraw,
    };
    let submitter = submitter(app, cache, path).await?;
    let event = NewEvent {
        cache: Some(cache.name.clone()),
        path: Some(path.clone()),
        nar_hash: Some(published),
        subject: submitter.as_ref().map(|(_, name)| name.clone()),
        detail: format!(
            "`{path}` is published with NAR hash `{published}`; `{}` got `{got}`; {} published paths refer to it: {}",
            row.verifiers.join("`, `"),
            row.dependants.len(),
            follows.word(),
        ),
        ..NewEvent::new(now, GATEWAY, MISMATCH)
    };
    let mismatch = submitter.map(|((identity, key), _)| MismatchRow {
        cache: cache.name.clone(),
        path: path.clone(),
        nar_hash: published,
        identity,
        key,
        follows: follows.word(),
    });
    if row.withdrawn {
        // whatever becomes of the answer: it may be stored all the same
        app.rebuilds.withdrawing.store(true, Relaxed);
    }
    if app.db.add_incident(&row, mismatch.as_ref(), &event).await? {
        app.tell_of_events();
        metrics::counter!("pushgate_incidents_total", "cache" => cache.name.clone()).increment(1);
        tracing::error!(
            %path,
            %published,
            rebuilt = %got,
            verifiers = row.verifiers.join(" "),
            dependants = row.dependants.len(),
            follows = follows.word(),
            "verifiers agree on other contents than are published"
        );
    }
    finish_withdrawals(app).await
}

/// Whose claim a published path was: identity and key, and the name.
async fn submitter(
    app: &App,
    cache: &Cache,
    path: &StorePath,
) -> Result<Option<((i64, pushgate_formats::keys::PublicKey), String)>, RebuildError> {
    let Some((_, body)) = app.db.leaf_of(&cache.name, path).await? else { return Ok(None) };
    let leaf: PublishLeaf =
        serde_json::from_slice(&body).map_err(|e| RebuildError::Evidence(format!("a leaf: {e}")))?;
    let Ok(name) = KeyName::new(&leaf.submitter_key) else { return Ok(None) };
    let key = app.db.key_named(&name).await?;
    Ok(key.map(|key| ((key.identity, key.key), key.identity_name)))
}

/// Removes the narinfos of what was withdrawn, if there may be some.
pub async fn finish_withdrawals(app: &Arc<App>) -> Result<(), RebuildError> {
    if !app.rebuilds.withdrawing.swap(false, Relaxed) {
        return Ok(());
    }
    // builds that use what was withdrawn end with their next question
    app.rebuilds.plans.clear();
    for cache in app.caches.all() {
        if let Err(e) = withdraw(app, &cache.name).await {
            app.rebuilds.withdrawing.store(true, Relaxed);
            return Err(e);
        }
    }
    Ok(())
}

/// Removes the narinfos of all that is withdrawn in a cache. Repeatable.
pub async fn withdraw(app: &Arc<App>, cache: &str) -> Result<(), RebuildError> {
    let paths = app.db.withdrawn_paths(cache).await?;
    if paths.is_empty() {
        return Ok(());
    }
    let (blobs, cache) = (app.blobs.clone(), cache.to_owned());
    let removing = move |blobs: &dyn Blobs| -> std::io::Result<()> {
        for path in &paths {
            blobs.withdraw(&cache, &format!("{}.narinfo", path.hash_part()))?;
        }
        blobs.sync()
    };
    let removed = tokio::task::spawn_blocking(move || removing(blobs.as_ref()));
    Ok(removed.await.map_err(std::io::Error::other)??)
}

/// What is known against a published path.
pub async fn known_incident(app: &App, cache: &str, path: &StorePath) -> Result<Option<Incident>, DbError> {
    let row = app.db.incident(cache, path).await?;
    Ok(row.map(|row| Incident {
        at: row.found,
        rebuilt: row.rebuilt,
        verifiers: row.verifiers,
        withdrawn: row.withdrawn,
        dependants: row.dependants,
    }))
}
