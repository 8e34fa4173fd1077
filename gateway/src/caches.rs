//! The caches of this gateway: name, signing key, policy in force. Knows nothing of pushes but where to wake the one who
//! judges them.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
};

use pushgate_formats::keys::{KeyError, KeyName, PublicKey, SecretKey};
use pushgate_policies::{
    MAX_POLICY, Policy, PolicyError,
    file::{Checked, Enrolled, EnrolledIdentity, Severity},
    starting_policy,
};
use tokio::sync::{Notify, mpsc};

use crate::{
    clock::Clock,
    db::{CacheRow, Db, DbError, IdentityRow, Role},
};

/// Names that routes of the gateway itself or directories of the blob store have.
pub const RESERVED: [&str; 7] = ["api", "healthz", "readyz", "metrics", "assets", "quarantine", "push"];

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(
        "`{0}` can't be a cache's name: 1 to 64 of a-z, 0-9, `-`, `_`, `.`, not starting with `.`, and not reserved"
    )]
    Name(String),
    #[error("a cache `{0}` exists already, or a submitter's key has the name of its key")]
    Exists(String),
    #[error("{path}")]
    File { path: PathBuf, source: io::Error },
    #[error("the key file {path} can be read by others (mode {mode:o}); `chmod 600` it")]
    Mode { path: PathBuf, mode: u32 },
    #[error("the key file {path}")]
    Key { path: PathBuf, source: KeyError },
    #[error("the key file {path} is not the key that cache `{cache}` publishes under")]
    OtherKey { path: PathBuf, cache: String },
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Db(#[from] DbError),
}

/// One cache.
pub struct Cache {
    pub name: String,
    pub key: SecretKey,
    policy: RwLock<PolicyState>,
    /// Held claims are to be judged again by another policy.
    changed: Notify,
    /// They are.
    judged: Notify,
    judge: mpsc::UnboundedSender<String>,
    /// What lies in the queue, so that nothing lies there twice; true where something new is to be judged.
    queued: Mutex<HashMap<String, bool>>,
}

struct PolicyState {
    policy: Arc<Policy>,
    /// Why the file as it is now isn't in force.
    problem: Option<String>,
}

impl Cache {
    pub fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    /// Has a push judged soon. Reporting it again before that changes nothing.
    pub fn report(&self, push: &str) {
        self.enqueue(push, true);
    }

    /// Has the judgement of a push go on where it stopped.
    pub fn go_on(&self, push: &str) {
        self.enqueue(push, false);
    }

    fn enqueue(&self, push: &str, new: bool) {
        let mut queued = self.queued.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(queued) = queued.get_mut(push) {
            *queued |= new;
            return;
        }
        queued.insert(push.to_owned(), new);
        // the judge, and with it the receiver, ends only when the gateway stops
        let _ = self.judge.send(push.to_owned());
    }

    /// Whether a push waits to be judged.
    pub fn is_queued(&self, push: &str) -> bool {
        let queued = self.queued.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        queued.contains_key(push)
    }

    /// Takes a push off the queue: what is reported from now on is judged again. True where it was reported, and doesn't
    /// only go on.
    pub fn taken(&self, push: &str) -> bool {
        let mut queued = self.queued.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        queued.remove(push).unwrap_or(true)
    }

    /// Resolves when all held claims are judged by the policy that came into force last.
    pub async fn judged_again(&self) {
        self.judged.notified().await;
    }

    /// Says that they are.
    pub fn tell_judged_again(&self) {
        self.judged.notify_one();
    }

    /// Resolves when another policy has come into force since it did so last.
    pub async fn policy_changed(&self) {
        self.changed.notified().await;
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        // assignments to the state are whole, whoever panicked
        self.policy.read().unwrap_or_else(std::sync::PoisonError::into_inner).policy.clone()
    }

    /// The policy file says what is in force.
    fn accept_policy(&self) {
        self.policy.write().unwrap_or_else(std::sync::PoisonError::into_inner).problem = None;
    }

    /// Another policy decides from now on, and what is held is judged again.
    fn put_in_force(&self, policy: Policy) {
        let mut state = self.policy.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *state = PolicyState { policy: Arc::new(policy), problem: None };
        drop(state);
        self.changed.notify_one();
    }

    /// The file isn't in force; what is stays so.
    fn refuse_policy(&self, problem: String) {
        let mut state = self.policy.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.problem.as_ref() != Some(&problem) {
            tracing::error!(cache = self.name, problem, "policy refused; the last good one stays");
            state.problem = Some(problem);
        }
    }

    /// Why the policy file as it is now is not in force, if so.
    pub fn policy_problem(&self) -> Option<String> {
        self.policy.read().unwrap_or_else(std::sync::PoisonError::into_inner).problem.clone()
    }
}

/// Where keys and policies lie.
#[derive(Debug, Clone)]
pub struct Places {
    /// `NAME.secret`, mode 0600.
    pub keys: PathBuf,
    /// `NAME.toml`.
    pub policies: PathBuf,
}

