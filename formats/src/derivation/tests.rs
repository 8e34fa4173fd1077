use std::collections::HashMap;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

/// Real derivations of Nix 2.8.0: the text is what its path says, the outputs follow.
const DEP: &str = "/nix/store/0ajr02r8s687bpci3xmv1yhy0i73ry94-dep";
const SIMPLE_PATH: &str = "/nix/store/ry0ki4s3anvy9l4ihn51zn6v6qzy5455-a.drv";
const SIMPLE: &str = r#"Derive([("out","/nix/store/fcvfc15xkwkz8c8vf4n81mw8hfcbm2z1-a","","")],[],["/nix/store/0ajr02r8s687bpci3xmv1yhy0i73ry94-dep"],"x86_64-linux","/bin/sh",["-c","echo /nix/store/0ajr02r8s687bpci3xmv1yhy0i73ry94-dep $out > $out"],[("PATH","/bin:/usr/bin"),("builder","/bin/sh"),("name","a"),("out","/nix/store/fcvfc15xkwkz8c8vf4n81mw8hfcbm2z1-a"),("system","x86_64-linux")])"#;
const FLOATING_PATH: &str = "/nix/store/id8wjgzxifb4lqhm3yarhasnlpxn9rjl-f.drv";
const FLOATING: &str = r#"Derive([("out","","r:sha256","")],[],[],"x86_64-linux","/bin/sh",["-c","echo self $out > $out"],[("PATH","/bin:/usr/bin"),("builder","/bin/sh"),("name","f"),("out","/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9"),("outputHashAlgo","sha256"),("outputHashMode","recursive"),("system","x86_64-linux")])"#;

type Known = HashMap<StorePath, Facts>;

fn path(text: &str) -> StorePath {
    StorePath::parse(text).unwrap()
}

fn out(name: &str) -> OutputName {
    OutputName::parse(name).unwrap()
}

fn code<T: fmt::Debug>(result: Result<T, DerivationError>) -> &'static str {
    result.unwrap_err().code()
}

/// A derivation with the given outputs, and the variables that belong to them.
fn derivation(outputs: &[(&str, Output)]) -> Derivation {
    Derivation {
        outputs: outputs.iter().map(|(name, output)| (out(name), output.clone())).collect(),
        input_srcs: BTreeSet::new(),
        input_drvs: BTreeMap::new(),
        system: "x86_64-linux".to_owned(),
        builder: b"/bin/sh".to_vec(),
        args: vec![],
        env: BTreeMap::new(),
    }
}

fn deferred() -> Derivation {
    derivation(&[("out", Output::Deferred)])
}

/// Writes the paths of input-addressed outputs, as Nix does: the way through `check`'s own errors.
fn finish(name: &str, mut d: Derivation, known: &Known) -> (StorePath, Vec<u8>) {
    loop {
        let raw = d.print();
        let own = text_path(&format!("{name}.drv"), &raw, &d.references()).unwrap();
        match check(&own, &raw, |input| known.get(input)) {
            Err(DerivationError::Mismatch { output, computed, .. }) => {
                d.env.insert(output.as_str().into(), computed.absolute().into());
                let slot = d.outputs.get_mut(&output).unwrap();
                match slot {
                    Output::InputAddressed(path) | Output::Fixed { path, .. } => *path = computed,
                    _ => unreachable!(),
                }
            }
            _ => return (own, raw),
        }
    }
}

fn add(known: &mut Known, name: &str, d: Derivation) -> StorePath {
    let (own, raw) = finish(name, d, known);
    let checked = check(&own, &raw, |input| known.get(input)).unwrap();
    known.insert(own.clone(), checked.facts);
    own
}

fn addressed(outputs: &[&str]) -> Derivation {
    let any = Output::InputAddressed(path(DEP));
    derivation(&outputs.iter().map(|name| (*name, any.clone())).collect::<Vec<_>>())
}

fn fixed_from(url: &str) -> Derivation {
    let hash = NixHash::new(HashAlgo::Sha256, &[7; 32]).unwrap();
    let mut d = derivation(&[("out", Output::Fixed { path: path(DEP), method: Method::Flat, hash })]);
    d.env.insert(b"url".to_vec(), url.into());
    d
}

