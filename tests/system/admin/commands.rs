//! The commands of admins, as people and scripts run them, against a real gateway.

use pushgate_tests::process::{Gateway, Ran, Submitter};
use serde_json::Value;

/// What stands in for times, hashes and whatever else differs from run to run.
fn steady(text: &str) -> String {
    let word = |word: &str| {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if word.len() == 10 && word.split('-').all(digits) {
            "DATE".to_owned()
        } else if word.ends_with('Z') && word.trim_end_matches('Z').split(':').all(digits) {
            "TIME".to_owned()
        } else if word.len() == 52 && word.bytes().all(|b| b.is_ascii_alphanumeric()) {
            "HASH".to_owned()
        } else {
            word.to_owned()
        }
    };
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    text.lines().map(|l| line(l) + "\n").collect()
}

fn json(ran: Ran) -> Value {
    let ran = ran.ended_with(0);
    serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e} in {}", ran.out))
}

/// One day at a gateway, by commands alone.
#[test]
fn an_admins_day() {
    let gateway = Gateway::start();
    let url = gateway.url("");
    let ada = gateway.enrol("ada", &["--role", "admin"]);
    let admin = |args: &str| ada.run(&[&["admin"], args.split(' ').collect::<Vec<_>>().as_slice()].concat());

    let invited =
        admin("submitter invite alice --owner alice@example.org --group core --group ci --cache main");
    assert!(invited.err.contains(&format!("pushgate join {url} --invite CODE")), "{}", invited.err);
    let code = invited.line();
    let alice = Submitter::stranger();
    let joined = alice.run(&["join", &url, "--invite", &code, "--name", "alice-1"]).ended_with(0).out;
    assert!(joined.contains("as alice (submitter)"), "{joined}");
    admin("submitter invite victor --role verifier").line();

    let token = admin("token make alice").line();
    assert_eq!(token.len(), 32);
    assert_eq!(steady(&admin("token list").ended_with(0).out), "HASH  alice  main  made DATE TIME  good\n");
    assert_eq!(
        steady(&admin("submitter list").ended_with(0).out),
        "ada    admin      no owner                 -        free  0 tokens  never pushed\n  \
           key ada-1: good, enrolled DATE TIME\n\
         alice  submitter  owner alice@example.org  core ci  free  1 token   never pushed\n  \
           key alice-1 for main: good, enrolled DATE TIME\n"
    );

    for (args, said) in [
        ("submitter groups alice core", "alice has core now\n"),
        ("submitter groups alice core", "alice has core now, as before\n"),
        ("submitter groups alice --none", "alice has no groups now\n"),
        ("submitter owner alice team --reason hired", "team stands behind alice\n"),
        ("submitter freeze alice --reason lost-laptop", "alice is frozen\n"),
        ("submitter freeze alice --reason lost-laptop", "alice is frozen, as before\n"),
        ("submitter unfreeze alice", "alice is free\n"),
        ("token revoke alice --all", "revoked 1 token of alice\n"),
        ("token revoke alice --all", "revoked 0 tokens of alice\n"),
    ] {
        assert_eq!(admin(args).ended_with(0).out, said, "{args}");
    }

    let rotated = admin("submitter rotate alice-1 --grace-days 3");
    assert!(
        rotated.err.contains("alice-1 stays good until") && rotated.err.contains("--again"),
        "{}",
        rotated.err
    );
    let code = rotated.line();
    alice.run(&["join", &url, "--invite", &code]).ended_with(1);
    let again =
        alice.run(&["join", &url, "--invite", &code, "--name", "alice-2", "--again"]).ended_with(0).out;
    assert!(again.contains("key: alice-2:"), "{again}");
    assert_eq!(admin("submitter revoke-key alice-1 --reason lost").ended_with(0).out, "alice-1 is revoked\n");
    alice.run(&["status"]).ended_with(0);

    assert_eq!(
        steady(&admin("events").ended_with(0).out),
        "1   DATE TIME  gateway host     invite        ada  as admin\n\
         2   DATE TIME  ada (ada-1)      enrolled      ada  a key for the admin `ada`\n\
         3   DATE TIME  ada (ada-1)      invite        alice  as submitter, owner alice@example.org, groups core ci, caches main\n\
         4   DATE TIME  alice (alice-1)  enrolled      alice  a key for the submitter `alice`\n\
         5   DATE TIME  ada (ada-1)      invite        victor  as verifier\n\
         6   DATE TIME  ada (ada-1)      make-token    alice  in main\n\
         7   DATE TIME  ada (ada-1)      groups        alice  core\n\
         8   DATE TIME  ada (ada-1)      groups        alice  core\n\
         9   DATE TIME  ada (ada-1)      groups        alice  none\n\
         10  DATE TIME  ada (ada-1)      owner         alice  team  “hired”\n\
         11  DATE TIME  ada (ada-1)      freeze        alice  “lost-laptop”\n\
         12  DATE TIME  ada (ada-1)      freeze        alice  “lost-laptop”\n\
         13  DATE TIME  ada (ada-1)      unfreeze      alice\n\
         14  DATE TIME  ada (ada-1)      revoke-token  alice  all tokens\n\
         15  DATE TIME  ada (ada-1)      revoke-token  alice  all tokens\n\
         16  DATE TIME  ada (ada-1)      rotate        alice  the key alice-1\n\
         17  DATE TIME  alice (alice-2)  enrolled      alice  a key for the submitter `alice`\n\
         18  DATE TIME  ada (ada-1)      revoke-key    alice  the key alice-1  “lost”\n"
    );
}

