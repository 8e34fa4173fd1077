//! The public cache as web servers, proxies and Nix see it: headers, ranges, what is never served; and that its directory
//! is a whole cache without the gateway.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use pushgate_formats::{
    api::PathState,
    narinfo::{Dialect, UnverifiedNarInfo},
};
use pushgate_gateway::{app::App, clock::Clock, config::Config};
use pushgate_tests::process::{Answer, Gateway, Nix, Web, names, noise_file, policy, read};
use reqwest::Method;

/// A published path of nested directories, and two large files, one of more than a megabyte.
struct Published {
    gateway: Gateway,
    nix: Nix,
    built: Vec<String>,
}

fn published() -> Published {
    let nix = Nix::builder();
    let (small, large) = (
        noise_file(nix.dir(), "small", 1, 1000),
        // not a multiple of anything that is read at once
        noise_file(nix.dir(), "large", 2, (2 << 20) + 12_345),
    );
    let built = nix.build(&format!(
        r#"derivation {{
          name = "tree"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
          small = {}; large = {};
          args = [ "-c" ''
            mkdir -p $out/bin $out/a/b/c
            echo hello > $out/bin/hello
            chmod +x $out/bin/hello
            ln -s bin/hello $out/link
            : > "$out/a/b/a name with spaces"
            echo '"quoted\"' > "$out/a/\"quoted\""
            cp $small $out/a/small
            ln -s $large $out/large
          '' ];
        }}"#,
        small.display(),
        large.display(),
    ));
    let gateway = Gateway::start();
    let report = gateway.enrol("alice", &[]).push(&nix, &built);
    assert_eq!(report.in_state(PathState::Published).len(), 2, "{report:#?}");
    Published { gateway, nix, built }
}

impl Published {
    fn url(&self, file: &str) -> String {
        format!("{}/{file}", self.gateway.cache_url("main"))
    }

    fn narinfos(&self) -> Vec<UnverifiedNarInfo> {
        let public = self.gateway.public("main");
        let files = names(&public).into_iter().filter(|name| name.ends_with(".narinfo"));
        files.map(|f| UnverifiedNarInfo::parse(&read(&public.join(f)), Dialect::Push).unwrap()).collect()
    }

    /// The narinfo of the built path, or of the large file beside it.
    fn narinfo(&self, large: bool) -> UnverifiedNarInfo {
        let of = |info: &UnverifiedNarInfo| (info.path.absolute() != self.built[0]) == large;
        self.narinfos().into_iter().find(of).unwrap()
    }
}

/// What a file of a cache must be answered with; and that HEAD says the same without a body, and validators are kept.
#[track_caller]
fn check_file(web: &Web, url: &str, kind: &str, cache: &str, contents: &[u8]) -> Answer {
    let answer = web.get(url);
    assert_eq!(answer.status, 200, "{url}");
    assert!(answer.body == contents, "the contents of {url} differ");
    assert_eq!(answer.header("content-type"), kind, "{url}");
    assert_eq!(answer.header("cache-control"), cache, "{url}");
    assert_eq!(answer.header("content-length"), contents.len().to_string(), "{url}");
    assert_eq!(answer.header("accept-ranges"), "bytes");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");

    let head = web.ask(&Method::HEAD, url, &[], vec![]);
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0), "HEAD {url}");
    for name in ["content-type", "content-length", "cache-control", "etag", "accept-ranges"] {
        assert_eq!(head.header(name), answer.header(name), "{name} of {url}");
    }

    let etag = answer.header("etag");
    assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 10, "{etag}");
    for same in [etag.to_owned(), format!("\"other\", {etag}"), format!("W/{etag}"), "*".to_owned()] {
        let kept = web.ask(&Method::GET, url, &[("if-none-match", &same)], vec![]);
        assert_eq!((kept.status.as_u16(), kept.body.len()), (304, 0), "{same} for {url}");
        assert_eq!(kept.header("etag"), etag);
        assert_eq!(kept.header("cache-control"), cache);
    }
    let other = web.ask(&Method::GET, url, &[("if-none-match", "\"other\"")], vec![]);
    assert_eq!(other.status, 200);
    answer
}

