//! The stages of a push that see a submitter's bytes first, from the gateway's own files.

#![allow(dead_code, reason = "the targets need a part of it")]

#[path = "../../../gateway/src/push/announce.rs"]
pub mod announce;
#[path = "../../../gateway/src/push/decompress.rs"]
pub mod decompress;
#[path = "../../../gateway/src/push/stock/encoding.rs"]
pub mod encoding;
#[path = "../../../gateway/src/push/intake.rs"]
pub mod intake;
#[path = "../../../gateway/src/push/quarantine.rs"]
pub mod quarantine;
#[path = "../../../gateway/src/push/signature.rs"]
pub mod signature;
#[path = "../../../gateway/src/push/upload.rs"]
pub mod upload;

/// In place of the push that an upload belongs to.
pub mod session {
    use pushgate_formats::Sha256;
    use pushgate_policies::{Limits, Policy};

    use super::intake::Plan;

    /// Wants every NAR but those whose hash begins with `0xff`.
    pub struct Session {
        pub plan: Plan,
        pub policy: Policy,
    }

    impl Session {
        pub fn wants(&self, nar: &Sha256) -> bool {
            nar.0[0] != 0xff
        }

        pub fn plan(&self, _nar: &Sha256) -> Plan {
            self.plan.clone()
        }

        pub fn limits(&self) -> Limits {
            self.policy.limits.clone()
        }
    }
}
