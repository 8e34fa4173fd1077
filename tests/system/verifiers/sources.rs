//! From where a verifier gets what it builds from: the gateway's caches, their upstreams, what the push sends.

use std::fs;

use pushgate_formats::api::PathState;
use pushgate_tests::process::{Gateway, Verifier};

use super::{REBUILT, Stage, is_public, policy, rebuilds, toolset};

/// The toolset is published in another gateway's cache, and nowhere else.
#[test]
fn inputs_come_from_an_upstream_through_the_view() {
    let upstream = Gateway::start();
    let other = upstream.enrol("carol", &[]);
    let trust =
        format!("[[upstream]]\nurl = \"{}\"\nkey = \"{}\"", upstream.cache_url("main"), upstream.key("main"));
    let stage = Stage::bare(&policy(REBUILT, &trust), "");
    let tools = stage.build("tools");
    other.push(&stage.nix, std::slice::from_ref(&tools));
    super::wait_public(&upstream, &tools);

    let tool = stage.build(r#"run "tool" "echo ${tools} > $out" {}"#);
    let report = stage.alice.push(&stage.nix, std::slice::from_ref(&tool));
    assert_eq!(report.of(&tool).state, PathState::Held, "{report:#?}");
    assert!(report.in_state(PathState::Published).is_empty(), "{report:#?}");
    let verifier = Verifier::start(&stage.gateway, "kiln", "kiln-operator");
    stage.wait_public(&tool);
    assert_eq!(rebuilds(&stage.gateway, &tool), 1);
    assert!(!is_public(&stage.gateway, &tools));
    verifier.idle();
}

/// A source and a fixed output that nothing published refers to.
#[test]
fn fixed_outputs_that_the_push_sends_are_used_without_a_network() {
    let stage = Stage::set(&policy(REBUILT, ""));
    fs::write(stage.nix.dir().join("source"), "of a source\n").unwrap();
    let text = format!(
        r#"let
             fixed = run "fixed" "echo 'of a fixed output' > $out" {{
               outputHashAlgo = "sha256"; outputHashMode = "flat";
               outputHash = builtins.hashString "sha256" "of a fixed output\n";
             }};
             source = builtins.path {{ name = "source"; path = {}; }};
           in {{ tool = run "tool" "cat ${{fixed}} ${{source}} > $out" {{ }}; inherit fixed; }}"#,
        stage.nix.dir().join("source").display()
    );
    let fixed = stage.build(&format!("({text}).fixed"));
    let tool = stage.build(&format!("({text}).tool"));
    assert_eq!(stage.nix.instantiate(&toolset(&format!("({text}).tool"))).len(), tool.len() + 4);
    stage.push_held(&tool);
    let verifier = Verifier::start(&stage.gateway, "kiln", "kiln-operator");
    stage.wait_public(&tool);
    assert_eq!(rebuilds(&stage.gateway, &tool), 1);
    // used and not built
    assert_eq!((verifier.began("tool"), verifier.began("fixed")), (1, 0));
    assert!(!is_public(&stage.gateway, &fixed));
    verifier.idle();
}
