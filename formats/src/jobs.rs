//! What gateway and verifiers say to each other, and what those see who ask for builds. Plain data.
//!
//! | route | who | body → answer |
//! |---|---|---|
//! | `POST /api/v1/jobs/lease?wait=SECONDS` | a verifier, by a signed request | [`LeaseQuery`] → [`Leased`] |
//! | `POST /api/v1/jobs/JOB/heartbeat` | the lease's token (bearer) | → [`Beat`] |
//! | `POST /api/v1/jobs/JOB/log?at=OFFSET` | the lease's token | bytes of the build's log → [`LogTaken`] |
//! | `GET /api/v1/jobs/JOB/view/FILE` | the lease's token (bearer, or as password in netrc) | the job's own binary cache |
//! | `POST /api/v1/jobs/JOB/result` | the lease's token | [`JobResult`] → [`ResultTaken`] |
//! | `PUT /api/v1/jobs/JOB/nars/HASH` | the lease's token, after the result | a zstd-compressed NAR |
//!
//! HASH is the sha256 of the NAR in 52 base 32 digits.
//!
//! The view is a binary cache of exactly what the build may use, signed by a key made for the job. It never has an output of
//! the derivation under test, and nothing in a job tells which NAR hash anybody claims.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{dsse::Envelope, hash::Sha256, keys::Signature, store_path::StorePath};

/// Longest wait for a job, in seconds.
pub const MAX_WAIT: u64 = 60;
/// Largest body of a lease query, in bytes.
pub const MAX_QUERY: usize = 64 << 10;
/// Largest piece of a log, in bytes.
pub const MAX_LOG_PIECE: usize = 256 << 10;
/// Largest result, in bytes: it carries a statement in base 64.
pub const MAX_RESULT: usize = 32 << 20;
/// Longest message of a failure that is kept, in bytes.
pub const MAX_MESSAGE: usize = 4 << 10;

/// What a verifier can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeaseQuery {
    /// Such as `x86_64-linux`.
    pub systems: BTreeSet<String>,
    /// System features, such as `big-parallel`.
    #[serde(default)]
    pub features: BTreeSet<String>,
    /// Other work that it takes: `fetch` builds fixed outputs with a network, `diffoscope` compares.
    #[serde(default)]
    pub skills: BTreeSet<String>,
}

/// The answer: no job where none came up in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leased {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
}

/// What a job is for. The work is the same; it tells how urgent it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Somebody waits at a terminal.
    Build,
    /// A claim is held for it.
    Rebuild,
    /// Something published is looked at again.
    Audit,
}

impl Purpose {
    pub const ALL: [Self; 3] = [Self::Build, Self::Rebuild, Self::Audit];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Rebuild => "rebuild",
            Self::Audit => "audit",
        }
    }
}

/// One derivation to be built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    pub job: String,
    /// Of this lease. With the lease it runs out.
    pub token: String,
    /// Seconds for which the lease is good without a heartbeat.
    pub lease: u64,
    pub purpose: Purpose,
    /// To stand in the attestation.
    pub gateway: String,
    pub derivation: StorePath,
    pub system: String,
    /// By name; without a path where it follows from the contents.
    pub outputs: BTreeMap<String, Option<StorePath>>,
    /// Path of the view below the gateway's URL, such as `/api/v1/jobs/JOB/view`.
    pub view: String,
    /// `NAME:base64`: the only key that the job's Nix trusts.
    pub view_key: String,
    /// The paths to be fetched before the build; with what they refer to, they are all that the view has.
    pub inputs: Vec<StorePath>,
    pub limits: JobLimits,
}

/// Bounds of a job; a verifier's own may be tighter. Absent: the verifier's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobLimits {
    /// Seconds for the whole build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<u64>,
    /// Seconds without a line of log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<u64>,
    /// Bytes of log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<u64>,
    /// Bytes of an output's NAR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<u64>,
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Beat {
    /// Nobody needs the job any more: the verifier stops and reports nothing.
    pub cancelled: bool,
}

/// The answer to a piece of log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogTaken {
    /// Bytes that the gateway has: the next piece begins here, whatever this one was.
    pub length: u64,
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "camelCase", tag = "result", deny_unknown_fields)]
pub enum JobResult {
    Built {
        /// [`crate::attestation::Statement`], signed by the verifier's key.
        attestation: Envelope,
        /// In the order of their names.
        outputs: Vec<BuiltOutput>,
    },
    Failed(Failure),
}

/// An output as the verifier got it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BuiltOutput {
    pub name: String,
    pub path: StorePath,
    pub nar_hash: Sha256,
    /// Bytes.
    pub nar_size: u64,
    pub references: BTreeSet<StorePath>,
    /// Nix's CA field, where the path follows from the contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// By the verifier's key over the Nix fingerprint of path, NAR hash, size and references.
    pub signature: Signature,
}

/// Why nothing was built. Never says anything about the claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    /// Stable and kebab-case. The build: `build-failed`, `timed-out`, `silent`, `log-too-large`, `output-too-large`,
    /// `out-of-memory`, `too-many-processes`, `disk-full`. Not tried: `no-chroot`, `impure-host-deps`, `builtin-builder`,
    /// `system-unavailable` (also for a feature), `inputs-unavailable`, `floating-unsupported`, `job-malformed` (the gateway's
    /// fault), and those of [`crate::derivation::DerivationError::code`]. The verifier: `verifier-fault`.
    pub code: String,
    pub message: String,
    /// The builder's, where it ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The same may go well on another machine or another time: the network, a full disk.
    #[serde(default)]
    pub retry: bool,
}

/// The answer to a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultTaken {
    /// NARs that the gateway wants to have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wanted: Vec<Sha256>,
}

/// What a build that somebody asked for has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildState {
    /// Waits for what `waits_for` names: derivations, inputs, the publication of what it's built from.
    Waiting,
    /// Waits for a verifier.
    Queued,
    Building,
    /// Its outputs are in quarantine, to be claimed.
    Built,
    Failed,
    /// The policy doesn't let the submitter ask for it.
    Refused,
}

impl BuildState {
    /// Whether nothing more will happen to it.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Built | Self::Failed | Self::Refused)
    }
}

/// A build that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildStatus {
    pub derivation: StorePath,
    pub state: BuildState,
    /// The verifier that has or had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifier: Option<String>,
    /// Of a failure or refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The builder's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// What it waits for: store paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<StorePath>,
    /// Of what is built; the submitter claims them with the next announcement.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<BuiltOutput>,
}
