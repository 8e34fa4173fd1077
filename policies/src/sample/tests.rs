use proptest::prelude::*;
use rstest::rstest;

use super::*;

const SEED: Seed = Seed([7; 32]);

fn path(name: &str) -> StorePath {
    StorePath::from_digest(&[7; 20], name).unwrap()
}

fn sample(millionths: u32, probation: u32) -> Sample {
    Sample { rate: Rate::of_millionths(millionths).unwrap(), probation }
}

fn weighed(dependants: u32, matches: u32, mismatched: bool) -> Weighed {
    Weighed { claims: 0, dependants, matches, mismatched }
}

#[rstest]
#[case::new(0, 0, false, 1)]
#[case::one(1, 0, false, 3)]
#[case::two(2, 0, false, 5)]
#[case::three(3, 0, false, 5)]
#[case::thousand(1000, 0, false, 21)]
#[case::all_there_could_be(u32::MAX, 0, false, 64)]
#[case::matches_halve_it(1000, 16, false, 11)]
#[case::and_again(1000, 48, false, 6)]
#[case::never_to_nothing(1000, u32::MAX, false, 1)]
#[case::nothing_below_one(0, 1000, false, 1)]
#[case::top_after_a_mismatch(0, 0, true, 64)]
#[case::whatever_matched(0, 31, true, 64)]
fn weights(#[case] dependants: u32, #[case] matches: u32, #[case] mismatched: bool, #[case] wanted: u32) {
    assert_eq!(weight(&weighed(dependants, matches, mismatched)), wanted);
}

#[test]
fn a_mismatch_is_forgotten_after_enough_matches() {
    assert!(is_mismatched(true, 0) && is_mismatched(true, SUFFICIENT - 1));
    assert!(!is_mismatched(true, SUFFICIENT) && !is_mismatched(false, 0));
}

/// Computed by another program from what the module says.
#[rstest]
#[case::none(0, weighed(0, 0, true), 0)]
#[case::least(1, weighed(0, 0, false), 281_474_977)]
#[case::twentieth(50_000, weighed(0, 0, false), 14_073_748_835_533)]
#[case::of_weight_21(50_000, weighed(1000, 0, false), 185_615_400_882_674)]
#[case::of_weight_64(50_000, weighed(0, 0, true), 270_912_870_500_130)]
#[case::of_weight_3(333_333, weighed(1, 0, false), 198_074_858_511_152)]
#[case::all(1_000_000, weighed(0, 0, false), ALWAYS)]
fn thresholds(#[case] millionths: u32, #[case] weighed: Weighed, #[case] wanted: u64) {
    assert_eq!(threshold(&sample(millionths, 0), &weighed), wanted);
}

#[test]
fn the_first_claims_are_all_drawn() {
    let after = |claims| threshold(&sample(0, 20), &Weighed { claims, ..Weighed::default() });
    assert_eq!((after(0), after(19), after(20)), (ALWAYS, ALWAYS, 0));
}

/// Computed by another program from what the module says.
#[rstest]
#[case(Seed([0; 32]), 53_732_070_318_145)]
#[case(SEED, 232_496_474_283_701)]
fn numbers(#[case] seed: Seed, #[case] wanted: u64) {
    let path = StorePath::from_base_name("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a").unwrap();
    assert_eq!(draw(&seed, "main", &path, &Sha256::of(b"n")), wanted);
}

#[test]
fn each_part_of_a_claim_and_the_seed_changes_the_number() {
    let (hash, of) = (Sha256::of(b"n"), |cache, name, hash| draw(&SEED, cache, &path(name), &hash));
    let number = of("main", "a", hash);
    assert_ne!(of("mainb", "a", hash), number);
    assert_ne!(of("main", "b", hash), number);
    assert_ne!(of("main", "a", Sha256::of(b"m")), number);
    assert_ne!(draw(&Seed([8; 32]), "main", &path("a"), &hash), number);
}

