//! What is known for and against claims: collected from the database, the derivations and the upstreams for the pure
//! decision, and the news of it carried to the pushes that it may concern. Decides nothing.
//!
//! Evidence rows are only ever added. What one is worth is looked up anew each time: an approval by a key that was revoked
//! since doesn't count, nor one by an identity without an owner.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use pushgate_formats::{
    Sha256, StorePath,
    derivation::{Derivation, FixedLeaf},
    jobs::Purpose,
    sample::Draw,
};
use pushgate_policies::{
    Needs, Policy,
    facts::{self, Approval, Fact, Identity, Refusal, UpstreamFact, UpstreamSays, Voucher, Waiver},
    rule::{Requirement, Then},
};

use super::{
    derivations::{self, Resolved},
    provenance::{Provenance, ProvenanceKind},
    rebuild::{
        RebuildError,
        sample::Drawer,
        standing::{self, Witness},
    },
    session::Session,
};
use crate::{
    app::App,
    caches::Cache,
    db::{Db, DbError, EnrolledKey, EvidenceKind, EvidenceRow, JobRow, NewEvidence, RebuildRow, Role},
    upstream::Says,
};

/// Evidence about the paths of a batch, looked up beforehand.
#[derive(Default)]
pub struct Known {
    words: HashMap<StorePath, Vec<EvidenceRow>>,
    upstreams: HashMap<StorePath, Vec<Says>>,
    /// What verifiers got.
    rebuilds: HashMap<StorePath, Vec<RebuildRow>>,
    /// By derivation: its jobs that came to nothing.
    failed: HashMap<StorePath, Vec<JobRow>>,
    /// By claimant: jobs all of whose inputs were rebuilt too, where the policy asks.
    sound: HashMap<String, BTreeSet<String>>,
    /// What the sample's draws are made with.
    drawer: Drawer,
    /// By derivation: the variables that the policy asks for.
    env: HashMap<StorePath, BTreeMap<String, String>>,
    /// What the policy asks for at all.
    pub needs: Needs,
    /// Seconds since 1970.
    pub now: u64,
}

/// A claim whose bytes are here.
pub struct Sent<'a> {
    pub path: &'a StorePath,
    pub nar_hash: Sha256,
    pub deriver: Option<&'a StorePath>,
    pub session: &'a Session,
}

