//! The upstreams that a policy trusts: asks them for narinfos, many at once, checks the signature, remembers what is there.
//! One that can't be reached is neither yes nor no. Knows nothing of pushes.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use pushgate_formats::{
    Sha256, StorePath,
    narinfo::{Dialect, MAX_NARINFO, UnverifiedNarInfo},
};
use pushgate_policies::{Upstream, facts::Fact};
use tokio::time::Instant;

use crate::{
    clock::Clock,
    db::{Db, DbError, UpstreamRow},
};

/// How long one question may take.
const ONE: Duration = Duration::from_millis(2500);
/// How long all questions of one push may take together.
const ALL: Duration = Duration::from_secs(4);
/// How long a NAR may stall.
const STALLED: Duration = Duration::from_secs(60);
/// Questions of one push at most; what is beyond is unknown.
const QUESTIONS: usize = 20_000;
/// Questions under way at once.
const AT_ONCE: usize = 64;
/// How long an upstream that couldn't be reached isn't asked again, in seconds.
const REST: u64 = 60;
/// How long "not there" is believed, in seconds.
const ABSENT: u64 = 600;
/// Answers of "not there" remembered.
const ABSENT_KEPT: usize = 200_000;

/// What an upstream has at a path, its signature checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamPath {
    pub nar_hash: Sha256,
    pub references: BTreeSet<StorePath>,
}

/// The answers for a set of paths.
#[derive(Debug, Default)]
pub struct Answers {
    pub found: HashMap<StorePath, Arc<UpstreamPath>>,
    /// One line for each upstream that couldn't be asked, or not for everything.
    pub notices: Vec<String>,
}

/// What one upstream says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Says {
    /// As in the policy.
    pub url: String,
    /// Unknown where it can't be asked now: that is neither yes nor no.
    pub nar_hash: Fact<Sha256>,
    /// Seconds since 1970: when it is worth while to ask again.
    pub again: Option<u64>,
}

enum Answer {
    Has(Box<UnverifiedNarInfo>),
    Absent,
    Fault(String),
}

/// What the upstreams have under a hash part.
#[derive(Debug)]
pub enum Found {
    /// Its signature is by the pinned key.
    NarInfo(Box<UnverifiedNarInfo>),
    Absent,
    /// One of them can't be asked now, and the others don't have it.
    Unknown(String),
}

/// A file of an upstream, as it comes.
pub struct Foreign {
    response: reqwest::Response,
    /// Bytes that may still come.
    left: u64,
}

impl Foreign {
    /// The next piece. More than the narinfo leads to expect is an error.
    pub async fn next(&mut self) -> std::io::Result<Option<bytes::Bytes>> {
        let piece = self.response.chunk().await.map_err(|e| std::io::Error::other(root_cause(&e)))?;
        let Some(piece) = piece else { return Ok(None) };
        let more = || std::io::Error::other("the upstream sends more than its narinfo says");
        self.left = self.left.checked_sub(piece.len() as u64).ok_or_else(more)?;
        Ok(Some(piece))
    }
}

/// How the questions to one upstream ended.
enum End {
    Answered,
    /// The time of all was over, with so many open.
    Late(usize),
    Fault(String),
}

/// Asks upstreams and remembers. One for the whole gateway.
pub struct Upstreams {
    http: reqwest::Client,
    /// For NARs, which may take their time as long as bytes come.
    files: reqwest::Client,
    clock: Clock,
    /// (URL, hash part) → until when "not there" is believed.
    absent: quick_cache::sync::Cache<(String, String), u64>,
    /// URL → until when it is left alone, and why.
    resting: std::sync::Mutex<HashMap<String, (u64, String)>>,
    /// Questions for single narinfos at once.
    singles: tokio::sync::Semaphore,
}