/// With the seed given, so that it never fails by chance.
#[rstest]
#[case::rare(10_000, 0, 0.01)]
#[case::twentieth(50_000, 0, 0.05)]
#[case::weighty(50_000, 1000, 0.659_438)]
#[case::half(500_000, 0, 0.5)]
fn as_many_are_drawn_as_should_be(#[case] millionths: u32, #[case] dependants: u32, #[case] share: f64) {
    const DRAWS: u32 = 100_000;
    let threshold = threshold(&sample(millionths, 0), &weighed(dependants, 0, false));
    for seed in [SEED, Seed([1; 32])] {
        let drawn = (0..DRAWS)
            .filter(|i| draw(&seed, "main", &path("a"), &Sha256::of(&i.to_be_bytes())) < threshold)
            .count() as f64;
        let deviation = (f64::from(DRAWS) * share * (1.0 - share)).sqrt();
        assert!((drawn - f64::from(DRAWS) * share).abs() < 4.0 * deviation, "{drawn}");
    }
}

/// An epoch with a few draws.
fn drawn() -> (Epoch, Vec<Draw>) {
    let epoch = Epoch {
        cache: "main".into(),
        closed: Some(200),
        commitment: SEED.commitment(),
        kind: "epoch".into(),
        number: 3,
        opened: 100,
        seed: Some(SEED),
        v: 1,
    };
    let draws = (0..20u32).map(|i| {
        let path = path(&format!("a-{i}"));
        let weighed = Weighed { claims: i, ..weighed(i, i, i == 7) };
        let (rule, sample) = ("r", &sample(300_000, 3));
        Drawing {
            cache: "main",
            path: &path,
            nar_hash: Sha256::of(b"n"),
            rule,
            sample,
            weighed,
            time: 100 + u64::from(i),
        }
        .draw(3, &SEED)
    });
    let draws = draws.collect();
    (epoch, draws)
}

#[test]
fn an_honest_epoch_replays() {
    let (epoch, draws) = drawn();
    assert_eq!(replay(&epoch, &draws), []);
    assert!(draws.iter().any(|draw| draw.drawn) && draws.iter().any(|draw| !draw.drawn));
}

#[rstest]
#[case::seed(|epoch: &mut Epoch| epoch.seed = Some(Seed([8; 32])), Fault::Commitment)]
#[case::commitment(|epoch: &mut Epoch| epoch.commitment = Sha256::of(b"x"), Fault::Commitment)]
#[case::no_seed(|epoch: &mut Epoch| (epoch.seed, epoch.closed) = (None, None), Fault::Unrevealed)]
#[case::open_with_seed(|epoch: &mut Epoch| epoch.closed = None, Fault::Times)]
#[case::ends_before_it_begins(|epoch: &mut Epoch| epoch.closed = Some(99), Fault::Times)]
#[case::kind(|epoch: &mut Epoch| epoch.kind = "draw".into(), Fault::Form)]
#[case::version(|epoch: &mut Epoch| epoch.v = 2, Fault::Form)]
fn a_dishonest_epoch_is_found(#[case] tamper: fn(&mut Epoch), #[case] what: Fault) {
    let (mut epoch, draws) = drawn();
    tamper(&mut epoch);
    assert!(replay(&epoch, &draws).contains(&Wrong { place: None, what }));
}

