//! The published directory without the gateway: nginx, configured as docs/admin.md says, gives the gateway's answers.

use std::path::Path;

use pushgate_formats::api::PathState;
use pushgate_tests::process::{Answer, Gateway, Nginx, Nix, NixVersion, Web, names, noise_file};
use reqwest::Method;
use rstest::rstest;

struct Published {
    gateway: Gateway,
    nginx: Nginx,
    nix: Nix,
    built: Vec<String>,
}

/// A small tree that refers to a text and to a file of more than a megabyte.
fn published() -> Published {
    let nix = Nix::builder();
    let large = noise_file(nix.dir(), "large", 3, (1 << 20) + 4321);
    let built = nix.build(&format!(
        r#"derivation {{
          name = "tree"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
          text = builtins.toFile "text" "a text"; large = {};
          args = [ "-c" "mkdir $out; echo $text $large > $out/file" ];
        }}"#,
        large.display()
    ));
    let gateway = Gateway::start();
    let report = gateway.enrol("alice", &[]).push(&nix, &built);
    assert_eq!(report.in_state(PathState::Published).len(), 3, "{report:#?}");
    let nginx = Nginx::serving(&gateway.data().join("blobs"));
    Published { gateway, nginx, nix, built }
}

/// Every file below a directory.
fn files(dir: &Path, prefix: &str, found: &mut Vec<String>) {
    for name in names(dir) {
        let (path, name) = (dir.join(&name), format!("{prefix}/{name}"));
        if path.is_dir() { files(&path, &name, found) } else { found.push(name) }
    }
}

/// What an answer means to a client. What a 404 or 416 says to people differs.
fn essence(answer: &Answer, method: &Method) -> Vec<String> {
    let mut all = vec![answer.status.as_u16().to_string()];
    let mut headers = vec!["cache-control"];
    match answer.status.as_u16() {
        404 => {}
        416 => headers = vec!["content-range"],
        304 => headers.extend(["x-content-type-options"]),
        _ => {
            headers.extend(["content-type", "content-length", "content-range", "content-encoding"]);
            headers.extend(["accept-ranges", "x-content-type-options", "content-security-policy"]);
            // hashed, so that a failure can be read
            all.push(pushgate_formats::Sha256::of(&answer.body).base32());
        }
    }
    // in a part there is nothing left to be asked for in parts
    if answer.status == 206 {
        headers.retain(|name| *name != "accept-ranges");
    }
    all.extend(headers.iter().map(|name| format!("{name}: {}", answer.header(name))));
    assert!(*method != Method::HEAD || answer.body.is_empty());
    all
}

#[test]
fn nginx_answers_as_the_gateway_does() {
    let published = published();
    let web = Web::new();
    // a log too, which this push has none of
    let drv = published.nix.query(&["--deriver"], &published.built)[0].clone();
    let log = published.gateway.public("main").join("log");
    std::fs::create_dir_all(&log).unwrap();
    std::fs::write(log.join(&drv["/nix/store/".len()..]), "building\n<script>\n").unwrap();

    let mut urls = vec![];
    files(&published.gateway.public("main"), "/main", &mut urls);
    // three of each kind, nix-cache-info, the log
    assert_eq!(urls.len(), 3 * 3 + 2, "{urls:?}");
    let same = |method: &Method, url: &str, headers: &[(&str, &str)]| -> u16 {
        let theirs = web.ask(method, &published.gateway.url(url), headers, vec![]);
        let nginx = web.ask(method, &published.nginx.url(url), headers, vec![]);
        assert_eq!(essence(&nginx, method), essence(&theirs, method), "{method} {url} {headers:?}");
        nginx.status.as_u16()
    };
    for url in &urls {
        assert_eq!(same(&Method::GET, url, &[]), 200);
        assert_eq!(same(&Method::HEAD, url, &[]), 200);
        for range in ["bytes=0-0", "bytes=1-9", "bytes=-7", "bytes=5-", "bytes=3-100000000"] {
            assert_eq!(same(&Method::GET, url, &[("range", range)]), 206, "{range} of {url}");
        }
        assert_eq!(same(&Method::GET, url, &[("range", "bytes=100000000-")]), 416);
        // each server knows its own validators
        for server in [published.gateway.url(url), published.nginx.url(url)] {
            let etag = web.get(&server).header("etag").to_owned();
            let again = web.ask(&Method::GET, &server, &[("if-none-match", &etag)], vec![]);
            assert_eq!((again.status.as_u16(), again.body.len()), (304, 0), "{server}");
        }
    }

    // what isn't there, and what must not be: quarantine holds packs, which no name leads to
    let absent = "0".repeat(32);
    let quarantine = published.gateway.data().join("blobs/quarantine");
    std::fs::write(quarantine.join(format!("{absent}.narinfo")), "secret").unwrap();
    std::fs::write(published.gateway.public("main").join("stray"), "stray").unwrap();
    for url in [
        format!("/main/{absent}.narinfo"),
        format!("/main/{absent}.ls"),
        format!("/main/nar/{}.nar.zst", "0".repeat(52)),
        format!("/main/log/{absent}-x.drv"),
        format!("/main/realisations/sha256:{}!out.doi", "0".repeat(64)),
        format!("/main/build-trace-v2/{absent}-x.drv/out.doi"),
        format!("/quarantine/{absent}.narinfo"),
        "/main/stray".to_owned(),
        "/main/nar/".to_owned(),
        "/other/nix-cache-info".to_owned(),
    ] {
        for method in [Method::GET, Method::HEAD] {
            assert_eq!(same(&method, &url, &[]), 404, "{url}");
        }
    }
    // the gateway tells nobody that there is an index; nor does nginx
    assert_eq!(web.get(&published.nginx.url("/main/")).status, 404);
}

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn a_stopped_gateways_cache_is_fetched_through_nginx(#[case] version: NixVersion) {
    let mut published = published();
    let key = published.gateway.key("main");
    published.gateway.stop();
    assert!(Web::new().try_get(&published.gateway.url("/healthz")).is_none());
    let consumer = Nix::consumer_with(version, &[published.nginx.url("/main")], &[key]);
    consumer.fetch(&published.built).ended_with(0);
    consumer.assert_has_all_of(&published.nix, &published.built);
}
