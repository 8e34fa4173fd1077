//! What came out of a build: hashed a second time, signed, attested to. Knows nothing of what anybody claims.

use std::{collections::BTreeMap, io::Read, process::Stdio};

use pushgate_formats::{
    Sha256, StorePath,
    attestation::{PAYLOAD_TYPE, Rebuilt, Statement},
    dsse::Envelope,
    jobs::{BuiltOutput, Failure, JobResult},
    narinfo::fingerprint,
};
use sha2::Digest;

use super::{Order, Worker, build::Finished, failure, fault, refuse::Permitted};
use crate::{clock, nix::Nix};

/// Hashes and signs the outputs, and attests to the build.
pub async fn collect(
    worker: &Worker,
    nix: &Nix,
    order: &Order,
    permitted: Permitted,
    finished: Finished,
    started: u64,
) -> Result<JobResult, Failure> {
    let valid = nix.valid().await.map_err(|e| fault(e.to_string()))?;
    let mut outputs = Vec::new();
    for (name, path) in &permitted.outputs {
        let Some(known) = valid.get(path) else {
            return Err(fault(format!("Nix says that all is well, but there is no `{path}`")));
        };
        if known.nar_size > order.limits.output {
            return Err(failure(
                "output-too-large",
                format!("`{path}` has {} bytes, {} are allowed", known.nar_size, order.limits.output),
            ));
        }
        let (hash, size) = hashed(nix, path, known.nar_size).await?;
        if (hash, size) != (known.nar_hash, known.nar_size) {
            // a disk that doesn't give back what it took, or something that wrote after the build
            return Err(fault(format!("`{path}` isn't what Nix has just hashed")));
        }
        let text = fingerprint(path, &hash, size, &known.references);
        outputs.push(BuiltOutput {
            name: name.clone(),
            path: path.clone(),
            nar_hash: hash,
            nar_size: size,
            references: known.references.clone(),
            ca: None,
            signature: worker.key.sign(text.as_bytes()),
        });
    }
    let inputs =
        permitted.inputs.valid().iter().map(|(path, valid)| (path.clone(), valid.nar_hash)).collect();
    let versions = BTreeMap::from([
        ("nix".to_owned(), worker.nix_version.clone()),
        ("pushgate-verifier".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("sandbox".to_owned(), finished.sandbox),
    ]);
    let statement = Statement::new(Rebuilt {
        derivation: order.job.derivation.clone(),
        outputs: outputs.iter().map(|o| (o.name.clone(), (o.path.clone(), o.nar_hash))).collect(),
        inputs,
        gateway: worker.joined.id.clone(),
        job: order.handle.id.clone(),
        system: order.job.system.clone(),
        verifier: worker.joined.verifier.clone(),
        versions,
        started,
        finished: clock::now(),
    });
    let attestation = Envelope::seal(PAYLOAD_TYPE, &statement.to_bytes(), &worker.key);
    Ok(JobResult::Built { attestation, outputs })
}

/// The hash and size of the NAR, by reading the files again. Not read on behind the size that is expected.
async fn hashed(nix: &Nix, path: &StorePath, expected: u64) -> Result<(Sha256, u64), Failure> {
    let mut command = nix.dump(path);
    let work = move || -> std::io::Result<(Sha256, u64)> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut out =
            child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?.take(expected.saturating_add(1));
        let (mut hasher, mut size) = (sha2::Sha256::new(), 0);
        let mut chunk = vec![0; 128 << 10];
        loop {
            let n = out.read(&mut chunk)?;
            if n == 0 {
                break;
            }
            hasher.update(&chunk[..n]);
            size += n as u64;
        }
        // with the pipe closed the command ends, whatever it still had to print
        drop(out);
        let _ = child.wait()?;
        Ok((Sha256(hasher.finalize().into()), size))
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| fault(e.to_string()))?;
    done.map_err(|e| fault(format!("`{path}` can't be read: {e}")))
}
