//! A push while it is under way: its claims with the proofs made so far. Rebuilt from stored evidence — the signed
//! envelope, the examined NARs — after a restart or when it was dropped from memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use pushgate_formats::{
    Sha256, StorePath,
    api::{PathState, PathStatus, PushStatus, RealisationStatus},
    keys::PublicKey,
};
use pushgate_policies::Limits;
use tokio::sync::watch;

use super::{
    announce::{AnnounceError, Announcement},
    evidence,
    intake::{DigestWanted, NarIntact, Plan},
    quarantine::{self, Quarantined, ScanSet},
    signature::{self, SignatureError, SignatureValid},
    stock,
};
use crate::{
    app::App,
    caches::Cache,
    db::{ClaimRow, ClaimUpdate, DbError, Decided, EnrolledKey, PushKind, PushRow},
    limits::Held,
};

/// Sessions kept in memory beside those in use, as expected; how much memory they may take counts.
const KEPT: usize = 256;
/// What a session takes for each byte of its announcement: paths stand there in several lists.
pub const TIMES: u64 = 4;
/// What reading a stored announcement takes, likewise.
const READING: u64 = 6;
/// Wanted inputs that one answer names.
const MAX_WANTED: usize = 2000;
/// How long a judgement waits for memory.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Db(#[from] DbError),
    /// What the database holds as evidence doesn't pass the checks that it passed once.
    #[error("the stored announcement of push `{push}` is not valid evidence: {why}")]
    Evidence { push: String, why: String },
    #[error("the cache `{0}` of a stored push is not configured")]
    Cache(String),
    #[error("there is no memory for a push beside what is under way")]
    NoMemory,
}

/// What a claim has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimState {
    pub state: PathState,
    pub code: Option<String>,
    pub message: Option<String>,
    pub waits: Vec<String>,
    /// The last decision that the policy made of it.
    pub decided: Option<Decided>,
}

impl ClaimState {
    pub const fn plain(state: PathState) -> Self {
        Self { state, code: None, message: None, waits: Vec::new(), decided: None }
    }

    pub fn with(state: PathState, code: &str, message: String, waits: Vec<String>) -> Self {
        Self { state, code: Some(code.to_owned()), message: Some(message), waits, decided: None }
    }

    /// The same, decided so.
    pub fn by(self, decided: Decided) -> Self {
        Self { decided: Some(decided), ..self }
    }
}

/// The part that changes.
pub struct Progress {
    pub claims: Vec<ClaimState>,
    pub nars: Vec<Option<NarIntact>>,
    pub scan: Option<Arc<ScanSet>>,
    /// Announced derivations that this submitter hasn't sent.
    pub wanted_derivations: Vec<StorePath>,
    /// Grows when evidence comes that claims may be held for: a judgement that began before is out of date.
    pub evidence: u64,
    pub notices: Vec<String>,
    /// By claim, or `None` for the push's builds: paths that verifiers need and that have to be sent.
    pub wanted_inputs: BTreeMap<Option<usize>, Vec<StorePath>>,
    /// By claim: what has to be published before a verifier can build it.
    pub unpublished: BTreeMap<usize, Vec<StorePath>>,
    pub realisations: Vec<RealisationStatus>,
    /// Where in [`Session::order`] a judgement that comes in parts goes on; 0 where none is under way.
    pub judged: usize,
    /// Whether something new came since such a judgement began.
    pub again: bool,
}

/// What an announcement has beside its claims.
#[derive(Debug, Default)]
pub struct Asked {
    pub derivations: Vec<StorePath>,
    pub inputs: bool,
    pub builds: Vec<StorePath>,
}

/// A push under way.
pub struct Session {
    pub id: String,
    pub kind: PushKind,
    pub cache: Arc<Cache>,
    pub identity: i64,
    /// Whose it is, as it was when the session was made; the judgement looks anew.
    pub submitter: EnrolledKey,
    pub key: PublicKey,
    /// Seconds since 1970, UTC.
    pub announced: u64,
    pub expires: u64,
    /// In the order of the announcement, as are all other lists by claim.
    pub signed: Vec<SignatureValid>,
    /// The claims' rows.
    pub ids: Vec<i64>,
    /// The claims so that each comes after those that it refers to.
    pub order: Vec<usize>,
    pub by_path: HashMap<StorePath, usize>,
    pub by_nar: HashMap<Sha256, Vec<usize>>,
    /// Announced derivations.
    pub derivations: Vec<StorePath>,
    /// Whether the paths are inputs for verifiers, never to be published.
    pub inputs: bool,
    /// Derivations that verifiers are to build.
    pub builds: Vec<StorePath>,
    progress: Mutex<Progress>,
    changed: watch::Sender<u64>,
    /// As long as it is in memory.
    held: Held,
    /// Bytes, as estimated.
    bytes: u64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({})", self.id)
    }
}