impl Places {
    pub fn below(data_dir: &Path) -> Self {
        Self { keys: data_dir.join("keys"), policies: data_dir.join("policies") }
    }

    fn key(&self, cache: &str) -> PathBuf {
        self.keys.join(format!("{cache}.secret"))
    }

    /// The policy file of a cache.
    pub fn policy(&self, cache: &str) -> PathBuf {
        self.policies.join(format!("{cache}.toml"))
    }
}

/// All caches. Those added by another process appear when they are first asked for.
pub struct Caches {
    places: Places,
    clock: Clock,
    map: RwLock<BTreeMap<String, Arc<Cache>>>,
    /// Held while policy files are read and put in force.
    reloading: tokio::sync::Mutex<()>,
    /// Who judges: told of each new cache once.
    started: mpsc::UnboundedSender<(Arc<Cache>, mpsc::UnboundedReceiver<String>)>,
}

/// Checks a cache's name: it is a directory, a URL's part and a key's name at once.
pub fn check_name(name: &str) -> Result<(), CacheError> {
    let good = !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
        && !RESERVED.contains(&name);
    if good { Ok(()) } else { Err(CacheError::Name(crate::error::clean(name))) }
}

/// Makes a cache: key, policy file, row. Each step is repeatable: a crash leaves a key or policy file that the next try
/// takes up, and the row comes last.
pub async fn create(db: &dyn Db, places: &Places, clock: &Clock, name: &str) -> Result<CacheRow, CacheError> {
    check_name(name)?;
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| CacheError::File { path, source }
    };
    for dir in [&places.keys, &places.policies] {
        fs::create_dir_all(dir).map_err(file(dir))?;
    }
    fs::set_permissions(&places.keys, fs::Permissions::from_mode(0o700)).map_err(file(&places.keys))?;
    let path = places.key(name);
    if !path.exists() {
        let key_name = KeyName::new(&format!("{name}-{}-1", crate::random::hex(4)))
            .map_err(|source| CacheError::Key { path: path.clone(), source })?;
        let key = SecretKey::from_seed(key_name, &crate::random::bytes());
        write_private(&path, &key.to_file_text()).map_err(file(&path))?;
    }
    let key = read_key(&path)?;
    let policy = places.policy(name);
    if !policy.exists() {
        fs::write(&policy, starting_policy(name)).map_err(file(&policy))?;
    }
    let row = CacheRow { name: name.to_owned(), public_key: key.public(), created: clock.now() };
    if db.add_cache(&row).await? { Ok(row) } else { Err(CacheError::Exists(name.to_owned())) }
}

/// Writes a file that only its owner may read, whole or not at all.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let tmp = path.with_extension(format!("new-{}", crate::random::hex(4)));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&tmp, path)
}

fn read_key(path: &Path) -> Result<SecretKey, CacheError> {
    let file = |source| CacheError::File { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(file)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(CacheError::Mode { path: path.to_owned(), mode });
    }
    let text = fs::read_to_string(path).map_err(file)?;
    SecretKey::parse(&text).map_err(|source| CacheError::Key { path: path.to_owned(), source })
}

/// A policy file that was read.
struct ReadPolicy {
    policy: Policy,
    text: String,
    warnings: Vec<String>,
}

impl ReadPolicy {
    /// Says what the file probably doesn't mean.
    fn warn(&self, cache: &str) {
        for warning in self.warnings.iter().take(20) {
            tracing::warn!(cache, warning, "the policy says what it may not mean");
        }
    }
}

/// Whom a policy file may ask for: those who may act.
async fn enrolled(db: &dyn Db) -> Result<Enrolled, DbError> {
    let identity = |row: IdentityRow| EnrolledIdentity {
        name: row.name,
        owner: row.owner,
        groups: row.groups,
        is_verifier: row.role == Role::Verifier,
    };
    let all = db.identities().await?.into_iter().filter(|row| !row.frozen);
    Ok(Enrolled { identities: all.map(identity).collect() })
}

/// Reads a policy with its warnings, of which those depend on who is enrolled.
fn read_policy(places: &Places, cache: &str, enrolled: &Enrolled) -> Result<ReadPolicy, CacheError> {
    let path = places.policy(cache);
    let file = |source| CacheError::File { path: path.clone(), source };
    // one byte more than is read of it shows that it is too large
    let mut text = String::new();
    let most = MAX_POLICY as u64 + 1;
    // a pipe is not waited for
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let opened = fs::OpenOptions::new().read(true).custom_flags(nonblock).open(&path).map_err(file)?;
    if !opened.metadata().map_err(file)?.is_file() {
        let why = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(CacheError::File { path, source: why });
    }
    opened.take(most).read_to_string(&mut text).map_err(file)?;
    let name = path.display().to_string();
    let Checked { policy, problems } = Policy::check_with(&text, Some(cache), Some(enrolled));
    match policy {
        None => Err(PolicyError { file: name, problems }.into()),
        Some(policy) => {
            let warnings = problems.iter().filter(|p| p.severity == Severity::Warning);
            let warnings = warnings.map(|p| p.render(&name)).collect();
            Ok(ReadPolicy { policy, text, warnings })
        }
    }
}

