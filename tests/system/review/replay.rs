//! What a changed policy would have decided of what was pushed.

use std::collections::BTreeSet;

use super::*;

/// Denies whatever has the name `secret`, and asks for two approvals: the one changes decisions, the other none.
fn stricter() -> String {
    let denying =
        "[[rule]]\nname = \"no secrets\"\nmatch = { pname = \"secret\" }\ndeny = \"they are secret\"\n";
    let by_mallory = "[[rule]]\nname = \"not by him\"\nmatch = { submitter = \"mallory\", content-addressed = false }\ndeny = \"we know him\"\n";
    POLICY.replace("approvals = 1", "approvals = 2").replace("[\"bob\"]", "[\"bob\", \"carol\"]").replacen(
        "[[rule]]",
        &format!("{denying}{by_mallory}[[rule]]"),
        1,
    )
}

fn write(dir: &tempfile::TempDir, name: &str, text: &str) -> String {
    let file = dir.path().join(name);
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// (path, was, would be) of each difference, and decisions, differing and untold.
fn differing(document: &Value) -> (BTreeSet<(String, String, String)>, [u64; 3]) {
    let text = |outcome: &Value| {
        let part = |name: &str| outcome[name].as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", part("decision"), part("rule"), part("code"))
    };
    let list = document["differing"].as_array().unwrap();
    let found: BTreeSet<_> = list
        .iter()
        .map(|d| (d["path"].as_str().unwrap().to_owned(), text(&d["was"]), text(&d["wouldBe"])))
        .collect();
    assert_eq!(found.len(), list.len(), "some twice");
    (found, ["decisions", "differ", "untold"].map(|count| document[count].as_u64().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stricter_file_over_a_thousand_decisions() {
    let stage = Stage::set(POLICY).await;
    let forge = &stage.forge;
    let mallory = forge.submitter("mallory").await;
    let mut expected = BTreeSet::new();
    let mut differs = |path: &StorePath, was: &str, would_be: &str| {
        expected.insert((path.absolute(), was.to_owned(), would_be.to_owned()));
    };
    let published = "publish contents -";
    let (held, denied) = ("hold looked at needs-approval", "reject no secrets not-permitted");
    // three pushes: sources that are published, packages that are held, and both by somebody else
    let mut sources = forge.draft(&stage.alice);
    for n in 0..700 {
        let secret = n % 7 == 0;
        // `secrets` and `secret-` of another kind are other names
        let name = if secret { format!("secret-{n}") } else { format!("secrets-{n}") };
        let item = Item::source(&name, &format!("source {n}"));
        if secret {
            differs(&item.path, published, denied);
        }
        sources = sources.item(&item);
    }
    let mut packages = forge.draft(&stage.alice);
    for n in 0..300 {
        let name = if n % 5 == 0 { format!("secret-{n}") } else { format!("tool-{n}") };
        let package = Package::new(&name).build();
        if n % 5 == 0 {
            differs(package.path(), held, denied);
        }
        packages = packages.package(&package);
    }
    let mut others = forge.draft(&mallory);
    for n in 0..50 {
        let item = Item::source(&format!("his-{n}"), &format!("his {n}"));
        let package = Package::new(&format!("his-{n}")).build();
        differs(package.path(), held, "reject not by him not-permitted");
        others = others.item(&item).package(&package);
    }
    for draft in [&sources, &packages, &others] {
        let pushed = forge.push(draft).await;
        assert!(
            pushed.status.paths.iter().all(|p| matches!(p.state, PathState::Published | PathState::Held))
        );
    }

    // pages of what is held, oldest first
    let claims: Vec<i64> = run(&stage.ada, "admin held list --json")
        .lines()
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["claim"].as_i64().unwrap())
        .collect();
    assert_eq!(claims.len(), 350);
    assert!(claims.is_sorted());

    let dir = tempfile::tempdir().unwrap();
    let (same, new) = (write(&dir, "same.toml", POLICY), write(&dir, "new.toml", &stricter()));
    let dump = dir.path().join("decisions").to_str().unwrap().to_owned();
    let nothing = run(&stage.ada, &format!("policy replay {same} --dump {dump}")).ended_with(0);
    assert_eq!(nothing.out, "0 of 1100 decisions differ\n");
    let ran = run(&stage.ada, &format!("policy replay {new} --json")).ended_with(3);
    let (found, counts) = differing(&serde_json::from_str(&ran.out).unwrap());
    assert_eq!(counts, [1100, 210, 0]);
    assert_eq!(found, expected);
    // without a gateway, from what was written
    let offline =
        run(&Person::stranger(), &format!("policy replay {new} --json --decisions {dump}")).ended_with(3);
    assert_eq!(offline.out, ran.out);
    // a person reads a line for each, and a sum
    let lines = run(&stage.ada, &format!("policy replay {new}")).ended_with(3).out;
    assert_eq!(lines.lines().count(), 211);
    assert_eq!(lines.lines().last(), Some("210 of 1100 decisions differ"));
    let first = Item::source("secret-0", "source 0").path;
    let line = format!("{first}  by alice: publish by `contents` → reject by `no secrets` [not-permitted]");
    assert!(lines.lines().any(|l| l == line), "{lines}");
    // a variable that nobody asked for then: of packages nothing can be told, sources have none
    let asking = POLICY.replace(
        "match = {}",
        "match = { env.IMPURE = \"1\" }\ndeny = \"impure\"\n[[rule]]\nname = \"all\"\nmatch = {}",
    );
    let asking = write(&dir, "asking.toml", &asking.replacen("name = \"looked at\"", "name = \"pure\"", 1));
    let ran = run(&stage.ada, &format!("policy replay {asking} --json")).ended_with(0);
    assert_eq!(differing(&serde_json::from_str(&ran.out).unwrap()).1, [1100, 0, 350]);
}

/// Of decisions about one claim the last one counts.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_the_last_decision() {
    let stage = Stage::set(POLICY).await;
    let (package, mut pushed) = stage.held("secret", "needs-approval").await;
    let path = package.path().clone();
    run(&stage.bob, &format!("admin held approve {path} --reason x")).ended_with(0);
    stage.becomes(&mut pushed, &path, PathState::Published, None).await;
    let dir = tempfile::tempdir().unwrap();
    let new = write(&dir, "new.toml", &stricter());
    let replay = |more: &str| {
        let ran = run(&stage.bob, &format!("policy replay {new} --json{more}")).ended_with(3);
        differing(&serde_json::from_str(&ran.out).unwrap())
    };
    let denied = "reject no secrets not-permitted".to_owned();
    let last = (path.absolute(), "publish looked at -".to_owned(), denied.clone());
    assert_eq!(replay(""), (BTreeSet::from([last.clone()]), [1, 1, 0]));
    let first = (path.absolute(), "hold looked at needs-approval".to_owned(), denied);
    assert_eq!(replay(" --every"), (BTreeSet::from([first, last]), [2, 2, 0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_replayed() {
    let stage = Stage::set(POLICY).await;
    let dir = tempfile::tempdir().unwrap();
    let good = write(&dir, "good.toml", POLICY);
    let broken = write(&dir, "broken.toml", &POLICY.replace("name = \"looked at\"", "nane = \"looked at\""));
    let other = write(&dir, "other.toml", &POLICY.replace("\"main\"", "\"second\""));
    let junk = write(&dir, "junk", "\n{}\n");
    for (who, args, said) in [
        (&stage.ada, broken.clone(), "did you mean `name`?"),
        (&stage.ada, other, "second"),
        (&stage.ada, format!("{good}.not"), "can't be read"),
        (&stage.ada, format!("{good} --decisions {junk}"), "line 2 of"),
        (&stage.ada, format!("{good} --dump {}/no/dir", dir.path().display()), "can't be written"),
        (&stage.alices, good.clone(), "[forbidden]"),
    ] {
        let ran = run(who, &format!("policy replay {args} --json")).ended_with(1);
        assert!(ran.err.contains(said) && ran.out.is_empty(), "{args}: {} {}", ran.out, ran.err);
    }
    let shown = run(&stage.ada, &format!("policy replay {broken}")).ended_with(1).err;
    assert!(shown.contains(" | nane = ") && shown.lines().count() > 3, "{shown}");
    run(&stage.ada, "policy replay").ended_with(2);
    run(&stage.ada, &format!("policy replay {good} --decisions a --dump b")).ended_with(2);
    assert_eq!(json(run(&stage.ada, &format!("policy replay {good} --json")))["decisions"], 0);
}
