//! Which rule is for a claim: names, limits, facts that aren't known.

use pushgate_formats::{
    api::PathState,
    content_address::Method,
    hash::{HashAlgo, NixHash},
};
use pushgate_tests::forge::{Item, Package};
use rstest::rstest;

use super::*;

/// Rules that keep `glibc` to the core group and take the rest by derivation.
fn guarded() -> String {
    format!(
        "{HEAD}[[rule]]\nname = \"core's glibc\"\nmatch = {{ pname = \"glibc\", submitter = \"@core\" }}\nrequire = \"derivation\"\n\
         [[rule]]\nname = \"glibc\"\nmatch = {{ pname = \"glibc\" }}\ndeny = \"only core pushes glibc\"\n{REST}"
    )
}

#[rstest]
#[case::by_name("glibc-2.40", true)]
#[case::without_a_version("glibc", true)]
#[case::another_output_name("glibc-2.40-dev", true)]
#[case::a_version_that_lies("glibc-2.40-evil", true)]
#[case::another_package("glibc-evil", false)]
#[case::another_package_with_a_version("glibc-evil-2.40", false)]
#[case::other_letters("Glibc-2.40", false)]
#[case::a_prefix("glib-2.40", false)]
#[tokio::test]
async fn not_permitted(#[case] name: &str, #[case] is_glibc: bool) {
    let forge = start(&guarded()).await;
    let (mallory, bob) = (forge.submitter("mallory").await, forge.submitter("bob").await);
    let package = Package::new(name).env("salt", &pushgate_tests::forge::random_hex()).build();
    let before = forge.snapshot().await;
    let pushed = forge.push(&forge.draft(&mallory).package(&package)).await;
    if !is_glibc {
        pushed.assert_published(package.path());
        return;
    }
    pushed.assert_rejected(package.path(), "not-permitted");
    let message = pushed.of(package.path()).message.clone().unwrap();
    assert!(message.contains("only core pushes glibc"), "{message}");
    forge.assert_unchanged(&before).await;
    // the same by somebody who may
    let pushed = forge.push(&forge.draft(&bob).package(&package)).await;
    pushed.assert_published(package.path());
}

/// A path that no rule is for.
#[tokio::test]
async fn not_permitted_by_any_rule() {
    let forge = start(&format!("{HEAD}{}", rule("tool", "\"derivation\""))).await;
    let alice = forge.submitter("alice").await;
    let (tool, other) = (package("tool"), package("other"));
    let before = forge.snapshot().await;
    let pushed = forge.push(&forge.draft(&alice).package(&tool).package(&other)).await;
    pushed.assert_published(tool.path());
    pushed.assert_rejected(other.path(), "not-permitted");
    forge.assert_published_only(&before, &[tool.path()]).await;
}

/// Withholding the derivation doesn't lead past the rule that looks at its system or environment.
#[rstest]
#[case::system("match = { system = \"riscv64-linux\" }")]
#[case::environment("match = { env.FOO = \"bar\" }")]
#[case::sources("match = { sources = { any = { url = \"glob:https://evil.example.org/*\" } } }")]
#[tokio::test]
async fn a_fact_withheld_leads_to_no_laxer_rule(#[case] condition: &str) {
    let strict = format!("[[rule]]\nname = \"strict\"\n{condition}\ndeny = \"no\"\n");
    let lax = "[[rule]]\nname = \"lax\"\nmatch = {}\nrequire = { any = [\"derivation\", { approvals = 1, from = \"core\" }] }\n";
    let forge = start(&format!("{HEAD}{strict}{lax}")).await;
    let (alice, bob) = (forge.submitter("alice").await, forge.submitter("bob").await);
    let tool = package("tool");
    let before = forge.snapshot().await;
    let mut push = forge.push(&forge.draft(&alice).item(tool.out())).await;
    push.assert_held(tool.path(), "needs-derivation");
    forge.act(&bob, approve(&tool, None)).await.expect("an approval");
    stays(&forge, &mut push, tool.path(), PathState::Held, Some("needs-derivation")).await;
    forge.assert_nothing_public(&before).await;
    // with it, it is known that the strict rule isn't for it
    forge.push(&forge.draft(&alice).package(&tool)).await.assert_published(tool.path());
}

