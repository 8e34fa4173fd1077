//! The life of a push, a module a stage: announce (1), signature (2), intake (3), quarantine and references (4),
//! provenance (5), decide (6), rebuild (7), closure, publish (8). `session` holds a push while it is under way, `judge` takes its
//! claims through stages 5 to 8, `upload` streams bytes into stages 3 and 4, `recover` starts where a crash left off.
//! `stock` is how stock Nix enters the same stages, one narinfo a push.

pub mod announce;
pub mod closure;
pub mod decide;
pub mod decompress;
pub mod derivations;
pub mod evidence;
pub mod intake;
pub mod judge;
pub mod provenance;
pub mod publish;
pub mod quarantine;
pub mod rebuild;
pub mod recover;
pub mod references;
pub mod session;
pub mod signature;
pub mod stock;
pub mod upload;

use std::{collections::BTreeSet, sync::Arc};

use pushgate_formats::{
    Sha256, StorePath,
    api::{PathState, PathStatus},
};
use pushgate_policies::{Closure, Limits};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    app::App,
    caches::Cache,
    db::{EnrolledKey, NewClaim, PushAdded, PushKind, PushRow, RealisationRow},
    error::ApiError,
    limits::{Counted, Held},
};
use announce::{AnnounceError, Sealed};
use quarantine::ScanSet;
use session::{ClaimState, Session, SessionError};

/// Takes an announcement through stages 1 and 2 and finds out what it needs. The same announcement again gives the same
/// push. `permit` is one of [`App::announcing`], held since before the body was read, and the memory for it.
pub async fn announce(
    app: &Arc<App>,
    cache: &Arc<Cache>,
    raw: Vec<u8>,
    (permit, held): (OwnedSemaphorePermit, Held),
) -> Result<Arc<Session>, ApiError> {
    let db = app.db.as_ref();
    // the permit goes into the blocking work, which goes on when the submitter goes away; so does the memory
    let (permit, sealed, held) =
        blocking(move || Ok::<_, AnnounceError>((permit, Sealed::parse(raw)?, held))).await??;
    let key = signature::signer(db, sealed.keyid()).await?;
    let public = key.key.clone();
    let (announcement, signed, _held) = blocking(move || {
        let _permit = permit;
        signature::verify_envelope(&sealed, &public)?;
        let announcement = sealed.open()?;
        // the envelope again, which is cheap: no proof without it
        let signed = signature::verify(&announcement, &public)?;
        Ok::<_, ApiError>((announcement, signed, held))
    })
    .await??;
    let now = app.clock.now();
    // the same envelope again, also after its time: the push that it made
    if let Some(known) = db.push_by_digest(&announcement.digest()).await?
        && known.cache == cache.name
    {
        let key = db.key(&known.key.bytes()).await?;
        if let Some(key) = key {
            signature::may_push(&key, &cache.name, now)?;
        }
        if announcement.expires() > now {
            return existing(app, &known.id).await;
        }
    }
    signature::check(&key, &app.gateway_id, &cache.name, now, &announcement)?;
    let limits = cache.policy().limits_for(&evidence::identity(&key));
    let (paths, bytes) = (announcement.claims().len(), announcement.raw().len() as u64);
    bounded(app, key.identity, PushKind::Announcement, (paths, bytes), &limits).await?;
    rebuild::builds::permit(app, cache, &key, announcement.builds().len()).await?;
    let memory = app.sessions.memory(app, announcement.raw().len()).await?;
    let push = PushRow {
        id: crate::random::hex(12),
        digest: announcement.digest(),
        identity: key.identity,
        key: key.key.clone(),
        cache: cache.name.clone(),
        nonce: announcement.nonce().to_owned(),
        kind: PushKind::Announcement,
        envelope: announcement.raw().to_vec(),
        created: now,
        expires: now + cache.policy().limits.quarantine_ttl,
    };
    // a realisation says which path an output came to: only rebuilds, submitters or approvals can back that
    let realisations: Vec<RealisationRow> =
        announcement.realisations().iter().map(|r| unproven_realisation(&r.id, &r.out_path)).collect();
    let derivations = announcement.derivations().to_vec();
    let (name, key_name) = (key.identity_name.clone(), key.key.name().clone());
    let asked = session::Asked {
        derivations,
        inputs: announcement.is_of_inputs(),
        builds: announcement.builds().to_vec(),
    };
    let new = NewPush { push, submitter: key, signed, asked, realisations, memory };
    let first = first_states(app, cache, &new.signed, limits.nar_size).await?;
    match begin(app, cache, new, first).await? {
        Begun::New(session) => {
            tracing::info!(
                push = session.id,
                cache = cache.name,
                submitter = name,
                paths = session.signed.len(),
                wanted = session.status().wanted.len(),
                "announced"
            );
            Ok(session)
        }
        Begun::Known => {
            let known = db.push_by_digest(&announcement.digest()).await?;
            existing(app, &known.map(|p| p.id).unwrap_or_default()).await
        }
        Begun::NonceUsed => Err(ApiError::new(
            http::StatusCode::CONFLICT,
            "nonce-reused",
            format!(
                "the nonce `{}` was used for another announcement by `{}`",
                announcement.nonce(),
                key_name
            ),
        )),
    }
}