#[test]
fn real_input_addressed() {
    let checked = check(&path(SIMPLE_PATH), SIMPLE.as_bytes(), |_| None::<Facts>).unwrap();
    assert_eq!(checked.derivation.print(), SIMPLE.as_bytes());
    assert_eq!(checked.facts.kind(), Kind::InputAddressed);
    let output = path("/nix/store/fcvfc15xkwkz8c8vf4n81mw8hfcbm2z1-a");
    assert_eq!(checked.facts.outputs()[&out("out")], Some(output));
    assert_eq!(checked.derivation.references(), BTreeSet::from([path(DEP)]));
    let json = serde_json::to_string(&checked.facts).unwrap();
    assert_eq!(serde_json::from_str::<Facts>(&json).unwrap(), checked.facts);
}

#[test]
fn real_floating() {
    let facts = check(&path(FLOATING_PATH), FLOATING.as_bytes(), |_| None::<Facts>).unwrap().facts;
    assert_eq!(facts.outputs()[&out("out")], None);
    assert!(!facts.modulo().is_known());
    assert_eq!(
        facts.realisation_id(&out("out")).unwrap(),
        "sha256:02145b0ec6199061e74d93aeeef7561faf0c7195aa4fabcdcf4c09e0d9d36e0a!out"
    );
    assert_eq!(facts.realisation_id(&out("dev")), None);
}

#[rstest]
#[case::extra_whitespace(SIMPLE.replace("[],[\"/nix", "[], [\"/nix"), "derivation-malformed")]
#[case::unneeded_escape(SIMPLE.replace("-linux\",\"/bin", "-linux\",\"\\/bin"), "derivation-malformed")]
#[case::bare_newline(SIMPLE.replace("echo", "echo\n"), "derivation-not-canonical")]
#[case::bare_tab(SIMPLE.replace("echo", "echo\t"), "derivation-not-canonical")]
#[case::unsorted(SIMPLE.replace("(\"builder\",\"/bin/sh\"),(\"name\",\"a\")", "(\"name\",\"a\"),(\"builder\",\"/bin/sh\")"), "derivation-not-canonical")]
#[case::duplicate_key(SIMPLE.replace("(\"name\",\"a\")", "(\"name\",\"a\"),(\"name\",\"a\")"), "derivation-not-canonical")]
#[case::duplicate_source(SIMPLE.replace("[\"/nix/store/0aj", "[\"/nix/store/0ajr02r8s687bpci3xmv1yhy0i73ry94-dep\",\"/nix/store/0aj"), "derivation-not-canonical")]
#[case::trailing(format!("{SIMPLE}\n"), "derivation-malformed")]
#[case::leading(format!(" {SIMPLE}"), "derivation-malformed")]
#[case::trailing_comma(SIMPLE.replace("\"x86_64-linux\")])", "\"x86_64-linux\"),])"), "derivation-malformed")]
#[case::versioned(format!("DrvWithVersion(\"xp-dyn-drv\",{}", &SIMPLE[7..]), "derivation-unsupported")]
#[case::no_outputs(SIMPLE.replace("[(\"out\",\"/nix/store/fcvfc15xkwkz8c8vf4n81mw8hfcbm2z1-a\",\"\",\"\")]", "[]"), "derivation-malformed")]
#[case::aterm_in_output_name(SIMPLE.replace("(\"out\",\"/nix", "(\"out\\\",\\\"\\\",\\\"\\\",\\\"\\\"),(\\\"x\",\"/nix"), "derivation-malformed")]
#[case::empty_output_name(SIMPLE.replace("(\"out\",\"/nix", "(\"\",\"/nix"), "derivation-malformed")]
#[case::non_ascii_output_name(SIMPLE.replace("(\"out\",\"/nix", "(\"ö\",\"/nix"), "derivation-malformed")]
#[case::quoted_system(SIMPLE.replace("\"x86_64-linux\",\"/bin", "\"x86\\\"\",\"/bin"), "derivation-malformed")]
#[case::relative_source(SIMPLE.replace("[\"/nix/store/0aj", "[\"nix/store/0aj"), "derivation-malformed")]
#[case::nested_lists(SIMPLE.replace("[\"-c\"", &format!("{}\"-c\"", "[".repeat(100_000))), "derivation-malformed")]
#[case::only_brackets("Derive([".to_owned() + &"(".repeat(1 << 20), "derivation-malformed")]
#[case::impure_with_path(SIMPLE.replace("-a\",\"\",\"\")", "-a\",\"r:sha256\",\"impure\")"), "derivation-malformed")]
#[case::hash_without_algorithm(SIMPLE.replace("-a\",\"\",\"\")", "-a\",\"\",\"00\")"), "derivation-malformed")]
#[case::unknown_algorithm(SIMPLE.replace("-a\",\"\",\"\")", "-a\",\"r:sha3\",\"\")"), "derivation-malformed")]
fn refused(#[case] text: String, #[case] expected: &str) {
    assert_eq!(code(Derivation::parse(text.as_bytes())), expected);
}

