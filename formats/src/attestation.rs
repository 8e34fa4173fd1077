//! What a verifier attests: an in-toto Statement v1 with the SLSA provenance v1 predicate, the payload of a DSSE envelope.
//! Knows nothing of whether it is believed.
//!
//! Sources: in-toto attestation framework, Statement v1 (`https://in-toto.io/Statement/v1`); SLSA v1.0, "Provenance"
//! (`https://slsa.dev/provenance/v1`). Digests of store paths are the sha256 of their NAR in hexadecimal digits.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    hash::{Sha256, hex_decode},
    store_path::{StorePath, shown},
};

/// Payload type of in-toto statements in DSSE envelopes.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// `_type` of a statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// `predicateType` of SLSA provenance.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// `buildType`: one derivation, built by stock Nix in a store of its own.
pub const BUILD_TYPE: &str = "urn:pushgate:nix-derivation:1";
/// What a verifier's builder id begins with; the verifier's name follows.
pub const BUILDER_PREFIX: &str = "urn:pushgate:verifier:";
/// Largest statement that is read. Bytes.
pub const MAX_STATEMENT: usize = 16 << 20;
/// Most inputs of a build.
pub const MAX_INPUTS: usize = 50_000;
/// Most outputs of a derivation.
pub const MAX_OUTPUTS: usize = 256;

/// Why bytes are no attestation of a rebuild.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttestationError {
    #[error("the statement has {0} bytes; {MAX_STATEMENT} are allowed")]
    TooLarge(usize),
    #[error("the statement is no in-toto statement with SLSA provenance: {0}")]
    Malformed(String),
    #[error("`{field}` is `{found}`, not `{expected}`")]
    Constant { field: &'static str, found: String, expected: &'static str },
    #[error("the {what} of the statement are not in order, or one stands there twice: `{at}`")]
    Order { what: &'static str, at: String },
    #[error("the statement has {found} {what}; 1 to {most} are allowed")]
    Count { what: &'static str, found: usize, most: usize },
    #[error("`{0}` is not the sha256 of a NAR in lower-case hexadecimal digits")]
    Digest(String),
    #[error("`{0}` is no verifier's builder id")]
    Builder(String),
}

/// A store path and the digest of its NAR, as `subject` and `resolvedDependencies` have them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// The absolute store path.
    pub name: StorePath,
    pub digest: Digest,
}

/// A digest set with the one digest that is used here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digest {
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl Resource {
    pub fn new(path: StorePath, nar_hash: &Sha256) -> Self {
        Self { name: path, digest: Digest { sha256: nar_hash.hex() } }
    }

    /// sha256 of the NAR.
    pub fn nar_hash(&self) -> Result<Sha256, AttestationError> {
        hex_decode(&self.digest.sha256)
            .and_then(|raw| Some(Sha256(raw.try_into().ok()?)))
            .filter(|hash| hash.hex() == self.digest.sha256)
            .ok_or_else(|| AttestationError::Digest(shown(self.digest.sha256.as_bytes())))
    }
}

/// An in-toto statement about one build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Statement {
    /// Always [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub statement_type: String,
    /// The outputs with the NAR hashes that the verifier got, by path, each once.
    pub subject: Vec<Resource>,
    /// Always [`PREDICATE_TYPE`].
    pub predicate_type: String,
    pub predicate: Provenance,
}

/// SLSA provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provenance {
    pub build_definition: BuildDefinition,
    pub run_details: RunDetails,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BuildDefinition {
    /// Always [`BUILD_TYPE`].
    pub build_type: String,
    pub external_parameters: ExternalParameters,
    pub internal_parameters: InternalParameters,
    /// Every path that was in the job's store before the build, with the NAR hash that it had there: by path, each once.
    pub resolved_dependencies: Vec<Resource>,
}

/// What whoever asked for the build chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalParameters {
    pub derivation: StorePath,
    /// Names of the outputs.
    pub outputs: BTreeSet<String>,
}

/// What binds the statement to one job of one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InternalParameters {
    /// The gateway's random id.
    pub gateway: String,
    pub job: String,
    /// Such as `x86_64-linux`.
    pub system: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunDetails {
    pub builder: Builder,
    pub metadata: Metadata,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Builder {
    /// [`BUILDER_PREFIX`] and the verifier's name.
    pub id: String,
    /// By component: `nix`, `pushgate-verifier`, and `sandbox` with what confined the build.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub version: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// The job's id.
    pub invocation_id: String,
    /// RFC 3339.
    pub started_on: String,
    pub finished_on: String,
}

/// What a verifier found, before it is put into words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    pub derivation: StorePath,
    /// By output name: path and NAR hash.
    pub outputs: BTreeMap<String, (StorePath, Sha256)>,
    /// NAR hashes of everything that was in the job's store before the build.
    pub inputs: BTreeMap<StorePath, Sha256>,
    pub gateway: String,
    pub job: String,
    pub system: String,
    /// The verifier's name.
    pub verifier: String,
    pub versions: BTreeMap<String, String>,
    /// Seconds since 1970, UTC.
    pub started: u64,
    pub finished: u64,
}

