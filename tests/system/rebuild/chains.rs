//! Claims that are built from each other, none of them published when they are pushed; and what a rebuild over inputs that
//! nobody has rebuilt is worth.

use super::*;

#[tokio::test]
async fn a_chain_is_rebuilt_from_the_bottom() {
    let forge = start(&rebuilt("1", "")).await;
    let (alice, victor) = (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
    let mut chain = vec![package("p0")];
    for n in 1..5 {
        let below = &chain[n - 1];
        chain.push(begin(&format!("p{n}")).input(below).mention(below.path()).build());
    }
    let before = forge.snapshot().await;
    let mut pushes = vec![];
    for package in &chain {
        let push = forge.push(&forge.draft(&alice).package(package)).await;
        assert_eq!(push.of(package.path()).state, PathState::Held);
        pushes.push(push);
    }
    forge.assert_nothing_public(&before).await;
    let mut built = vec![];
    for package in &chain {
        built.push(forge.rebuild(&victor, package).await.derivation);
    }
    assert!(built.iter().eq(chain.iter().map(|package| &package.drv)));
    for (push, package) in pushes.iter_mut().zip(&chain) {
        forge.becomes(push, package.path(), PathState::Published, None).await;
    }
    forge.assert_published_only(&before, &chain.iter().map(Package::path).collect::<Vec<_>>()).await;
}

/// `lower` goes without, by its name; `upper` needs a rebuild over rebuilt inputs.
#[tokio::test]
async fn a_rebuild_is_worth_what_its_inputs_are() {
    let lax = "[[rule]]\nname = \"lax\"\nmatch = { pname = \"lower\" }\nrequire = \"derivation\"\n";
    let strict = rebuilt("{ n = 1, inputs = \"rebuilt\" }", "");
    let strict = strict.replacen("[[rule]]\nname = \"rest\"", &format!("{lax}[[rule]]\nname = \"rest\""), 1);
    let forge = start(&strict).await;
    let (alice, victor) = (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
    let source = Item::source("source", &random_hex());
    let lower = begin("lower").source(&source).build();
    let upper = begin("upper").source(&source).input(&lower).build();
    let before = forge.snapshot().await;
    let first = forge.push(&forge.draft(&alice).item(&source).package(&lower)).await;
    first.assert_published(lower.path());
    let mut push = held(&forge, &alice, &upper).await;
    forge.rebuild(&victor, &upper).await;
    stays(&forge, &mut push, upper.path(), PathState::Held, Some("needs-rebuild")).await;
    assert_eq!(rows(&forge, upper.path()).await.len(), 1);
    forge.assert_published_only(&before, &[&source.path, lower.path()]).await;

    // one whose only input hashes to its own contents, and one above it
    let base = begin("base").source(&source).build();
    let tool = begin("tool").input(&base).build();
    let mut push = held(&forge, &alice, &base).await;
    forge.rebuild(&victor, &base).await;
    forge.becomes(&mut push, base.path(), PathState::Published, None).await;
    let vera = forge.verifier("vera", Some("vera")).await;
    let mut push = forge.push(&forge.draft(&alice).package(&tool)).await;
    let job = loop {
        let job = forge.lease(&vera).await;
        if job.derivation == tool.drv {
            break job;
        }
    };
    forge.build(&vera, &job, &tool.outputs).await;
    forge.becomes(&mut push, tool.path(), PathState::Published, None).await;
    forge.assert_published_only(&before, &[&source.path, lower.path(), base.path(), tool.path()]).await;
}