#[test]
fn files_come_with_the_right_headers() {
    let published = published();
    let web = Web::new();
    let brief = "public, max-age=300";
    let public = published.gateway.public("main");
    let info = check_file(
        &web,
        &published.url("nix-cache-info"),
        "text/x-nix-cache-info",
        brief,
        b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n",
    );
    let mut tags = vec![info.header("etag").to_owned()];
    for narinfo in published.narinfos() {
        let hash = narinfo.path.hash_part();
        for (name, kind, cache) in [
            (format!("{hash}.narinfo"), "text/x-nix-narinfo", brief),
            (format!("{hash}.ls"), "application/json", brief),
            (narinfo.url.clone(), "application/x-nix-nar", "public, max-age=31536000, immutable"),
        ] {
            let answer = check_file(&web, &published.url(&name), kind, cache, &read(&public.join(&name)));
            tags.push(answer.header("etag").to_owned());
        }
    }
    let all = tags.len();
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), all, "files share a validator: {tags:?}");
}

#[test]
fn parts_of_nars_can_be_asked_for() {
    let published = published();
    let web = Web::new();
    for large in [false, true] {
        let info = published.narinfo(large);
        let whole = read(&published.gateway.public("main").join(&info.url));
        assert_eq!(whole.len() > 1 << 20, large, "{}", whole.len());
        let url = published.url(&info.url);
        let size = whole.len();
        let ask = |range: &str, more: &[(&str, &str)]| {
            web.ask(&Method::GET, &url, &[&[("range", range)], more].concat(), vec![])
        };
        // the last ones lie across the pieces that a large file is read in
        for (range, start, end) in [
            ("bytes=0-0".to_owned(), 0, 1),
            ("bytes=0-99".to_owned(), 0, 100),
            ("bytes=100-".to_owned(), 100, size),
            ("bytes=-100".to_owned(), size - 100, size),
            (format!("bytes=-{}", size * 2), 0, size),
            (format!("bytes=10-{}", size * 2), 10, size),
            (format!("bytes={}-{}", size / 3, size / 3 * 2), size / 3, size / 3 * 2 + 1),
            (format!("bytes={}-", size - 1), size - 1, size),
        ] {
            let answer = ask(&range, &[]);
            assert_eq!(answer.status, 206, "{range} of {size}");
            assert_eq!(answer.header("content-range"), format!("bytes {start}-{}/{size}", end - 1));
            assert_eq!(answer.header("content-length"), (end - start).to_string());
            assert!(answer.body == whole[start..end], "{range} of {size}");
        }
        for range in [format!("bytes={size}-"), format!("bytes={}-{}", size + 5, size + 9), "bytes=-0".into()]
        {
            let answer = ask(&range, &[]);
            assert_eq!((answer.status.as_u16(), answer.body.len()), (416, 0), "{range} of {size}");
            assert_eq!(answer.header("content-range"), format!("bytes */{size}"));
        }
        // what isn't one range of bytes is answered with everything
        for range in ["bytes=0-1,5-6", "bytes=5-4", "lines=1-2", "bytes=a-b", "bytes"] {
            let answer = ask(range, &[]);
            assert_eq!((answer.status.as_u16(), answer.body.len()), (200, size), "{range}");
        }
        // a part of what it was before is no use
        let etag = web.get(&url).header("etag").to_owned();
        assert_eq!(ask("bytes=5-9", &[("if-range", &etag)]).status, 206);
        assert_eq!(ask("bytes=5-9", &[("if-range", "\"other\"")]).body.len(), size);
    }
}