impl Known {
    /// Looks up what the policy may ask of these claims, what people said of those whose bytes aren't here too, and notes who
    /// vouches for them by having sent their bytes.
    pub async fn gather(
        app: &App,
        cache: &Cache,
        policy: &Policy,
        sent: &[Sent<'_>],
        unsent: &[StorePath],
    ) -> Result<Self, DbError> {
        let (db, needs) = (app.db.as_ref(), policy.needs());
        let mut known = Self { now: app.clock.now(), ..Self::default() };
        let mut paths: Vec<StorePath> = sent.iter().map(|s| s.path.clone()).collect();
        paths.sort();
        paths.dedup();
        for row in db.rebuilds(&cache.name, &paths).await? {
            known.rebuilds.entry(row.path.clone()).or_default().push(row);
        }
        if needs.submitters {
            let own = sent.iter().filter(|s| !known.was_built_for(s.path, s.nar_hash, s.session.identity));
            vouch(app, cache, own).await?;
        }
        let all = [paths.as_slice(), unsent].concat();
        for row in db.evidence(&cache.name, &all).await? {
            known.words.entry(row.path.clone()).or_default().push(row);
        }
        if asks(policy, &|part| matches!(part, Requirement::Rebuilds { inputs_rebuilt: true, .. })) {
            let jobs: BTreeSet<String> =
                known.rebuilds.values().flatten().map(|row| row.job.clone()).collect();
            let claimants: BTreeSet<String> =
                sent.iter().map(|s| claimant(&s.session.submitter).to_owned()).collect();
            for claimant in claimants {
                let sound = standing::sound(app, &cache.name, jobs.clone(), &claimant).await;
                let sound = sound.map_err(|e| match e {
                    RebuildError::Db(e) => e,
                    other => DbError::Corrupt { what: "an attestation", value: other.to_string() },
                })?;
                known.sound.insert(claimant, sound);
            }
        }
        let sampled = policy.rules.iter().any(|rule| rule.sample.is_some());
        if sampled || asks(policy, &|part| matches!(part, Requirement::Rebuilds { .. })) {
            let mut derivers: Vec<StorePath> = sent.iter().filter_map(|s| s.deriver.cloned()).collect();
            derivers.sort();
            derivers.dedup();
            for job in db.jobs_of(&cache.name, &derivers).await? {
                known.failed.entry(job.derivation.clone()).or_default().push(job);
            }
        }
        let mut identities: Vec<i64> = sent.iter().map(|s| s.session.identity).collect();
        identities.sort_unstable();
        identities.dedup();
        known.drawer = Drawer::gather(app, cache, policy, &paths, &identities).await?;
        if !needs.upstreams.is_empty() {
            let asked = policy.upstreams.iter().filter(|u| needs.upstreams.contains(&u.url)).cloned();
            known.upstreams = app.upstreams.says(db, &asked.collect::<Vec<_>>(), &paths).await?;
        }
        if !needs.env.is_empty() {
            let derivers: Vec<StorePath> = sent.iter().filter_map(|s| s.deriver.cloned()).collect();
            known.env = environments(db, derivers, &needs.env).await?;
        }
        known.needs = needs;
        Ok(known)
    }

    /// Which of the claims of a path stands, where an admin said so.
    pub fn settled(&self, path: &StorePath) -> Option<Sha256> {
        let words = self.words.get(path)?;
        words.iter().rev().find(|w| w.kind == EvidenceKind::Settlement && self.counts(w)).map(|w| w.nar_hash)
    }

    /// Whether a verifier has built the path, whatever came out.
    pub fn is_rebuilt(&self, path: &StorePath) -> bool {
        self.rebuilds.contains_key(path)
    }

    /// Whether an identity has these contents because a verifier built them for it: it vouches for nothing then.
    fn was_built_for(&self, path: &StorePath, nar_hash: Sha256, identity: i64) -> bool {
        let mut rebuilds = self.rebuilds.get(path).into_iter().flatten();
        rebuilds.any(|row| {
            row.nar_hash == nar_hash && row.purpose == Purpose::Build && row.asked_by == Some(identity)
        })
    }

    /// Whether an admin's refusal of these contents is in force.
    pub fn is_refused(&self, path: &StorePath, nar_hash: Sha256) -> bool {
        self.words.get(path).into_iter().flatten().any(|word| {
            word.kind == EvidenceKind::Refusal
                && word.role == Role::Admin
                && word.nar_hash == nar_hash
                && self.counts(word)
        })
    }

    fn counts(&self, word: &EvidenceRow) -> bool {
        word.until.is_none_or(|until| until > self.now)
    }

    /// What the policy weighs.
    pub fn evidence(&self, provenance: &Provenance, submitter: &EnrolledKey) -> facts::Evidence {
        let mut evidence = facts::Evidence::only(match provenance.kind() {
            ProvenanceKind::Derivation { .. } => facts::Provenance::Derivation,
            ProvenanceKind::ContentAddress { weak: false, .. } => facts::Provenance::ContentAddress,
            ProvenanceKind::ContentAddress { weak: true, .. } => facts::Provenance::ContentAddressWeak,
            ProvenanceKind::Unproven { missing } => facts::Provenance::Unproven { missing: missing.clone() },
        });
        for says in self.upstreams.get(provenance.path()).into_iter().flatten() {
            let says_of_it = match &says.nar_hash {
                Fact::Known(hash) if *hash == provenance.nar_hash() => UpstreamSays::Same,
                Fact::Known(hash) => UpstreamSays::Other(*hash),
                Fact::Absent => UpstreamSays::Absent,
                Fact::Unknown => UpstreamSays::Unknown,
            };
            evidence.upstreams.push(UpstreamFact { url: says.url.clone(), says: says_of_it });
        }
        if self.needs.submitters
            && !self.was_built_for(provenance.path(), provenance.nar_hash(), submitter.identity)
        {
            // he has sent the bytes, or nobody would judge it
            let (submitter, owner) = (submitter.identity_name.clone(), submitter.owner.clone());
            evidence.submitters.push(Voucher { submitter, owner });
        }
        let rebuilds = self.rebuilds.get(provenance.path()).map(Vec::as_slice).unwrap_or_default();
        let failed = match provenance.kind() {
            ProvenanceKind::Derivation { derivation, .. } => self.failed.get(derivation),
            _ => None,
        };
        let failed = failed.map(Vec::as_slice).unwrap_or_default();
        evidence.rebuilds = standing::facts(
            rebuilds,
            failed,
            provenance.nar_hash(),
            self.sound.get(claimant(submitter)).unwrap_or(&NONE),
        );
        let words = self.words.get(provenance.path()).into_iter().flatten();
        for word in words.filter(|w| w.nar_hash == provenance.nar_hash()) {
            let EvidenceRow { by, owner, until, reason, .. } = word.clone();
            match word.kind {
                EvidenceKind::Submitter if by != submitter.identity_name => {
                    evidence.submitters.push(Voucher { submitter: by, owner });
                }
                EvidenceKind::Submitter | EvidenceKind::Settlement => {}
                EvidenceKind::Approval => {
                    let groups = word.groups.clone();
                    evidence.approvals.push(Approval { by, owner, groups, until, reason });
                }
                EvidenceKind::Waiver if word.role == Role::Admin => {
                    let waived = word.word.clone().unwrap_or_default();
                    evidence.waivers.push(Waiver { by, owner, word: waived, until, reason });
                }
                EvidenceKind::Refusal if word.role == Role::Admin && self.counts(word) => {
                    evidence.refusal = Some(Refusal { by, until, reason });
                }
                // of somebody who was an admin once
                EvidenceKind::Waiver | EvidenceKind::Refusal => {}
            }
        }
        evidence
    }

    /// How many rebuilds of a path were known.
    pub fn rebuilds_of(&self, path: &StorePath) -> usize {
        self.rebuilds.get(path).map_or(0, Vec::len)
    }

    /// Whether a claim is drawn for a rebuild: only what a derivation yields can be rebuilt.
    pub fn draw(
        &self,
        policy: &Policy,
        claim: &facts::Claim<'_>,
        provenance: &Provenance,
        identity: i64,
    ) -> (bool, Option<Draw>) {
        match provenance.kind() {
            ProvenanceKind::Derivation { .. } => self.drawer.draw(policy, claim, identity),
            _ => (false, None),
        }
    }

    /// Those verifiers that got these contents and aren't the claimant's own.
    pub fn witnesses(&self, provenance: &Provenance, submitter: &EnrolledKey) -> Vec<Witness> {
        let rows = self.rebuilds.get(provenance.path()).map(Vec::as_slice).unwrap_or_default();
        let mut witnesses = standing::witnesses(rows, provenance.nar_hash());
        witnesses.retain(|witness| witness.owner != claimant(submitter));
        witnesses
    }

    /// When to ask again what an upstream says, for a claim that waits for it. Seconds since 1970.
    pub fn ask_again(&self, path: &StorePath) -> Option<u64> {
        self.upstreams.get(path)?.iter().filter_map(|says| says.again).min()
    }

    /// The variables of a derivation that the policy asks for.
    fn env(&self, derivation: &StorePath) -> Option<&BTreeMap<String, String>> {
        self.env.get(derivation)
    }
}

/// What a claim's derivation says, as far as the policy asks: kept beside the claim that borrows it.
pub struct Origin<'a> {
    built: Fact<(&'a StorePath, &'a str, &'a derivations::Known)>,
    sources: Fact<Vec<FixedLeaf>>,
    env: Fact<&'a BTreeMap<String, String>>,
}

/// Longest variable, system or builder that rules look at. Bytes. Each is kept with every decision.
const MAX_VALUE: usize = 64 << 10;
/// Most bytes of all sources together, with their addresses, that rules look at.
const MAX_SOURCES: usize = 8 << 20;

static NO_VARIABLES: BTreeMap<String, String> = BTreeMap::new();

impl<'a> Origin<'a> {
    /// A path whose contents hash to it may have no derivation at all: nothing about its making could change it. Any other
    /// path without one has facts that aren't known yet.
    pub fn of(
        provenance: &Provenance,
        deriver: Option<&'a StorePath>,
        resolved: &'a Resolved,
        known: &'a Known,
    ) -> Self {
        let needs = &known.needs;
        let made_by = deriver.and_then(|path| {
            let derivation = resolved.known.get(path)?;
            // a deriver that doesn't yield the path says nothing about it
            Some((path, derivation.output(provenance.path())?.as_str(), derivation.as_ref()))
        });
        let addressed = matches!(provenance.kind(), ProvenanceKind::ContentAddress { .. });
        let built = match (made_by, provenance.kind()) {
            (Some(found), ProvenanceKind::Derivation { .. } | ProvenanceKind::ContentAddress { .. }) => {
                Fact::Known(found)
            }
            _ if addressed => Fact::Absent,
            _ => Fact::Unknown,
        };
        let sources = match &built {
            Fact::Known((path, ..)) if needs.sources => {
                let closure = derivations::closure(&resolved.known, path);
                let mut leaves: Vec<FixedLeaf> = closure.values().filter_map(|known| known.leaf()).collect();
                leaves.sort_by(|a, b| a.path.cmp(&b.path));
                leaves.dedup_by(|a, b| a.path == b.path);
                let bytes = |leaf: &FixedLeaf| 200 + leaf.urls.iter().map(String::len).sum::<usize>();
                // what isn't looked at isn't known: nothing becomes laxer by being long
                match leaves.iter().map(bytes).sum::<usize>() <= MAX_SOURCES {
                    true => Fact::Known(leaves),
                    false => Fact::Unknown,
                }
            }
            Fact::Absent => Fact::Absent,
            Fact::Known(_) | Fact::Unknown => Fact::Unknown,
        };
        let env = match &built {
            Fact::Known(_) if needs.env.is_empty() => Fact::Known(&NO_VARIABLES),
            Fact::Known((path, ..)) => known.env(path).map_or(Fact::Unknown, Fact::Known),
            _ => Fact::Unknown,
        };
        Self { built, sources, env }
    }

