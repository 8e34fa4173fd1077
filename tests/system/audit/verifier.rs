//! A verifier that says what the test wants it to have built.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use pushgate_formats::{
    Sha256, StorePath,
    api::SignedRequest,
    attestation::{PAYLOAD_TYPE, Rebuilt, Statement},
    dsse::{self, Envelope},
    jobs::{BuiltOutput, Job, JobResult, LeaseQuery, Leased, ResultTaken},
    narinfo::{Dialect, UnverifiedNarInfo, fingerprint},
};
use pushgate_gateway::{db::Role, identities::Invite};
use pushgate_tests::forge::{Forge, Item, Submitter};

pub(super) struct Verifier {
    pub(super) name: String,
    pub(super) identity: Submitter,
}

impl Verifier {
    /// Enrols one that is its own owner.
    pub(super) async fn enrol(forge: &Forge, name: &str) -> Self {
        let invite = Invite { role: Role::Verifier, ..Forge::invitation(name) };
        Self { name: name.to_owned(), identity: forge.submitter_by(invite).await }
    }

    /// Asks for a job, and waits so many seconds for one.
    pub(super) async fn lease(&self, forge: &Forge, wait: u64) -> Option<Job> {
        let (now, path) = (forge.clock.now(), format!("/api/v1/jobs/lease?wait={wait}"));
        let request = SignedRequest {
            gateway: forge.app.gateway_id.clone(),
            method: "POST".to_owned(),
            path: path.clone(),
            issued: now,
            expires: now + 60,
        };
        let payload = serde_json::to_vec(&request).unwrap();
        let envelope = Envelope::seal(dsse::REQUEST, &payload, &self.identity.key);
        let header = STANDARD.encode(serde_json::to_vec(&envelope).unwrap());
        let query = LeaseQuery {
            systems: ["x86_64-linux".to_owned()].into(),
            features: Default::default(),
            skills: Default::default(),
        };
        let asking = forge
            .http
            .post(format!("{}{path}", forge.url))
            .header("authorization", format!("DSSE {header}"))
            .body(serde_json::to_vec(&query).unwrap());
        let answer = asking.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        serde_json::from_slice::<Leased>(&answer.bytes().await.unwrap()).unwrap().job
    }

    /// A job that has to be there, or to come.
    pub(super) async fn job(&self, forge: &Forge) -> Job {
        self.lease(forge, 10).await.unwrap_or_else(|| panic!("`{}` gets no job", self.name))
    }

    /// Reports that a job gave this for its only output, and sends the NAR if it's wanted.
    pub(super) async fn report(&self, forge: &Forge, job: &Job, item: &Item) -> ResultTaken {
        let inputs = inputs(forge, job).await;
        let output = item.path.clone();
        let print = fingerprint(&output, &item.nar_hash, item.nar_size, &item.references);
        let statement = Statement::new(Rebuilt {
            derivation: job.derivation.clone(),
            outputs: [("out".to_owned(), (output.clone(), item.nar_hash))].into(),
            inputs,
            gateway: job.gateway.clone(),
            job: job.job.clone(),
            system: job.system.clone(),
            verifier: self.name.clone(),
            versions: BTreeMap::new(),
            started: forge.clock.now(),
            finished: forge.clock.now(),
        });
        let key = &self.identity.key;
        let result = JobResult::Built {
            attestation: Envelope::seal(PAYLOAD_TYPE, &statement.to_bytes(), key),
            outputs: vec![BuiltOutput {
                name: "out".to_owned(),
                path: output,
                nar_hash: item.nar_hash,
                nar_size: item.nar_size,
                references: item.references.clone(),
                ca: None,
                signature: key.sign(print.as_bytes()),
            }],
        };
        let url = format!("{}/api/v1/jobs/{}", forge.url, job.job);
        let body = serde_json::to_vec(&result).unwrap();
        let sending = forge.http.post(format!("{url}/result")).bearer_auth(&job.token).body(body);
        let answer = sending.send().await.unwrap();
        let (status, raw) = (answer.status(), answer.bytes().await.unwrap());
        assert_eq!(status, 200, "{}", raw.escape_ascii());
        let taken: ResultTaken = serde_json::from_slice(&raw).unwrap();
        if taken.wanted.contains(&item.nar_hash) {
            let packed = zstd::bulk::compress(&item.nar, 1).unwrap();
            let url = format!("{url}/nars/{}", item.nar_hash.base32());
            let answer = forge.http.put(url).bearer_auth(&job.token).body(packed).send().await.unwrap();
            assert_eq!(answer.status(), 204);
        }
        taken
    }
}

/// NAR hashes of all that the job's view has, but for derivations.
async fn inputs(forge: &Forge, job: &Job) -> BTreeMap<StorePath, Sha256> {
    let (mut found, mut open) = (BTreeMap::new(), job.inputs.clone());
    while let Some(path) = open.pop() {
        if found.contains_key(&path) {
            continue;
        }
        let url = format!("{}{}/{}.narinfo", forge.url, job.view, path.hash_part());
        let answer = forge.http.get(url).bearer_auth(&job.token).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let text = answer.bytes().await.unwrap();
        let info = UnverifiedNarInfo::parse(&text, Dialect::Upstream).unwrap();
        open.extend(info.references.into_iter().filter(|reference| *reference != path));
        found.insert(path, info.nar_hash);
    }
    found
}
