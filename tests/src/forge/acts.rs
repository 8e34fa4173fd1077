//! Acts of people, every field of which can be a lie, and what admins may look at.

use pushgate_formats::{
    acts::{Act, ActDone, Deed, Event, Events, IdentityInfo},
    dsse::{self, Envelope},
    keys::SecretKey,
};
use pushgate_gateway::{db::Role, identities::Invite};

use super::{Forge, Refused, Submitter, random_hex};

/// An act that is right in every field.
pub fn act(gateway: &str, now: u64, what: Deed) -> Act {
    Act {
        version: 1,
        gateway: gateway.to_owned(),
        nonce: random_hex(),
        issued: now,
        expires: now + 600,
        reason: "a test wants it".to_owned(),
        what,
    }
}

/// The JSON of an act's signed envelope.
pub fn sealed_act(act: &Act, key: &SecretKey) -> Vec<u8> {
    let payload = serde_json::to_vec(act).expect("plain data");
    serde_json::to_vec(&Envelope::seal(dsse::ACT, &payload, key)).expect("plain data")
}

impl Forge {
    /// Enrols an admin with a key of his own.
    pub async fn admin(&self, name: &str) -> Submitter {
        self.submitter_by(Invite { role: Role::Admin, ..Self::invitation(name) }).await
    }

    /// An act for this gateway, right in every field.
    pub fn draft_act(&self, what: Deed) -> Act {
        act(&self.app.gateway_id, self.clock.now(), what)
    }

    /// Signs an act and sends it.
    pub async fn act(&self, by: &Submitter, what: Deed) -> Result<ActDone, Refused> {
        self.act_with(by, what, |_| {}).await
    }

    /// The same, bent before it is signed.
    pub async fn act_with(
        &self,
        by: &Submitter,
        what: Deed,
        bend: impl FnOnce(&mut Act),
    ) -> Result<ActDone, Refused> {
        let mut act = self.draft_act(what);
        bend(&mut act);
        self.act_raw(sealed_act(&act, &by.key)).await
    }

    /// Sends these bytes as an act.
    pub async fn act_raw(&self, body: Vec<u8>) -> Result<ActDone, Refused> {
        self.post("acts", None, body).await
    }

    /// All events, as an admin sees them.
    pub async fn events(&self, admin: &Submitter) -> Vec<Event> {
        let page: Result<Events, _> = self.signed_get(admin, "/api/v1/admin/events?after=0", |_| {}).await;
        page.expect("the events").events
    }

    /// An identity, as an admin sees it.
    pub async fn identity(&self, admin: &Submitter, name: &str) -> IdentityInfo {
        let all: Result<Vec<IdentityInfo>, _> =
            self.signed_get(admin, "/api/v1/admin/identities", |_| {}).await;
        all.expect("the identities").into_iter().find(|i| i.name == name).expect("the identity")
    }
}