/// What the derivation says decides, where it is here.
#[rstest]
#[case::environment("match = { env.FOO = \"bar\" }", "FOO", "bar", "baz")]
#[tokio::test]
async fn the_environment_matches(
    #[case] condition: &str,
    #[case] name: &str,
    #[case] hit: &str,
    #[case] miss: &str,
) {
    let strict = format!("[[rule]]\nname = \"strict\"\n{condition}\ndeny = \"no\"\n");
    let forge = start(&format!("{HEAD}{strict}{REST}")).await;
    let alice = forge.submitter("alice").await;
    let with = |value: &str| Package::new("tool-1").env(name, value).build();
    let hit = with(hit);
    let pushed = forge.push(&forge.draft(&alice).package(&hit)).await;
    pushed.assert_rejected(hit.path(), "not-permitted");
    for other in [with(miss), Package::new("tool-2").build()] {
        forge.push(&forge.draft(&alice).package(&other)).await.assert_published(other.path());
    }
}

#[tokio::test]
async fn nar_too_large_for_its_rule_or_its_submitter() {
    let limits = "[[limit]]\nsubmitter = \"mallory\"\nnar-size = \"1 KiB\"\n";
    let big = "[[rule]]\nname = \"small tools\"\nmatch = { pname = \"tool\" }\nrequire = \"derivation\"\nlimits = { nar-size = \"2 KiB\" }\n";
    let forge = start(&format!("{HEAD}{big}{REST}{limits}")).await;
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    let of = |name: &str, bytes: usize| Package::new(name).contents(&"x".repeat(bytes)).build();
    let before = forge.snapshot().await;
    for (by, package, fits) in [
        (&alice, of("tool-1", 4096), false),
        (&alice, of("tool-2", 100), true),
        (&alice, of("other-1", 4096), true),
        (&mallory, of("other-2", 1500), false),
        (&mallory, of("other-3", 100), true),
    ] {
        let draft = forge.draft(by).package(&package);
        let announced = forge.announce(&draft).await.unwrap();
        if announced.status.paths[0].state == PathState::Rejected {
            // before any of its bytes came
            assert_eq!(announced.status.paths[0].code.as_deref(), Some("nar-too-large"));
        } else {
            let pushed = forge.complete(&draft, announced).await;
            match fits {
                true => pushed.assert_published(package.path()),
                false => pushed.assert_rejected(package.path(), "nar-too-large"),
            }
        }
        assert_eq!(forge.narinfo(package.path()).await.is_some(), fits);
    }
    assert!(forge.snapshot().await.packs == before.packs);
}

/// Contents speak for themselves, whoever sends them, unless a rule says otherwise.
#[tokio::test]
async fn the_first_rule_that_is_for_a_path_decides() {
    let text = format!(
        "version = 1\ncache = \"main\"\n[[rule]]\nname = \"no secrets\"\nmatch = {{ pname = \"glob:secret*\" }}\ndeny = \"secrets stay here\"\n{}",
        HEAD.split_once("[[rule]]").map(|(_, rest)| format!("[[rule]]{rest}")).unwrap()
    );
    let forge = start(&text).await;
    let alice = forge.submitter("alice").await;
    let (secret, other) = (Item::source("secret-plan", "x"), Item::source("plan", "x"));
    let pushed = forge.push(&forge.draft(&alice).item(&secret).item(&other)).await;
    pushed.assert_rejected(&secret.path, "not-permitted");
    pushed.assert_published(&other.path);
}

#[tokio::test]
async fn paths_per_push_of_a_submitter() {
    let limit = "[[limit]]\nsubmitter = \"mallory\"\npaths-per-push = 2\n";
    let forge = start(&format!("{HEAD}{REST}{limit}")).await;
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    let items: Vec<Item> = (0..3).map(|n| Item::source("plan", &format!("{n}"))).collect();
    let of = |by, items: &[Item]| items.iter().fold(forge.draft(by), |draft, item| draft.item(item));
    let before = forge.snapshot().await;
    let error = forge.announce(&of(&mallory, &items)).await.unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (413, "announcement-too-large"), "{error:?}");
    forge.assert_unchanged(&before).await;
    forge.push(&of(&mallory, &items[..2])).await.assert_published(&items[0].path);
    forge.push(&of(&alice, &items)).await.assert_published(&items[2].path);
}

