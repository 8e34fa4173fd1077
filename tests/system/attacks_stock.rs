//! What a hostile submitter tries at the stock push prefix: the same lies as at the own interface, in narinfos and files.
//! Each test asserts the stable code, that nothing became public or stayed behind, and that the truth is published.

mod files;
mod narinfos;

use pushgate_tests::forge::{Forge, Item, Packing, Refused, StockUser, random_hex};

/// A source that nobody has seen.
fn source() -> Item {
    Item::source("source", &random_hex())
}

/// The file that waits for a narinfo is let go, so that the rest can be compared.
async fn let_go(forge: &Forge) {
    forge.clock.advance(86_401);
}

/// It is refused with this code.
#[track_caller]
fn assert_refused(answer: Result<String, Refused>, status: u16, code: &str) -> Refused {
    let refused = answer.expect_err("a refusal");
    assert_eq!((refused.status, refused.code.as_str()), (status, code), "{}", refused.message);
    refused
}

/// The item is published by an honest copy.
async fn published(forge: &Forge, user: &StockUser, item: &Item, packing: Packing) {
    let before = forge.snapshot().await;
    let said = forge.copy(user, item, packing).await.expect("taken");
    assert!(said.contains("published"), "{said}");
    forge.assert_published_only(&before, &[&item.path]).await;
}
