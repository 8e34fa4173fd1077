//! Derivations that probe the verifier: refused or contained, each failure has its code, and the verifier does the next job.

use pushgate_tests::process::{Nix, Recorder, Verifier, toolset, wait_for};
use serde_json::Value;

use super::{REBUILT, Stage, count, is_public, policy, rebuilds};

/// Bounds that a derivation reaches soon.
const TIGHT: &str = "systems = ['x86_64-linux']\nstop-after = 1\njobs = 2\n[limits]\ntime = 20\nsilence = 8\n\
                     log = '1 MiB'\noutput = '8 MiB'\nmemory = '256 MiB'\nprocesses = 100\ndisk = '64 MiB'\n";

/// Has all of these built at once, and gives each build's status by its derivation's name.
fn build_all(stage: &Stage, derivations: &[String]) -> Vec<Value> {
    let machine = Nix::consumer(&[stage.gateway.cache_url("main")], &[stage.gateway.key("main")]);
    let text = toolset(&format!("[ {} ]", derivations.join(" ")));
    let ran = stage.alice.run_on(&machine, &["build", "--json", "-E", &text]);
    let report: Value = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:#?}"));
    report["builds"].as_array().unwrap().clone()
}

fn of<'a>(builds: &'a [Value], name: &str) -> &'a Value {
    let end = format!("-{name}.drv");
    let found = builds.iter().find(|b| b["derivation"].as_str().is_some_and(|drv| drv.ends_with(&end)));
    found.unwrap_or_else(|| panic!("no `{name}` in {builds:#?}"))
}

/// A gateway with a tight verifier whose toolset is built.
fn stage() -> (Stage, Verifier) {
    let may = "[[build]]\nsubmitter = [\"alice\"]\nat-once = 32";
    let stage = Stage::set(&policy(REBUILT, may));
    let verifier =
        Verifier::start_with(&stage.gateway, &stage.gateway.url(""), "kiln", "kiln-operator", TIGHT);
    (stage, verifier)
}

/// Each is a failure with its code, nothing of it is public, and the next job goes well.
fn assert_fail(stage: &Stage, verifier: &mut Verifier, probes: &[(&str, &str, String)]) {
    if !probes.is_empty() {
        let texts: Vec<String> = probes.iter().map(|(_, _, text)| format!("({text})")).collect();
        let builds = build_all(stage, &texts);
        for (name, code, _) in probes {
            let build = of(&builds, name);
            let found = (build["state"].as_str(), build["code"].as_str());
            assert_eq!(found, (Some("failed"), Some(*code)), "{build}");
        }
    }
    let next = build_all(stage, &[r#"(run "next" "echo next > $out" { })"#.to_owned()]);
    assert_eq!(of(&next, "next")["state"], "built", "{next:#?}");
    assert!(verifier.is_alive());
    verifier.idle();
    for table in
        ["SELECT count(*) FROM differences WHERE ? != ''", "SELECT count(*) FROM mismatches WHERE ? != ''"]
    {
        assert_eq!(count(&stage.gateway, table, "any"), 0);
    }
}

fn script(name: &str, script: &str) -> String {
    format!("run \"{name}\" ''{script}'' {{ }}")
}

#[test]
fn there_is_no_network_and_no_host() {
    let (stage, mut verifier) = stage();
    let recorder = Recorder::before(stage.gateway.port());
    let probes = [
        (
            "own-gateway",
            "build-failed",
            script("own-gateway", &format!("wget -T 3 -O $out {}", recorder.url("/healthz"))),
        ),
        ("far-web", "build-failed", script("far-web", "wget -T 3 -O $out http://8.8.8.8/")),
        ("far-ping", "build-failed", script("far-ping", "ping -c 1 -W 2 8.8.8.8; echo > $out")),
        ("shadow", "build-failed", script("shadow", "cat /etc/shadow; echo > $out")),
        // processes of others, by what only they have
        (
            "others",
            "build-failed",
            script(
                "others",
                "for p in /proc/[0-9]*; do grep -q pushgat[e] $p/cmdline && echo FOUND $p && echo > $out; done; test -e $out",
            ),
        ),
        ("root", "build-failed", script("root", "ls /proc/1/root/root; ls /root; echo > $out")),
        (
            "setuid",
            "build-failed",
            script("setuid", "mkdir $out; cp ${tools}/bin/busybox $out/x; chmod 4755 $out/x; test -u $out/x"),
        ),
        (
            "fixed-network",
            "build-failed",
            format!(
                r#"run "fixed-network" "wget -T 3 -O $out {}" {{ outputHashMode = "flat"; outputHashAlgo = "sha256";
                   outputHash = builtins.hashString "sha256" "ok"; }}"#,
                recorder.url("/healthz")
            ),
        ),
    ];
    assert_fail(&stage, &mut verifier, &probes);
    assert!(recorder.asked().is_empty(), "{:?}", recorder.asked());
    let all = stage.gateway.data();
    assert!(
        !String::from_utf8_lossy(&pushgate_tests::process::read(&all.join("gateway.db"))).contains("FOUND")
    );
}