impl Upstreams {
    pub fn new(clock: Clock) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("pushgate/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(ONE)
            .timeout(ONE)
            .redirect(reqwest::redirect::Policy::limited(3))
            .build()?;
        let files = reqwest::Client::builder()
            .user_agent(concat!("pushgate/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(ONE)
            .read_timeout(STALLED)
            .redirect(reqwest::redirect::Policy::custom(|attempt| {
                let at_home =
                    attempt.previous().first().is_some_and(|first| first.host() == attempt.url().host());
                // elsewhere only where a name and a certificate say whose it is: no neighbour of the gateway
                let named = attempt.url().scheme() == "https" && attempt.url().domain().is_some();
                match attempt.previous().len() <= 3 && (at_home || named) {
                    true => attempt.follow(),
                    false => attempt.stop(),
                }
            }))
            .build()?;
        let absent = quick_cache::sync::Cache::new(ABSENT_KEPT);
        let singles = tokio::sync::Semaphore::new(AT_ONCE);
        Ok(Self { http, files, clock, absent, resting: Default::default(), singles })
    }

    /// What is remembered to be at the upstreams, without asking them.
    pub async fn remembered(
        &self,
        db: &dyn Db,
        upstreams: &[Upstream],
        paths: &[StorePath],
    ) -> Result<HashMap<StorePath, Arc<UpstreamPath>>, DbError> {
        let mut found = HashMap::new();
        for upstream in upstreams {
            let left: Vec<_> = paths.iter().filter(|p| !found.contains_key(*p)).cloned().collect();
            if left.is_empty() {
                break;
            }
            for row in db.upstream_paths(&upstream.url, &upstream.key, &left).await? {
                let fact = UpstreamPath { nar_hash: row.nar_hash, references: row.references };
                found.entry(row.path).or_insert_with(|| Arc::new(fact));
            }
        }
        Ok(found)
    }

    /// Asks for the narinfo of a hash part, whatever its name: what stock Nix asks the push prefix for.
    /// Nothing is remembered of what was found: anybody with a token can ask for anything.
    pub async fn narinfo(&self, upstreams: &[Upstream], hash_part: &str) -> Found {
        // closed never
        let _one = self.singles.acquire().await;
        let mut unknown = None;
        for upstream in upstreams {
            let now = self.clock.now();
            if self.is_absent(upstream, hash_part, now) {
                continue;
            }
            if let Some(why) = self.is_resting(upstream, now) {
                unknown = Some(notice(upstream, &why));
                continue;
            }
            match self.question(upstream, hash_part).await {
                Answer::Has(info) => return Found::NarInfo(info),
                Answer::Absent => self.note_absent(upstream, hash_part),
                // one caller's questions don't rest the upstream for the pushes of others
                Answer::Fault(why) => unknown = Some(notice(upstream, &why)),
            }
        }
        unknown.map_or(Found::Absent, Found::Unknown)
    }

    /// Fetches the NAR of a narinfo that was checked. Whether the bytes are right, whoever unpacks them finds out.
    pub async fn file(&self, url: &str, info: &UnverifiedNarInfo) -> Result<Foreign, String> {
        // relative, as binary caches have it: an upstream doesn't send the gateway elsewhere
        if info.url.contains("://")
            || info.url.starts_with('/')
            || info.url.split('/').any(|part| part == "..")
        {
            return Err(format!("`{}` is no file below it", crate::error::clean(&info.url)));
        }
        let response =
            self.files.get(format!("{url}/{}", info.url)).send().await.map_err(|e| root_cause(&e))?;
        if response.status() != 200 {
            return Err(format!("it answered {}", response.status().as_u16()));
        }
        // compression may cost a little
        let left = info.file_size.unwrap_or(info.nar_size + info.nar_size / 64 + (1 << 16));
        Ok(Foreign { response, left })
    }

    /// Asks for what isn't remembered. Takes [`ALL`] at most, and [`QUESTIONS`]; what isn't answered by then is unknown.
    pub async fn ask(
        &self,
        db: &dyn Db,
        upstreams: &[Upstream],
        paths: &[StorePath],
    ) -> Result<Answers, DbError> {
        let mut answers = Answers { found: self.remembered(db, upstreams, paths).await?, notices: vec![] };
        let deadline = Instant::now() + ALL;
        let mut questions = QUESTIONS;
        for upstream in upstreams {
            let now = self.clock.now();
            let mut left: Vec<StorePath> = paths
                .iter()
                .filter(|p| !answers.found.contains_key(*p) && !self.is_absent(upstream, p.hash_part(), now))
                .cloned()
                .collect();
            if left.is_empty() {
                continue;
            }
            if let Some(why) = self.is_resting(upstream, now) {
                answers.notices.push(notice(upstream, &why));
                continue;
            }
            if left.len() > questions {
                answers.notices.push(unanswered(upstream, left.len() - questions));
                left.truncate(questions);
            }
            questions -= left.len();
            let (found, end) = self.ask_one(upstream, &left, deadline).await;
            match end {
                End::Answered => {}
                // one push asked for much: that says nothing against the upstream
                End::Late(open) => answers.notices.push(unanswered(upstream, open)),
                End::Fault(why) => {
                    tracing::warn!(upstream = upstream.url, why, "upstream can't be asked");
                    answers.notices.push(notice(upstream, &why));
                    let until = now + REST;
                    self.lock_resting().insert(upstream.url.clone(), (until, why));
                }
            }
            if !found.is_empty() {
                db.add_upstream_paths(&upstream.url, &upstream.key, &found, now).await?;
            }
            for row in found {
                let fact = UpstreamPath { nar_hash: row.nar_hash, references: row.references };
                answers.found.insert(row.path, Arc::new(fact));
            }
        }
        Ok(answers)
    }

    /// What each upstream says of each of these paths, in the policy's order: evidence for and against claims. Those that
    /// can't be asked now say nothing, and are asked again later.
    pub async fn says(
        &self,
        db: &dyn Db,
        upstreams: &[Upstream],
        paths: &[StorePath],
    ) -> Result<HashMap<StorePath, Vec<Says>>, DbError> {
        let mut all: HashMap<StorePath, Vec<Says>> = HashMap::new();
        let deadline = Instant::now() + ALL;
        for upstream in upstreams {
            let now = self.clock.now();
            let rows = db.upstream_paths(&upstream.url, &upstream.key, paths).await?;
            let mut has: HashMap<StorePath, Sha256> =
                rows.into_iter().map(|r| (r.path, r.nar_hash)).collect();
            let open: Vec<StorePath> = paths
                .iter()
                .filter(|p| !has.contains_key(*p) && !self.is_absent(upstream, p.hash_part(), now))
                .take(QUESTIONS)
                .cloned()
                .collect();
            if !open.is_empty() && self.is_resting(upstream, now).is_none() {
                let (found, end) = self.ask_one(upstream, &open, deadline).await;
                if let End::Fault(why) = end {
                    tracing::warn!(upstream = upstream.url, why, "upstream can't be asked");
                    self.lock_resting().insert(upstream.url.clone(), (now + REST, why));
                }
                if !found.is_empty() {
                    db.add_upstream_paths(&upstream.url, &upstream.key, &found, now).await?;
                }
                has.extend(found.into_iter().map(|row| (row.path, row.nar_hash)));
            }
            for path in paths {
                let (nar_hash, again) = match has.get(path) {
                    Some(hash) => (Fact::Known(*hash), None),
                    None if self.is_absent(upstream, path.hash_part(), now) => {
                        (Fact::Absent, Some(now + ABSENT + 1))
                    }
                    None => (Fact::Unknown, Some(now + REST + 1)),
                };
                all.entry(path.clone()).or_default().push(Says {
                    url: upstream.url.clone(),
                    nar_hash,
                    again,
                });
            }
        }
        Ok(all)
    }

    async fn ask_one(
        &self,
        upstream: &Upstream,
        paths: &[StorePath],
        deadline: Instant,
    ) -> (Vec<UpstreamRow>, End) {
        let mut questions = stream::iter(paths.iter().cloned())
            .map(|path| async move {
                let answer = match self.question(upstream, path.hash_part()).await {
                    // a lie: what is there has another name
                    Answer::Has(info) if info.path != path => Answer::Absent,
                    answer => answer,
                };
                (path, answer)
            })
            .buffer_unordered(AT_ONCE);
        let (mut found, mut open) = (Vec::new(), paths.len());
        loop {
            let next = match tokio::time::timeout_at(deadline, questions.next()).await {
                Ok(Some(next)) => next,
                Ok(None) => return (found, End::Answered),
                Err(_) => return (found, End::Late(open)),
            };
            open -= 1;
            match next {
                (_, Answer::Has(info)) => found.push(upstream_row(&info)),
                (path, Answer::Absent) => self.note_absent(upstream, path.hash_part()),
                // the first fault ends it: a thousand paths must not wait for a thousand time-outs
                (_, Answer::Fault(why)) => return (found, End::Fault(why)),
            }
        }
    }

    async fn question(&self, upstream: &Upstream, hash_part: &str) -> Answer {
        let url = format!("{}/{hash_part}.narinfo", upstream.url);
        let mut response = match self.http.get(&url).send().await {
            Ok(response) => response,
            Err(e) => return Answer::Fault(root_cause(&e)),
        };
        match response.status().as_u16() {
            200 => {}
            // what Nix itself takes for "not there"
            403 | 404 | 410 => return Answer::Absent,
            other => return Answer::Fault(format!("it answered {other}")),
        }
        let mut text = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if text.len() + chunk.len() <= MAX_NARINFO => text.extend_from_slice(&chunk),
                Ok(Some(_)) => return Answer::Fault("a narinfo is too large".into()),
                Ok(None) => break,
                Err(e) => return Answer::Fault(root_cause(&e)),
            }
        }
        match UnverifiedNarInfo::parse(&text, Dialect::Upstream) {
            Ok(info) if info.path.hash_part() == hash_part && info.is_signed_by(&upstream.key) => {
                Answer::Has(Box::new(info))
            }
            // a lie, or a key that changed: this path isn't to be had there
            Ok(_) => {
                tracing::warn!(upstream = upstream.url, hash_part, "narinfo is not signed by the pinned key");
                Answer::Absent
            }
            Err(e) => {
                tracing::warn!(upstream = upstream.url, hash_part, error = %e, "narinfo can't be read");
                Answer::Absent
            }
        }
    }