impl Session {
    /// Puts a session together. `states` are those of the claims' rows.
    pub fn new(
        push: &PushRow,
        submitter: EnrolledKey,
        cache: Arc<Cache>,
        (signed, asked): (Vec<SignatureValid>, Asked),
        ids: Vec<i64>,
        claims: Vec<ClaimState>,
        held: Held,
    ) -> Self {
        let bytes = TIMES * push.envelope.len() as u64;
        let by_path: HashMap<StorePath, usize> =
            signed.iter().enumerate().map(|(i, s)| (s.path().clone(), i)).collect();
        let mut by_nar: HashMap<Sha256, Vec<usize>> = HashMap::new();
        for (i, s) in signed.iter().enumerate() {
            by_nar.entry(s.nar_hash()).or_default().push(i);
        }
        let order = references_first(&signed, &by_path);
        let nars = vec![None; signed.len()];
        Self {
            id: push.id.clone(),
            kind: push.kind,
            cache,
            identity: push.identity,
            submitter,
            key: push.key.clone(),
            announced: push.created,
            expires: push.expires,
            signed,
            ids,
            order,
            by_path,
            by_nar,
            derivations: asked.derivations,
            inputs: asked.inputs,
            builds: asked.builds,
            progress: Mutex::new(Progress {
                claims,
                nars,
                scan: None,
                wanted_derivations: Vec::new(),
                evidence: 0,
                notices: Vec::new(),
                wanted_inputs: BTreeMap::new(),
                unpublished: BTreeMap::new(),
                realisations: Vec::new(),
                judged: 0,
                again: false,
            }),
            changed: watch::channel(0).0,
            held,
            bytes,
        }
    }

    /// Accounts for NARs that were read from the database.
    pub fn hold(&mut self, app: &App, nars: &HashMap<Sha256, Arc<Quarantined>>) -> Result<(), SessionError> {
        let bytes = nars.values().map(|nar| nar.examined.memory()).sum();
        self.held.add(app.memory.take(bytes).ok_or(SessionError::NoMemory)?);
        self.bytes += bytes;
        Ok(())
    }

