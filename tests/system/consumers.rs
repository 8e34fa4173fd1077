//! What stock Nix does with a cache, by each version: everything that reads, and what it refuses.

use std::{collections::BTreeSet, fs, path::PathBuf};

use pushgate_formats::{
    Sha256,
    api::PathState,
    narinfo::{Dialect, UnverifiedNarInfo},
};
use pushgate_tests::process::{Gateway, Nix, NixVersion, Ran, Recorder, Web, read};
use reqwest::Method;
use rstest::rstest;

/// `tool` refers to `library`, and that to a text.
const TREE: &str = r#"
let make = name: attrs: derivation ({
  inherit name; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
} // attrs);
in rec {
  library = make "library" {
    text = builtins.toFile "text" "a text";
    args = [ "-c" "mkdir -p $out/lib; echo $text > $out/lib/x" ];
  };
  tool = make "tool" {
    args = [ "-c" "mkdir -p $out/bin; echo hello ${library} > $out/bin/tool; chmod +x $out/bin/tool" ];
  };
}.tool
"#;

/// A gateway that has published [`TREE`] and a source, both made by one version of Nix.
struct Cache {
    version: NixVersion,
    gateway: Gateway,
    recorder: Recorder,
    nix: Nix,
    tool: String,
    source: String,
}

fn published(version: NixVersion) -> Cache {
    let nix = Nix::builder_with(version);
    let tool = nix.build(TREE).remove(0);
    fs::write(nix.dir().join("source"), "a source").unwrap();
    let source = nix.run("nix-store", &["--add-fixed", "--recursive", "sha256", "source"]).line();
    let gateway = Gateway::start();
    let report = gateway.enrol("alice", &[]).push(&nix, &[tool.clone(), source.clone()]);
    assert_eq!(report.in_state(PathState::Published).len(), 4, "{report:#?}");
    let recorder = Recorder::before(gateway.port());
    Cache { version, gateway, recorder, nix, tool, source }
}

impl Cache {
    fn url(&self) -> String {
        self.recorder.url("/main")
    }

    /// An empty store that fetches from the cache.
    fn consumer(&self) -> Nix {
        self.consumer_trusting(&self.gateway.key("main"))
    }

    fn consumer_trusting(&self, key: &str) -> Nix {
        Nix::consumer_with(self.version, &[self.url()], &[key.to_owned()])
    }

    /// One of the commands that look into a cache: `nix ARGS --store URL MORE`.
    fn look(&self, consumer: &Nix, args: &[&str], more: &[&str]) -> Ran {
        consumer.run("nix", &[args, &["--store", &self.url()], more].concat())
    }

    fn narinfo(&self, path: &str) -> (PathBuf, UnverifiedNarInfo) {
        let file = self.gateway.public("main").join(format!("{}.narinfo", &path[11..43]));
        let info = UnverifiedNarInfo::parse(&read(&file), Dialect::Push).unwrap();
        (file, info)
    }

    /// Everything that Nix asked for is there, or is answered so that nobody remembers its absence. Gives what is absent.
    fn absent(&self) -> BTreeSet<String> {
        let web = Web::new();
        let asked = self.recorder.asked();
        assert!(!asked.is_empty());
        let mut absent = BTreeSet::new();
        for request in asked {
            let (method, path) = request.split_once(' ').unwrap();
            let method: Method = method.parse().unwrap();
            assert!(method == Method::GET || method == Method::HEAD, "{request}");
            let answer = web.ask(&method, &self.gateway.url(path), &[], vec![]);
            match answer.status.as_u16() {
                200 => {}
                404 => {
                    assert_eq!(answer.header("cache-control"), "no-store", "{request}");
                    absent.insert(path.strip_prefix("/main/").unwrap().to_owned());
                }
                other => panic!("{other} for {request}"),
            }
        }
        absent
    }
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn a_cache_is_looked_into(#[case] version: NixVersion) {
    let cache = published(version);
    let (consumer, tool) = (cache.consumer(), cache.tool.as_str());
    let closure = sorted(cache.nix.closure(std::slice::from_ref(&cache.tool)));
    assert_eq!(closure.len(), 3);
    assert_eq!(sorted(cache.look(&consumer, &["path-info"], &["-r", tool]).lines()), closure);
    let sized = cache.look(&consumer, &["path-info", "-s"], &[tool]).line();
    assert!(sized.ends_with(&cache.narinfo(tool).1.nar_size.to_string()), "{sized}");

    // versions differ in the dots
    let listed = cache.look(&consumer, &["store", "ls"], &["-R", tool]).lines();
    let listed: Vec<_> = listed.iter().map(|line| line.trim_start_matches(['.', '/'])).collect();
    assert_eq!(listed.into_iter().filter(|l| !l.is_empty()).collect::<Vec<_>>(), ["bin", "bin/tool"]);
    let long = cache.look(&consumer, &["store", "ls"], &["-l", &format!("{tool}/bin")]).lines();
    assert!(long.iter().any(|line| line.starts_with("-r-xr-xr-x") && line.ends_with("tool")), "{long:?}");
    let file = cache.look(&consumer, &["store", "cat"], &[&format!("{tool}/bin/tool")]).ended_with(0);
    assert_eq!(file.out, fs::read_to_string(cache.nix.physical(tool).join("bin/tool")).unwrap());
    assert!(file.out.starts_with("hello /nix/store/"));

    // contents and signatures
    cache.look(&consumer, &["store", "verify"], &["-r", tool, &cache.source]).ended_with(0);
    let other = cache.consumer_trusting(&Gateway::start().key("main"));
    let refused = cache.look(&other, &["store", "verify"], &["-r", tool]);
    assert!(refused.code != Some(0) && refused.err.contains("is untrusted"), "{refused:#?}");

    // what isn't there, is said to be so, by a code and by nothing else
    let nowhere = format!("/nix/store/{}-nowhere", "0".repeat(32));
    let unknown = cache.look(&consumer, &["path-info"], &[&nowhere]);
    assert!(unknown.code == Some(1) && unknown.err.contains("is not valid"), "{unknown:#?}");
    assert_eq!(cache.absent(), BTreeSet::from([format!("{}.narinfo", "0".repeat(32))]));
}

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn a_closure_is_fetched_in_every_way(#[case] version: NixVersion) {
    let cache = published(version);
    let both = [cache.tool.clone(), cache.source.clone()];

    let copied = cache.consumer();
    copied.run("nix", &["copy", "--from", &cache.url(), &both[0], &both[1]]).ended_with(0);
    copied.assert_has_all_of(&cache.nix, &both);
    copied.run("nix", &["store", "verify", "-r", &both[0], &both[1]]).ended_with(0);

    let realised = cache.consumer();
    realised.fetch(&both).ended_with(0);
    realised.assert_has_all_of(&cache.nix, &both);

    // from the derivation, which the consumer has evaluated itself: its outputs come from the cache
    let evaluated = cache.consumer();
    let drv = evaluated.instantiate(TREE);
    assert_eq!(evaluated.run("nix-store", &["--realise", &drv]).line(), cache.tool);
    evaluated.assert_has_all_of(&cache.nix, &both[..1]);

    assert_eq!(cache.absent(), BTreeSet::new());
}

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn what_is_not_the_caches_is_refused(#[case] version: NixVersion) {
    let cache = published(version);
    let refuses = |consumer: &Nix, words: &str| {
        for args in [vec!["nix-store", "--realise"], vec!["nix", "copy", "--from", &cache.url()]] {
            let ran = consumer.run(args[0], &[&args[1..], &[cache.tool.as_str()]].concat());
            assert_ne!(ran.code, Some(0), "{ran:#?}");
            assert!(ran.err.contains(words) || args[0] == "nix-store", "no `{words}`: {ran:#?}");
            // files that don't match may lie there; the path isn't valid all the same
            assert_ne!(consumer.run("nix-store", &["--check-validity", &cache.tool]).code, Some(0));
        }
    };
    refuses(&cache.consumer_trusting(&Gateway::start().key("main")), "signature");

    // other contents under the name of these, compressed as they should be
    let (file, info) = cache.narinfo(&cache.tool);
    let nar = cache.gateway.public("main").join(&info.url);
    let (text, bytes) = (read(&file), read(&nar));
    let mut other = zstd::decode_all(bytes.as_slice()).unwrap();
    let at = other.windows(5).position(|w| w == b"hello").unwrap();
    other[at] = b'j';
    fs::write(&nar, zstd::encode_all(other.as_slice(), 1).unwrap()).unwrap();
    refuses(&cache.consumer(), "hash mismatch");

    // the same, and a narinfo that says so
    let told = String::from_utf8(text.clone()).unwrap();
    let (right, wrong) = (info.nar_hash.base32(), Sha256::of(&other).base32());
    assert!(told.contains(&right));
    fs::write(&file, told.replace(&right, &wrong)).unwrap();
    refuses(&cache.consumer(), "signature");

    // right contents, and a narinfo that keeps a reference back
    fs::write(&nar, &bytes).unwrap();
    let short: Vec<_> =
        told.lines().map(|l| if l.starts_with("References:") { "References: " } else { l }).collect();
    fs::write(&file, format!("{}\n", short.join("\n"))).unwrap();
    refuses(&cache.consumer(), "signature");

    // all as it was: it was the changes that were refused
    fs::write(&file, &text).unwrap();
    cache.consumer().fetch(std::slice::from_ref(&cache.tool)).ended_with(0);
}

/// Nix looks for the realisation of a content-addressed derivation. There is none before anything shows it to be right:
/// a clean absence, and not an error that would end the build.
#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn a_realisation_that_is_not_there_is_absent(#[case] version: NixVersion) {
    let cache = published(version);
    let consumer = cache.consumer();
    let drv = consumer.instantiate(
        r#"derivation {
          name = "floating"; system = builtins.currentSystem; builder = "/bin/sh";
          __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
          args = [ "-c" "echo floating > $out" ];
        }"#,
    );
    // nothing is built here (max-jobs = 0), so that this ends once the cache has nothing
    let ran = consumer.run("nix-store", &["--realise", &drv]);
    assert_ne!(ran.code, Some(0));
    assert!(!ran.err.contains("HTTP error") && !ran.err.contains("unable to download"), "{ran:#?}");
    let absent = cache.absent();
    // 2.34 still asks where 2.8 did; versions after 2.34 ask under the second name
    let asked = |prefix: &str| absent.iter().any(|name| name.starts_with(prefix));
    assert!(asked("realisations/") || asked("build-trace-v2/"), "{absent:?}\n{ran:#?}");
}
