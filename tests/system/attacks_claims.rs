//! Claims that lie: of bytes, references, derivations, contents. Each test asserts the stable code, that nothing became
//! public or stayed behind, and beside it that the same push without the one lie is published.
//!
//! Rows of the catalogue that aren't tested here, and why:
//! - own approval, second identity of one owner, identity without an owner: see `policy::people` and `policy::evidence`;
//!   own verifier: see `rebuild::votes`;
//! - the URL of a trusted host beside the hash of other contents, `glibc-evil`, `Glibc`, `glibc-2.40-evil`, withheld facts,
//!   what only others may push (`not-permitted`): see `policy::rules`. Names that aren't ASCII are refused: see
//!   `announcements`;
//! - a rebuild over inputs that weren't rebuilt: see `rebuild::chains`; a backdoored output of a popular derivation
//!   (`rebuild-mismatch`): see `rebuild::mismatches`.

mod announcements;
mod conflicts;
mod contents;
mod derivations;
mod knowledge;
mod nars;
mod references;

use pushgate_formats::api::PathState;
use pushgate_tests::forge::{Draft, Forge, Item, Pushed, random_hex};

/// A source that nobody has seen.
fn source() -> Item {
    Item::source("source", &random_hex())
}

/// The push is taken, this path of it is rejected, and nothing is left of the push.
async fn rejected(forge: &Forge, draft: &Draft, item: &Item, code: &str) -> Pushed {
    let before = forge.snapshot().await;
    let pushed = forge.push(draft).await;
    pushed.assert_rejected(&item.path, code);
    forge.assert_unchanged(&before).await;
    assert_eq!(forge.narinfo(&item.path).await, None);
    pushed
}

/// Every path of the push is published.
async fn published(forge: &Forge, draft: &Draft) -> Pushed {
    let pushed = forge.push(draft).await;
    for path in &pushed.status.paths {
        assert_eq!(path.state, PathState::Published, "{path:?}");
    }
    pushed
}