/// What one false part of a record shows; those after it are judged by what the record says.
#[rstest]
#[case::cache(|draw: &mut Draw| draw.cache = "b".into(), "it is of another cache or epoch")]
#[case::number(|draw: &mut Draw| draw.draw += 1, "the number drawn should be ")]
#[case::drawn(|draw: &mut Draw| draw.drawn = !draw.drawn, "it should")]
#[case::epoch(|draw: &mut Draw| draw.epoch += 1, "it is of another cache or epoch")]
#[case::kind(|draw: &mut Draw| draw.kind = "publish".into(), "the record is of another kind")]
#[case::nar_hash(|draw: &mut Draw| draw.nar_hash = Sha256::of(b"m"), "the number drawn should be ")]
#[case::path(|draw: &mut Draw| draw.path = path("b"), "the number drawn should be ")]
#[case::probation(|draw: &mut Draw| draw.probation = 1000, "the threshold should be ")]
#[case::rate(|draw: &mut Draw| draw.rate += 1, "the threshold should be ")]
#[case::rate_beyond_all(|draw: &mut Draw| draw.rate = 1_000_001, "the rate is more than all")]
#[case::threshold(|draw: &mut Draw| draw.threshold -= 1, "the threshold should be ")]
#[case::early(|draw: &mut Draw| draw.time = 99, "it was made outside the epoch")]
#[case::late(|draw: &mut Draw| draw.time = 201, "it was made outside the epoch")]
#[case::version(|draw: &mut Draw| draw.v = 2, "the record is of another kind")]
#[case::claims(|draw: &mut Draw| draw.weighed.claims = 0, "the threshold should be ")]
#[case::dependants(|draw: &mut Draw| draw.weighed.dependants *= 64, "the weight should be ")]
#[case::matches(|draw: &mut Draw| draw.weighed.matches += 16, "the weight should be ")]
#[case::mismatched(|draw: &mut Draw| draw.weighed.mismatched = true, "the weight should be ")]
#[case::weight(|draw: &mut Draw| draw.weight += 1, "the weight should be ")]
fn a_dishonest_draw_is_found(#[case] tamper: fn(&mut Draw), #[case] says: &str) {
    for place in 4..20 {
        let (epoch, mut draws) = drawn();
        // nothing weighs more than that
        if draws[place].weighed.mismatched {
            continue;
        }
        tamper(&mut draws[place]);
        let wrong = replay(&epoch, &draws);
        assert!(wrong.iter().all(|wrong| wrong.place == Some(place)), "{wrong:?}");
        assert!(wrong.iter().any(|wrong| wrong.what.to_string().starts_with(says)), "{wrong:?}");
    }
}

#[test]
fn a_claim_draws_once() {
    let (epoch, mut draws) = drawn();
    draws.push(draws[0].clone());
    assert_eq!(replay(&epoch, &draws), [Wrong { place: Some(20), what: Fault::Repeated }]);
}

fn any_weighed() -> impl Strategy<Value = Weighed> {
    (0..100u32, any::<u32>(), prop_oneof![0..100u32, any::<u32>()], any::<bool>()).prop_map(
        |(claims, dependants, matches, mismatched)| Weighed { claims, dependants, matches, mismatched },
    )
}

proptest! {
    /// A claim's number depends on nothing but the claim: not on what else is claimed, nor in which order or how often.
    #[test]
    fn order_and_repetition_change_nothing(order in proptest::collection::vec(0..20usize, 1..60)) {
        let (_, once) = drawn();
        for i in order {
            let claim = &once[i];
            let again = draw(&SEED, &claim.cache, &claim.path, &claim.nar_hash);
            prop_assert_eq!(again, claim.draw);
        }
    }

    #[test]
    fn none_and_all(weighed in any_weighed(), seed in any::<[u8; 32]>(), nar in any::<[u8; 32]>()) {
        let number = draw(&Seed(seed), "main", &path("a"), &Sha256(nar));
        prop_assert!(number < ALWAYS);
        prop_assert!(number >= threshold(&sample(0, 0), &weighed));
        prop_assert!(number < threshold(&sample(1_000_000, 0), &weighed));
    }

    /// Never less than the rate, and more for what weighs more.
    #[test]
    fn probabilities(rate in 0..=1_000_000u32, a in any_weighed(), b in any_weighed()) {
        let of = |weighed| threshold(&sample(rate, 0), weighed);
        prop_assert!((1..=MAX_WEIGHT).contains(&weight(&a)));
        prop_assert!(u128::from(of(&a)) * 1_000_000 >= u128::from(rate) * u128::from(ALWAYS));
        prop_assert!(of(&a) <= ALWAYS);
        if weight(&a) <= weight(&b) {
            prop_assert!(of(&a) <= of(&b));
        }
        let share = 1.0 - (1.0 - f64::from(rate) / 1e6).powi(weight(&a) as i32);
        prop_assert!((of(&a) as f64 / ALWAYS as f64 - share).abs() < 1e-9);
    }

    #[test]
    fn more_dependants_weigh_more_and_more_matches_less(a in any_weighed(), more in any::<u32>()) {
        let heavier = Weighed { dependants: a.dependants.saturating_add(more), ..a };
        let lighter = Weighed { matches: a.matches.saturating_add(more), ..a };
        prop_assert!(weight(&heavier) >= weight(&a) && weight(&lighter) <= weight(&a));
        prop_assert_eq!(weight(&Weighed { mismatched: true, ..a }), MAX_WEIGHT);
    }
}
