//! Many derivations that are built from each other.

use pushgate_tests::process::{Nix, Verifier};

use super::{REBUILT, Stage, logged, policy, rebuilds};

const LENGTH: usize = 30;

#[test]
fn a_chain_is_rebuilt_from_the_bottom_to_the_top() {
    let stage = Stage::set(&policy(REBUILT, ""));
    let links = format!(
        r#"let link = n: run "link-${{toString n}}" "echo ${{toString n}} > $out; for l in $below; do echo $l >> $out; done"
             {{ below = if n == 1 then [ ] else [ (link (n - 1)) ]; }};
           in builtins.genList (n: link (n + 1)) {LENGTH}"#
    );
    let links = stage.nix.build(&pushgate_tests::process::toolset(&links));
    assert_eq!(links.len(), LENGTH);
    for link in &links {
        stage.push_held(link);
    }
    let verifiers =
        [("kiln", "a"), ("oven", "b")].map(|(name, owner)| Verifier::start(&stage.gateway, name, owner));
    let top = &links[LENGTH - 1];
    for link in &links {
        stage.wait_public(link);
    }
    let order: Vec<_> = logged(&stage.gateway).into_iter().filter(|path| links.contains(path)).collect();
    assert_eq!(order, links);
    for link in &links {
        assert_eq!(rebuilds(&stage.gateway, link), 1, "{link}");
    }
    verifiers.iter().for_each(Verifier::idle);

    let consumer = Nix::consumer(&[stage.gateway.cache_url("main")], &[stage.gateway.key("main")]);
    consumer.fetch(std::slice::from_ref(top)).ended_with(0);
    consumer.assert_has_all_of(&stage.nix, std::slice::from_ref(top));
}