    fn built(&self) -> Fact<facts::Built<'_>> {
        match (&self.built, &self.env) {
            (Fact::Known((.., known)), _) if known.system.len().max(known.builder.len()) > MAX_VALUE => {
                Fact::Unknown
            }
            (Fact::Known((derivation, output, known)), Fact::Known(env)) => Fact::Known(facts::Built {
                derivation,
                output,
                system: &known.system,
                builder: &known.builder,
                env,
            }),
            (Fact::Absent, _) => Fact::Absent,
            _ => Fact::Unknown,
        }
    }

    /// The claim as the policy sees it.
    pub fn claim<'b>(
        &'b self,
        cache: &'b str,
        provenance: &'b Provenance,
        nar_size: u64,
        submitter: &'b EnrolledKey,
    ) -> facts::Claim<'b> {
        facts::Claim {
            cache,
            path: provenance.path(),
            nar_hash: provenance.nar_hash(),
            nar_size,
            submitter: identity(submitter),
            content_addressed: match provenance.kind() {
                ProvenanceKind::ContentAddress { .. } => Fact::Known(true),
                ProvenanceKind::Derivation { .. } => Fact::Known(false),
                ProvenanceKind::Unproven { .. } => Fact::Unknown,
            },
            built: self.built(),
            sources: match &self.sources {
                Fact::Known(leaves) => Fact::Known(leaves.as_slice()),
                Fact::Absent => Fact::Absent,
                Fact::Unknown => Fact::Unknown,
            },
        }
    }
}