#[test]
fn not_canonical_says_where() {
    let text = SIMPLE.replace("echo", "echo\t");
    let offset = text.find('\t').unwrap();
    assert_eq!(Derivation::parse(text.as_bytes()), Err(DerivationError::NotCanonical { offset }));
}

#[rstest]
#[case::fixed_as_base_32(NixHash::new(HashAlgo::Sha256, &[7; 32]).unwrap().base32())]
#[case::fixed_in_capitals(NixHash::new(HashAlgo::Sha256, &[0xab; 32]).unwrap().hex().to_uppercase())]
fn one_spelling_of_a_fixed_hash(#[case] digits: String) {
    let text = SIMPLE.replace("-a\",\"\",\"\")", &format!("-a\",\"sha256\",\"{digits}\")"));
    assert_eq!(code(Derivation::parse(text.as_bytes())), "derivation-not-canonical");
}

#[test]
fn too_large() {
    assert_eq!(code(Derivation::parse(&vec![b'('; MAX_DERIVATION + 1])), "derivation-too-large");
    let many = SIMPLE.replace("[\"-c\"", &format!("[{}\"-c\"", "\"\",".repeat(MAX_ITEMS)));
    assert_eq!(code(Derivation::parse(many.as_bytes())), "derivation-too-large");
}

#[test]
fn large_environment() {
    let mut d = deferred();
    d.env.insert(b"big".to_vec(), vec![b'x'; MAX_DERIVATION - 1000]);
    assert_eq!(Derivation::parse(&d.print()), Ok(d.clone()));
    // each byte takes two in the file
    d.env.insert(b"big".to_vec(), vec![b'"'; MAX_DERIVATION / 2]);
    assert_eq!(code(Derivation::parse(&d.print())), "derivation-too-large");
}

#[rstest]
#[case(SIMPLE)]
#[case(FLOATING)]
fn cut_or_changed_anywhere(#[case] text: &str) {
    for cut in 0..text.len() {
        assert!(Derivation::parse(&text.as_bytes()[..cut]).is_err(), "{cut}");
        for byte in [0, b'"', b'\\', b'[', b',', 0xff] {
            let mut changed = text.as_bytes().to_vec();
            changed[cut] = byte;
            if let Ok(parsed) = Derivation::parse(&changed) {
                assert_eq!(parsed.print(), changed);
            }
        }
    }
}

#[rstest]
#[case::two_kinds(&[("a", Output::Deferred), ("out", Output::Floating { method: Method::Flat, algo: HashAlgo::Sha256 })])]
#[case::two_algorithms(&[("a", Output::Floating { method: Method::Flat, algo: HashAlgo::Sha1 }), ("out", Output::Floating { method: Method::Flat, algo: HashAlgo::Sha256 })])]
#[case::fixed_not_out(&[("dev", Output::Fixed { path: path(DEP), method: Method::Flat, hash: NixHash::new(HashAlgo::Md5, &[0; 16]).unwrap() })])]
fn kinds_dont_mix(#[case] outputs: &[(&str, Output)]) {
    let raw = derivation(outputs).print();
    assert!(matches!(Derivation::parse(&raw), Err(DerivationError::Outputs(_))));
}

#[rstest]
#[case::another_hash("/nix/store/0ajr02r8s687bpci3xmv1yhy0i73ry94-a.drv")]
#[case::another_name("/nix/store/ry0ki4s3anvy9l4ihn51zn6v6qzy5455-b.drv")]
#[case::not_a_derivation("/nix/store/ry0ki4s3anvy9l4ihn51zn6v6qzy5455-a")]
#[case::no_name("/nix/store/ry0ki4s3anvy9l4ihn51zn6v6qzy5455-.drv")]
fn own_path(#[case] claimed: &str) {
    let result = check(&path(claimed), SIMPLE.as_bytes(), |_| None::<Facts>);
    assert_eq!(code(result), "derivation-path-mismatch");
}

