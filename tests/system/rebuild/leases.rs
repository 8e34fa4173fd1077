//! Leases: kept by heartbeats, lost without, given on; failures; what a verifier can do; tokens.

use pushgate_formats::jobs::{JobLimits, LogTaken, Purpose};
use pushgate_gateway::{
    db::NewJob,
    http::{Access, table},
};
use pushgate_tests::forge::lease_query;
use reqwest::Method;

use super::*;

#[tokio::test]
async fn a_heartbeat_keeps_a_lease_and_silence_loses_it() {
    let forge = start(&rebuilt("1", "")).await;
    let alice = forge.submitter("alice").await;
    let (victor, vera) =
        (forge.verifier("victor", Some("victor")).await, forge.verifier("vera", Some("vera")).await);
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = held(&forge, &alice, &lib).await;
    let job = forge.lease(&victor).await;
    for _ in 0..3 {
        forge.clock.advance(job.lease - 10);
        assert!(!forge.heartbeat(&job).await.expect("a beat").cancelled);
    }
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    forge.assert_no_job(&vera).await;
    let inputs = forge.inputs_of(&job).await;
    forge.clock.advance(job.lease + 1);
    let again = forge.lease(&vera).await;
    assert_eq!((&again.job, &again.derivation), (&job.job, &job.derivation));
    assert_ne!(again.token, job.token);
    // whatever the first does is too late
    let late = victor.built(&job, &inputs, &lib.outputs).sealed();
    refused(forge.report(&job, &late).await, 403, "lease-lost");
    refused(forge.heartbeat(&job).await, 403, "lease-lost");
    refused(forge.send_built(&job, &lib.out().nar_hash, &lib.out().nar).await, 403, "lease-lost");
    assert!(rows(&forge, lib.path()).await.is_empty());
    forge.assert_nothing_public(&before).await;
    forge.build(&vera, &again, &lib.outputs).await;
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
    refused(forge.report(&job, &late).await, 403, "lease-lost");
    let counted = rows(&forge, lib.path()).await;
    assert_eq!(counted.iter().map(|row| row.verifier_name.as_str()).collect::<Vec<_>>(), ["vera"]);
    forge.assert_published_only(&before, &[lib.path()]).await;
}

#[tokio::test]
async fn a_job_that_is_lost_again_and_again_fails() {
    let forge = start(&rebuilt("1", "")).await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = held(&forge, &alice, &lib).await;
    for n in 0..5 {
        let verifier = forge.verifier(&format!("v{n}"), Some(&format!("v{n}"))).await;
        let job = forge.lease(&verifier).await;
        forge.clock.advance(job.lease + 1);
    }
    jobs_become(&forge, &lib, &["failed", "open"]).await;
    assert_eq!(jobs(&forge, &lib).await[0].1.as_deref(), Some("verifier-lost"));
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-rebuild")).await;
    assert!(!push.of(lib.path()).message.as_deref().unwrap_or_default().is_empty());
    forge.assert_nothing_public(&before).await;
    assert!(rows(&forge, lib.path()).await.is_empty());
}

#[tokio::test]
async fn what_may_go_well_later_is_tried_later() {
    let forge = start(&rebuilt("1", "")).await;
    let (alice, victor) = (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
    let lib = package("lib");
    let mut push = held(&forge, &alice, &lib).await;
    let job = forge.lease(&victor).await;
    forge.fail(&job, "verifier-fault", true).await.expect("it is taken");
    refused(forge.heartbeat(&job).await, 403, "lease-lost");
    forge.assert_no_job(&victor).await;
    assert_eq!(jobs(&forge, &lib).await, [("open".to_owned(), Some("verifier-fault".to_owned()))]);
    assert!(rows(&forge, lib.path()).await.is_empty());
    forge.clock.advance(30);
    let again = forge.rebuild(&victor, &lib).await;
    assert_eq!(again.job, job.job);
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
}

/// Each by another verifier: who has failed isn't asked again.
#[tokio::test]
async fn after_three_failures_nobody_else_is_asked() {
    let forge = start(&rebuilt("1", "")).await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    let before = forge.snapshot().await;
    let mut push = held(&forge, &alice, &lib).await;
    for n in 0..3 {
        let verifier = forge.verifier(&format!("v{n}"), Some(&format!("v{n}"))).await;
        let job = forge.lease(&verifier).await;
        forge.fail(&job, "build-failed", false).await.expect("it is taken");
        forge.assert_no_job(&verifier).await;
    }
    jobs_become(&forge, &lib, &["failed"; 3]).await;
    let fourth = forge.verifier("v3", Some("v3")).await;
    forge.assert_no_job(&fourth).await;
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("needs-rebuild")).await;
    forge.assert_nothing_public(&before).await;
    assert!(rows(&forge, lib.path()).await.is_empty());
}