/// A request as it stands, which a client that tidies addresses wouldn't send.
fn raw(gateway: &Gateway, target: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", gateway.port())).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn nothing_else_is_ever_served() {
    let published = published();
    let gateway = &published.gateway;
    let web = Web::new();
    let data = gateway.data();
    // what must not get out, by something that only it contains
    let secret = String::from_utf8(read(&data.join("keys/main.secret"))).unwrap();
    let secret = secret.trim().rsplit_once(':').unwrap().1.to_owned();
    let quarantine = data.join("blobs/quarantine/packs/planted");
    fs::write(&quarantine, "planted in quarantine").unwrap();
    for (name, text) in [("planted", "planted"), ("nar/planted", "planted"), ("planted.narinfo", "planted")] {
        fs::write(gateway.public("main").join(name), text).unwrap();
    }
    std::os::unix::fs::symlink(&quarantine, gateway.public("main").join("nar/link")).unwrap();

    let hash = "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr";
    let mut targets: Vec<String> = [
        "/main/planted",
        "/main/nar/planted",
        "/main/planted.narinfo",
        "/main/nar/link",
        "/main/",
        "/main",
        "/main/nar",
        "/main/nar/",
        "/main/nar/.nar.zst",
        "/main/..",
        "/main/../main/planted",
        "/main/../keys/main.secret",
        "/main/../../keys/main.secret",
        "/main/nar/../../../keys/main.secret",
        "/main/nar/../../quarantine/packs/planted",
        "/main/%2e%2e/%2e%2e/keys/main.secret",
        "/main/..%2f..%2fkeys%2fmain.secret",
        "/main/nar%2f..%2f..%2fquarantine%2fpacks%2fplanted",
        "/main/nar/..%5c..%5cplanted",
        "/main/%00",
        "/main/nix-cache-info%00",
        "/main/nix-cache-info/",
        "/main//nix-cache-info",
        "//main/nix-cache-info",
        "/quarantine/packs/planted",
        "/quarantine/nix-cache-info",
        "/main/quarantine/packs/planted",
        "/keys/main.secret",
        "/policies/main.toml",
        "/gateway.db",
        "/..%2fkeys/nix-cache-info",
        "/%2e%2e/nix-cache-info",
        "/MAIN/nix-cache-info",
        "/other/nix-cache-info",
        "/.../nix-cache-info",
        "/api/v1/nothing",
        "/main/push/nix-cache-info",
    ]
    .map(String::from)
    .into();
    targets.extend([
        format!("/main/{hash}.narinfo"),
        format!("/main/{hash}.ls"),
        format!("/main/{hash}.narinfo.zst"),
        format!("/main/{}.NARINFO", &published.built[0][11..43]),
        format!("/main/nar/{hash}kj7lzfd1877wk11c9c73.nar.zst"),
        format!("/main/nar/{hash}kj7lzfd1877wk11c9c73.nar"),
    ]);
    for target in targets {
        let answer = raw(gateway, &target);
        let status = answer.split(' ').nth(1).unwrap_or_default();
        // below the push prefix nobody is told anything without a token
        let expected: &[&str] = if target.starts_with("/main/push/") { &["401"] } else { &["404", "400"] };
        assert!(expected.contains(&status), "{target}: {answer}");
        if status == "404" {
            // or a path would stay absent for those who asked too early
            assert!(answer.to_lowercase().contains("cache-control: no-store"), "{target}: {answer}");
        }
        assert!(!answer.contains("planted in") && !answer.contains(&secret), "{target}: {answer}");
        assert!(!answer.ends_with("planted"), "{target}: {answer}");
    }
    // nor can anything be put there
    for method in [Method::PUT, Method::POST, Method::DELETE, Method::PATCH] {
        let url = published.url("nix-cache-info");
        let answer = web.ask(&method, &url, &[], b"StoreDir: /elsewhere\n".to_vec());
        assert_eq!((answer.status.as_u16(), answer.code().as_deref()), (405, Some("method-not-allowed")));
    }
    assert!(web.get(&published.url("nix-cache-info")).text().starts_with("StoreDir: /nix/store\n"));
}