/// A realisation on its submitter's word alone.
fn unproven_realisation(id: &str, path: &StorePath) -> RealisationRow {
    RealisationRow {
        id: id.to_owned(),
        path: path.clone(),
        state: PathState::Held,
        code: "realisation-unproven".to_owned(),
    }
}

/// A push whose signatures were checked.
struct NewPush {
    push: PushRow,
    submitter: EnrolledKey,
    signed: Vec<signature::SignatureValid>,
    asked: session::Asked,
    realisations: Vec<RealisationRow>,
    /// What the session takes.
    memory: Held,
}

enum Begun {
    New(Arc<Session>),
    Known,
    NonceUsed,
}

/// Stores a push and takes up what of it is here already.
async fn begin(
    app: &Arc<App>,
    cache: &Arc<Cache>,
    new: NewPush,
    (states, conflicts, notices): FirstStates,
) -> Result<Begun, ApiError> {
    let db = app.db.as_ref();
    let NewPush { push, submitter, signed, asked, realisations, memory } = new;
    let claims: Vec<NewClaim> = signed
        .iter()
        .zip(&states)
        .map(|(s, state)| NewClaim {
            path: s.path().clone(),
            nar_hash: s.nar_hash(),
            deriver: s.claim().deriver.clone(),
            state: state.state,
        })
        .collect();
    let ids = match db.add_push(&push, &claims, &realisations).await? {
        PushAdded::Added(ids) => ids,
        PushAdded::Known => return Ok(Begun::Known),
        PushAdded::NonceUsed => return Ok(Begun::NonceUsed),
    };
    let mut session = Session::new(&push, submitter, cache.clone(), (signed, asked), ids, states, memory);
    session.progress().notices = notices;
    session.progress().realisations = realisations.into_iter().map(Into::into).collect();
    record_first_states(app, &session, conflicts).await?;
    if !session.derivations.is_empty() {
        // before it is asked which of them are here
        db.use_derivations(push.identity, &session.derivations, push.created).await?;
    }
    let nars = quarantine::load(db, push.identity, &session.status().wanted).await?;
    session.hold(app, &nars)?;
    let session = Arc::new(session);
    for nar in nars.values() {
        session.arrived(nar);
    }
    refresh_derivations(app, &session).await?;
    rebuild::builds::add(app, &session).await?;
    app.sessions.insert(session.clone());
    if session.progress().claims.iter().any(|c| c.state == PathState::Checking) {
        cache.report(&session.id);
    }
    Ok(Begun::New(session))
}

/// Bytes of open announcements that a submitter may have however small his quarantine is.
const LEAST_ANNOUNCED: u64 = 1 << 20;

