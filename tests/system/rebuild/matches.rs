//! A claim that verifiers got too is published with their signatures and attestations, and not before.

use pushgate_formats::{
    attestation::{PAYLOAD_TYPE, Statement},
    dsse::Envelope,
    narinfo::{Dialect, UnverifiedNarInfo},
};

use super::*;

#[tokio::test]
async fn a_match_is_published_with_its_attestation() {
    let forge = start(&rebuilt("1", "")).await;
    let (alice, victor) = (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
    let lib = begin("lib").outputs(&["out", "dev"]).build();
    let before = forge.snapshot().await;
    let mut push = held(&forge, &alice, &lib).await;
    assert_eq!(push.of(lib.path()).waits_for, ["1 rebuild (0 of 1)"]);
    forge.assert_nothing_public(&before).await;
    let attestations = format!("attestations/{}.jsonl", lib.path().hash_part());
    assert_eq!(forge.public(&attestations).await, None);

    forge.rebuild(&victor, &lib).await;
    let dev = &lib.outputs["dev"].path;
    for path in [lib.path(), dev] {
        forge.becomes(&mut push, path, PathState::Published, None).await;
    }
    forge.assert_published_only(&before, &[lib.path(), dev]).await;
    let info = forge.narinfo(lib.path()).await.expect("a narinfo");
    let info = UnverifiedNarInfo::parse(info.as_bytes(), Dialect::Push).unwrap();
    assert!(info.is_signed_by(&alice.key.public()));
    assert!(info.is_signed_by(&victor.submitter.key.public()));
    assert_eq!(info.signatures.len(), 3);

    let raw = String::from_utf8(forge.public(&attestations).await.expect("the attestations")).unwrap();
    assert_eq!((raw.lines().count(), raw.ends_with('\n')), (1, true));
    let envelope: Envelope = serde_json::from_str(raw.trim_end()).unwrap();
    let payload = envelope.unverified_payload(PAYLOAD_TYPE).unwrap();
    envelope.verify(&payload, &victor.submitter.key.public()).unwrap();
    let statement = Statement::parse(&payload).unwrap();
    let subject = statement.subject.iter().find(|s| s.name == *lib.path()).expect("the path");
    assert_eq!(subject.nar_hash().unwrap(), lib.out().nar_hash);
    assert_eq!(rows(&forge, lib.path()).await.len(), 1);
    // done is done
    forge.assert_no_job(&victor).await;
}

/// Between the push and the lease, between the lease and the result: nothing is only in memory.
#[tokio::test]
async fn a_rebuild_survives_restarts() {
    let forge = start(&rebuilt("1", "")).await;
    let (alice, victor) = (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = held(&forge, &alice, &lib).await;
    let forge = forge.restart().await;
    let job = forge.lease(&victor).await;
    assert_eq!(job.derivation, lib.drv);
    let key = job.view_key.clone();
    let forge = forge.restart().await;
    // the view's key is the same, and the token good
    let inputs = forge.inputs_of(&job).await;
    assert_eq!((inputs.len(), key), (0, job.view_key.clone()));
    forge.assert_nothing_public(&before).await;
    let built = victor.built(&job, &inputs, &lib.outputs);
    forge.report(&job, &built.sealed()).await.expect("the result is taken");
    // its answer may be lost: the same again is answered the same, and counted once
    forge.report(&job, &built.sealed()).await.expect("the result is taken");
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
    forge.assert_published_only(&before, &[lib.path()]).await;
    assert_eq!(rows(&forge, lib.path()).await.len(), 1);
    let forge = forge.restart().await;
    assert!(forge.narinfo(lib.path()).await.is_some());
    forge.assert_no_job(&victor).await;
}

/// A rebuild says which of two is right, and is believed over whoever came first.
#[tokio::test]
async fn a_rebuild_decides_between_two_claims() {
    let forge = start(&rebuilt("1", "")).await;
    let (mallory, alice) = (forge.submitter("mallory").await, forge.submitter("alice").await);
    let victor = forge.verifier("victor", Some("victor")).await;
    let lib = package("lib");
    let evil = other(&lib, "evil");
    let before = forge.snapshot().await;
    let mut first = forge.push(&forge.draft(&mallory).item(&evil).derivations(&lib)).await;
    first.assert_held(lib.path(), "needs-rebuild");
    let mut second = forge.push(&forge.draft(&alice).package(&lib)).await;
    second.assert_held(lib.path(), "conflicts-with-claim");
    forge.assert_nothing_public(&before).await;
    forge.rebuild(&victor, &lib).await;
    forge.becomes(&mut second, lib.path(), PathState::Published, None).await;
    forge.assert_published_only(&before, &[lib.path()]).await;
    // what is published stays, so that the other one can't come to anything
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    first.status = forge.status(&first.announced, "").await.unwrap();
    assert_ne!(first.of(lib.path()).state, PathState::Published);
    forge.assert_published_only(&before, &[lib.path()]).await;
}

/// The rule asks for a person, and only the conflict for a rebuild: nobody blocks a path by squatting on it.
#[tokio::test]
async fn a_rebuild_decides_where_no_rule_asks_for_one() {
    let policy = rebuilt("1", "").replace("{ rebuilds = 1 }", "{ approvals = 1, from = \"core\" }");
    let policy = policy.replacen("[[rule]]", "[groups]\ncore = [\"bob\"]\n[[rule]]", 1);
    let forge = start(&policy).await;
    let (mallory, alice, bob) =
        (forge.submitter("mallory").await, forge.submitter("alice").await, forge.submitter("bob").await);
    let victor = forge.verifier("victor", Some("victor")).await;
    let lib = package("lib");
    let evil = other(&lib, "evil");
    let before = forge.snapshot().await;
    let first = forge.push(&forge.draft(&mallory).item(&evil).derivations(&lib)).await;
    first.assert_held(lib.path(), "needs-approval");
    let mut second = forge.push(&forge.draft(&alice).package(&lib)).await;
    second.assert_held(lib.path(), "conflicts-with-claim");
    let approve = |nar_hash| {
        let (cache, path) = ("main".to_owned(), lib.path().clone());
        pushgate_formats::acts::Deed::Approve { cache, path, nar_hash, until: None }
    };
    // approved alone is not enough, for neither of them
    forge.act(&bob, approve(lib.out().nar_hash)).await.expect("an approval");
    forge.act(&bob, approve(evil.nar_hash)).await.expect("an approval");
    stays(&forge, &mut second, lib.path(), PathState::Held, Some("conflicts-with-claim")).await;
    forge.assert_nothing_public(&before).await;
    forge.rebuild(&victor, &lib).await;
    forge.becomes(&mut second, lib.path(), PathState::Published, None).await;
    forge.assert_published_only(&before, &[lib.path()]).await;
}