/// The file is what its path says, but another output's path stands in it.
#[test]
fn another_output_path() {
    let lie = "/nix/store/ry0ki4s3anvy9l4ihn51zn6v6qzy5455-a";
    let raw = SIMPLE.replace("/nix/store/fcvfc15xkwkz8c8vf4n81mw8hfcbm2z1-a", lie);
    let d = Derivation::parse(raw.as_bytes()).unwrap();
    let own = text_path("a.drv", raw.as_bytes(), &d.references()).unwrap();
    let error = check(&own, raw.as_bytes(), |_| None::<Facts>).unwrap_err();
    assert!(matches!(&error, DerivationError::Mismatch { written, .. } if *written == path(lie)));
    assert_eq!(error.code(), "derivation-mismatch");
}

/// The hash doesn't cover the variable, so the output path would still be right.
#[rstest]
#[case::elsewhere("(\"out\",\"/nix/store/ry0ki4s3anvy9l4ihn51zn6v6qzy5455-a\")")]
#[case::empty("(\"out\",\"\")")]
fn another_path_in_the_environment(#[case] variable: &str) {
    let raw = SIMPLE
        .replace("(\"out\",\"/nix/store/fcvfc15xkwkz8c8vf4n81mw8hfcbm2z1-a\"),", &format!("{variable},"));
    assert_ne!(raw, SIMPLE);
    let d = Derivation::parse(raw.as_bytes()).unwrap();
    let own = text_path("a.drv", raw.as_bytes(), &d.references()).unwrap();
    let error = check(&own, raw.as_bytes(), |_| None::<Facts>).unwrap_err();
    assert!(matches!(error, DerivationError::Environment { .. }));
    assert_eq!(error.code(), "derivation-mismatch");
}

#[test]
fn inputs() {
    let mut known = Known::new();
    let below = add(&mut known, "below", addressed(&["out", "dev"]));
    let mut d = addressed(&["out"]);
    d.input_drvs.insert(below.clone(), BTreeSet::from([out("dev")]));
    let (own, raw) = finish("above", d.clone(), &known);
    assert!(check(&own, &raw, |input| known.get(input)).is_ok());
    let missing = check(&own, &raw, |_| None::<Facts>).unwrap_err();
    assert_eq!(missing, DerivationError::MissingInput(below.clone()));
    assert_eq!(missing.code(), "needs-derivation");

    d.input_drvs.insert(below.clone(), BTreeSet::from([out("doc")]));
    let (own, raw) = finish("above", d, &known);
    let unknown = check(&own, &raw, |input| known.get(input)).unwrap_err();
    assert_eq!(unknown, DerivationError::UnknownOutput { input: below, output: out("doc") });
}

#[test]
fn nothing_follows_from_floating_inputs() {
    let mut known = Known::new();
    let facts = check(&path(FLOATING_PATH), FLOATING.as_bytes(), |_| None::<Facts>).unwrap().facts;
    known.insert(path(FLOATING_PATH), facts);
    let wanted = || BTreeSet::from([out("out")]);
    let mut d = addressed(&["out"]);
    d.input_drvs.insert(path(FLOATING_PATH), wanted());
    let (own, raw) = finish("above", d, &known);
    let error = check(&own, &raw, |input| known.get(input)).unwrap_err();
    assert!(matches!(error, DerivationError::Undecidable { .. }));
    assert_eq!(error.code(), "derivation-mismatch");

    let mut d = deferred();
    d.input_drvs.insert(path(FLOATING_PATH), wanted());
    let above = add(&mut known, "above", d);
    assert_eq!(known[&above].kind(), Kind::Deferred);
    assert!(!known[&above].modulo().is_known());
    // a fixed output is known whatever its inputs are, and they needn't be known
    let mut d = fixed_from("x");
    d.input_drvs.insert(above, wanted());
    let fixed = add(&mut Known::new(), "fixed", d);
    assert!(fixed.is_derivation());
}

#[test]
fn urls_dont_change_the_hash() {
    let mut known = Known::new();
    let a = add(&mut known, "source", fixed_from("https://a.example"));
    let b = add(&mut known, "source", fixed_from("https://b.example"));
    assert_ne!(a, b);
    assert_eq!(known[&a], known[&b]);
}