/// Whether a rule of the policy has such a requirement.
fn asks(policy: &Policy, what: &dyn Fn(&Requirement) -> bool) -> bool {
    let mut found = false;
    for rule in &policy.rules {
        if let Then::Require(requirement) = &rule.then {
            requirement.walk(&mut |part| found |= what(part));
        }
    }
    found
}

static NONE: BTreeSet<String> = BTreeSet::new();

/// Whose claim it is: the owner, or the submitter where he has none.
fn claimant(submitter: &EnrolledKey) -> &str {
    submitter.owner.as_deref().unwrap_or(&submitter.identity_name)
}

/// An enrolled key's identity, as the policy sees it.
pub fn identity(key: &EnrolledKey) -> Identity<'_> {
    Identity { name: &key.identity_name, owner: key.owner.as_deref(), groups: &key.groups }
}

/// Notes that the submitters of these claims have sent the bytes: each vouches for the claims of others. Whoever waits for
/// that is judged again.
async fn vouch<'a>(
    app: &App,
    cache: &Cache,
    sent: impl Iterator<Item = &'a Sent<'a>>,
) -> Result<(), DbError> {
    let sent: Vec<&Sent<'_>> = sent.collect();
    let rows: Vec<NewEvidence> = sent
        .iter()
        .map(|s| NewEvidence {
            cache: cache.name.clone(),
            path: s.path.clone(),
            nar_hash: s.nar_hash,
            kind: EvidenceKind::Submitter,
            identity: s.session.identity,
            key: s.session.key.clone(),
            until: None,
            word: None,
            reason: String::new(),
            envelope: None,
        })
        .collect();
    let new = app.db.add_evidence(&rows, app.clock.now()).await?;
    for path in new {
        for push in app.db.open_pushes_of_path(&cache.name, &path).await? {
            if sent.iter().all(|s| s.session.id != push) {
                concerns(app, cache, &push);
            }
        }
    }
    Ok(())
}