    fn note_absent(&self, upstream: &Upstream, hash_part: &str) {
        let until = self.clock.now() + ABSENT;
        self.absent.insert((upstream.url.clone(), hash_part.to_owned()), until);
    }

    fn is_absent(&self, upstream: &Upstream, hash_part: &str, now: u64) -> bool {
        let key = (upstream.url.clone(), hash_part.to_owned());
        self.absent.get(&key).is_some_and(|until| now < until)
    }

    fn is_resting(&self, upstream: &Upstream, now: u64) -> Option<String> {
        let resting = self.lock_resting();
        resting.get(&upstream.url).filter(|(until, _)| now < *until).map(|(_, why)| why.clone())
    }

    fn lock_resting(&self) -> std::sync::MutexGuard<'_, HashMap<String, (u64, String)>> {
        // the map is whole after every statement, whoever panicked
        self.resting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn upstream_row(info: &UnverifiedNarInfo) -> UpstreamRow {
    UpstreamRow { path: info.path.clone(), nar_hash: info.nar_hash, references: info.references.clone() }
}

fn notice(upstream: &Upstream, why: &str) -> String {
    format!(
        "the upstream `{}` can't be asked ({why}): what it may have is treated as not known",
        upstream.url
    )
}

fn unanswered(upstream: &Upstream, open: usize) -> String {
    format!(
        "the upstream `{}` was not asked for all in the time that a push has: what it may have of `{open}` paths is \
         treated as not known",
        upstream.url
    )
}

/// The innermost reason, without the URL that the notice has already.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string().chars().filter(|c| !c.is_control()).take(200).collect()
}
