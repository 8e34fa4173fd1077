//! A fault at each write that stage 7 makes: failed and not stored, failed but stored. Whichever it is, there is one vote, one
//! job, one consequence in the end.

use pushgate_gateway::push::recover::judge_open;
use pushgate_tests::faults::{At, Fault, Kind};
use rstest::rstest;

use super::*;

fn fault(call: &'static str, kind: Kind) -> Fault {
    Fault { at: At::Call(call, 0), kind }
}

#[rstest]
#[case(Kind::NotStored)]
#[case(Kind::Stored)]
#[tokio::test]
async fn a_result_is_one_vote(#[case] kind: Kind) {
    let forge = start(&rebuilt("1", "")).await;
    let (alice, victor) = (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = held(&forge, &alice, &lib).await;
    let job = forge.lease(&victor).await;
    let (forge, faults) = forge.restart_with(fault("end_job", kind)).await;
    let built = victor.built(&job, &forge.inputs_of(&job).await, &lib.outputs).sealed();
    let failed = forge.report(&job, &built).await.expect_err("a fault");
    assert_eq!((failed.status, faults.has_struck()), (503, true));
    assert_eq!(rows(&forge, lib.path()).await.len(), usize::from(kind == Kind::Stored));
    forge.assert_nothing_public(&before).await;
    // tried again, as verifiers do
    forge.report(&job, &built).await.expect("the result is taken");
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
    assert_eq!(rows(&forge, lib.path()).await.len(), 1);
    forge.assert_published_only(&before, &[lib.path()]).await;
}

#[rstest]
#[case(Kind::NotStored)]
#[case(Kind::Stored)]
#[tokio::test]
async fn a_claim_asks_once(#[case] kind: Kind) {
    let forge = start(&rebuilt("1", "")).await;
    let (alice, victor) = (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
    let lib = package("lib");
    let before = forge.snapshot().await;
    let (forge, faults) = forge.restart_with(fault("add_jobs", kind)).await;
    let mut push = held(&forge, &alice, &lib).await;
    for _ in 0..100 {
        if faults.has_struck() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    assert!(faults.has_struck());
    // as happens now and then
    judge_open(&forge.app).await.unwrap();
    jobs_become(&forge, &lib, &["open"]).await;
    judge_open(&forge.app).await.unwrap();
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-rebuild")).await;
    assert_eq!(jobs(&forge, &lib).await.len(), 1);
    forge.assert_nothing_public(&before).await;
    forge.rebuild(&victor, &lib).await;
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
    assert_eq!(jobs(&forge, &lib).await.len(), 1);
}

#[rstest]
#[case(Kind::NotStored)]
#[case(Kind::Stored)]
#[tokio::test]
async fn a_mismatch_has_its_consequence_once(#[case] kind: Kind) {
    let forge = start(&format!("{}[rebuilds]\nconfirm = 0\n", rebuilt("1", ""))).await;
    let (mallory, victor) =
        (forge.submitter("mallory").await, forge.verifier("victor", Some("victor")).await);
    let lib = package("lib");
    let evil = other(&lib, "evil");
    let before = forge.snapshot().await;
    let mut push = forge.push(&forge.draft(&mallory).item(&evil).derivations(&lib)).await;
    forge.rebuild(&victor, &lib).await;
    let (forge, faults) = forge.restart_with(fault("add_mismatch", kind)).await;
    forge.rebuild(&victor, &lib).await;
    for _ in 0..100 {
        if faults.has_struck() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    assert!(faults.has_struck());
    assert_eq!(events(&forge, "rebuild-mismatch").await.len(), usize::from(kind == Kind::Stored));
    judge_open(&forge.app).await.unwrap();
    forge.becomes(&mut push, lib.path(), PathState::Held, Some("key-held")).await;
    judge_open(&forge.app).await.unwrap();
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("key-held")).await;
    assert_eq!(events(&forge, "rebuild-mismatch").await.len(), 1);
    forge.assert_nothing_public(&before).await;
}