#[test]
fn holes_in_the_sandbox_are_not_granted() {
    let (stage, mut verifier) = stage();
    let probes = [
        ("no-chroot", "no-chroot", r#"run "no-chroot" "echo ran > $out" { __noChroot = true; }"#.to_owned()),
        (
            "host-deps",
            "impure-host-deps",
            r#"run "host-deps" "cat /etc/passwd > $out" { __impureHostDeps = [ "/etc/passwd" ]; }"#
                .to_owned(),
        ),
    ];
    assert_fail(&stage, &mut verifier, &probes);
    assert_eq!(
        (
            verifier.began("no-chroot"),
            count(&stage.gateway, "SELECT count(*) FROM rebuilds WHERE ? != ''", "any")
        ),
        (1, 1)
    );
}

#[test]
fn builders_inside_nix_are_not_run() {
    let (stage, mut verifier) = stage();
    let recorder = Recorder::before(stage.gateway.port());
    let probes = [(
        "fetched",
        "builtin-builder",
        format!(
            r#"derivation {{ name = "fetched"; system = "builtin"; builder = "builtin:fetchurl"; url = "{}";
                   outputHash = builtins.hashString "sha256" "ok"; outputHashAlgo = "sha256"; outputHashMode = "flat"; }}"#,
            recorder.url("/healthz")
        ),
    )];
    assert_fail(&stage, &mut verifier, &probes);
    assert!(recorder.asked().is_empty(), "{:?}", recorder.asked());
}

#[test]
fn bounds_hold() {
    let (stage, mut verifier) = stage();
    let probes = [
        ("forks", "too-many-processes", script("forks", "for i in $(seq 130); do sleep 919191 & done; wait")),
        ("logs", "log-too-large", script("logs", "yes endless")),
        ("silence", "silent", script("silence", "sleep 919191")),
        ("endless", "timed-out", script("endless", "while true; do echo .; sleep 1; done")),
        (
            "output",
            "output-too-large",
            script("output", "mkdir $out; dd if=/dev/zero of=$out/x bs=1M count=9; sleep 2"),
        ),
        (
            "sparse",
            "output-too-large",
            script("sparse", "mkdir $out; dd if=/dev/zero of=$out/x bs=1M count=1 seek=40; sleep 919191"),
        ),
        (
            "disk",
            "disk-full",
            script("disk", "for i in 1 2 3; do dd if=/dev/zero of=$i bs=1M count=40; done; sleep 919191"),
        ),
        (
            "memory",
            "out-of-memory",
            script(
                "memory",
                "for i in 1 2 3 4 5 6; do dd if=/dev/zero bs=80M count=1 | sleep 919191 & done; sleep 919191",
            ),
        ),
    ];
    assert_fail(&stage, &mut verifier, &probes);
}

/// What somebody else could build with larger bounds is held for want of a rebuild, and contradicted by none.
#[test]
fn a_pushed_claim_beyond_the_bounds_is_no_mismatch() {
    let (stage, mut verifier) = stage();
    let large =
        stage.build(r#"run "large" "mkdir $out; dd if=/dev/zero of=$out/x bs=1M count=9; sleep 2" { }"#);
    stage.push_held(&large);
    // by this verifier not again and again
    let code = "SELECT count(*) FROM jobs WHERE state = 'failed' AND code = 'output-too-large' AND ? != ''";
    wait_for("a failure", || (count(&stage.gateway, code, "any") > 0).then_some(()));
    let held = stage.wait_claim(&large, "held", "needs-rebuild");
    assert_eq!((rebuilds(&stage.gateway, &large), is_public(&stage.gateway, &large)), (0, false), "{held}");
    assert_fail(&stage, &mut verifier, &[]);
    assert!((1..=3).contains(&verifier.began("large")));
}
