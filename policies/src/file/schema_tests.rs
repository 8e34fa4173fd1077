//! The schema says what the parser takes: the same fields and words, and it takes the shipped policies.

use rstest::rstest;
use serde_json::{Value, json};

use super::{builds, cases, head, matches, requires, rules};
use crate::schema;

fn root() -> Value {
    serde_json::from_str(schema()).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn sorted<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut words: Vec<&str> = words.into_iter().collect();
    words.sort_unstable();
    words
}

fn words(value: &Value) -> Vec<&str> {
    sorted(value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()))
}

#[rstest]
#[case("/properties", head::FIELDS)]
#[case("/$defs/limits/properties", head::LIMITS)]
#[case("/$defs/limit/properties", head::LIMIT)]
#[case("/$defs/retention/properties", head::RETENTION)]
#[case("/$defs/rebuilds/properties", builds::REBUILDS)]
#[case("/$defs/build/properties", builds::BUILD)]
#[case("/$defs/upstream/properties", head::UPSTREAM)]
#[case("/$defs/rule/properties", rules::RULE)]
#[case("/$defs/rule/properties/sample/properties", rules::SAMPLE)]
#[case("/$defs/rule/properties/limits/properties", rules::RULE_LIMITS)]
#[case("/$defs/match/properties", matches::MATCH)]
#[case("/$defs/match/properties/size/properties", matches::SIZE)]
#[case("/$defs/match/properties/sources/properties", matches::SOURCES)]
#[case("/$defs/source-match/properties", matches::SOURCE)]
#[case("/$defs/sigstore/properties", requires::SIGSTORE)]
#[case("/$defs/test/properties", cases::TEST)]
#[case("/$defs/given/properties", cases::GIVEN)]
fn it_has_the_parsers_fields(#[case] at: &str, #[case] fields: &[&str]) {
    assert_eq!(keys(root().pointer(at).unwrap()), sorted(fields.iter().copied()));
}

#[test]
fn it_has_the_parsers_words() {
    let root = root();
    let at = |pointer: &str| words(root.pointer(pointer).unwrap());
    assert_eq!(at("/properties/closure/enum"), sorted(head::CLOSURES.iter().map(|(word, _)| *word)));
    assert_eq!(
        at("/$defs/rule/properties/on-mismatch/enum"),
        sorted(rules::ON_MISMATCH.iter().map(|(w, _)| *w))
    );
    assert_eq!(
        at("/$defs/rebuilds/properties/on-audit-mismatch/enum"),
        sorted(builds::ON_AUDIT_MISMATCH.iter().map(|(w, _)| *w))
    );
    assert_eq!(
        at("/$defs/part/anyOf/0/enum"),
        sorted(requires::WORDS.iter().copied().filter(|w| *w != "nothing"))
    );
    assert_eq!(at("/$defs/test/properties/expect/enum"), sorted(cases::EXPECT.iter().map(|(word, _)| *word)));
    assert_eq!(at("/$defs/evidence/anyOf/0/enum"), sorted(cases::EVIDENCE_WORDS.iter().copied()));
    assert_eq!(
        at("/$defs/given/properties/unknown/items/enum"),
        sorted(cases::UNKNOWN.iter().map(|(word, _)| *word))
    );
    let tables = |pointer: &str, known: &[(&str, &[&str])]| {
        let variants = root.pointer(pointer).unwrap().as_array().unwrap();
        let found: Vec<Vec<&str>> =
            variants[1..].iter().map(|variant| keys(&variant["properties"])).collect();
        let wanted: Vec<Vec<&str>> = known
            .iter()
            .map(|(name, more)| sorted(std::iter::once(*name).chain(more.iter().copied())))
            .collect();
        assert_eq!(found, wanted);
    };
    tables("/$defs/part/anyOf", requires::TABLES);
    tables("/$defs/evidence/anyOf", cases::EVIDENCE_TABLES);
}