/// Two inputs of the same hash, other outputs wanted of each: Nix's versions differ, both are accepted and told apart.
#[test]
fn collision() {
    let mut known = Known::new();
    let twins: Vec<StorePath> = ["https://a.example", "https://b.example"]
        .map(|url| {
            let source = add(&mut known, "source", fixed_from(url));
            let mut d = addressed(&["out", "dev"]);
            d.input_drvs.insert(source, BTreeSet::from([out("out")]));
            add(&mut known, "twin", d)
        })
        .to_vec();
    assert_eq!(known[&twins[0]].modulo(), known[&twins[1]].modulo());
    let (low, high) = (twins.iter().min().unwrap(), twins.iter().max().unwrap());

    let mut merged = addressed(&["out"]);
    merged.input_drvs.insert(low.clone(), BTreeSet::from([out("out")]));
    merged.input_drvs.insert(high.clone(), BTreeSet::from([out("dev")]));
    let above = add(&mut known, "above", merged.clone());
    assert_eq!(known[&above].collision(), Collision::Merged);

    // what overwriting gives: the same as with the last input alone
    let mut alone = merged.clone();
    alone.input_drvs.remove(low);
    let alone = add(&mut known, "above", alone);
    assert_eq!(known[&alone].collision(), Collision::None);
    let output = known[&alone].outputs()[&out("out")].clone().unwrap();
    assert_ne!(Some(&output), known[&above].outputs()[&out("out")].as_ref());
    let mut last = merged;
    last.outputs.insert(out("out"), Output::InputAddressed(output.clone()));
    last.env.insert(b"out".to_vec(), output.absolute().into());
    let raw = last.print();
    let own = text_path("above.drv", &raw, &last.references()).unwrap();
    let facts = check(&own, &raw, |input| known.get(input)).unwrap().facts;
    assert_eq!(facts.collision(), Collision::LastWins);
    assert_eq!(facts.modulo(), known[&alone].modulo());
}

#[rstest]
#[case::out("x.drv", &["out"])]
#[case::other("x", &["a.drv", "out"])]
fn outputs_named_like_derivations(#[case] name: &str, #[case] outputs: &[&str]) {
    let (own, raw) = finish(name, addressed(outputs), &Known::new());
    assert_eq!(code(check(&own, &raw, |_| None::<Facts>)), "derivation-unsupported");
}

fn with_env(outputs: &[&str], env: &[(&str, &str)]) -> Derivation {
    let mut d = addressed(outputs);
    d.env = env.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
    d
}

#[test]
fn plain_reference_checks() {
    let list = format!(" {DEP}\n\tdev ");
    let d = with_env(
        &["out", "dev"],
        &[("allowedReferences", &list), ("disallowedRequisites", "out"), ("url", "a"), ("urls", "b\nc")],
    );
    let attributes = d.attributes().unwrap();
    assert!(!attributes.structured);
    assert_eq!(attributes.urls, ["a", "b", "c"]);
    let checks = attributes.checks(&out("dev"));
    let dep = ReferenceSpec::Path(path(DEP));
    assert_eq!(checks.allowed_references, Some(BTreeSet::from([dep, ReferenceSpec::Output(out("dev"))])));
    assert_eq!(checks.allowed_requisites, None);
    assert_eq!(checks.disallowed_requisites, BTreeSet::from([ReferenceSpec::Output(out("out"))]));
    assert_eq!(attributes.checks(&out("out")), checks);
    let none = with_env(&["out"], &[("allowedReferences", "")]).attributes().unwrap();
    assert_eq!(none.checks(&out("out")).allowed_references, Some(BTreeSet::new()));
}

#[test]
fn structured_reference_checks() {
    let json = format!(
        r#"{{"allowedReferences":[],"deep":{}{},"outputChecks":{{"gone":{{"allowedReferences":["x"]}},
        "out":{{"allowedReferences":["dev","{DEP}"],"disallowedRequisites":["/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9"],"maxSize":5}}}},
        "unsafeDiscardReferences":{{"dev":true,"out":false}},"url":["a",1,null,[2],{{"b":[]}},"b"],"urls":{{"x":1.5}}}}"#,
        "[".repeat(100),
        "]".repeat(100)
    );
    let d = with_env(&["out", "dev"], &[("__json", &json), ("disallowedReferences", "out")]);
    let attributes = d.attributes().unwrap();
    assert!(attributes.structured);
    assert_eq!(attributes.urls, ["a", "b"]);
    assert_eq!(attributes.unsafe_discard_references, BTreeSet::from([out("dev")]));
    assert!(attributes.checks(&out("dev")).is_empty());
    let checks = attributes.checks(&out("out"));
    let dep = ReferenceSpec::Path(path(DEP));
    assert_eq!(checks.allowed_references, Some(BTreeSet::from([dep, ReferenceSpec::Output(out("dev"))])));
    assert_eq!(checks.disallowed_requisites.len(), 1);
    assert!(checks.disallowed_references.is_empty());
}

