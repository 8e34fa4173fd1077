//! Derivations that probe the verifier: refused or contained, and the next job goes well.

use pushgate_formats::jobs::{Failure, Job, JobLimits, JobResult};

use crate::{
    gateway::Gateway,
    store::Store,
    verifier::{Verifier, runs},
};

/// Any code of a failure.
const ANY: &str = "";

fn failed(result: JobResult) -> Failure {
    match result {
        JobResult::Failed(failure) => failure,
        JobResult::Built { outputs, .. } => panic!("built: {outputs:?}"),
    }
}

/// Queues a derivation, with some change of the job.
fn queue(store: &Store, gateway: &Gateway, expression: &str, change: impl FnOnce(&mut Job)) -> String {
    let (mut job, view) = store.job(&store.derivation(expression));
    change(&mut job);
    let id = job.job.clone();
    gateway.queue(job, view);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_for_holes_is_not_tried() {
    let (store, gateway) = (Store::new(), Gateway::start().await);
    let cases = [
        ("no-chroot", r#"sh "a" { __noChroot = true; } "echo ran; echo > $out""#),
        ("no-chroot", r#"sh "a" { __structuredAttrs = true; __noChroot = true; } "echo ran""#),
        ("impure-host-deps", r#"sh "a" { __impureHostDeps = [ "/etc" ]; } "echo ran; echo > $out""#),
        (
            "impure-host-deps",
            r#"sh "a" { __structuredAttrs = true; __impureHostDeps = [ "/etc" ]; } "echo ran""#,
        ),
        ("system-unavailable", r#"sh "a" { system = "armv7l-linux"; } "echo ran; echo > $out""#),
        ("system-unavailable", r#"sh "a" { requiredSystemFeatures = [ "kvm" ]; } "echo ran; echo > $out""#),
        (
            "builtin-builder",
            r#"derivation { name = "a"; system = "builtin"; builder = "builtin:fetchurl"; url = "http://127.0.0.1/";
               outputHash = builtins.hashString "sha256" ""; outputHashAlgo = "sha256"; outputHashMode = "flat"; }"#,
        ),
        (
            "floating-unsupported",
            r#"sh "a" { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; } "echo ran""#,
        ),
    ];
    let ids: Vec<_> = cases.iter().map(|(_, text)| queue(&store, &gateway, text, |_| ())).collect();
    let _verifier = Verifier::running(&gateway).await;
    for ((code, text), id) in cases.iter().zip(&ids) {
        let failure = failed(gateway.result(id).await);
        assert_eq!((failure.code.as_str(), failure.retry), (*code, false), "{text}: {failure:?}");
        assert_eq!(gateway.log(id), "", "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_does_not_fit_its_derivation_is_not_tried() {
    let (store, gateway) = (Store::new(), Gateway::start().await);
    let honest = r#"sh "a" {} "echo ran; echo > $out""#;
    let dep = r#"let d = sh "d" {} "echo > $out"; in sh "a" {} "echo ran; cat ${d} > $out""#;
    let other = queue(&store, &gateway, honest, |job| {
        job.outputs.insert("dev".into(), None);
    });
    let settings = queue(&store, &gateway, honest, |job| job.view.push_str("\nsandbox = false"));
    let elsewhere = queue(&store, &gateway, honest, |job| job.view = "/api/v1/jobs/../../x".into());
    // without an input Nix would have built it
    let (mut job, view) = store.job(&store.derivation(dep));
    let input = job.inputs.iter().position(|p| p.name() == "d").unwrap();
    let input = job.inputs.remove(input);
    std::fs::remove_file(view.join(format!("{}.narinfo", input.hash_part()))).unwrap();
    let missing = job.job.clone();
    gateway.queue(job, view);
    let _verifier = Verifier::running(&gateway).await;
    for (id, code) in [
        (other, "job-malformed"),
        (settings, "job-malformed"),
        (elsewhere, "job-malformed"),
        (missing, "inputs-unavailable"),
    ] {
        let failure = failed(gateway.result(&id).await);
        assert_eq!(failure.code, code, "{failure:?}");
        assert_eq!(gateway.log(&id), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_lies_is_found_out() {
    let (store, gateway) = (Store::new(), Gateway::start().await);
    let text = r#"let d = sh "d" {} "echo good > $out"; in sh "a" {} "echo ran; cat ${d} > $out""#;
    let (job, view) = store.job(&store.derivation(text));
    let input = job.inputs.iter().find(|path| path.name() == "d").unwrap();
    // another path's NAR in place of the right one
    let narinfo = |hash: &str| std::fs::read_to_string(view.join(format!("{hash}.narinfo"))).unwrap();
    let url =
        |text: &str| text.lines().find_map(|line| line.strip_prefix("URL: ")).map(str::to_owned).unwrap();
    let other = url(&narinfo(job.derivation.hash_part()));
    std::fs::copy(view.join(other), view.join(url(&narinfo(input.hash_part())))).unwrap();
    let lied = job.job.clone();
    gateway.queue(job, view);
    // signed by somebody else
    let foreign = queue(&store, &gateway, text, |job| {
        job.view_key = "view-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=".into();
    });
    let _verifier = Verifier::running(&gateway).await;
    for id in [lied, foreign] {
        let failure = failed(gateway.result(&id).await);
        assert_eq!(failure.code, "inputs-unavailable", "{failure:?}");
        assert_eq!(gateway.log(&id), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_sees_neither_network_nor_host() {
    let (store, gateway) = (Store::new(), Gateway::start().await);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "of the host").unwrap();
    let look = format!(
        r#"sh "a" {{}} ''
          wget -T 3 -O - http://127.0.0.1:{}/secret && echo REACHED
          cat {} && echo SEEN
          for d in /root /home /proc/1/root/root /nix/var; do ls $d 2>/dev/null && echo "SEEN $d"; done
          ls /nix/store; id -u
          chmod 4755 /build/x 2>/dev/null; echo > $out; chmod 4755 $out && echo SETUID
          echo done''"#,
        gateway.port,
        file.path().display()
    );
    let seen = queue(&store, &gateway, &look, |_| ());
    // Nix gives fixed outputs the network; here they have none either
    let fixed = format!(
        r#"sh "a" {{ outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" "secret"; }}
           "wget -T 3 -O $out http://127.0.0.1:{}/secret""#,
        gateway.port
    );
    let fixed = queue(&store, &gateway, &fixed, |_| ());
    let _verifier = Verifier::running(&gateway).await;
    let JobResult::Built { .. } = gateway.result(&seen).await else { panic!("{:?}", gateway.log(&seen)) };
    let log = gateway.log(&seen);
    assert!(log.ends_with("1000\ndone\n") || log.contains("\n1000\n") && log.contains("done"), "{log}");
    for word in ["REACHED", "SEEN", "SETUID"] {
        assert!(!log.contains(word), "{log}");
    }
    assert_eq!(failed(gateway.result(&fixed).await).code, "build-failed");
    assert_eq!(gateway.touched(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_beyond_its_limits_is_ended_and_the_next_job_goes_well() {
    let (store, gateway) = (Store::new(), Gateway::start().await);
    let mut all = Vec::new();
    let mut add = |code: &'static str, limits: JobLimits, script: &str| {
        let id = queue(&store, &gateway, &format!("sh \"a\" {{}} ''{script}''"), |job| job.limits = limits);
        all.push((code, script.to_owned(), id));
    };
    let none = JobLimits::default();
    add("build-failed", none, "echo hello; exit 3");
    add("log-too-large", none, "yes endless");
    add("log-too-large", none, "while true; do dd if=/dev/zero bs=64k count=1 2>/dev/null; done");
    add("silent", JobLimits { silence: Some(2), ..none }, "sleep 91919191");
    add("timed-out", JobLimits { time: Some(3), ..none }, "while true; do echo .; sleep 1; done");
    add("too-many-processes", none, "(while true; do sleep 91919191 & done) & sleep 91919191");
    // Where a shell can't start any more, it ends, and the build with it: how soon is chance, and so is the code.
    add(ANY, JobLimits { silence: Some(5), ..none }, "f() { f & f & sleep 91919191; }; f");
    add("output-too-large", none, "mkdir $out; truncate -s 40M $out/sparse; sleep 91919191");
    add("output-too-large", none, "mkdir $out; dd if=/dev/zero of=$out/x bs=1M count=9");
    add(
        "disk-full",
        none,
        "for i in 1 2 3; do dd if=/dev/zero of=/build/$i bs=1M count=50; done; sleep 91919191",
    );
    add(
        "out-of-memory",
        none,
        "for i in 1 2 3 4 5 6; do dd if=/dev/zero bs=80M count=1 | sleep 91919191 & done; sleep 91919191",
    );
    // leaves its parents and its session
    add(
        "silent",
        JobLimits { silence: Some(2), ..none },
        "(trap \"\" 1 2 15; sleep 91919191 &) ; sleep 91919191",
    );
    let last = queue(&store, &gateway, r#"sh "good" {} "echo > $out""#, |_| ());
    let verifier = Verifier::running(&gateway).await;
    for (code, script, id) in all {
        let failure = failed(gateway.result(&id).await);
        let expected = if code == ANY { failure.code.as_str() } else { code };
        assert_eq!((failure.code.as_str(), failure.retry), (expected, false), "{script}: {failure:?}");
        assert!(gateway.log(&id).len() <= 1 << 20);
        if code == "build-failed" {
            assert_eq!(failure.exit_code, Some(3));
            assert!(gateway.log(&id).starts_with("hello\n"), "{:?}", gateway.log(&id));
        }
    }
    assert!(matches!(gateway.result(&last).await, JobResult::Built { .. }));
    assert!(!runs("91919191"));
    verifier.idle().await;
}