/// What was sent within a day counts, also after a restart, and what wasn't taken doesn't.
#[tokio::test]
async fn bytes_per_day_of_a_submitter() {
    let limit = "[[limit]]\nsubmitter = \"mallory\"\nbytes-per-day = \"64 KiB\"\n";
    let mut forge = start(&format!("{HEAD}{REST}{limit}")).await;
    let (alice, mallory) = (forge.submitter("alice").await, forge.submitter("mallory").await);
    // noise doesn't compress
    let noise = || Item::source("plan", &(0..600).map(|_| random_hex()).collect::<String>());
    let sent = |item: &Item| zstd::bulk::compress(&item.nar, 1).unwrap().len();
    let (first, second, third, fourth) = (noise(), noise(), noise(), noise());
    assert!(sent(&first) < 32 << 10 && sent(&first) * 8 > 64 << 10);
    let mut count = 0;
    let mut push = async |forge: &Forge, by: &Submitter, item: &Item| {
        count += 1;
        let pushed = forge.push(&forge.draft(by).item(item)).await;
        let state = pushed.of(&item.path).state;
        let code = pushed.uploaded.and_then(|u| u.nars[0].error.clone()).map(|e| e.code);
        (state, code)
    };
    let mut taken = vec![];
    for _ in 0..8 {
        let item = noise();
        let (state, code) = push(&forge, &mallory, &item).await;
        if state != PathState::Published {
            assert_eq!((state, code.as_deref()), (PathState::Wanted, Some("daily-quota-exceeded")));
            break;
        }
        taken.push(item);
    }
    assert!((2..8).contains(&taken.len()), "{} were taken", taken.len());
    assert_eq!(push(&forge, &alice, &first).await.0, PathState::Published);
    forge = forge.restart().await;
    let refused = push(&forge, &mallory, &second).await;
    assert_eq!((refused.0, refused.1.as_deref()), (PathState::Wanted, Some("daily-quota-exceeded")));
    assert_eq!(forge.narinfo(&second.path).await, None);
    forge.clock.advance(86_400 + 3600);
    assert_eq!(push(&forge, &mallory, &third).await.0, PathState::Published);
    assert_eq!(push(&forge, &mallory, &fourth).await.0, PathState::Published);
}

/// The URL stands in the derivation because the submitter wrote it there: a rule about it is met by the admin's list of
/// hashes, or by somebody's attested fetch, and never by the words alone.
#[tokio::test]
async fn a_url_of_a_trusted_host_beside_the_hash_of_other_contents() {
    let of = |sources: &str| {
        format!(
            "version = 1\ncache = \"main\"\n[[rule]]\nname = \"known sources\"\nmatch = {{}}\n\
             require = {{ all = [{{ any = [\"derivation\", \"content-address\"] }}, {{ sources = [{sources}] }}] }}\n"
        )
    };
    let url = "https://trusted.example.org/tool.tar.gz";
    let forge = start(&of("{ url = \"glob:https://trusted.example.org/*\" }")).await;
    let alice = forge.submitter("alice").await;
    let tarball = |contents: &str| {
        let nar = pushgate_tests::forge::file_nar(contents.as_bytes(), false);
        Package::new("tool.tar.gz").env("url", url).fixed(Method::Recursive, HashAlgo::Sha256, nar).build()
    };
    let (evil, good) = (tarball("evil"), tarball("good"));
    let before = forge.snapshot().await;
    let mut push = forge.push(&forge.draft(&alice).package(&evil)).await;
    push.assert_held(evil.path(), "needs-sources");
    forge.assert_nothing_public(&before).await;
    // the admin lists the hash of the good one
    let hash = NixHash::from(good.out().nar_hash).sri();
    assert!(edit(&forge, &of(&format!("{{ url = \"{url}\", hash = \"{hash}\" }}"))).await);
    stays(&forge, &mut push, evil.path(), PathState::Held, Some("needs-sources")).await;
    forge.push(&forge.draft(&alice).package(&good)).await.assert_published(good.path());
    forge.assert_published_only(&before, &[good.path()]).await;
}

/// Facts are kept with every decision: what a submitter makes huge isn't looked at, and leads to no laxer rule.
#[tokio::test]
async fn a_fact_of_many_bytes_is_not_known() {
    let denied = "[[rule]]\nname = \"not this\"\nmatch = { env.flag = \"evil\" }\ndeny = \"evil\"\n";
    let forge = start(&format!("{HEAD}{denied}{REST}")).await;
    let (alice, admin) = (forge.submitter("alice").await, forge.admin("ada").await);
    let before = forge.snapshot().await;
    let with = |flag: &str| Package::new("lib-1.0").contents(&random_hex()).env("flag", flag).build();
    let (long, short) = (with(&"x".repeat(1 << 20)), with(&"x".repeat(1 << 10)));
    let push = forge.push(&forge.draft(&alice).package(&long)).await;
    push.assert_held(long.path(), "needs-derivation");
    forge.assert_nothing_public(&before).await;
    let made = decisions(&forge, &admin).await.decisions;
    assert!(serde_json::to_string(&made).unwrap().len() < 10_000);
    forge.push(&forge.draft(&alice).package(&short)).await.assert_published(short.path());
    forge.assert_published_only(&before, &[short.path()]).await;
}
