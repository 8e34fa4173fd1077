//! What stock Nix does with a cache, by each version.

use pushgate_formats::api::PathState;
use pushgate_tests::process::{Gateway, Nix, NixVersion};
use rstest::rstest;

#[rstest]
#[case::nix_here(NixVersion::Here)]
#[case::nix_of_trixie(NixVersion::Trixie)]
#[case::nix_of_forky(NixVersion::Forky)]
fn each_version_builds_and_fetches(#[case] version: NixVersion) {
    let nix = Nix::builder_with(version);
    let built = nix.build(
        r#"derivation {
          name = "tree"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
          text = builtins.toFile "text" "a text";
          args = [ "-c" "mkdir $out; echo $text > $out/file" ];
        }"#,
    );
    let gateway = Gateway::start();
    // the client talks to the daemon of the same version
    let report = gateway.enrol("alice", &[]).push(&nix, &built);
    assert_eq!(report.in_state(PathState::Published).len(), 2, "{report:#?}");
    let consumer = Nix::consumer_with(version, &[gateway.cache_url("main")], &[gateway.key("main")]);
    consumer.fetch(&built).ended_with(0);
    consumer.assert_has_all_of(&nix, &built);
}
