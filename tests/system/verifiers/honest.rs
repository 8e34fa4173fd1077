//! What was built as its derivation says, and by how many.

use std::collections::BTreeSet;

use pushgate_formats::{
    attestation::Statement,
    dsse::Envelope,
    keys::PublicKey,
    narinfo::{Dialect, UnverifiedNarInfo},
};
use pushgate_tests::process::{Nix, SMALL, Verifier, Web};

use super::{REBUILT, Stage, hash_part, is_public, policy, rebuilds};

/// The key that a verifier enrolled, as for Nix.
fn key_of(stage: &Stage, name: &str) -> String {
    let listed = stage.admin().run(&["admin", "submitter", "list", "--json"]).ended_with(0);
    let all: serde_json::Value = serde_json::from_str(&listed.out).unwrap();
    let found = all.as_array().unwrap().iter().find(|one| one["name"] == name);
    found.and_then(|one| one["keys"][0]["key"].as_str()).unwrap().to_owned()
}

#[test]
fn a_push_is_held_rebuilt_and_published_with_all_signatures_and_the_attestation() {
    // even the toolset
    let policy = policy(REBUILT, "").replacen("require = \"derivation\"", REBUILT, 1);
    let stage = Stage::bare(&policy, "");
    let tool = stage.build(r#"run "tool" "mkdir $out; echo tool > $out/tool; echo ${tools} > $out/by" {}"#);
    stage.push_held(&tool);
    stage.wait_claim(&tool, "held", "needs-rebuild");

    let verifier = Verifier::start(&stage.gateway, "kiln", "kiln-operator");
    stage.wait_public(&tool);
    assert_eq!((verifier.began("tools"), verifier.began("tool")), (1, 1));

    let keys = [stage.gateway.key("main"), stage.alice.key().public().to_string(), key_of(&stage, "kiln")];
    let url = stage.gateway.cache_url("main");
    let text = Web::new().get(&format!("{url}/{}.narinfo", hash_part(&tool)));
    let info = UnverifiedNarInfo::parse(&text.body, Dialect::Push).unwrap();
    let signers: BTreeSet<_> = info.signatures.iter().map(|sig| sig.to_string()).collect();
    assert_eq!(signers.len(), 3, "{signers:?}");

    let consumer = Nix::consumer(std::slice::from_ref(&url), &keys[..1]);
    let verify = |needed: &str, keys: &[String]| {
        let mut args = vec!["store", "verify", "--recursive", "--store", &url, "--sigs-needed", needed];
        let keys = keys.join(" ");
        args.extend(["--option", "trusted-public-keys", &keys, &tool]);
        consumer.run("nix", &args)
    };
    verify("3", &keys).ended_with(0);
    verify("2", &keys).ended_with(0);
    verify("2", &keys[1..]).ended_with(0);
    let two_of_one = verify("2", &keys[..1]);
    assert_ne!(two_of_one.code, Some(0), "{two_of_one:#?}");

    let lines = Web::new().get(&format!("{url}/attestations/{}.jsonl", hash_part(&tool))).text();
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines.len(), 1);
    let envelope: Envelope = serde_json::from_str(lines[0]).unwrap();
    let payload = envelope.unverified_payload(pushgate_formats::attestation::PAYLOAD_TYPE).unwrap();
    envelope.verify(&payload, &PublicKey::parse(&keys[2]).unwrap()).unwrap();
    let statement = Statement::parse(&payload).unwrap();
    assert_eq!(statement.subject[0].name.absolute(), tool);
    assert_eq!(statement.subject[0].nar_hash().unwrap(), info.nar_hash);
    let inputs: Vec<_> = statement.inputs().unwrap().into_keys().map(|path| path.absolute()).collect();
    let tools = stage.build("tools");
    assert!(inputs.contains(&tools), "{inputs:?}");
    verifier.idle();
}

#[test]
fn two_rebuilds_are_those_of_two_operators() {
    let two = "require = { all = [\"derivation\", { rebuilds = 2 }] }";
    let stage = Stage::set(&policy(two, ""));
    let tool = stage.build(r#"run "tool" "echo tool > $out" {}"#);
    stage.push_held(&tool);
    let mut one = Verifier::start(&stage.gateway, "kiln", "operator");
    // of the same operator, and of the submitter
    let other = Verifier::start(&stage.gateway, "oven", "operator");
    let own = Verifier::start(&stage.gateway, "hearth", "alice");
    let half = |claim: &serde_json::Value| claim["waitsFor"].to_string().contains("1 of 2");
    pushgate_tests::process::wait_for("the first rebuild", || super::claim(&stage.alice, &tool).filter(half));
    let built = |verifier: &Verifier| verifier.began("tool");
    // the first job's place is taken by nobody of theirs, who ask for work all the time; a job of another derivation comes after it
    let next = stage.build(r#"run "next" "echo next > $out" {}"#);
    stage.push_held(&next);
    pushgate_tests::process::wait_for("the next rebuild", || super::claim(&stage.alice, &next).filter(half));
    assert_eq!(built(&one) + built(&other), 1);
    assert_eq!((built(&own), rebuilds(&stage.gateway, &tool)), (0, 1));
    assert!(!is_public(&stage.gateway, &tool));

    let _second = Verifier::start_with(&stage.gateway, &stage.gateway.url(""), "forge", "smith", SMALL);
    stage.wait_public(&tool);
    stage.wait_public(&next);
    assert_eq!(rebuilds(&stage.gateway, &tool), 2);
    assert!(one.is_alive());
}