#[test]
fn listings_are_what_nix_itself_would_write() {
    let published = published();
    let nix = &published.nix;
    let cache = nix.dir().join("cache");
    let to = format!("file://{}?write-nar-listing=true", cache.display());
    nix.run("nix", &["copy", "--to", &to, &published.built[0]]).ended_with(0);
    let mut compared = 0;
    for name in names(&cache).into_iter().filter(|name| name.ends_with(".ls")) {
        let parse = |text: &[u8]| -> serde_json::Value {
            // Nix compresses listings only when told to
            serde_json::from_slice(text).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let theirs = parse(&read(&cache.join(&name)));
        let ours = parse(&Web::new().get(&published.url(&name)).body);
        assert_eq!(ours, theirs, "{name}");
        compared += 1;
    }
    assert_eq!(compared, 2);
    // `nix store ls` understands it
    let url = published.gateway.cache_url("main");
    let listed =
        nix.run("nix", &["store", "ls", "--store", &url, "--recursive", "--long", &published.built[0]]);
    let listed = listed.lines();
    assert!(
        listed.iter().any(|line| line.contains("./bin/hello") && line.starts_with("-r-x")),
        "{listed:#?}"
    );
    assert!(listed.iter().any(|line| line.ends_with("./link -> bin/hello")), "{listed:#?}");
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_files(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn the_directory_is_a_whole_cache_with_the_gateway_switched_off() {
    let mut published = published();
    let key = published.gateway.key("main");
    published.gateway.stop();
    let copy = published.nix.dir().join("copy");
    copy_files(&published.gateway.public("main"), &copy);
    let consumer = Nix::consumer(&[format!("file://{}", copy.display())], &[key]);
    consumer.fetch(&published.built).ended_with(0);
    consumer.assert_has_all_of(&published.nix, &published.built);
    // anybody's web server can read it, and nobody can read the quarantine
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let public = published.gateway.public("main");
    for info in published.narinfos() {
        for file in [info.url.clone(), format!("{}.narinfo", info.path.hash_part())] {
            assert_eq!(mode(&public.join(&file)) & 0o444, 0o444, "{file}");
        }
    }
    assert_eq!(mode(&published.gateway.data().join("blobs/quarantine")), 0o700);
    assert_eq!(mode(&published.gateway.data().join("keys")), 0o700);
    assert_eq!(mode(&published.gateway.data().join("keys/main.secret")), 0o600);
}

#[test]
fn health_readiness_and_metrics() {
    let published = published();
    let web = Web::new();
    let gateway = &published.gateway;
    let health = web.get(&gateway.url("/healthz"));
    assert_eq!((health.status.as_u16(), health.text().as_str()), (200, "ok\n"));
    let ready = web.get(&gateway.url("/readyz"));
    assert_eq!(ready.status, 200);
    let ready: serde_json::Value = ready.json();
    assert_eq!(ready, serde_json::json!({ "database": true, "blobs": true, "policyProblems": [] }));
    let metrics = web.get(&gateway.url("/metrics"));
    assert_eq!(metrics.header("content-type"), "text/plain; version=0.0.4");
    assert_eq!(gateway.metric("pushgate_published_total"), 2);
    assert_eq!(gateway.metric("pushgate_nars_taken_total"), 2);
    assert_eq!(gateway.metric("pushgate_policy_broken"), 0);
    assert_eq!(gateway.metric("pushgate_uploads_under_way"), 0);
    // numbers by route, not by path: a scanner must not fill the memory
    for n in 0..20 {
        web.get(&gateway.url(&format!("/main/{n}")));
        web.get(&gateway.url(&format!("/{n}")));
    }
    let routes: BTreeMap<String, ()> = web
        .get(&gateway.url("/metrics"))
        .text()
        .lines()
        .filter(|line| line.starts_with("pushgate_requests_total"))
        .filter_map(|line| Some((line.split("route=\"").nth(1)?.split('"').next()?.to_owned(), ())))
        .collect();
    let known: Vec<&str> = pushgate_gateway::http::table().into_iter().map(|(_, path, _)| path).collect();
    for route in routes.keys() {
        assert!(route == "none" || known.contains(&route.as_str()), "{route}");
    }

    // a blob store that can't be written to is told
    let tmp = gateway.data().join("blobs/quarantine/tmp");
    fs::remove_dir(&tmp).unwrap();
    let ready = web.get(&gateway.url("/readyz"));
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json::<serde_json::Value>()["blobs"], false);
    fs::create_dir(&tmp).unwrap();
    assert_eq!(web.get(&gateway.url("/readyz")).status, 200);
}

/// Within this process, so that the reloading can be asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_policy_file_changes_nothing_and_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policies/main.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, policy("main", "[limits]\nnar-size = \"1 MiB\"")).unwrap();
    let app: Arc<App> = App::open(dir.path(), Config::default(), Clock::default()).await.unwrap();
    let cache = app.caches.get(app.db.as_ref(), "main").await.unwrap().unwrap();
    assert_eq!(cache.policy().limits.nar_size, 1 << 20);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/readyz", listener.local_addr().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(pushgate_gateway::http::serve(app.clone(), listener, async move {
        let _ = stopped.await;
    }));
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let ready = async || {
        let answer = client.get(&url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    fs::write(&file, policy("main", "[limits]\nnar-size = \"2 elephants\"")).unwrap();
    assert!(!app.caches.reload_policies(app.db.as_ref()).await.unwrap());
    assert_eq!(cache.policy().limits.nar_size, 1 << 20);
    let problem = cache.policy_problem().unwrap();
    assert!(problem.contains("main.toml") && problem.contains("2 elephants"), "{problem}");
    let (status, body) = ready().await;
    assert_eq!(status, 200);
    assert!(body.contains("\"policyProblems\":[\"main\"]"), "{body}");

    fs::remove_file(&file).unwrap();
    assert!(!app.caches.reload_policies(app.db.as_ref()).await.unwrap());
    assert_eq!(cache.policy().limits.nar_size, 1 << 20);

    fs::write(&file, policy("main", "[limits]\nnar-size = \"3 MiB\"")).unwrap();
    assert!(app.caches.reload_policies(app.db.as_ref()).await.unwrap());
    assert_eq!((cache.policy().limits.nar_size, cache.policy_problem()), (3 << 20, None));
    assert!(ready().await.1.contains("\"policyProblems\":[]"));
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();

    // at a start there is no last good one
    fs::write(&file, "nonsense").unwrap();
    let refused = App::open(dir.path(), Config::default(), Clock::default()).await;
    let error = refused.err().map(|e| format!("{e:#}")).unwrap_or_default();
    assert!(error.contains("main.toml"), "{error}");
}
