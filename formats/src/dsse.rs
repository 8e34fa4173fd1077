//! DSSE envelopes: a payload, its type, and signatures over both (the Dead Simple Signing Envelope, v1.0.2). Knows
//! nothing of what payloads mean.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::{
    keys::{PublicKey, SecretKey, Signature},
    store_path::shown,
};

/// Payload type of a push announcement: the JSON of [`crate::api::Announcement`].
pub const ANNOUNCEMENT: &str = "application/vnd.pushgate.announcement+json";
/// Payload type of an enrolment: the JSON of [`crate::api::Enrolment`].
pub const ENROLMENT: &str = "application/vnd.pushgate.enrolment+json";
/// Payload type of what a person decides: the JSON of [`crate::acts::Act`].
pub const ACT: &str = "application/vnd.pushgate.act+json";
/// Payload type of a signed read request: the JSON of [`crate::api::SignedRequest`].
pub const REQUEST: &str = "application/vnd.pushgate.request+json";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DsseError {
    #[error("the payload type is `{found}`, not `{expected}`")]
    Type { found: String, expected: &'static str },
    #[error("the payload is not base 64")]
    Payload,
    #[error("the envelope carries no signature")]
    Unsigned,
    #[error("the envelope carries {0} signatures; one is expected")]
    Signatures(usize),
    #[error("the envelope's signature by `{0}` does not fit")]
    Signature(String),
}

/// An envelope as received: nothing in it is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    pub payload_type: String,
    /// Base 64 with padding.
    pub payload: String,
    pub signatures: Vec<EnvelopeSignature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvelopeSignature {
    /// The signing key's name; only a hint.
    pub keyid: String,
    /// 64 bytes in base 64.
    pub sig: String,
}

/// Pre-authentication encoding: what is signed.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

impl Envelope {
    /// Signs a payload.
    pub fn seal(payload_type: &str, payload: &[u8], key: &SecretKey) -> Self {
        let signature = key.sign(&pae(payload_type, payload));
        Self {
            payload_type: payload_type.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![EnvelopeSignature {
                keyid: key.name().to_string(),
                sig: STANDARD.encode(signature.bytes),
            }],
        }
    }

    /// The payload's bytes, still unverified, if the type is the expected one.
    pub fn unverified_payload(&self, expected: &'static str) -> Result<Vec<u8>, DsseError> {
        if self.payload_type != expected {
            return Err(DsseError::Type { found: shown(self.payload_type.as_bytes()), expected });
        }
        STANDARD.decode(&self.payload).map_err(|_| DsseError::Payload)
    }

    /// Checks that the one signature is by `key` over `payload`, which is what
    /// [`Envelope::unverified_payload`] gave.
    pub fn verify(&self, payload: &[u8], key: &PublicKey) -> Result<(), DsseError> {
        let signature = self.only_signature()?;
        let bad = || DsseError::Signature(shown(signature.keyid.as_bytes()));
        let bytes: [u8; 64] =
            STANDARD.decode(&signature.sig).ok().and_then(|b| b.try_into().ok()).ok_or_else(bad)?;
        let signature = Signature { name: key.name().clone(), bytes };
        key.verify(&pae(&self.payload_type, payload), &signature).map_err(|_| bad())
    }

    /// The single signature that pushgate's own envelopes have.
    pub fn only_signature(&self) -> Result<&EnvelopeSignature, DsseError> {
        match self.signatures.as_slice() {
            [] => Err(DsseError::Unsigned),
            [one] => Ok(one),
            many => Err(DsseError::Signatures(many.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyName;

    fn key(n: u8) -> SecretKey {
        SecretKey::from_seed(KeyName::new("k").unwrap(), &[n; 32])
    }

    #[test]
    fn pae_is_that_of_the_specification() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn each_part_is_bound() {
        let good = Envelope::seal(ENROLMENT, b"{}", &key(1));
        let payload = good.unverified_payload(ENROLMENT).unwrap();
        assert_eq!(good.verify(&payload, &key(1).public()), Ok(()));
        assert!(good.verify(b"[]", &key(1).public()).is_err());
        assert!(good.verify(&payload, &key(2).public()).is_err());
        let other_type = Envelope { payload_type: REQUEST.into(), ..good.clone() };
        assert!(matches!(other_type.unverified_payload(ENROLMENT), Err(DsseError::Type { .. })));
        assert!(other_type.verify(&payload, &key(1).public()).is_err());
        let unsigned = Envelope { signatures: vec![], ..good.clone() };
        assert_eq!(unsigned.verify(&payload, &key(1).public()), Err(DsseError::Unsigned));
        let twice = Envelope { signatures: vec![good.signatures[0].clone(); 2], ..good };
        assert_eq!(twice.verify(&payload, &key(1).public()), Err(DsseError::Signatures(2)));
    }
}