/// Refuses what is more than a submitter may have open at once.
async fn bounded(
    app: &App,
    identity: i64,
    kind: PushKind,
    (paths, bytes): (usize, u64),
    policy: &Limits,
) -> Result<(), ApiError> {
    let limits = &app.config.limits;
    let most = policy.paths_per_push.map_or(limits.paths, |most| limits.paths.min(most as usize));
    if paths > most {
        return Err(AnnounceError::TooLarge { what: "paths", found: paths, most }.into());
    }
    let open = app.db.open_of(identity).await?;
    let of = |what: &str, found: u64, most: u64| {
        let mut error = ApiError::new(
            http::StatusCode::TOO_MANY_REQUESTS,
            "too-many-open",
            format!(
                "the submitter has {found} {what} that aren't decided yet; {most} are allowed: wait for some to be decided, or ask the admin"
            ),
        );
        error.retry_after = Some(60);
        error
    };
    // each path of stock Nix is a push: their paths are counted
    if kind == PushKind::Announcement && open.pushes >= limits.open_pushes {
        return Err(of("pushes", open.pushes, limits.open_pushes));
    }
    if open.paths + paths as u64 > limits.open_paths {
        return Err(of("paths", open.paths, limits.open_paths));
    }
    // announcements are kept as evidence, and take room as NARs do
    let most = policy.quarantine_size.max(LEAST_ANNOUNCED);
    if open.bytes + bytes > most {
        let message = format!(
            "the submitter's announcements that aren't decided yet have {} bytes, with this one more than the {most} that are allowed: wait for held paths to be decided, or ask the admin",
            open.bytes
        );
        return Err(ApiError::new(http::StatusCode::INSUFFICIENT_STORAGE, "quota-exceeded", message));
    }
    Ok(())
}

/// Runs what would hold up a thread of the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| ApiError::unavailable(&e))
}

async fn existing(app: &Arc<App>, id: &str) -> Result<Arc<Session>, ApiError> {
    let session = app.sessions.get(app, id).await?.ok_or_else(|| ApiError::not_found("push", id))?;
    // a crash may have come between the push and its builds
    rebuild::builds::add(app, &session).await?;
    Ok(session)
}

type FirstStates = (Vec<ClaimState>, Vec<usize>, Vec<String>);

/// What each claim is before any of its bytes came: published already, at an upstream, in conflict, too large, or wanted.
async fn first_states(
    app: &App,
    cache: &Cache,
    signed: &[signature::SignatureValid],
    nar_size: u64,
) -> Result<FirstStates, ApiError> {
    let policy = cache.policy();
    let db = app.db.as_ref();
    let parts: Vec<&str> = signed.iter().map(|s| s.path().hash_part()).collect();
    let published = db.published(&cache.name, &parts).await?;
    let withdrawn = db.withdrawn(&cache.name, &parts).await?;
    let inside: BTreeSet<&StorePath> = signed.iter().map(|s| s.path()).collect();
    let mut ask: BTreeSet<StorePath> = BTreeSet::new();
    for s in signed.iter().filter(|s| !published.contains_key(s.path().hash_part())) {
        ask.insert(s.path().clone());
        ask.extend(s.claim().references.iter().filter(|r| !inside.contains(*r)).cloned());
    }
    let answers = if policy.closure == Closure::Upstreams {
        let ask: Vec<StorePath> = ask.into_iter().collect();
        app.upstreams.ask(db, &policy.upstreams, &ask).await?
    } else {
        Default::default()
    };
    let mut conflicts = Vec::new();
    let states = signed
        .iter()
        .enumerate()
        .map(|(i, s)| {
            let claim = s.claim();
            match published.get(claim.path.hash_part()) {
                Some(row) if row.path == claim.path && row.nar_hash == claim.nar_hash => {
                    ClaimState::plain(PathState::Published)
                }
                Some(row) => {
                    conflicts.push(i);
                    judge::conflicts_with_published(claim, &row.path, &row.nar_hash)
                }
                None if withdrawn.contains_key(claim.path.hash_part()) => {
                    let row = &withdrawn[claim.path.hash_part()];
                    if row.path == claim.path && row.nar_hash == claim.nar_hash {
                        judge::withdrawn(claim)
                    } else {
                        conflicts.push(i);
                        judge::conflicts_with_published(claim, &row.path, &row.nar_hash)
                    }
                }
                None if answers.found.contains_key(&claim.path) => ClaimState::plain(PathState::Upstream),
                None if claim.nar_size > nar_size => ClaimState::with(
                    PathState::Rejected,
                    "nar-too-large",
                    format!(
                        "the NAR of `{}` has {} bytes; the policy of `{}` allows {}",
                        claim.path, claim.nar_size, policy.cache, nar_size
                    ),
                    vec![],
                ),
                None => ClaimState::plain(PathState::Wanted),
            }
        })
        .collect();
    Ok((states, conflicts, answers.notices))
}