    /// Locks the changing part. Never held across an await.
    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        // every change under the lock is an assignment of whole values
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait that something changed.
    pub fn notify(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What its submitter may send, by the policy in force.
    pub fn limits(&self) -> Limits {
        self.cache.policy().limits_for(&evidence::identity(&self.submitter))
    }

    /// Whether a NAR is one that this push wants now.
    pub fn wants(&self, nar: &Sha256) -> bool {
        let progress = self.progress();
        self.by_nar
            .get(nar)
            .is_some_and(|claims| claims.iter().any(|i| progress.claims[*i].state == PathState::Wanted))
    }

    /// What to look for in a NAR's bytes, for all claims of it that aren't refused. The limit is the size that claims
    /// which wait for bytes have announced, and that the policy allows; a re-examination sets its own.
    pub fn plan(&self, nar: &Sha256) -> Plan {
        let claims = self.by_nar.get(nar).map(Vec::as_slice).unwrap_or_default();
        let most = self.limits().nar_size;
        let progress = self.progress();
        let mut plan = Plan { scan: progress.scan.clone(), ..Plan::default() };
        for i in claims {
            let (claim, state) = (self.signed[*i].claim(), progress.claims[*i].state);
            match state {
                // one refused for its size must not lift the limit for the others
                PathState::Rejected => continue,
                PathState::Wanted => plan.limit = plan.limit.max(claim.nar_size.min(most)),
                _ => {}
            }
            plan.capture |= claim.path.is_derivation();
            let own = claim.references.contains(&claim.path);
            let wanted = claim.ca.as_ref().and_then(|ca| DigestWanted::for_address(&claim.path, ca, own));
            // each digest costs a pass: the few that matter now, others when they are asked for
            if plan.digests.len() < 4 {
                plan.digests.extend(wanted);
            }
        }
        plan
    }

    /// Takes a NAR that is in quarantine now: its claims have their bytes, or lied about them.
    pub fn arrived(&self, nar: &Arc<Quarantined>) {
        let mut progress = self.progress();
        for i in self.by_nar.get(&nar.examined.nar_hash).into_iter().flatten() {
            if progress.claims[*i].state != PathState::Wanted {
                continue;
            }
            match NarIntact::check(&self.signed[*i], nar) {
                Ok(intact) => {
                    progress.nars[*i] = Some(intact);
                    progress.claims[*i] = ClaimState::plain(PathState::Checking);
                }
                Err(e) => {
                    let state = PathState::Rejected;
                    progress.claims[*i] = ClaimState::with(state, e.code(), e.to_string(), vec![]);
                }
            }
        }
    }

    /// Has the claims that are held for want of a derivation judged again: until that is done they aren't settled.
    pub fn evidence_came(&self) {
        let mut guard = self.progress();
        let progress = &mut *guard;
        progress.evidence += 1;
        for (claim, nar) in progress.claims.iter_mut().zip(&progress.nars) {
            let waits = matches!(claim.code.as_deref(), Some("needs-derivation" | "references-unknown"));
            if claim.state == PathState::Held && nar.is_some() && waits {
                *claim = ClaimState::plain(PathState::Checking);
            }
        }
    }

    /// The claims' states as rows.
    pub fn update(&self, i: usize, state: &ClaimState, waits_on: Vec<StorePath>) -> ClaimUpdate {
        ClaimUpdate {
            id: self.ids[i],
            state: state.state,
            code: state.code.clone(),
            message: state.message.clone(),
            waits: state.waits.clone(),
            waits_on,
            decision: None,
            again: None,
        }
    }

    /// Whether every path is settled, or with `terminal`, published or refused.
    pub fn is_settled(&self, terminal: bool) -> bool {
        // what its builds come to, the push doesn't know itself
        if !self.builds.is_empty() {
            return false;
        }
        self.progress().claims.iter().all(|c| {
            if terminal { c.state.is_settled() && c.state != PathState::Held } else { c.state.is_settled() }
        })
    }

    /// The answer to "what became of it?".
    pub fn status(&self) -> PushStatus {
        let progress = self.progress();
        let paths = self
            .signed
            .iter()
            .zip(&progress.claims)
            .enumerate()
            .map(|(i, (signed, claim))| PathStatus {
                path: signed.path().clone(),
                state: claim.state,
                code: claim.code.clone(),
                message: claim.message.clone(),
                waits_for: match claim.state {
                    PathState::Wanted => vec!["bytes".to_owned()],
                    PathState::Held => {
                        let more =
                            progress.unpublished.get(&i).into_iter().flatten().map(StorePath::absolute);
                        let mut waits = claim.waits.clone();
                        waits.extend(more.filter(|path| !claim.waits.contains(path)));
                        waits
                    }
                    _ => claim.waits.clone(),
                },
            })
            .collect();
        let wanted: BTreeSet<Sha256> = (self.signed.iter().zip(&progress.claims))
            .filter(|(_, c)| c.state == PathState::Wanted)
            .map(|(s, _)| s.nar_hash())
            .collect();
        PushStatus {
            push: self.id.clone(),
            cache: self.cache.name.clone(),
            expires: self.expires,
            paths,
            wanted: wanted.into_iter().collect(),
            wanted_derivations: progress.wanted_derivations.clone(),
            notices: progress.notices.clone(),
            wanted_inputs: {
                let all: BTreeSet<&StorePath> = progress.wanted_inputs.values().flatten().collect();
                all.into_iter().take(MAX_WANTED).cloned().collect()
            },
            // added by those who ask the database
            builds: vec![],
            realisations: progress.realisations.clone(),
        }
    }
}

/// Claims in an order in which each comes after those that it refers to. Cycles can't be published anyway; they are
/// broken anywhere.
fn references_first(signed: &[SignatureValid], by_path: &HashMap<StorePath, usize>) -> Vec<usize> {
    let inside = |i: usize| -> Vec<usize> {
        signed[i]
            .claim()
            .references
            .iter()
            .filter_map(|r| by_path.get(r).copied())
            .filter(|j| *j != i)
            .collect()
    };
    let mut order = Vec::with_capacity(signed.len());
    let mut seen = vec![false; signed.len()];
    for root in 0..signed.len() {
        if std::mem::replace(&mut seen[root], true) {
            continue;
        }
        let mut stack = vec![(root, inside(root))];
        while let Some((i, left)) = stack.last_mut() {
            match left.pop() {
                Some(next) if !std::mem::replace(&mut seen[next], true) => stack.push((next, inside(next))),
                Some(_) => {}
                None => {
                    order.push(*i);
                    stack.pop();
                }
            }
        }
    }
    order
}

/// The sessions in memory: one for each push, however many ask for it.
pub struct Sessions {
    live: Mutex<HashMap<String, Weak<Session>>>,
    kept: quick_cache::sync::Cache<String, Arc<Session>, Weight>,
    loading: tokio::sync::Mutex<()>,
}

/// Weighs sessions by what they take in memory.
#[derive(Clone)]
struct Weight;

impl quick_cache::Weighter<String, Arc<Session>> for Weight {
    fn weight(&self, _: &String, session: &Arc<Session>) -> u64 {
        session.bytes.max(1)
    }
}

impl Sessions {
    /// Keeps so many bytes beside what is in use.
    pub fn new(bytes: u64) -> Self {
        Self {
            live: Mutex::default(),
            kept: quick_cache::sync::Cache::with_weighter(KEPT, bytes, Weight),
            loading: tokio::sync::Mutex::new(()),
        }
    }

