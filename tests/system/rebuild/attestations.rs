//! Attestations that lie in one field each: refused, the job over, an event recorded, nothing counted; and beside them that
//! the same one without the lie is taken.

use std::collections::BTreeMap;

use pushgate_formats::{Sha256, acts::Deed, attestation::Resource, jobs::Job};
use pushgate_tests::forge::{Built, Verifier};
use rstest::rstest;

use super::*;

/// A claim with an input, held, and a verifier that has its job.
struct Stage {
    forge: Forge,
    victor: Verifier,
    lib: Package,
    source: Item,
    push: Pushed,
    job: Job,
    inputs: BTreeMap<StorePath, Sha256>,
}

impl Stage {
    async fn set() -> Self {
        let forge = start(&rebuilt("1", "")).await;
        let (alice, victor) =
            (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
        let source = Item::source("source", &random_hex());
        forge.push(&forge.draft(&alice).item(&source)).await.assert_published(&source.path);
        let lib = begin("lib").source(&source).build();
        let push = held(&forge, &alice, &lib).await;
        let job = forge.lease(&victor).await;
        let inputs = forge.inputs_of(&job).await;
        Self { forge, victor, lib, source, push, job, inputs }
    }

    fn built(&self) -> Built {
        self.victor.built(&self.job, &self.inputs, &self.lib.outputs)
    }

    /// Refused, and with it the job; the claim waits for another verifier, who is believed.
    async fn assert_refused(self, built: &Built) {
        let right = self.built().sealed();
        let Self { forge, victor, lib, mut push, job, .. } = self;
        let (forge, lib) = (&forge, &lib);
        let before = forge.snapshot().await;
        refused(forge.report(&job, &built.sealed()).await, 422, "attestation-invalid");
        assert!(rows(forge, lib.path()).await.is_empty());
        let recorded = events(forge, "attestation-invalid").await;
        assert_eq!(recorded.len(), 1);
        assert!(recorded[0].contains(lib.drv.base_name()), "{recorded:?}");
        refused(forge.report(&job, &right).await, 403, "lease-lost");
        stays(forge, &mut push, lib.path(), PathState::Held, Some("needs-rebuild")).await;
        forge.assert_nothing_public(&before).await;
        assert_eq!(jobs(forge, lib).await[0], ("failed".to_owned(), Some("attestation-invalid".to_owned())));
        // it would say the same again
        forge.assert_no_job(&victor).await;
        let vera = forge.verifier("vera", Some("vera")).await;
        forge.rebuild(&vera, lib).await;
        forge.becomes(&mut push, lib.path(), PathState::Published, None).await;
        forge.assert_published_only(&before, &[lib.path()]).await;
    }
}

#[tokio::test]
async fn one_that_is_right_is_taken() {
    let mut stage = Stage::set().await;
    stage.forge.report(&stage.job, &stage.built().sealed()).await.expect("the result is taken");
    stage.forge.becomes(&mut stage.push, stage.lib.path(), PathState::Published, None).await;
}

#[derive(Debug, Clone, Copy)]
enum Lie {
    Key,
    Job,
    Invocation,
    Gateway,
    Verifier,
    System,
    Derivation,
    OutputNames,
    MoreOutputs,
    Path,
    ForeignInput,
    OwnOutputAsInput,
    InputHash,
    MissingInput,
    Subjects,
    Fingerprint,
    Size,
}

#[rstest]
#[case(Lie::Key)]
#[case(Lie::Job)]
#[case(Lie::Invocation)]
#[case(Lie::Gateway)]
#[case(Lie::Verifier)]
#[case(Lie::System)]
#[case(Lie::Derivation)]
#[case(Lie::OutputNames)]
#[case(Lie::MoreOutputs)]
#[case(Lie::Path)]
#[case(Lie::ForeignInput)]
#[case(Lie::OwnOutputAsInput)]
#[case(Lie::InputHash)]
#[case(Lie::MissingInput)]
#[case(Lie::Subjects)]
#[case(Lie::Fingerprint)]
#[case(Lie::Size)]
#[tokio::test]
async fn one_lie_is_enough(#[case] lie: Lie) {
    let stage = Stage::set().await;
    let (mut built, own) = (stage.built(), stage.lib.out().clone());
    let stranger = Submitter::new(stage.victor.submitter.key.name().as_str());
    let foreign = Item::source("foreign", &random_hex());
    let with_input = |built: &mut Built, item: &Item| {
        built.inputs().push(Resource::new(item.path.clone(), &item.nar_hash));
        built.inputs().sort_by(|a, b| a.name.cmp(&b.name));
    };
    match lie {
        // of the same name
        Lie::Key => built.key = stranger.key,
        Lie::Job => internal(&mut built).job = "0".repeat(24),
        Lie::Invocation => {
            built.statement.predicate.run_details.metadata.invocation_id = "0".repeat(24);
        }
        Lie::Gateway => internal(&mut built).gateway = random_hex(),
        Lie::Verifier => {
            built.statement.predicate.run_details.builder.id = "urn:pushgate:verifier:vera".to_owned();
        }
        Lie::System => internal(&mut built).system = "aarch64-linux".to_owned(),
        Lie::Derivation => {
            built.statement.predicate.build_definition.external_parameters.derivation = package("lib").drv;
        }
        Lie::OutputNames => {
            built.statement.predicate.build_definition.external_parameters.outputs =
                ["dev".to_owned()].into();
        }
        Lie::MoreOutputs => {
            let mut outputs = stage.lib.outputs.clone();
            outputs.insert("zzz".to_owned(), foreign);
            built = stage.victor.built(&stage.job, &stage.inputs, &outputs);
        }
        Lie::Path => {
            let elsewhere = Item { path: package("lib").path().clone(), ..own };
            let outputs = [("out".to_owned(), elsewhere)].into();
            built = stage.victor.built(&stage.job, &stage.inputs, &outputs);
        }
        Lie::ForeignInput => with_input(&mut built, &foreign),
        Lie::OwnOutputAsInput => with_input(&mut built, &own),
        Lie::InputHash => {
            *built.inputs() = vec![Resource::new(stage.source.path.clone(), &Sha256::of(b"other"))];
        }
        Lie::MissingInput => built.inputs().clear(),
        Lie::Subjects => {
            built.statement.subject = vec![Resource::new(own.path, &Sha256::of(b"other"))];
        }
        Lie::Fingerprint => built.outputs[0].signature.bytes[7] ^= 1,
        Lie::Size => built.outputs[0].nar_size += 1,
    }
    stage.assert_refused(&built).await;
}

fn internal(built: &mut Built) -> &mut pushgate_formats::attestation::InternalParameters {
    &mut built.statement.predicate.build_definition.internal_parameters
}

/// What was said in one job is said for that job alone, even by the same verifier about the same derivation.
#[tokio::test]
async fn one_of_another_job_of_the_derivation_is_refused() {
    let forge = start(&rebuilt("1", "")).await;
    let (alice, victor) = (forge.submitter("alice").await, forge.verifier("victor", Some("victor")).await);
    let lib = package("lib");
    let before = forge.snapshot().await;
    let evil = other(&lib, "evil");
    let mut push = forge.push(&forge.draft(&alice).item(&evil).derivations(&lib)).await;
    push.assert_held(lib.path(), "needs-rebuild");
    let first = forge.lease(&victor).await;
    let said = victor.built(&first, &BTreeMap::new(), &lib.outputs).sealed();
    forge.report(&first, &said).await.expect("the result is taken");
    // it is asked for a second build, and says what it has said
    let second = forge.lease(&victor).await;
    assert_eq!(second.derivation, lib.drv);
    refused(forge.report(&second, &said).await, 422, "attestation-invalid");
    assert_eq!(rows(&forge, lib.path()).await.len(), 1);
    assert_eq!(events(&forge, "attestation-invalid").await.len(), 1);
    stays(&forge, &mut push, lib.path(), PathState::Held, Some("rebuild-mismatch")).await;
    forge.assert_nothing_public(&before).await;
}

#[derive(Debug, Clone, Copy)]
enum Gone {
    Revoked,
    Frozen,
}

/// Since the lease.
#[rstest]
#[case(Gone::Revoked)]
#[case(Gone::Frozen)]
#[tokio::test]
async fn a_verifier_that_counts_no_more_is_not_heard(#[case] how: Gone) {
    let mut stage = Stage::set().await;
    let forge = &stage.forge;
    let before = forge.snapshot().await;
    let ada = forge.admin("ada").await;
    match how {
        Gone::Revoked => forge.revoke(&stage.victor.submitter.key).await,
        Gone::Frozen => {
            forge.act(&ada, Deed::Freeze { name: "victor".into() }).await.expect("a freeze");
        }
    }
    refused(forge.report(&stage.job, &stage.built().sealed()).await, 403, "key-revoked");
    assert!(rows(forge, stage.lib.path()).await.is_empty());
    stays(forge, &mut stage.push, stage.lib.path(), PathState::Held, Some("needs-rebuild")).await;
    forge.assert_nothing_public(&before).await;
    // its job comes to another when the lease is over
    forge.clock.advance(stage.job.lease + 1);
    let vera = forge.verifier("vera", Some("vera")).await;
    forge.rebuild(&vera, &stage.lib).await;
    forge.becomes(&mut stage.push, stage.lib.path(), PathState::Published, None).await;
}