#[test]
fn documents_for_programs() {
    let gateway = Gateway::start();
    let ada = gateway.enrol("ada", &["--role", "admin"]);
    let admin = |args: &str| ada.run(&[&["admin"], args.split(' ').collect::<Vec<_>>().as_slice()].concat());
    let invited = json(admin("submitter invite alice --json"));
    let code = invited["code"].as_str().unwrap().to_owned();
    assert!(invited["expires"].is_u64() && invited["event"].is_u64(), "{invited}");
    let alice = Submitter::stranger();
    alice.run(&["join", &gateway.url(""), "--invite", &code, "--name", "alice-1"]).ended_with(0);
    let made = json(admin("token make alice --days 2 --json"));
    assert_eq!((made["login"].as_str(), made["token"].as_str().map(str::len)), (Some("alice"), Some(32)));
    let tokens = json(admin("token list alice --json"));
    let hash = tokens[0]["token"].as_str().unwrap();
    assert!(tokens[0]["expires"].is_u64(), "{tokens} {hash}");
    let listed = json(admin("submitter list --json"));
    assert_eq!((listed[1]["name"].as_str(), listed[1]["tokens"].as_u64()), (Some("alice"), Some(1)));
    assert_eq!(json(admin("submitter freeze alice --reason x --json"))["changed"], 1);
    let rotated = json(admin("submitter rotate alice-1 --json"));
    assert!(rotated["oldExpires"].is_u64() && rotated["code"].is_string(), "{rotated}");
    // one object a line
    let events = admin("events --after 0 --json").lines();
    let kinds: Vec<String> = events
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["invite", "enrolled", "invite", "enrolled", "make-token", "freeze", "rotate"]);
    assert_eq!(admin("events --after 6 --json").lines().len(), 1);
    assert_eq!(admin("events --cache main").lines().len(), 1);
}

#[test]
fn refusals_end_with_1_and_wrong_usage_with_2() {
    let gateway = Gateway::start();
    let ada = gateway.enrol("ada", &["--role", "admin"]);
    let alice = gateway.enrol("alice", &[]);
    let ran = |who: &Submitter, args: &str| who.run(&args.split(' ').collect::<Vec<_>>());
    for (who, args, code) in [
        (&alice, "admin submitter list", "forbidden"),
        (&alice, "admin events", "forbidden"),
        (&alice, "admin submitter freeze ada --reason x", "forbidden"),
        (&ada, "admin submitter freeze nobody --reason x", "identity-unknown"),
        (&ada, "admin submitter freeze ada --reason x", "last-admin"),
        (&ada, "admin submitter invite alice --role admin", "role-mismatch"),
        (&ada, "admin submitter invite bob --cache nowhere", "not-found"),
        (&ada, "admin submitter revoke-key nobody-1 --reason x", "not-found"),
        (&ada, "admin token make nobody", "identity-unknown"),
    ] {
        let ran = ran(who, args).ended_with(1);
        assert!(ran.out.is_empty() && ran.err.contains(&format!("[{code}]")), "{args}: {}", ran.err);
    }
    let unknown = ran(&ada, "admin submitter rotate nobody-1").ended_with(1);
    assert!(unknown.err.contains("no key `nobody-1`"), "{}", unknown.err);
    for args in
        ["admin", "admin submitter", "admin submitter freeze alice", "admin submitter owner alice bob"]
    {
        ran(&ada, args).ended_with(2);
    }
    assert!(!ran(&ada, "admin submitter list").ended_with(0).out.contains("FROZEN"));
}