/// Checks a value against the part of JSON Schema that the schema uses; anything else in it is a mistake here.
fn valid(schema: &Value, value: &Value, root: &Value) -> bool {
    schema.as_object().unwrap().iter().all(|(word, rule)| match word.as_str() {
        "$schema" | "$defs" | "title" | "description" | "examples" => true,
        "additionalProperties" if *rule == json!(false) => {
            let known = schema.get("properties");
            value.as_object().is_none_or(|fields| {
                fields.keys().all(|name| known.is_some_and(|known| known.get(name).is_some()))
            })
        }
        "additionalProperties" => {
            value.as_object().is_none_or(|fields| fields.values().all(|value| valid(rule, value, root)))
        }
        "$ref" => valid(root.pointer(&rule.as_str().unwrap()[1..]).unwrap(), value, root),
        "type" => match rule.as_str().unwrap() {
            "string" => value.is_string(),
            "integer" => value.is_i64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("type {other}"),
        },
        "properties" => value.as_object().is_none_or(|fields| {
            fields.iter().all(|(name, value)| rule.get(name).is_none_or(|schema| valid(schema, value, root)))
        }),
        "required" => value.as_object().is_none_or(|fields| {
            rule.as_array().unwrap().iter().all(|name| fields.contains_key(name.as_str().unwrap()))
        }),
        "minProperties" => {
            value.as_object().is_none_or(|fields| fields.len() as u64 >= rule.as_u64().unwrap())
        }
        "maxProperties" => {
            value.as_object().is_none_or(|fields| fields.len() as u64 <= rule.as_u64().unwrap())
        }
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| valid(rule, item, root))),
        "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= rule.as_u64().unwrap()),
        "minLength" => {
            value.as_str().is_none_or(|text| text.chars().count() as u64 >= rule.as_u64().unwrap())
        }
        "maxLength" => {
            value.as_str().is_none_or(|text| text.chars().count() as u64 <= rule.as_u64().unwrap())
        }
        "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
        "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
        "const" => value == rule,
        "enum" => rule.as_array().unwrap().contains(value),
        "anyOf" => rule.as_array().unwrap().iter().any(|schema| valid(schema, value, root)),
        "allOf" => rule.as_array().unwrap().iter().all(|schema| valid(schema, value, root)),
        "oneOf" => rule.as_array().unwrap().iter().filter(|schema| valid(schema, value, root)).count() == 1,
        // editors check these
        "pattern" => rule.is_string(),
        other => panic!("the schema uses `{other}`"),
    })
}

fn takes(text: &str) -> bool {
    let value: toml::Value = toml::from_str(text).unwrap();
    let root = root();
    valid(&root, &json!(value), &root)
}

#[rstest]
#[case(include_str!("../../examples/personal.toml"))]
#[case(include_str!("../../examples/team.toml"))]
#[case(include_str!("../../examples/ci-only.toml"))]
#[case(include_str!("../../examples/open-source-project.toml"))]
#[case(include_str!("../../examples/strict.toml"))]
fn it_takes_the_shipped_policies(#[case] text: &str) {
    assert!(takes(text));
    assert!(takes(&crate::starting_policy("main")));
}

#[rstest]
#[case::no_rule("")]
#[case::field("colour = 1\n[[rule]]\nname = \"r\"\nmatch = {}\nrequire = \"derivation\"")]
#[case::no_match("[[rule]]\nname = \"r\"\nrequire = \"derivation\"")]
#[case::match_field("[[rule]]\nname = \"r\"\nmatch = { pnam = \"a\" }\nrequire = \"derivation\"")]
#[case::word("[[rule]]\nname = \"r\"\nmatch = {}\nrequire = \"derivaton\"")]
#[case::both("[[rule]]\nname = \"r\"\nmatch = {}\nrequire = \"derivation\"\ndeny = \"x\"")]
#[case::neither("[[rule]]\nname = \"r\"\nmatch = {}")]
#[case::nothing_in_all("[[rule]]\nname = \"r\"\nmatch = {}\nrequire = { all = [\"nothing\"] }")]
#[case::zero("[[rule]]\nname = \"r\"\nmatch = {}\nrequire = { rebuilds = 0 }")]
#[case::from("[[rule]]\nname = \"r\"\nmatch = {}\nrequire = { approvals = 1 }")]
#[case::two_kinds("[[rule]]\nname = \"r\"\nmatch = {}\nrequire = { rebuilds = 1, submitters = 2 }")]
#[case::empty_group("groups.a = []\n[[rule]]\nname = \"r\"\nmatch = {}\nrequire = \"derivation\"")]
#[case::anybody("[[rule]]\nname = \"r\"\nmatch = {}\nrequire = { sigstore = { issuer = \"https://i/\" } }")]
#[case::confirm("rebuilds.confirm = 5\n[[rule]]\nname = \"r\"\nmatch = {}\nrequire = \"derivation\"")]
#[case::build_of_nobody(
    "[[build]]\nat-once = 3\n[[rule]]\nname = \"r\"\nmatch = {}\nrequire = \"derivation\""
)]
#[case::rate("[[rule]]\nname = \"r\"\nmatch = {}\nrequire = \"derivation\"\nsample = { rate = 2 }")]
fn it_refuses_what_the_parser_refuses(#[case] more: &str) {
    let text = format!("version = 1\ncache = \"main\"\n{more}\n");
    assert!(!takes(&text));
    assert!(crate::Policy::parse(&text, "f", "main").is_err());
}
