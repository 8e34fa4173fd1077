//! Properties that all formats share: what is printed is parsed as what it was, prints to the same text again, and has no
//! second spelling. Those of NARs and derivations stand beside them.

use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*, sample::Index};

use crate::{
    HashAlgo, NixHash, Sha256, StorePath,
    api::{AnnouncedPath, AnnouncedRealisation, Announcement, Audience},
    content_address::ContentAddress,
    derivation::Method,
    dsse::{self, Envelope},
    keys::{KeyName, PublicKey, SecretKey, Signature},
    narinfo::{Dialect, UnverifiedNarInfo},
};

fn store_path() -> impl Strategy<Value = StorePath> {
    (any::<[u8; 20]>(), "[0-9a-zA-Z+_?=][0-9a-zA-Z+._?=-]{0,30}|[a-z]{1,211}")
        .prop_map(|(digest, name)| StorePath::from_digest(&digest, &name).unwrap())
}

fn derivation_path() -> impl Strategy<Value = StorePath> {
    (any::<[u8; 20]>(), "[a-z0-9.-]{1,9}")
        .prop_map(|(digest, name)| StorePath::from_digest(&digest, &format!("n{name}.drv")).unwrap())
}

fn algo() -> impl Strategy<Value = HashAlgo> {
    prop::sample::select(vec![HashAlgo::Md5, HashAlgo::Sha1, HashAlgo::Sha256, HashAlgo::Sha512])
}

fn hash() -> impl Strategy<Value = NixHash> {
    (algo(), any::<[[u8; 32]; 2]>())
        .prop_map(|(algo, bytes)| NixHash::new(algo, &bytes.concat()[..algo.digest_len()]).unwrap())
}

fn sha256() -> impl Strategy<Value = Sha256> {
    any::<[u8; 32]>().prop_map(Sha256)
}

fn key_name() -> impl Strategy<Value = KeyName> {
    "[a-zA-Z0-9._+-]{1,100}".prop_map(|name| KeyName::new(&name).unwrap())
}

fn secret() -> impl Strategy<Value = SecretKey> {
    (key_name(), any::<[u8; 32]>()).prop_map(|(name, seed)| SecretKey::from_seed(name, &seed))
}

fn signature() -> impl Strategy<Value = Signature> {
    (key_name(), any::<[[u8; 32]; 2]>())
        .prop_map(|(name, bytes)| Signature { name, bytes: bytes.concat().try_into().unwrap() })
}

fn content_address() -> impl Strategy<Value = ContentAddress> {
    let method = prop::sample::select(vec![Method::Flat, Method::Recursive, Method::Text, Method::Git]);
    (method, hash())
        .prop_filter_map("Nix has no such", |(method, hash)| ContentAddress::new(method, hash).ok())
}

fn references() -> impl Strategy<Value = BTreeSet<StorePath>> {
    prop::collection::btree_set(store_path(), 0..5)
}

fn narinfo() -> impl Strategy<Value = UnverifiedNarInfo> {
    let compressed =
        ("[!-~]([ -~é]{0,40}[!-~])?", "[a-z0-9]{1,8}", prop::option::of(sha256()), any::<Option<u64>>());
    let nar = (sha256(), 1u64.., references());
    let rest = (
        prop::option::of(derivation_path()),
        vec(signature(), 0..4),
        prop::option::of(content_address().prop_map(|ca| ca.to_string())),
    );
    (store_path(), compressed, nar, rest).prop_map(
        |(
            path,
            (url, compression, file_hash, file_size),
            (nar_hash, nar_size, references),
            (deriver, signatures, ca),
        )| {
            UnverifiedNarInfo {
                path,
                url,
                compression,
                file_hash,
                file_size,
                nar_hash,
                nar_size,
                references,
                deriver,
                signatures,
                ca,
            }
        },
    )
}

fn announced() -> impl Strategy<Value = AnnouncedPath> {
    let ca = prop::option::of(content_address().prop_map(|ca| ca.to_string()));
    (store_path(), sha256(), any::<u64>(), references(), prop::option::of(derivation_path()), ca, signature())
        .prop_map(|(path, nar_hash, nar_size, references, deriver, ca, signature)| AnnouncedPath {
            path,
            nar_hash,
            nar_size,
            references: references.into_iter().collect(),
            deriver,
            ca,
            signature,
        })
}

fn announcement() -> impl Strategy<Value = Announcement> {
    let realisation = ("sha256:[0-9a-f]{64}![a-z]{1,4}", store_path())
        .prop_map(|(id, out_path)| AnnouncedRealisation { id, out_path });
    let head = ("[0-9a-f]{16,64}", any::<u64>(), any::<u64>(), "\\PC{0,9}", "[a-z]{1,9}");
    (head, vec(announced(), 0..4), vec(derivation_path(), 0..4), vec(realisation, 0..3)).prop_map(
        |((nonce, issued, expires, gateway, cache), paths, derivations, realisations)| Announcement {
            version: 1,
            audience: Audience { gateway, cache },
            nonce,
            issued,
            expires,
            paths,
            derivations,
            realisations,
            inputs: false,
            builds: vec![],
        },
    )
}

