//! What a verifier is told and given: the inputs of its job, signed for it, and nothing else; never what anybody claims.

use pushgate_formats::{
    HashAlgo, Sha256,
    derivation::Method,
    narinfo::{Dialect, UnverifiedNarInfo},
};
use pushgate_tests::forge::file_nar;

use super::*;

/// Whether these bytes hold this hash in any form.
fn tells(text: &str, hash: &Sha256) -> bool {
    [hash.base32(), hash.hex(), hash.to_string()].iter().any(|form| text.contains(form))
}

#[tokio::test]
async fn a_job_tells_nothing_of_the_claim() {
    let forge = start(&rebuilt("1", "")).await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let victor = forge.verifier("victor", Some("victor")).await;
    let source = Item::source("source", &random_hex());
    forge.push(&forge.draft(&alice).item(&source)).await.assert_published(&source.path);
    let lib = begin("lib").source(&source).outputs(&["out", "dev"]).build();
    let _push = held(&forge, &alice, &lib).await;
    let job = forge.lease(&victor).await;
    // another's, quarantined and published
    let (theirs, public) = (package("theirs"), Item::source("public", &random_hex()));
    let mut draft = forge.draft(&bob).package(&theirs);
    draft = draft.item(&public);
    forge.push(&draft).await.assert_published(&public.path);

    let text = serde_json::to_string(&job).unwrap();
    assert_eq!(job.inputs, std::slice::from_ref(&source.path));
    let inputs = forge.inputs_of(&job).await;
    assert_eq!(inputs.keys().collect::<Vec<_>>(), [&source.path]);
    for item in lib.outputs.values() {
        assert!(!tells(&text, &item.nar_hash));
        for file in [
            format!("{}.narinfo", item.path.hash_part()),
            format!("nar/{}.nar", item.path.hash_part()),
            format!("nar/{}.nar.zst", item.path.hash_part()),
            format!("nar/{}.nar.zst", item.nar_hash.base32()),
        ] {
            assert_eq!(forge.view(&job, &file).await, None, "{file}");
        }
    }
    for path in [theirs.path(), &theirs.drv, &public.path] {
        assert_eq!(forge.view(&job, &format!("{}.narinfo", path.hash_part())).await, None);
        assert_eq!(forge.view(&job, &format!("nar/{}.nar", path.hash_part())).await, None);
    }
    // the derivation itself, as its text is
    let info = forge.view_narinfo(&job, lib.drv.hash_part()).await.expect("the derivation");
    assert_eq!(forge.view_nar(&job, &info).await, file_nar(&lib.text, false));
    for name in ["../nix-cache-info", "%2e%2e/x", "nar/..", "x.narinfo", "attestations/x"] {
        assert_eq!(forge.view(&job, name).await, None, "{name}");
    }
    assert!(forge.view(&job, "nix-cache-info").await.is_some());
}

#[tokio::test]
async fn its_narinfos_say_what_the_published_ones_say() {
    let forge = start(&rebuilt("1", "")).await;
    let alice = forge.submitter("alice").await;
    let (victor, vera) =
        (forge.verifier("victor", Some("victor")).await, forge.verifier("vera", Some("vera")).await);
    let lower = package("lower");
    let lib = begin("lib").input(&lower).mention(lower.path()).build();
    let tool = begin("tool").input(&lib).build();
    let mut push = held(&forge, &alice, &lower).await;
    forge.rebuild(&victor, &lower).await;
    forge.becomes(&mut push, lower.path(), PathState::Published, None).await;
    let mut push = held(&forge, &alice, &lib).await;
    forge.rebuild(&victor, &lib).await;
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
    let _push = held(&forge, &alice, &tool).await;
    let job = forge.lease(&victor).await;
    assert_eq!(job.inputs, std::slice::from_ref(lib.path()));
    assert_eq!(forge.inputs_of(&job).await.len(), 2, "with what the input refers to");
    for package in [&lower, &lib] {
        let part = package.path().hash_part();
        let shown = forge.view_narinfo(&job, part).await.expect("an input");
        let public = forge.narinfo(package.path()).await.unwrap();
        let public = UnverifiedNarInfo::parse(public.as_bytes(), Dialect::Push).unwrap();
        let facts = |i: &UnverifiedNarInfo| (i.path.clone(), i.nar_hash, i.nar_size, i.references.clone());
        assert_eq!(facts(&shown), facts(&public));
    }
    // another job's token opens nothing of it
    let second = package("second");
    let _second = held(&forge, &alice, &second).await;
    let another = forge.lease(&vera).await;
    assert_ne!(another.view_key, job.view_key);
    let url = format!("{}{}/nix-cache-info", forge.url, job.view);
    let answer = forge.http.get(url).bearer_auth(&another.token).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 403);
}