/// Stores reasons and conflicts of first states. A crash before leaves the states without their words; the next
/// announcement of the same path finds the same conflict.
async fn record_first_states(app: &App, session: &Session, conflicts: Vec<usize>) -> Result<(), ApiError> {
    let claims: Vec<_> = {
        let progress = session.progress();
        let told = progress.claims.iter().enumerate().filter(|(_, c)| c.code.is_some());
        told.map(|(i, c)| session.update(i, c, vec![])).collect()
    };
    if claims.is_empty() {
        return Ok(());
    }
    let conflicts = conflicts
        .into_iter()
        .map(|i| (session.signed[i].path().clone(), session.signed[i].nar_hash(), session.ids[i]))
        .collect();
    let judged = crate::db::Judged {
        cache: session.cache.name.clone(),
        now: app.clock.now(),
        publications: vec![],
        seen: 0,
        claims,
        conflicts,
        ..crate::db::Judged::default()
    };
    app.db.commit(&judged).await?;
    Ok(())
}

/// Works out which derivations are still wanted and what to scan NARs for.
pub async fn refresh_derivations(app: &App, session: &Session) -> Result<(), SessionError> {
    let db = app.db.as_ref();
    let sent = if session.derivations.is_empty() {
        Default::default()
    } else {
        db.derivations_sent(session.identity, &session.derivations).await?
    };
    let wanted: Vec<StorePath> = session.derivations.iter().filter(|d| !sent.contains(*d)).cloned().collect();
    let here: Vec<StorePath> = session.derivations.iter().filter(|d| sent.contains(*d)).cloned().collect();
    let resolved = app.derivations.resolve(db, &here).await?;
    let mut members = derivations::outputs_and_sources(&resolved.known);
    for signed in &session.signed {
        members.insert(signed.path().clone());
        members.extend(signed.claim().references.iter().cloned());
    }
    let set = Arc::new(ScanSet::new(members));
    let mut progress = session.progress();
    progress.scan = Some(set);
    progress.wanted_derivations = wanted;
    Ok(())
}

/// Takes derivation texts for a push.
pub async fn take_derivations(
    app: &Arc<App>,
    session: &Arc<Session>,
    sent: Vec<(StorePath, Vec<u8>)>,
) -> Result<derivations::Taken, ApiError> {
    let announced: BTreeSet<&StorePath> = session.derivations.iter().collect();
    if let Some((path, _)) = sent.iter().find(|(path, _)| !announced.contains(path)) {
        let mut error = ApiError::bad_request(
            "derivation-not-announced",
            format!("the derivation `{path}` is not among those that the push announced"),
        );
        error.path = Some(path.absolute());
        return Err(error);
    }
    let bytes = sent.iter().map(|(_, text)| text.len() as u64).sum();
    let paths: Vec<StorePath> = sent.iter().map(|(path, _)| path.clone()).collect();
    let (_, budget) = app.submitter(session.identity, &session.limits()).await?;
    let mut counted = Counted::new(budget);
    if !counted.take(bytes) {
        return Err(ApiError::full(&counted.budget().refusal(bytes)));
    }
    let now = app.clock.now();
    let taken =
        app.derivations.take(app.db.as_ref(), session.identity, &session.derivations, sent, now).await?;
    app.stored(session.identity, taken.stored).await;
    drop(counted);
    refresh_derivations(app, session).await?;
    reject_for(app, session, &taken.refused).await?;
    session.evidence_came();
    session.cache.report(&session.id);
    if !session.builds.is_empty() {
        app.rebuilds.ask(rebuild::demand::Ask::Builds(session.cache.clone()));
    }
    derivations_came(app, session.identity, &paths).await?;
    Ok(taken)
}

/// Has the submitter's other pushes judged again that wait for these derivations.
pub async fn derivations_came(app: &Arc<App>, identity: i64, paths: &[StorePath]) -> Result<(), ApiError> {
    for cache in app.caches.all() {
        // what others sent is no evidence for their neighbours' claims
        for id in app.db.own_pushes_waiting_on(&cache.name, identity, paths).await? {
            // one that isn't in memory is read with all that is here by then
            if let Some(session) = app.sessions.peek(&id) {
                session.evidence_came();
            }
            cache.report(&id);
        }
    }
    Ok(())
}