#[rstest]
#[case::neither_path_nor_output("allowedReferences", "doc")]
#[case::not_json("__json", "{")]
#[case::not_a_table("__json", "[]")]
#[case::trailing("__json", "{} {}")]
#[case::output_twice("__json", r#"{"outputChecks":{"out":{},"out":{}}}"#)]
#[case::checks_twice("__json", r#"{"outputChecks":{},"outputChecks":{}}"#)]
#[case::number_in_a_list("__json", r#"{"outputChecks":{"out":{"allowedReferences":["out",1]}}}"#)]
#[case::no_boolean("__json", r#"{"unsafeDiscardReferences":{"out":"yes"}}"#)]
fn bad_attributes(#[case] key: &str, #[case] text: &str) {
    let error = with_env(&["out"], &[(key, text)]).attributes().unwrap_err();
    assert!(matches!(error, DerivationError::Attribute { .. }), "{error}");
    assert_eq!(error.code(), "derivation-malformed");
}

#[test]
fn fixed_leaf() {
    let leaf = fixed_from("https://a.example/x").fixed_leaf().unwrap().unwrap();
    assert_eq!(leaf.urls, ["https://a.example/x"]);
    assert_eq!(leaf.method, Method::Flat);
    assert_eq!(addressed(&["out"]).fixed_leaf(), Ok(None));
}

#[test]
fn messages_show_bounded_text() {
    let text = SIMPLE.replace("(\"out\",\"/nix", &format!("(\"\u{1b}[31m{}\",\"/nix", "x".repeat(10_000)));
    let message = Derivation::parse(text.as_bytes()).unwrap_err().to_string();
    assert!(message.len() < 400 && !message.contains('\u{1b}'), "{message}");
}

fn any_output() -> impl Strategy<Value = Output> {
    prop_oneof![
        any::<[u8; 20]>().prop_map(|d| Output::InputAddressed(StorePath::from_digest(&d, "x").unwrap())),
        Just(Output::Deferred),
        Just(Output::Floating { method: Method::Recursive, algo: HashAlgo::Sha256 }),
        Just(Output::Impure { method: Method::Text, algo: HashAlgo::Sha256 }),
    ]
}

fn any_derivation() -> impl Strategy<Value = Derivation> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..20);
    let names = || prop::collection::btree_set("[a-zA-Z0-9+_=-]{1,6}".prop_map(|n| out(&n)), 1..4);
    let digest = any::<[u8; 20]>;
    (
        (names(), any_output()),
        prop::collection::btree_set(digest().prop_map(|d| StorePath::from_digest(&d, "s").unwrap()), 0..4),
        prop::collection::btree_map(
            digest().prop_map(|d| StorePath::from_digest(&d, "i.drv").unwrap()),
            names(),
            0..4,
        ),
        ("[a-z0-9_-]{0,12}", bytes(), prop::collection::vec(bytes(), 0..4)),
        prop::collection::btree_map(bytes(), bytes(), 0..6),
    )
        .prop_map(|((names, output), input_srcs, input_drvs, (system, builder, args), env)| {
            let outputs = names.into_iter().map(|name| (name, output.clone())).collect();
            Derivation { outputs, input_srcs, input_drvs, system, builder, args, env }
        })
}

proptest! {
    #[test]
    fn print_parse_print(d in any_derivation()) {
        let raw = d.print();
        let parsed = Derivation::parse(&raw).unwrap();
        prop_assert_eq!(&parsed, &d);
        prop_assert_eq!(parsed.print(), raw);
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..SIMPLE.len()) {
        let mut text = SIMPLE.as_bytes().to_vec();
        text.splice(at..at, bytes);
        let _ = Derivation::parse(&text);
    }
}