/// Sources and fixed outputs that aren't published: wanted, sent, used, never public, and nobody else's.
#[tokio::test]
async fn inputs_are_sent_for_the_rebuild_alone() {
    let forge = start(&rebuilt("1", "")).await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let victor = forge.verifier("victor", Some("victor")).await;
    let source = Item::source("source", &random_hex());
    let tarball = begin("tarball")
        .fixed(Method::Recursive, HashAlgo::Sha256, file_nar(random_hex().as_bytes(), false))
        .build();
    let lib = begin("lib").source(&source).input(&tarball).build();
    let before = forge.snapshot().await;
    let mut push = held(&forge, &alice, &lib).await;
    let mut wanted = vec![source.path.clone(), tarball.path().clone()];
    wanted.sort();
    for _ in 0..100 {
        push.status = forge.status(&push.announced, "").await.unwrap();
        if push.status.wanted_inputs == wanted {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    assert_eq!(push.status.wanted_inputs, wanted);
    forge.assert_no_job(&victor).await;
    let inputs = |by: &Submitter| {
        let draft = forge.draft(by).item(&source).item(tarball.out()).derivations(&tarball);
        draft.with(|body| body.inputs = true)
    };
    // another's are his own affair
    let theirs = forge.push(&inputs(&bob)).await;
    theirs.assert_held(&source.path, "kept-as-input");
    forge.assert_no_job(&victor).await;
    let kept = forge.push(&inputs(&alice)).await;
    kept.assert_held(&source.path, "kept-as-input");
    kept.assert_held(tarball.path(), "kept-as-input");
    // nobody has to decide about them
    let shown = forge.app.db.held_claims("main", 0, 100).await.unwrap();
    let shown: Vec<_> = shown.iter().map(|row| &row.claim.path).collect();
    assert_eq!(shown, [lib.path()]);
    let job = forge.lease(&victor).await;
    assert_eq!(job.inputs, wanted);
    let found = forge.inputs_of(&job).await;
    assert_eq!(found[&source.path], source.nar_hash);
    assert_eq!(found[tarball.path()], tarball.out().nar_hash);
    forge.assert_nothing_public(&before).await;
    forge.build(&victor, &job, &lib.outputs).await;
    forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
    forge.assert_published_only(&before, &[lib.path()]).await;
    assert!(push.status.wanted_inputs.is_empty());
}

#[tokio::test]
async fn inputs_that_their_contents_do_not_show_are_refused() {
    let forge = start(&rebuilt("1", "")).await;
    let alice = forge.submitter("alice").await;
    let lib = package("lib");
    let weak = begin("weak")
        .fixed(Method::Recursive, HashAlgo::Md5, file_nar(random_hex().as_bytes(), false))
        .build();
    let source = Item::source("source", &random_hex());
    let bent = source.with_nar(file_nar(b"other", false));
    let before = forge.snapshot().await;
    let draft = forge.draft(&alice).package(&lib).package(&weak).item(&bent);
    let push = forge.push(&draft.with(|body| body.inputs = true)).await;
    push.assert_rejected(lib.path(), "input-not-content-addressed");
    push.assert_rejected(weak.path(), "content-address-weak");
    assert_eq!(push.of(&bent.path).state, PathState::Rejected);
    forge.assert_nothing_public(&before).await;
    // beside them the right one
    let push = forge.push(&forge.draft(&alice).item(&source).with(|body| body.inputs = true)).await;
    push.assert_held(&source.path, "kept-as-input");
    forge.assert_nothing_public(&before).await;
}