proptest! {
    #[test]
    fn store_paths(path in store_path()) {
        prop_assert_eq!(StorePath::parse(&path.absolute()), Ok(path.clone()));
        prop_assert_eq!(StorePath::from_base_name(path.base_name()), Ok(path.clone()));
        prop_assert_eq!(StorePath::from_digest(&path.digest(), path.name()), Ok(path.clone()));
        let json = serde_json::to_string(&path).unwrap();
        prop_assert_eq!(serde_json::from_str::<StorePath>(&json).unwrap(), path);
    }

    /// Any text that is taken for a store path is its only spelling.
    #[test]
    fn store_paths_have_one_spelling(path in store_path(), at: Index, byte in 0..128u8) {
        let mut text = path.absolute().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        let text = String::from_utf8(text).unwrap();
        if let Ok(parsed) = StorePath::parse(&text) {
            prop_assert_eq!(parsed.absolute(), text);
        }
    }

    #[test]
    fn hashes(hash in hash()) {
        let name = hash.algo().name();
        for text in [hash.to_string(), hash.sri(), format!("{name}:{}", hash.hex())] {
            prop_assert_eq!(NixHash::parse(&text), Ok(hash.clone()));
        }
        prop_assert_eq!(NixHash::parse_digits(hash.algo(), &hash.base32()), Ok(hash.clone()));
    }

    #[test]
    fn sha256s(hash in sha256()) {
        prop_assert_eq!(Sha256::parse(&hash.to_string()), Ok(hash));
        let json = serde_json::to_string(&hash).unwrap();
        prop_assert_eq!(serde_json::from_str::<Sha256>(&json).unwrap(), hash);
    }

    /// A hash in JSON has one spelling, so that what is signed has one.
    #[test]
    fn sha256s_in_json_have_one_spelling(hash in sha256(), at: Index, byte in 0..128u8) {
        let mut text = hash.to_string().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        let text = String::from_utf8(text).unwrap();
        if let Ok(parsed) = serde_json::from_value::<Sha256>(text.clone().into()) {
            prop_assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn keys(secret in secret()) {
        let text = secret.to_file_text();
        let again = SecretKey::parse(&text).unwrap();
        prop_assert_eq!(again.to_file_text(), text);
        prop_assert_eq!(again.public(), secret.public());
        let public = secret.public();
        prop_assert_eq!(PublicKey::parse(&public.to_string()), Ok(public));
    }

    #[test]
    fn signatures(signature in signature()) {
        let text = signature.to_string();
        prop_assert_eq!(Signature::parse(&text), Ok(signature.clone()));
        let json = serde_json::to_string(&signature).unwrap();
        prop_assert_eq!(serde_json::from_str::<Signature>(&json).unwrap(), signature);
    }

    #[test]
    fn signatures_have_one_spelling(signature in signature(), at: Index, byte in 0..128u8) {
        let mut text = signature.to_string().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        let text = String::from_utf8(text).unwrap();
        if let Ok(parsed) = Signature::parse(&text) {
            prop_assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn content_addresses(address in content_address()) {
        prop_assert_eq!(ContentAddress::parse(&address.to_string()), Ok(address));
    }

    #[test]
    fn narinfos(info in narinfo()) {
        let text = info.print();
        let pushed = UnverifiedNarInfo::parse(text.as_bytes(), Dialect::Push);
        prop_assert_eq!(pushed.as_ref(), Ok(&info), "{}", text);
        let served = UnverifiedNarInfo::parse(text.as_bytes(), Dialect::Upstream);
        prop_assert_eq!(served.as_ref(), Ok(&info));
        prop_assert_eq!(pushed.unwrap().print(), text);
    }

    #[test]
    fn damaged_narinfos(info in narinfo(), at: Index, byte: u8) {
        let mut raw = info.print().into_bytes();
        let at = at.index(raw.len());
        raw[at] = byte;
        if let Ok(parsed) = UnverifiedNarInfo::parse(&raw, Dialect::Push) {
            prop_assert_eq!(parsed.print().into_bytes(), raw.clone());
        }
        if let Ok(parsed) = UnverifiedNarInfo::parse(&raw, Dialect::Upstream) {
            let text = parsed.print();
            prop_assert_eq!(UnverifiedNarInfo::parse(text.as_bytes(), Dialect::Push), Ok(parsed));
        }
    }

    #[test]
    fn announcements(body in announcement()) {
        let text = serde_json::to_string(&body).unwrap();
        let again: Announcement = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(serde_json::to_string(&again).unwrap(), text);
        prop_assert_eq!(again, body);
    }

    #[test]
    fn envelopes(secret in secret(), payload in vec(any::<u8>(), 0..200), at: Index, byte: u8) {
        let envelope = Envelope::seal(dsse::ANNOUNCEMENT, &payload, &secret);
        let mut raw = serde_json::to_vec(&envelope).unwrap();
        let again: Envelope = serde_json::from_slice(&raw).unwrap();
        prop_assert_eq!(&again, &envelope);
        prop_assert_eq!(again.unverified_payload(dsse::ANNOUNCEMENT), Ok(payload.clone()));
        prop_assert_eq!(again.verify(&payload, &secret.public()), Ok(()));
        // with another byte anywhere it is refused, or says the same
        let at = at.index(raw.len());
        raw[at] = byte;
        if let Ok(bent) = serde_json::from_slice::<Envelope>(&raw)
            && let Ok(found) = bent.unverified_payload(dsse::ANNOUNCEMENT)
            && bent.verify(&found, &secret.public()).is_ok()
        {
            prop_assert_eq!(found, payload);
        }
    }
}
