//! A verifier without Nix: it leases jobs, reads their view, and reports what the test wants it to have got. Each field of
//! what it attests can be a lie.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use pushgate_formats::{
    Sha256, StorePath,
    attestation::{PAYLOAD_TYPE, Rebuilt, Resource, Statement},
    dsse::Envelope,
    jobs::{Beat, BuiltOutput, Failure, Job, JobResult, LeaseQuery, Leased, ResultTaken},
    keys::{PublicKey, SecretKey},
    narinfo::{Dialect, UnverifiedNarInfo, fingerprint},
};
use pushgate_gateway::{db::Role, identities::Invite};
use reqwest::Method;
use serde::de::DeserializeOwned;

use super::{Forge, Item, Package, Refused, Submitter, client::answer};

/// Somebody who builds what others claim.
#[derive(Debug, Clone)]
pub struct Verifier {
    pub name: String,
    pub submitter: Submitter,
}

/// What a verifier says that it got: right in every field until a test bends it.
#[derive(Debug, Clone)]
pub struct Built {
    pub statement: Statement,
    pub outputs: Vec<BuiltOutput>,
    /// Signs the envelope.
    pub key: Arc<SecretKey>,
}

impl Built {
    pub fn sealed(&self) -> JobResult {
        let attestation = Envelope::seal(PAYLOAD_TYPE, &self.statement.to_bytes(), &self.key);
        JobResult::Built { attestation, outputs: self.outputs.clone() }
    }

    /// What it says that it was built from.
    pub fn inputs(&mut self) -> &mut Vec<Resource> {
        &mut self.statement.predicate.build_definition.resolved_dependencies
    }
}

/// For x86_64-linux, without features.
pub fn lease_query() -> LeaseQuery {
    LeaseQuery {
        systems: BTreeSet::from(["x86_64-linux".to_owned()]),
        features: BTreeSet::new(),
        skills: BTreeSet::new(),
    }
}

impl Verifier {
    /// What is right for this job if its outputs came out as these items.
    pub fn built(
        &self,
        job: &Job,
        inputs: &BTreeMap<StorePath, Sha256>,
        outputs: &BTreeMap<String, Item>,
    ) -> Built {
        let key = self.submitter.key.clone();
        let output = |(name, item): (&String, &Item)| {
            let print = fingerprint(&item.path, &item.nar_hash, item.nar_size, &item.references);
            BuiltOutput {
                name: name.clone(),
                path: item.path.clone(),
                nar_hash: item.nar_hash,
                nar_size: item.nar_size,
                references: item.references.clone(),
                ca: None,
                signature: key.sign(print.as_bytes()),
            }
        };
        let statement = Statement::new(Rebuilt {
            derivation: job.derivation.clone(),
            outputs: outputs
                .iter()
                .map(|(n, item)| (n.clone(), (item.path.clone(), item.nar_hash)))
                .collect(),
            inputs: inputs.clone(),
            gateway: job.gateway.clone(),
            job: job.job.clone(),
            system: job.system.clone(),
            verifier: self.name.clone(),
            versions: BTreeMap::from([("nix".to_owned(), "none".to_owned())]),
            started: 1_700_000_000,
            finished: 1_700_000_001,
        });
        Built { statement, outputs: outputs.iter().map(output).collect(), key }
    }
}

impl Forge {
    /// Enrols a verifier with a key of its own.
    pub async fn verifier(&self, name: &str, owner: Option<&str>) -> Verifier {
        let owner = owner.map(str::to_owned);
        let invite = Invite { role: Role::Verifier, owner, ..Self::invitation(name) };
        Verifier { name: name.to_owned(), submitter: self.submitter_by(invite).await }
    }

    /// Asks for a job and waits for so many seconds.
    pub async fn ask_for_job(
        &self,
        by: &Verifier,
        query: &LeaseQuery,
        wait: u64,
    ) -> Result<Option<Job>, Refused> {
        let path = format!("/api/v1/jobs/lease?wait={wait}");
        let header = self.signed(&by.submitter, "POST", &path, |_| {});
        let body = serde_json::to_vec(query).expect("plain data");
        let request =
            self.http.post(format!("{}{path}", self.url)).header("authorization", header).body(body);
        let leased: Leased = answer(request.send().await.expect("an answer")).await?;
        Ok(leased.job)
    }

    /// A job that has to come.
    pub async fn lease(&self, by: &Verifier) -> Job {
        let job = self.ask_for_job(by, &lease_query(), 10).await.expect("an answer");
        job.unwrap_or_else(|| panic!("no job for {}", by.name))
    }

    /// There is no job for it, nor comes one soon.
    pub async fn assert_no_job(&self, by: &Verifier) {
        let job = self.ask_for_job(by, &lease_query(), 1).await.expect("an answer");
        assert_eq!(job, None, "a job for {}", by.name);
    }

    /// Asks something with the token of a lease.
    pub async fn of_job<T: DeserializeOwned>(
        &self,
        method: Method,
        job: &str,
        token: &str,
        rest: &str,
        body: Vec<u8>,
    ) -> Result<T, Refused> {
        let url = format!("{}/api/v1/jobs/{job}/{rest}", self.url);
        let request = self.http.request(method, url).bearer_auth(token).body(body);
        answer(request.send().await.expect("an answer")).await
    }

