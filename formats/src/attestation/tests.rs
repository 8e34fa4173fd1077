use rstest::rstest;

use super::*;

fn path(n: u8, name: &str) -> StorePath {
    StorePath::from_digest(&[n; 20], name).unwrap()
}

fn rebuilt() -> Rebuilt {
    Rebuilt {
        derivation: path(9, "hello.drv"),
        outputs: [("out", 5, "hello"), ("dev", 2, "hello-dev")]
            .into_iter()
            .map(|(name, n, file)| (name.to_owned(), (path(n, file), Sha256([n; 32]))))
            .collect(),
        inputs: [(1, "gcc"), (7, "source")].map(|(n, name)| (path(n, name), Sha256([n; 32]))).into(),
        gateway: "0123".into(),
        job: "j1".into(),
        system: "x86_64-linux".into(),
        verifier: "v1".into(),
        versions: [("nix".to_owned(), "2.8.0".to_owned())].into(),
        started: 951_782_400,
        finished: 951_782_460,
    }
}

/// The statement as JSON with one value replaced, by its pointer.
fn with(pointer: &str, value: serde_json::Value) -> Vec<u8> {
    let mut json = serde_json::to_value(Statement::new(rebuilt())).unwrap();
    *json.pointer_mut(pointer).unwrap() = value;
    serde_json::to_vec(&json).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let statement = Statement::new(rebuilt());
    assert_eq!(Statement::parse(&statement.to_bytes()), Ok(statement.clone()));
    assert_eq!(statement.verifier(), Ok("v1"));
    assert_eq!(statement.inputs().unwrap(), rebuilt().inputs);
    // by path, whatever the outputs are called
    let subjects: Vec<_> = statement.subject.iter().map(|s| s.nar_hash().unwrap()).collect();
    assert_eq!(subjects, [Sha256([2; 32]), Sha256([5; 32])]);
    assert_eq!(statement.predicate.run_details.metadata.started_on, "2000-02-29T00:00:00Z");
}

#[test]
fn it_is_the_json_that_others_read() {
    let json: serde_json::Value = serde_json::from_slice(&Statement::new(rebuilt()).to_bytes()).unwrap();
    assert_eq!(json["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(json["predicateType"], "https://slsa.dev/provenance/v1");
    assert_eq!(json["subject"][0]["digest"]["sha256"], "02".repeat(32));
    assert_eq!(json["predicate"]["runDetails"]["builder"]["id"], "urn:pushgate:verifier:v1");
}

#[rstest]
#[case("/_type", "https://in-toto.io/Statement/v0.1".into())]
#[case("/predicateType", "https://slsa.dev/provenance/v0.2".into())]
#[case("/predicate/buildDefinition/buildType", "urn:other".into())]
fn other_kinds_of_statement_are_refused(#[case] at: &str, #[case] value: serde_json::Value) {
    assert!(matches!(Statement::parse(&with(at, value)), Err(AttestationError::Constant { .. })));
}

#[rstest]
#[case(64, "AB".repeat(32))]
#[case(62, "ab".repeat(31))]
#[case(64, "zz".repeat(32))]
fn a_digest_is_64_lower_case_digits(#[case] _length: usize, #[case] digest: String) {
    for at in ["/subject/0/digest/sha256", "/predicate/buildDefinition/resolvedDependencies/0/digest/sha256"]
    {
        let found = Statement::parse(&with(at, digest.clone().into()));
        assert_eq!(found, Err(AttestationError::Digest(digest.clone())), "{at}");
    }
}

#[test]
fn nothing_stands_there_twice_or_out_of_order() {
    for (at, what) in [
        ("/subject", "subjects"),
        ("/predicate/buildDefinition/resolvedDependencies", "resolved dependencies"),
    ] {
        let json = serde_json::to_value(Statement::new(rebuilt())).unwrap();
        let mut list = json.pointer(at).unwrap().as_array().unwrap().clone();
        list.reverse();
        let found = Statement::parse(&with(at, list.clone().into()));
        assert!(matches!(found, Err(AttestationError::Order { what: w, .. }) if w == what), "{found:?}");
        list[1] = list[0].clone();
        let found = Statement::parse(&with(at, list.into()));
        assert!(matches!(found, Err(AttestationError::Order { .. })), "{found:?}");
    }
}

#[test]
fn unknown_fields_no_subjects_and_other_builders_are_refused() {
    let more = with("/predicate/runDetails/metadata", serde_json::json!({"x": 1}));
    assert!(matches!(Statement::parse(&more), Err(AttestationError::Malformed(_))));
    let none = Statement::parse(&with("/subject", serde_json::json!([])));
    assert!(matches!(none, Err(AttestationError::Count { found: 0, .. })), "{none:?}");
    for id in ["urn:pushgate:verifier:", "https://example.org/builder"] {
        let found = Statement::parse(&with("/predicate/runDetails/builder/id", id.into()));
        assert_eq!(found, Err(AttestationError::Builder(id.to_owned())));
    }
    assert_eq!(
        Statement::parse(&vec![b' '; MAX_STATEMENT + 1]),
        Err(AttestationError::TooLarge(MAX_STATEMENT + 1))
    );
}