impl Caches {
    pub fn new(
        places: Places,
        clock: Clock,
        started: mpsc::UnboundedSender<(Arc<Cache>, mpsc::UnboundedReceiver<String>)>,
    ) -> Self {
        Self { places, clock, map: RwLock::default(), started, reloading: Default::default() }
    }

    /// Loads caches that the database has and this process doesn't.
    pub async fn refresh(&self, db: &dyn Db) -> Result<(), CacheError> {
        for row in db.caches().await? {
            if self.peek(&row.name).is_some() {
                continue;
            }
            let path = self.places.key(&row.name);
            let key = read_key(&path)?;
            if key.public() != row.public_key {
                return Err(CacheError::OtherKey { path, cache: row.name });
            }
            let read = read_policy(&self.places, &row.name, &enrolled(db).await?)?;
            read.warn(&row.name);
            db.add_policy(&row.name, &read.policy.digest, &read.text, self.clock.now()).await?;
            let policy = Arc::new(read.policy);
            let (judge, queue) = mpsc::unbounded_channel();
            let cache = Arc::new(Cache {
                name: row.name.clone(),
                key,
                policy: RwLock::new(PolicyState { policy, problem: None }),
                changed: Notify::new(),
                judged: Notify::new(),
                judge,
                queued: Mutex::default(),
            });
            let mut map = self.map.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            // another request may have loaded it meanwhile: the first one stays
            if let std::collections::btree_map::Entry::Vacant(place) = map.entry(row.name) {
                place.insert(cache.clone());
                // closed only when the gateway stops
                let _ = self.started.send((cache, queue));
            }
        }
        Ok(())
    }

    fn peek(&self, name: &str) -> Option<Arc<Cache>> {
        self.map.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(name).cloned()
    }

    /// A cache by name.
    pub async fn get(&self, db: &dyn Db, name: &str) -> Result<Option<Arc<Cache>>, CacheError> {
        if let Some(cache) = self.peek(name) {
            return Ok(Some(cache));
        }
        if check_name(name).is_err() {
            return Ok(None);
        }
        self.refresh(db).await?;
        Ok(self.peek(name))
    }

    /// Every cache that is loaded, by name.
    pub fn all(&self) -> Vec<Arc<Cache>> {
        self.map.read().unwrap_or_else(std::sync::PoisonError::into_inner).values().cloned().collect()
    }

    /// Takes up policy files that changed, all of the directory or none: what is in force is always one state of it that
    /// was good as a whole. A broken file changes nothing. Each new policy is kept in the database before it decides anything.
    /// True where a policy changed.
    pub async fn reload_policies(&self, db: &dyn Db) -> Result<bool, DbError> {
        let _one_at_a_time = self.reloading.lock().await;
        let all = self.all();
        let places = self.places.clone();
        let names: Vec<String> = all.iter().map(|cache| cache.name.clone()).collect();
        let known = enrolled(db).await?;
        let read = move || names.iter().map(|name| read_policy(&places, name, &known)).collect::<Vec<_>>();
        // a task that dies of a panic leaves everything as it was
        let Ok(read) = tokio::task::spawn_blocking(read).await else { return Ok(false) };
        let broken: Vec<&str> =
            all.iter().zip(&read).filter(|(_, r)| r.is_err()).map(|(c, _)| c.name.as_str()).collect();
        let good = broken.is_empty();
        let elsewhere = format!("not in force because the policy of `{}` is broken", broken.join("`, `"));
        let mut changed = false;
        for (cache, read) in all.iter().zip(read) {
            match read {
                // the path alone doesn't say what is wrong with it
                Err(CacheError::File { path, source }) => {
                    cache.refuse_policy(format!("{}: {source}", path.display()));
                }
                Err(e) => cache.refuse_policy(e.to_string()),
                Ok(read) if read.policy == *cache.policy() => cache.accept_policy(),
                Ok(_) if !good => cache.refuse_policy(elsewhere.clone()),
                Ok(read) => {
                    db.add_policy(&cache.name, &read.policy.digest, &read.text, self.clock.now()).await?;
                    tracing::info!(cache = cache.name, digest = %read.policy.digest, "policy in force");
                    read.warn(&cache.name);
                    cache.put_in_force(read.policy);
                    changed = true;
                }
            }
        }
        Ok(changed)
    }

    /// What shows that policy files changed, without reading them: a replaced file is another inode, a rewritten one has
    /// another time or length.
    pub fn stamp(&self) -> Vec<Option<(u64, u64, i64, i64)>> {
        let stat = |cache: &Arc<Cache>| {
            let meta = fs::metadata(self.places.policy(&cache.name)).ok()?;
            Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
        };
        self.all().iter().map(stat).collect()
    }
}
