use rstest::rstest;

use super::*;

fn act(what: &str, reason: &str) -> String {
    let nonce = "ab".repeat(16);
    format!(
        r#"{{"version":1,"gateway":"5f","nonce":"{nonce}","issued":1000,"expires":1600,"reason":"{reason}","what":{what}}}"#
    )
}

fn path() -> String {
    StorePath::from_digest(&[1; 20], "hello-2.12").unwrap().to_string()
}

#[test]
fn every_kind_reads_as_it_prints() {
    let (hash, path) = (Sha256::of(b"x"), StorePath::from_digest(&[1; 20], "hello-2.12").unwrap());
    let (name, cache, key) = ("alice".to_owned(), "main".to_owned(), KeyName::new("alice-1").unwrap());
    let all = [
        Deed::Invite {
            name: name.clone(),
            role: Role::Admin,
            owner: Some("a@example.org".into()),
            groups: vec!["core".into()],
            caches: Some(vec![cache.clone()]),
            code: hash,
            code_expires: 7,
            key_expires: Some(8),
        },
        Deed::Groups { name: name.clone(), groups: vec![] },
        Deed::Owner { name: name.clone(), owner: None },
        Deed::Freeze { name: name.clone() },
        Deed::Unfreeze { name: name.clone() },
        Deed::RevokeKey { key: key.clone() },
        Deed::Rotate { key, code: hash, code_expires: 7, old_expires: 8, key_expires: None },
        Deed::MakeToken { name: name.clone(), cache: cache.clone(), token: hash, token_expires: None },
        Deed::RevokeToken { name, token: Some(hash) },
        Deed::Approve { cache: cache.clone(), path: path.clone(), nar_hash: hash, until: Some(9) },
        Deed::Reject { cache: cache.clone(), path: path.clone(), nar_hash: hash, until: None },
        Deed::Waive {
            cache: cache.clone(),
            path: path.clone(),
            nar_hash: hash,
            until: Some(9),
            waives: "rebuilds".into(),
        },
        Deed::Settle { cache, path, nar_hash: hash },
    ];
    for what in all {
        let act = Act {
            version: 1,
            gateway: "5f".into(),
            nonce: "0".repeat(32),
            issued: 1,
            expires: 2,
            reason: "because".into(),
            what,
        };
        let text = serde_json::to_string(&act).unwrap();
        assert!(text.contains(&format!(r#""act":"{}""#, act.what.kind())), "{text}");
        assert_eq!(Act::parse(text.as_bytes()), Ok(act));
    }
}

#[rstest]
#[case::unknown_kind(r#"{"act":"publish","name":"alice"}"#, "why", "act-malformed")]
#[case::unknown_field(r#"{"act":"freeze","name":"alice","until":3}"#, "why", "act-malformed")]
#[case::twice(r#"{"act":"freeze","name":"alice","name":"bob"}"#, "why", "act-malformed")]
#[case::two_kinds(r#"{"act":"freeze","act":"unfreeze","name":"alice"}"#, "why", "act-malformed")]
#[case::missing_field(r#"{"act":"groups","name":"alice"}"#, "why", "act-malformed")]
#[case::bad_name(r#"{"act":"freeze","name":"al ice"}"#, "why", "name-invalid")]
#[case::no_name(r#"{"act":"freeze","name":""}"#, "why", "name-invalid")]
#[case::bad_key(r#"{"act":"revoke-key","key":"a:b"}"#, "why", "act-malformed")]
#[case::lookalike(r#"{"act":"owner","name":"alice","owner":"аlice"}"#, "why", "owner-invalid")]
#[case::at_in_group(r#"{"act":"groups","name":"alice","groups":["@core"]}"#, "", "group-invalid")]
#[case::bad_role(r#"{"act":"invite","name":"alice","role":"root"}"#, "", "act-malformed")]
#[case::no_reason(r#"{"act":"freeze","name":"alice"}"#, "", "reason-missing")]
#[case::blank_reason(r#"{"act":"freeze","name":"alice"}"#, " \\n", "reason-missing")]
fn refused(#[case] what: &str, #[case] reason: &str, #[case] code: &str) {
    assert_eq!(Act::parse(act(what, reason).as_bytes()).unwrap_err().code(), code);
}

#[test]
fn bounds() {
    let freeze = r#"{"act":"freeze","name":"alice"}"#;
    let code = |text: String| Act::parse(text.as_bytes()).err().map(|e| e.code());
    assert_eq!(code(act(freeze, &"x".repeat(MAX_REASON))), None);
    assert_eq!(code(act(freeze, &"x".repeat(MAX_REASON + 1))), Some("reason-too-long"));
    let good = act(freeze, "why");
    for (from, to) in [
        (r#""version":1"#, r#""version":2"#),
        ("abababababababab", "zzzzzzzzzzzzzzzz"),
        (r#""expires":1600"#, r#""expires":4601"#),
        (r#""reason""#, r#""more":1,"reason""#),
    ] {
        assert_eq!(code(good.replace(from, to)), Some("act-malformed"), "{to}");
    }
    let many: Vec<_> = (0..=MAX_GROUPS).map(|n| format!("g{n}")).collect();
    let groups = format!(r#"{{"act":"groups","name":"a","groups":{}}}"#, serde_json::json!(many));
    assert_eq!(code(act(&groups, "")), Some("act-malformed"));
    let waive = |what: &str| {
        let (path, hash) = (path(), Sha256::of(b"x"));
        let hash = serde_json::to_string(&hash).unwrap();
        format!(r#"{{"act":"waive","cache":"main","path":"{path}","narHash":{hash},"waives":"{what}"}}"#)
    };
    assert_eq!(code(act(&waive("rebuilds"), "why")), None);
    assert_eq!(code(act(&waive("signature"), "why")), Some("act-malformed"));
}
