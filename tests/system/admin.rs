//! What admins decide about identities, keys and tokens, over real HTTP: what each act does, and that whatever is refused
//! changes nothing, with its stable code. What concerns claims is elsewhere.

mod commands;
mod effects;
mod events;
mod faults;
mod refusals;

use pushgate_formats::{Sha256, acts::Deed, api::Role, keys::KeyName};
use pushgate_tests::forge::{Forge, Item, Refused, Snapshot, random_hex};

fn source() -> Item {
    Item::source("source", &random_hex())
}

/// A path that waits for another, which is published when that is.
fn pair() -> (Item, Item) {
    let needed = source();
    let waiting = Item::text("waiting", needed.path.absolute().as_bytes(), &[&needed.path]);
    (needed, waiting)
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Refused>) -> (u16, String) {
    let refused = answer.expect_err("it should be refused");
    (refused.status, refused.code)
}

fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// An invite with the hash of this code.
fn invite(name: &str, role: Role, code: &str, until: u64) -> Deed {
    Deed::Invite {
        name: name.to_owned(),
        role,
        owner: Some(format!("{name}@example.org")),
        groups: vec!["core".to_owned()],
        caches: None,
        code: Sha256::of(code.as_bytes()),
        code_expires: until,
        key_expires: None,
    }
}

fn freeze(name: &str) -> Deed {
    Deed::Freeze { name: name.to_owned() }
}

fn unfreeze(name: &str) -> Deed {
    Deed::Unfreeze { name: name.to_owned() }
}

fn key_name(text: &str) -> KeyName {
    KeyName::new(text).unwrap()
}

/// All that acts can change, and what nothing but publishing may.
#[derive(Debug, PartialEq)]
struct Record {
    people: String,
    events: usize,
    public: Snapshot,
}

impl Record {
    async fn of(forge: &Forge) -> Self {
        let db = &forge.app.db;
        let identities = db.identities().await.unwrap();
        let tokens = db.tokens(None).await.unwrap();
        Self {
            people: format!("{identities:#?}\n{tokens:#?}"),
            events: db.events(Some(0), None, 1000).await.unwrap().len(),
            public: forge.snapshot().await,
        }
    }
}