    /// Memory for the session of an announcement of so many bytes.
    pub async fn memory(&self, app: &App, envelope: usize) -> Result<Held, SessionError> {
        self.room(app, TIMES * envelope as u64, Duration::ZERO).await
    }

    /// So many bytes of memory. What is only kept gives way.
    async fn room(&self, app: &App, bytes: u64, patience: Duration) -> Result<Held, SessionError> {
        if let Some(held) = app.memory.take(bytes) {
            return Ok(held);
        }
        self.kept.clear();
        app.memory.wait(bytes, patience.max(Duration::from_millis(100))).await.ok_or(SessionError::NoMemory)
    }

    /// The session of a push, if it is in memory.
    pub fn peek(&self, id: &str) -> Option<Arc<Session>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).get(id).and_then(Weak::upgrade)
    }

    /// Takes up a new session.
    pub fn insert(&self, session: Arc<Session>) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.len() > 4 * KEPT {
            live.retain(|_, s| s.strong_count() > 0);
        }
        live.insert(session.id.clone(), Arc::downgrade(&session));
        self.kept.insert(session.id.clone(), session);
    }

    /// Tells those who wait for news of pushes with builds.
    pub fn tell_builders(&self) {
        let live: Vec<Arc<Session>> = {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.values().filter_map(Weak::upgrade).collect()
        };
        live.iter().filter(|session| !session.builds.is_empty()).for_each(|session| session.notify());
    }

    /// Waits until no push is being read back: whatever read rows before this has its session in memory afterwards.
    pub async fn loaded(&self) {
        drop(self.loading.lock().await);
    }

    /// The session of a push, rebuilt from evidence where it isn't in memory.
    pub async fn get(&self, app: &App, id: &str) -> Result<Option<Arc<Session>>, SessionError> {
        self.get_within(app, id, Duration::ZERO).await
    }

    /// The same for one who can wait until there is memory for it.
    pub async fn get_waiting(&self, app: &App, id: &str) -> Result<Option<Arc<Session>>, SessionError> {
        self.get_within(app, id, PATIENCE).await
    }

    async fn get_within(
        &self,
        app: &App,
        id: &str,
        patience: Duration,
    ) -> Result<Option<Arc<Session>>, SessionError> {
        if let Some(session) = self.peek(id) {
            self.kept.insert(session.id.clone(), session.clone());
            return Ok(Some(session));
        }
        let _one_at_a_time = self.loading.lock().await;
        if let Some(session) = self.peek(id) {
            return Ok(Some(session));
        }
        let Some(push) = app.db.push(id).await? else { return Ok(None) };
        let length = push.envelope.len() as u64;
        let held = self.room(app, TIMES * length, patience).await?;
        let reading = self.room(app, READING * length, patience).await?;
        let session = Arc::new(load(app, push, held).await?);
        drop(reading);
        // its announcement may have come to its end meanwhile: there is one session for all
        if let Some(session) = self.peek(id) {
            return Ok(Some(session));
        }
        self.insert(session.clone());
        Ok(Some(session))
    }

    /// Forgets pushes whose time is over: of a sweep that was stored and reported to have failed nobody knows which pushes
    /// it ended. What was settled in time is read back when somebody asks.
    pub fn forget_expired(&self, now: u64) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|id, session| {
            let over = session.upgrade().is_none_or(|s| s.expires <= now);
            if over {
                self.kept.remove(id);
            }
            !over
        });
    }

    /// Forgets a push whose rows were changed behind its back.
    pub fn forget(&self, id: &str) {
        self.kept.remove(id);
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// Makes a session's proofs again from the stored envelope and the examined NARs.
async fn load(app: &App, push: PushRow, held: Held) -> Result<Session, SessionError> {
    let invalid = |why: String| SessionError::Evidence { push: push.id.clone(), why };
    let raw = push.envelope.clone();
    let key = push.key.clone();
    let kind = push.kind;
    let checked = tokio::task::spawn_blocking(move || match kind {
        PushKind::Announcement => {
            let announcement = Announcement::parse(raw).map_err(|e: AnnounceError| e.to_string())?;
            let signed = signature::verify(&announcement, &key).map_err(|e: SignatureError| e.to_string())?;
            let asked = Asked {
                derivations: announcement.derivations().to_vec(),
                inputs: announcement.is_of_inputs(),
                builds: announcement.builds().to_vec(),
            };
            Ok::<_, String>((signed, asked))
        }
        PushKind::NarInfo => {
            let signed = stock::narinfo::reopen(&raw, &key).map_err(|e| e.to_string())?;
            Ok((vec![signed], Asked::default()))
        }
    })
    .await
    .map_err(|e| invalid(e.to_string()))?;
    let (signed, asked) = checked.map_err(invalid)?;
    let rows: HashMap<StorePath, ClaimRow> =
        app.db.claims(&push.id).await?.into_iter().map(|row| (row.path.clone(), row)).collect();
    let (mut ids, mut states) = (Vec::new(), Vec::new());
    for proof in &signed {
        let Some(row) = rows.get(proof.path()) else {
            if push.expires > app.clock.now() {
                return Err(invalid(format!("it has no row for `{}`", proof.path())));
            }
            // of ended pushes only what was published is kept
            let message =
                format!("what became of `{}` isn't known any more: the push ended long ago", proof.path());
            ids.push(0);
            states.push(ClaimState::with(PathState::Rejected, "push-forgotten", message, vec![]));
            continue;
        };
        ids.push(row.id);
        let mut state = ClaimState {
            state: row.state,
            code: row.code.clone(),
            message: row.message.clone(),
            waits: row.waits.clone(),
            decided: row.decided.clone(),
        };
        // whether bytes are here is asked of the quarantine, not of the row
        if matches!(row.state, PathState::Checking | PathState::Held) {
            state.state = PathState::Wanted;
        }
        states.push(state);
    }
    let cache = app
        .caches
        .get(app.db.as_ref(), &push.cache)
        .await
        .ok()
        .flatten()
        .ok_or_else(|| SessionError::Cache(push.cache.clone()))?;
    let submitter = app.db.key(&push.key.bytes()).await?;
    let submitter =
        submitter.ok_or_else(|| invalid(format!("its key `{}` isn't enrolled", push.key.name())))?;
    let mut session = Session::new(&push, submitter, cache, (signed, asked), ids, states, held);
    let open: Vec<Sha256> = session.status().wanted;
    let nars = quarantine::load(app.db.as_ref(), push.identity, &open).await?;
    session.hold(app, &nars)?;
    for nar in nars.values() {
        session.arrived(nar);
    }
    restore_held(&session, &rows);
    let realisations = app.db.realisations(&push.id).await?;
    session.progress().realisations = realisations.into_iter().map(RealisationStatus::from).collect();
    super::refresh_derivations(app, &session).await?;
    Ok(session)
}

/// What was held stays so, with its reason, until it is judged again.
fn restore_held(session: &Session, rows: &HashMap<StorePath, ClaimRow>) {
    let mut progress = session.progress();
    for (i, proof) in session.signed.iter().enumerate() {
        let Some(row) = rows.get(proof.path()) else { continue };
        // a conflict with what is published is held without bytes; any other claim without bytes wants them
        let without_bytes = row.code.as_deref() == Some("conflicts-with-published");
        let here = progress.nars[i].is_some();
        if row.state == PathState::Held && (here || without_bytes) {
            progress.claims[i] = ClaimState {
                state: row.state,
                code: row.code.clone(),
                message: row.message.clone(),
                waits: row.waits.clone(),
                decided: row.decided.clone(),
            };
        }
    }
}
