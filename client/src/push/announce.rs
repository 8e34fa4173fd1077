//! The signed announcement of a push. Doesn't know whether what it says is true: it repeats what the local store knows.

use bytes::Bytes;
use pushgate_formats::{
    api::{AnnouncedPath, Announcement, Audience, MAX_VALIDITY},
    dsse::{self, Envelope},
    hash::hex_encode,
    keys::SecretKey,
    narinfo::fingerprint,
    store_path::StorePath,
};

use crate::{api::json, nix::PathInfo};

/// Fewer signatures than this aren't worth a thread (about 25 µs each).
const LEAST_PER_THREAD: usize = 100;

/// Claims for paths, each signed over Nix's fingerprint; on several threads.
pub(super) fn sign(paths: &[PathInfo], key: &SecretKey) -> Vec<AnnouncedPath> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = paths.len().div_ceil(threads).max(LEAST_PER_THREAD);
    let sign = |info: &PathInfo| AnnouncedPath {
        path: info.path.clone(),
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.iter().cloned().collect(),
        deriver: info.deriver.clone(),
        ca: info.ca.clone(),
        signature: key
            .sign(fingerprint(&info.path, &info.nar_hash, info.nar_size, &info.references).as_bytes()),
    };
    std::thread::scope(|scope| {
        let shares: Vec<_> = paths
            .chunks(share)
            .map(|c| scope.spawn(move || c.iter().map(sign).collect::<Vec<_>>()))
            .collect();
        // signing doesn't panic
        shares.into_iter().flat_map(|handle| handle.join().expect("a signing thread")).collect()
    })
}

/// What an announcement says beside whom it's meant for and when; see [`Announcement`].
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) paths: Vec<AnnouncedPath>,
    pub(super) derivations: Vec<StorePath>,
    pub(super) inputs: bool,
    pub(super) builds: Vec<StorePath>,
}

/// The envelope's bytes, as they are sent.
pub(super) fn seal(audience: Audience, said: Said, key: &SecretKey, now: u64, nonce: [u8; 16]) -> Bytes {
    let Said { paths, derivations, inputs, builds } = said;
    let announcement = Announcement {
        version: 1,
        audience,
        nonce: hex_encode(&nonce),
        issued: now,
        expires: now + MAX_VALIDITY,
        paths,
        derivations,
        realisations: Vec::new(),
        inputs,
        builds,
    };
    let payload = json(&announcement);
    // each form of a large announcement has tens of megabytes: never more than two at once
    drop(announcement);
    let envelope = Envelope::seal(dsse::ANNOUNCEMENT, &payload, key);
    drop(payload);
    json(&envelope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyfile;
    use pushgate_formats::{Sha256, api::MAX_PATHS};

    fn infos(count: usize) -> Vec<PathInfo> {
        let path = |n: usize| {
            StorePath::from_digest(
                &Sha256::of(&n.to_le_bytes()).0[..20].try_into().unwrap(),
                "some-package-1.2",
            )
            .unwrap()
        };
        (0..count)
            .map(|n| PathInfo {
                path: path(n),
                deriver: Some(path(n + 1)),
                nar_hash: Sha256::of(&n.to_le_bytes()),
                references: (n..n + 3).map(path).collect(),
                registration_time: 0,
                nar_size: 1000,
                ultimate: true,
                signatures: vec![],
                ca: None,
            })
            .collect()
    }

    #[test]
    fn every_path_is_signed_in_its_place() {
        let key = keyfile::generate(keyfile::default_name("a", "b", 1)).unwrap();
        let infos = infos(500);
        let signed = sign(&infos, &key);
        assert_eq!(signed.len(), infos.len());
        for (claim, info) in signed.iter().zip(&infos) {
            assert_eq!(claim.path, info.path);
            let message = fingerprint(&info.path, &info.nar_hash, info.nar_size, &info.references);
            key.public().verify(message.as_bytes(), &claim.signature).unwrap();
            assert!(claim.references.is_sorted());
        }
        assert!(sign(&[], &key).is_empty());
    }

    #[test]
    fn the_gateway_reads_what_was_sealed() {
        let key = keyfile::generate(keyfile::default_name("a", "b", 1)).unwrap();
        let infos = infos(3);
        let audience = Audience { gateway: "5f".into(), cache: "main".into() };
        let derivations = vec![infos[0].path.clone()];
        let said = Said {
            paths: sign(&infos, &key),
            derivations: derivations.clone(),
            inputs: false,
            builds: derivations.clone(),
        };
        let bytes = seal(audience.clone(), said, &key, 1000, [0xab; 16]);
        let envelope: Envelope = serde_json::from_slice(&bytes).unwrap();
        let payload = envelope.unverified_payload(dsse::ANNOUNCEMENT).unwrap();
        envelope.verify(&payload, &key.public()).unwrap();
        let read: Announcement = serde_json::from_slice(&payload).unwrap();
        assert_eq!((read.version, read.audience, read.nonce), (1, audience, "ab".repeat(16)));
        assert_eq!((read.issued, read.expires), (1000, 1000 + MAX_VALIDITY));
        assert_eq!((read.paths.len(), read.inputs), (3, false));
        assert_eq!((read.derivations, read.builds), (derivations.clone(), derivations));
    }

    #[test]
    fn an_announcement_of_common_paths_is_not_too_large() {
        let per_path =
            json(&sign(&infos(10), &keyfile::generate(keyfile::default_name("a", "b", 1)).unwrap())).len()
                / 10;
        // what `plan` reckons with
        assert!(per_path <= 600 + 3 * 90, "{per_path}");
        assert!(per_path * MAX_PATHS < pushgate_formats::api::MAX_ANNOUNCEMENT / 2);
    }
}