    pub async fn heartbeat(&self, job: &Job) -> Result<Beat, Refused> {
        self.of_job(Method::POST, &job.job, &job.token, "heartbeat", vec![]).await
    }

    pub async fn report(&self, job: &Job, result: &JobResult) -> Result<ResultTaken, Refused> {
        let body = serde_json::to_vec(result).expect("plain data");
        self.of_job(Method::POST, &job.job, &job.token, "result", body).await
    }

    /// Says that nothing was built.
    pub async fn fail(&self, job: &Job, code: &str, retry: bool) -> Result<ResultTaken, Refused> {
        let message = "a test wants it".to_owned();
        let failure = Failure { code: code.to_owned(), message, exit_code: None, retry };
        self.report(job, &JobResult::Failed(failure)).await
    }

    /// Sends what was built, under a hash that may be another; the answer has no body.
    pub async fn send_built(&self, job: &Job, hash: &Sha256, nar: &[u8]) -> Result<(), Refused> {
        let url = format!("{}{}/nars/{}", self.url, job.view.trim_end_matches("/view"), hash.base32());
        let body = zstd::bulk::compress(nar, 1).expect("zstd");
        let response = self.http.put(url).bearer_auth(&job.token).body(body).send().await.expect("an answer");
        match response.status().as_u16() {
            204 => Ok(()),
            _ => answer(response).await,
        }
    }

    /// A file of a job's view; `None` where the answer is 404.
    pub async fn view(&self, job: &Job, file: &str) -> Option<Vec<u8>> {
        let url = format!("{}{}/{file}", self.url, job.view);
        // as Nix asks, with a netrc file
        let request = self.http.get(url).basic_auth("job", Some(&job.token));
        let response = request.send().await.expect("an answer");
        match response.status().as_u16() {
            200 => Some(response.bytes().await.expect("a body").to_vec()),
            404 => None,
            other => panic!("{file} is answered with {other}"),
        }
    }

    /// A narinfo of a job's view, which has to be signed by the job's key and by nobody else.
    pub async fn view_narinfo(&self, job: &Job, hash_part: &str) -> Option<UnverifiedNarInfo> {
        let raw = self.view(job, &format!("{hash_part}.narinfo")).await?;
        let info = UnverifiedNarInfo::parse(&raw, Dialect::Push).expect("a narinfo");
        let key = PublicKey::parse(&job.view_key).expect("a key");
        assert!(info.is_signed_by(&key), "{} is not signed by the job's key", info.path);
        assert_eq!(info.signatures.len(), 1);
        assert_eq!(info.path.hash_part(), hash_part);
        Some(info)
    }

    /// The bytes of a path of the view, unpacked.
    pub async fn view_nar(&self, job: &Job, info: &UnverifiedNarInfo) -> Vec<u8> {
        let raw = self.view(job, &info.url).await.expect("the file of a narinfo");
        match info.compression.as_str() {
            "zstd" => zstd::decode_all(raw.as_slice()).expect("zstd"),
            "none" => raw,
            other => panic!("{} is packed with {other}", info.path),
        }
    }

    /// Fetches the job's inputs as Nix would, with all that they refer to, and compares their bytes with their narinfos.
    pub async fn inputs_of(&self, job: &Job) -> BTreeMap<StorePath, Sha256> {
        let (mut inputs, mut open) = (BTreeMap::new(), job.inputs.clone());
        while let Some(path) = open.pop() {
            if inputs.contains_key(&path) {
                continue;
            }
            let info = self.view_narinfo(job, path.hash_part()).await;
            let info = info.unwrap_or_else(|| panic!("the view doesn't have {path}"));
            let nar = self.view_nar(job, &info).await;
            assert_eq!((Sha256::of(&nar), nar.len() as u64), (info.nar_hash, info.nar_size), "{path}");
            open.extend(info.references);
            inputs.insert(path, info.nar_hash);
        }
        inputs
    }

    /// Builds a job with these outputs, and attests to it in truth.
    pub async fn build(&self, by: &Verifier, job: &Job, outputs: &BTreeMap<String, Item>) -> ResultTaken {
        let inputs = self.inputs_of(job).await;
        self.report(job, &by.built(job, &inputs, outputs).sealed()).await.expect("the result is taken")
    }

    /// Takes the job of this package, which has to come, and gets what was claimed.
    pub async fn rebuild(&self, by: &Verifier, package: &Package) -> Job {
        self.rebuild_with(by, package, package.out()).await
    }

    /// The same, but `out` came out as this.
    pub async fn rebuild_with(&self, by: &Verifier, package: &Package, out: &Item) -> Job {
        let job = self.lease(by).await;
        assert_eq!(job.derivation, package.drv, "another job");
        let mut outputs = package.outputs.clone();
        outputs.insert("out".to_owned(), out.clone());
        self.build(by, &job, &outputs).await;
        job
    }
}
