//! Builds as they should be, and what a verifier says of them.

use pushgate_formats::{
    Sha256,
    attestation::{PAYLOAD_TYPE, Statement},
    jobs::JobResult,
    narinfo::fingerprint,
};

use crate::{
    gateway::{Gateway, ID},
    store::Store,
    verifier::{CONFIG, Verifier, command},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_attested_to_and_its_nars_are_sent() {
    let (store, gateway) = (Store::new(), Gateway::start().await);
    let derivation = store.derivation(
        r#"let fixed = sh "fixed" { outputHashMode = "flat"; outputHashAlgo = "sha256";
                 outputHash = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"; } "echo hello > $out";
               dep = sh "dep" {} "mkdir $out; echo dep > $out/x";
           in sh "two" { outputs = [ "out" "dev" ]; }
             "cat ${fixed}; echo from ${dep}; mkdir $out $dev; echo ${dep} > $out/a; echo $out > $dev/b""#,
    );
    let (job, view) = store.job(&derivation);
    let id = job.job.clone();
    let inputs = job.inputs.clone();
    let outputs = job.outputs.clone();
    gateway.queue(job, view);
    let mut verifier = Verifier::joined(&gateway).await;
    verifier.start(&["--once"]);
    let JobResult::Built { attestation, outputs: built } = gateway.result(&id).await else {
        panic!("{:?} {}", gateway.result(&id).await, gateway.log(&id))
    };
    assert!(verifier.ended().await);
    assert!(verifier.jobs().is_empty());

    let key = gateway.kept().key.clone().unwrap();
    let payload = attestation.unverified_payload(PAYLOAD_TYPE).unwrap();
    attestation.verify(&payload, &key).unwrap();
    let statement = Statement::parse(&payload).unwrap();
    assert_eq!(statement.verifier().unwrap(), "v1");
    let definition = &statement.predicate.build_definition;
    assert_eq!(definition.external_parameters.derivation, derivation);
    assert_eq!(
        (definition.internal_parameters.gateway.as_str(), &definition.internal_parameters.job),
        (ID, &id)
    );
    let versions = &statement.predicate.run_details.builder.version;
    assert!(versions["sandbox"].starts_with("nix sandbox"), "{versions:?}");
    let used = statement.inputs().unwrap();
    assert!(inputs.iter().all(|input| used.contains_key(input)), "{used:?}");
    assert!(used.contains_key(&derivation) && used.len() >= 6, "{used:?}");

    assert_eq!(built.iter().map(|o| (o.name.clone(), Some(o.path.clone()))).collect::<Vec<_>>(), {
        outputs.into_iter().collect::<Vec<_>>()
    });
    for output in &built {
        let text = fingerprint(&output.path, &output.nar_hash, output.nar_size, &output.references);
        key.verify(text.as_bytes(), &output.signature).unwrap();
        assert!(
            statement
                .subject
                .iter()
                .any(|s| s.name == output.path && s.nar_hash().unwrap() == output.nar_hash)
        );
        let nar = gateway.wait("a NAR", |kept| kept.nars.get(&output.nar_hash).cloned()).await;
        assert_eq!((Sha256::of(&nar), nar.len() as u64), (output.nar_hash, output.nar_size));
        assert_eq!(output.references.len(), 1, "{output:?}");
    }
    assert_eq!(
        gateway.log(&id),
        format!("hello\nfrom {}\n", inputs.iter().find(|p| p.name() == "dep").unwrap())
    );
    let queries = &gateway.kept().queries;
    assert_eq!(queries[0].systems.iter().collect::<Vec<_>>(), ["builtin", "x86_64-linux"]);
    assert!(queries[0].skills.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_run_side_by_side_and_stop_when_told() {
    let (store, gateway) = (Store::new(), Gateway::start().await);
    let jobs: Vec<_> = ["a", "b"].map(|name| store.job(&store.script(name, "sleep 3; echo > $out"))).into();
    let slow = store.job(&store.script("slow", "sleep 1000"));
    let mut verifier = Verifier::joined(&gateway).await;
    verifier.start(&["--jobs", "2"]);
    let ids: Vec<_> = jobs.iter().map(|(job, _)| job.job.clone()).collect();
    for (job, view) in jobs {
        gateway.queue(job, view);
    }
    let both = |kept: &crate::gateway::Kept| {
        ids.iter().all(|id| kept.beats.contains_key(id)).then_some(kept.results.len())
    };
    assert_eq!(gateway.wait("beats of both", both).await, 0);
    for id in &ids {
        assert!(matches!(gateway.result(id).await, JobResult::Built { .. }));
    }
    let id = slow.0.job.clone();
    gateway.queue(slow.0, slow.1);
    gateway.wait("a beat", |kept| kept.beats.get(&id).copied()).await;
    verifier.signal(rustix::process::Signal::TERM);
    assert!(verifier.ended().await);
    let JobResult::Failed(failure) = gateway.result(&id).await else { panic!("built") };
    assert_eq!((failure.code.as_str(), failure.retry), ("verifier-fault", true));
    assert!(verifier.jobs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_may_let_sources_be_fetched() {
    let (store, gateway) = (Store::new(), Gateway::start().await);
    let fetch = |path: &str| {
        store.job(&store.derivation(&format!(
            r#"derivation {{ name = "source"; system = "builtin"; builder = "builtin:fetchurl";
                 url = "{}/{path}"; outputHashMode = "flat"; outputHashAlgo = "sha256"; executable = ""; unpack = "";
                 outputHash = builtins.hashString "sha256" "source\n"; }}"#,
            gateway.url()
        )))
    };
    let jobs = [fetch("src/good"), fetch("secret"), fetch("src/leads-to-secret")];
    let ids = jobs.each_ref().map(|(job, _)| job.job.clone());
    for (job, view) in jobs {
        gateway.queue(job, view);
    }
    let mut verifier = Verifier::joined(&gateway).await;
    verifier.start(&["--fetch", &format!("{}/src/", gateway.url())]);
    let JobResult::Built { outputs, .. } = gateway.result(&ids[0]).await else {
        panic!("{:?}", gateway.result(&ids[0]).await)
    };
    assert_eq!(outputs[0].references.len(), 0);
    let JobResult::Failed(failure) = gateway.result(&ids[1]).await else { panic!("built") };
    assert_eq!(failure.code, "builtin-builder");
    let JobResult::Failed(failure) = gateway.result(&ids[2]).await else { panic!("built") };
    assert_eq!(failure.code, "build-failed", "{failure:?}");
    assert_eq!(gateway.touched(), 0);
    assert!(gateway.kept().queries[0].skills.contains("fetch"));
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_needs_a_verifiers_invite() {
    let gateway = Gateway::start().await;
    gateway.role("submitter");
    let dir = tempfile::tempdir().unwrap();
    let (url, path) = (gateway.url(), dir.path().join("w"));
    let work_dir = path.clone();
    let out = tokio::task::spawn_blocking(move || {
        let dir = work_dir.to_str().unwrap();
        [
            command(&["join", &url, "--invite", "invite", "--work-dir", dir]),
            command(&["run", "--work-dir", dir]),
        ]
    });
    let [join, run] = out.await.unwrap();
    let said = String::from_utf8_lossy(&join.stderr).into_owned();
    assert!(!join.status.success() && said.contains("the role `submitter`"), "{said}");
    assert!(String::from_utf8_lossy(&run.stderr).contains("no gateway was joined"));
    assert!(!path.join("verifier.toml").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_sandbox_nothing_starts() {
    use std::os::unix::process::CommandExt;
    let gateway = Gateway::start().await;
    let verifier = Verifier::joined(&gateway).await;
    let run = |uid: Option<u32>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pushgate-verifier"));
        let dir = verifier.work_dir();
        if let Some(uid) = uid {
            std::fs::remove_file(dir.join(".lock")).unwrap();
            for path in [dir.clone(), dir.join("jobs"), dir.join("verifier.toml")] {
                std::os::unix::fs::chown(path, Some(uid), None).unwrap();
            }
            for entry in std::fs::read_dir(&dir).unwrap().flatten() {
                std::os::unix::fs::chown(entry.path(), Some(uid), None).unwrap();
            }
            let parent = dir.parent().unwrap();
            std::os::unix::fs::chown(parent, Some(uid), None).unwrap();
            command.uid(uid);
        }
        command.args(verifier.arguments());
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    verifier.config(&format!("build-users-group = 'no-such-group'\n{CONFIG}"));
    let out = run(None).await.unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("`no-such-group` doesn't exist"), "{said}");
    verifier.config(&format!("nix = '/nowhere'\n{CONFIG}"));
    let said = String::from_utf8_lossy(&run(None).await.unwrap().stderr).into_owned();
    assert!(said.contains("is Nix installed?"), "{said}");
    verifier.config(CONFIG);
    let said = String::from_utf8_lossy(&run(Some(65_534)).await.unwrap().stderr).into_owned();
    assert!(said.contains("has to run as root"), "{said}");
    assert!(gateway.kept().queries.is_empty());
}