/// A derivation that is bad itself ends the claims that rest on it alone.
async fn reject_for(
    app: &App,
    session: &Session,
    refused: &[(StorePath, pushgate_formats::derivation::DerivationError)],
) -> Result<(), ApiError> {
    Ok(end(app, session, end_claims(session, refused)).await?)
}

/// Stores that claims were refused, and frees what only they needed. A crash before it leaves them waiting for bytes that
/// are refused again.
pub async fn end(
    app: &App,
    session: &Session,
    claims: Vec<crate::db::ClaimUpdate>,
) -> Result<(), crate::db::DbError> {
    if claims.is_empty() {
        return Ok(());
    }
    let (cache, now) = (session.cache.name.clone(), app.clock.now());
    app.db.commit(&crate::db::Judged { cache, now, claims, ..Default::default() }).await?;
    session.notify();
    app.sweep.notify_one();
    Ok(())
}

fn end_claims(
    session: &Session,
    refused: &[(StorePath, pushgate_formats::derivation::DerivationError)],
) -> Vec<crate::db::ClaimUpdate> {
    let mut claims = Vec::new();
    let mut progress = session.progress();
    for (i, signed) in session.signed.iter().enumerate() {
        let claim = signed.claim();
        let bad = refused.iter().find(|(path, _)| claim.deriver.as_ref() == Some(path));
        let open =
            matches!(progress.claims[i].state, PathState::Wanted | PathState::Checking | PathState::Held);
        if let Some((path, error)) = bad.filter(|_| open && claim.ca.is_none()) {
            let message = format!("the deriver `{path}` of `{}` is refused: {error}", claim.path);
            let state = ClaimState::with(PathState::Rejected, error.code(), message, vec![]);
            claims.push(session.update(i, &state, vec![]));
            progress.claims[i] = state;
            progress.nars[i] = None;
        }
    }
    claims
}

/// What became of one path, for a submitter: published, or the latest of his own claims.
pub async fn path_status(
    app: &App,
    cache: &Cache,
    identity: i64,
    path: &StorePath,
) -> Result<Option<PathStatus>, ApiError> {
    let published = app.db.published(&cache.name, &[path.hash_part()]).await?;
    if published.values().any(|row| row.path == *path) {
        return Ok(Some(PathStatus {
            path: path.clone(),
            state: PathState::Published,
            code: None,
            message: None,
            waits_for: vec![],
        }));
    }
    let withdrawn = app.db.withdrawn(&cache.name, &[path.hash_part()]).await?;
    if withdrawn.values().any(|row| row.path == *path) {
        return Ok(Some(PathStatus {
            path: path.clone(),
            state: PathState::Held,
            code: Some("withdrawn".to_owned()),
            message: Some(format!("`{path}` was published, and is withdrawn")),
            waits_for: vec!["person".to_owned()],
        }));
    }
    let claims = app.db.claims_of_path(&cache.name, path).await?;
    Ok(claims.into_iter().find(|c| c.identity == identity).map(PathStatus::from))
}

/// Which of these paths neither the cache nor, as far as is remembered, an upstream has.
pub async fn missing(
    app: &App,
    cache: &Cache,
    asked: &[pushgate_formats::api::MissingPath],
) -> Result<pushgate_formats::api::Missing, ApiError> {
    let policy = cache.policy();
    let parts: Vec<&str> = asked.iter().map(|p| p.path.hash_part()).collect();
    let published = app.db.published_hashes(&cache.name, &parts).await?;
    let is_published = |path: &StorePath, nar_hash: &Sha256| {
        published.get(path.hash_part()).is_some_and(|(there, hash)| there == path && hash == nar_hash)
    };
    let mut open: Vec<StorePath> =
        asked.iter().filter(|p| !is_published(&p.path, &p.nar_hash)).map(|p| p.path.clone()).collect();
    let mut upstream = Vec::new();
    if policy.closure == Closure::Upstreams && !open.is_empty() {
        let known = app.upstreams.remembered(app.db.as_ref(), &policy.upstreams, &open).await?;
        (upstream, open) =
            open.into_iter().partition(|p| known.contains_key(p) && !published.contains_key(p.hash_part()));
    }
    Ok(pushgate_formats::api::Missing { missing: open, upstream })
}