#[tokio::test]
async fn systems_and_features_are_respected() {
    let forge = start(&rebuilt("1", "")).await;
    let (alice, victor) = (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
    let lib = begin("lib").env("requiredSystemFeatures", "big-parallel kvm").build();
    let _push = held(&forge, &alice, &lib).await;
    let features = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
    let mut query = lease_query();
    for few in [&[][..], &["kvm"], &["big-parallel", "nixos-test"]] {
        query.features = features(few);
        assert_eq!(forge.ask_for_job(&victor, &query, 0).await.unwrap(), None, "{few:?}");
    }
    query.features = features(&["kvm", "big-parallel", "benchmark"]);
    query.systems = features(&["aarch64-linux"]);
    assert_eq!(forge.ask_for_job(&victor, &query, 0).await.unwrap(), None);
    query.systems = features(&["aarch64-linux", "x86_64-linux"]);
    assert_eq!(forge.ask_for_job(&victor, &query, 5).await.unwrap().unwrap().derivation, lib.drv);
}

/// Whoever waits at a terminal first, then what is held, then what nobody waits for, whatever came first.
#[tokio::test]
async fn the_urgent_comes_first() {
    let forge = start(&rebuilt("1", "")).await;
    let alice = forge.submitter("alice").await;
    let (one, two, three) = (package("one"), package("two"), package("three"));
    for package in [&one, &two, &three] {
        held(&forge, &alice, package).await;
    }
    jobs_become(&forge, &three, &["open"]).await;
    let identity = forge.app.db.key(&alice.key.public().bytes()).await.unwrap().unwrap().identity;
    let new = |package: &Package, purpose, priority| NewJob {
        id: random_hex()[..24].to_owned(),
        cache: "main".to_owned(),
        derivation: package.drv.clone(),
        turn: 1,
        purpose,
        priority,
        system: "x86_64-linux".to_owned(),
        features: Default::default(),
        identity: Some(identity),
        except_owner: None,
        only_by: None,
        limits: JobLimits::default(),
    };
    let jobs = [new(&one, Purpose::Audit, 3), new(&two, Purpose::Build, 0)];
    forge.app.db.add_jobs(&jobs, forge.clock.now()).await.unwrap();
    let mut order = vec![];
    for n in 0..5 {
        // each of another owner: nobody gets a derivation twice
        let verifier = forge.verifier(&format!("v{n}"), Some(&format!("v{n}"))).await;
        order.push(forge.lease(&verifier).await.purpose);
    }
    use Purpose::{Audit, Build, Rebuild};
    assert_eq!(order, [Build, Rebuild, Rebuild, Rebuild, Audit]);
}

/// Beside [`crate::access`], which knows no job: every route that the table gives to a lease lets its holder in.
#[tokio::test]
async fn each_route_lets_the_holder_of_the_lease_in() {
    let forge = start(&rebuilt("1", "")).await;
    let (mallory, victor) =
        (forge.submitter("mallory").await, forge.verifier("victor", Some("victor")).await);
    let lib = package("lib");
    let evil = other(&lib, "evil");
    forge.push(&forge.draft(&mallory).item(&evil).derivations(&lib)).await;
    let job = forge.lease(&victor).await;
    let result = victor.built(&job, &Default::default(), &lib.outputs).sealed();
    let hash = lib.out().nar_hash.base32();
    let mut routes: Vec<(Method, &str)> = (table().into_iter())
        .filter(|(_, _, access)| matches!(access, Access::Job))
        .map(|(method, path, _)| (method, path))
        .collect();
    // the NARs come after the result, and all else before it
    routes.sort_by_key(|(_, path)| (path.contains("/nars/"), path.ends_with("/result")));
    assert_eq!(routes.len(), 5, "the table has another route: say here what is good of it");
    for (method, path) in routes {
        let (body, query, status) = match path.rsplit_once("{job}/").expect("of a job").1 {
            "result" => (serde_json::to_vec(&result).unwrap(), "", 200),
            "nars/{hash}" => (zstd::bulk::compress(&lib.out().nar, 1).unwrap(), "", 204),
            "log" => (b"line\n".to_vec(), "?at=0", 200),
            _ => (vec![], "", 200),
        };
        let path =
            path.replace("{job}", &job.job).replace("{hash}", &hash).replace("{*file}", "nix-cache-info");
        let request = forge.http.request(method.clone(), format!("{}{path}{query}", forge.url)).body(body);
        let answer = request.bearer_auth(&job.token).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{method} {path}: {}", answer.text().await.unwrap());
    }
    // the lease is over with its result: only its NARs and the same result may come again
    refused(forge.heartbeat(&job).await, 409, "lease-lost");
    let log: Result<LogTaken, _> =
        forge.of_job(Method::POST, &job.job, &job.token, "log?at=5", b"more".to_vec()).await;
    refused(log, 409, "lease-lost");
    let url = format!("{}{}/nix-cache-info", forge.url, job.view);
    assert_eq!(forge.http.get(url).bearer_auth(&job.token).send().await.unwrap().status().as_u16(), 409);
}

#[tokio::test]
async fn each_route_takes_only_the_token_of_its_own_lease() {
    let forge = start(&rebuilt("1", "")).await;
    let (alice, victor) = (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
    let (lib, tool) = (package("lib"), package("tool"));
    let before = forge.snapshot().await;
    held(&forge, &alice, &lib).await;
    held(&forge, &alice, &tool).await;
    let (job, another) = (forge.lease(&victor).await, forge.lease(&victor).await);
    assert_ne!(job.job, another.job);
    let hash = lib.out().nar_hash.base32();
    let routes = [
        (Method::POST, "heartbeat".to_owned()),
        (Method::POST, "log?at=0".to_owned()),
        (Method::POST, "result".to_owned()),
        (Method::PUT, format!("nars/{hash}")),
        (Method::GET, "view/nix-cache-info".to_owned()),
    ];
    for token in [another.token.clone(), "0".repeat(job.token.len()), String::new(), victor.name.clone()] {
        for (method, rest) in &routes {
            let asked: Result<serde_json::Value, _> =
                forge.of_job(method.clone(), &job.job, &token, rest, vec![]).await;
            let error = asked.expect_err(rest);
            assert!(matches!(error.status, 401 | 403), "{rest}: {error:?}");
        }
    }
    // a job that there isn't is refused as a wrong token is
    let asked: Result<serde_json::Value, _> =
        forge.of_job(Method::POST, &"0".repeat(24), &job.token, "heartbeat", vec![]).await;
    refused(asked, 403, "lease-lost");
    // the lease is as it was
    assert!(!forge.heartbeat(&job).await.unwrap().cancelled);
    let log: LogTaken =
        forge.of_job(Method::POST, &job.job, &job.token, "log?at=0", b"line\n".to_vec()).await.unwrap();
    assert_eq!(log.length, 5);
    let early = forge.send_built(&job, &lib.out().nar_hash, &lib.out().nar).await;
    refused(early, 409, "result-missing");
    forge.assert_nothing_public(&before).await;
    assert!(rows(&forge, lib.path()).await.is_empty());
}