/// Evidence about a path came: its open claims are judged again. Gives how many pushes that concerns.
pub async fn arrived(app: &App, cache: &Arc<Cache>, path: &StorePath) -> Result<usize, DbError> {
    let pushes = app.db.open_pushes_of_path(&cache.name, path).await?;
    for push in &pushes {
        concerns(app, cache, push);
    }
    Ok(pushes.len())
}

/// Has a push judged again; a judgement that is under way is out of date.
pub fn concerns(app: &App, cache: &Cache, push: &str) {
    if let Some(session) = app.sessions.peek(push) {
        session.progress().evidence += 1;
    }
    cache.report(push);
}

/// Variables of derivations' environments, from their texts. A derivation that isn't here, or has too long a variable, isn't in
/// the answer.
async fn environments(
    db: &dyn Db,
    mut derivers: Vec<StorePath>,
    names: &BTreeSet<String>,
) -> Result<HashMap<StorePath, BTreeMap<String, String>>, DbError> {
    derivers.sort();
    derivers.dedup();
    let mut found = HashMap::new();
    while !derivers.is_empty() {
        let rows = db.derivations(&derivers).await?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            derivers.retain(|d| *d != row.path);
            // checked when it came: one that can't be read any more says nothing
            let Ok(derivation) = Derivation::parse(&row.text) else { continue };
            let variables: Vec<_> =
                names.iter().filter_map(|name| Some((name, derivation.env_var(name)?))).collect();
            // one that is too long to be kept makes them all unknown
            if variables.iter().all(|(_, value)| value.len() <= MAX_VALUE) {
                let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                let texts = variables.into_iter().map(|(name, value)| (name.clone(), text(value)));
                found.insert(row.path, texts.collect());
            }
        }
    }
    Ok(found)
}