/// Commands on the host are another process: whoever follows sees what they did all the same.
#[test]
fn events_are_followed() {
    let gateway = Gateway::start();
    let ada = gateway.enrol("ada", &["--role", "admin"]);
    let mut lines = ada.follow(&["admin", "events", "--follow", "--json"]);
    let mut next = move || -> (String, String) {
        let line = lines.next().expect("another line").expect("text");
        let event: Value = serde_json::from_str(&line).unwrap();
        (event["who"].as_str().unwrap().to_owned(), event["kind"].as_str().unwrap().to_owned())
    };
    let is = |who: &str, kind: &str| (who.to_owned(), kind.to_owned());
    assert_eq!(next(), is("gateway host", "invite"));
    assert_eq!(next(), is("ada", "enrolled"));
    ada.run(&["admin", "submitter", "groups", "ada", "core"]).ended_with(0);
    assert_eq!(next(), is("ada", "groups"));
    let code = gateway.admin(&["invite", "alice"]).line();
    assert_eq!(next(), is("gateway host", "invite"));
    let alice = Submitter::stranger();
    alice.run(&["join", &gateway.url(""), "--invite", &code, "--name", "alice-1"]).ended_with(0);
    assert_eq!(next(), is("alice", "enrolled"));
    alice.run(&["token"]).ended_with(0);
    assert_eq!(next(), is("alice", "make-token"));
    gateway.admin(&["token", "alice"]).ended_with(0);
    assert_eq!(next(), is("gateway host", "make-token"));
    gateway.admin(&["token", "alice", "--revoke"]).ended_with(0);
    assert_eq!(next(), is("gateway host", "revoke-token"));
    gateway.admin(&["key", "revoke", "alice-1"]).ended_with(0);
    assert_eq!(next(), is("gateway host", "revoke-key"));
    gateway.add_cache("second");
    assert_eq!(next(), is("gateway host", "add-cache"));
}

/// Who pushes and administers has two keys, each for what it is for.
#[test]
fn one_person_in_two_roles() {
    let gateway = Gateway::start();
    let url = gateway.url("");
    let ada = gateway.enrol("ada", &[]);
    ada.run(&["admin", "submitter", "list"]).ended_with(1);
    let code = gateway.admin(&["invite", "ada-admin", "--role", "admin"]).line();
    let refused = ada.run(&["join", &url, "--invite", &code]).ended_with(1);
    assert!(refused.err.contains("--as admin"), "{}", refused.err);
    let joined = ada.run(&["join", &url, "--invite", &code, "--as", "admin"]).ended_with(0).out;
    assert!(joined.contains("as ada-admin (admin)") && joined.contains("pushgate admin events"), "{joined}");
    assert!(ada.run(&["admin", "submitter", "list"]).ended_with(0).out.contains("ada-admin"));
    ada.run(&["status"]).ended_with(0);
    ada.run(&["token"]).ended_with(0);
    ada.run(&["join", &url, "--invite", &code, "--as", "admin"]).ended_with(1);
    // a new key in one role leaves the other alone
    let code = ada.run(&["admin", "submitter", "rotate", "ada-1"]).line();
    ada.run(&["join", &url, "--invite", &code, "--as", "submitter", "--again"]).ended_with(0);
    ada.run(&["admin", "submitter", "revoke-key", "ada-1", "--reason", "rotated"]).ended_with(0);
    ada.run(&["status"]).ended_with(0);
    ada.run(&["admin", "events"]).ended_with(0);
}