impl Statement {
    pub fn new(rebuilt: Rebuilt) -> Self {
        let Rebuilt {
            derivation,
            outputs,
            inputs,
            gateway,
            job,
            system,
            verifier,
            versions,
            started,
            finished,
        } = rebuilt;
        let names = outputs.keys().cloned().collect();
        let subject: BTreeMap<StorePath, Sha256> = outputs.into_values().collect();
        let resources = |all: BTreeMap<StorePath, Sha256>| {
            all.into_iter().map(|(path, hash)| Resource::new(path, &hash)).collect()
        };
        Self {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject: resources(subject),
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Provenance {
                build_definition: BuildDefinition {
                    build_type: BUILD_TYPE.to_owned(),
                    external_parameters: ExternalParameters { derivation, outputs: names },
                    internal_parameters: InternalParameters { gateway, job: job.clone(), system },
                    resolved_dependencies: resources(inputs),
                },
                run_details: RunDetails {
                    builder: Builder { id: format!("{BUILDER_PREFIX}{verifier}"), version: versions },
                    metadata: Metadata {
                        invocation_id: job,
                        started_on: crate::date::rfc3339(started),
                        finished_on: crate::date::rfc3339(finished),
                    },
                },
            },
        }
    }

    /// The bytes to be signed.
    pub fn to_bytes(&self) -> Vec<u8> {
        // strings and lists always serialise
        serde_json::to_vec(self).expect("plain data")
    }

    /// Reads a statement strictly: the constants, the order, the digests, the bounds.
    pub fn parse(raw: &[u8]) -> Result<Self, AttestationError> {
        if raw.len() > MAX_STATEMENT {
            return Err(AttestationError::TooLarge(raw.len()));
        }
        let statement: Self =
            serde_json::from_slice(raw).map_err(|e| AttestationError::Malformed(e.to_string()))?;
        let definition = &statement.predicate.build_definition;
        constant("_type", &statement.statement_type, STATEMENT_TYPE)?;
        constant("predicateType", &statement.predicate_type, PREDICATE_TYPE)?;
        constant("buildType", &definition.build_type, BUILD_TYPE)?;
        let count = |what, found, most| match (1..=most).contains(&found) {
            true => Ok(()),
            false => Err(AttestationError::Count { what, found, most }),
        };
        count("subjects", statement.subject.len(), MAX_OUTPUTS)?;
        if !definition.resolved_dependencies.is_empty() {
            count("resolved dependencies", definition.resolved_dependencies.len(), MAX_INPUTS)?;
        }
        ordered("subjects", &statement.subject)?;
        ordered("resolved dependencies", &definition.resolved_dependencies)?;
        statement.verifier()?;
        Ok(statement)
    }

    /// The name of the verifier that says so.
    pub fn verifier(&self) -> Result<&str, AttestationError> {
        let id = &self.predicate.run_details.builder.id;
        id.strip_prefix(BUILDER_PREFIX)
            .filter(|name| !name.is_empty())
            .ok_or_else(|| AttestationError::Builder(shown(id.as_bytes())))
    }

    /// NAR hashes of the inputs.
    pub fn inputs(&self) -> Result<BTreeMap<StorePath, Sha256>, AttestationError> {
        let all = &self.predicate.build_definition.resolved_dependencies;
        all.iter().map(|input| Ok((input.name.clone(), input.nar_hash()?))).collect()
    }
}

fn constant(field: &'static str, found: &str, expected: &'static str) -> Result<(), AttestationError> {
    if found == expected {
        Ok(())
    } else {
        Err(AttestationError::Constant { field, found: shown(found.as_bytes()), expected })
    }
}

fn ordered(what: &'static str, resources: &[Resource]) -> Result<(), AttestationError> {
    for resource in resources {
        resource.nar_hash()?;
    }
    match resources.windows(2).find(|pair| pair[0].name >= pair[1].name) {
        Some(pair) => Err(AttestationError::Order { what, at: pair[1].name.absolute() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
