//! How long one decision takes by a policy of 200 rules. Prints the average and the worst claim, in microseconds, and fails
//! above the bound: `cargo bench -p pushgate-policies`, or `scripts/bench --sets policy`.

use std::{fmt::Write, hint::black_box, process::ExitCode, time::Instant};

use pushgate_policies::{
    Policy, decide,
    facts::{Built, Claim, Evidence, Fact, Identity, Moment, Outcome, Provenance, Rebuild},
    scenario::Scenario,
};

const RULES: usize = 200;
const ROUNDS: u32 = 2_000;
/// Microseconds that a decision may take on average.
const BOUND: f64 = 20.0;

/// Rules of all kinds; the last is for everything.
fn policy() -> String {
    let mut text = String::from(
        "version = 1\ncache = \"main\"\n[groups]\nci = \"enrolled\"\ncore = [\"alice\", \"bob\"]\n",
    );
    for i in 0..RULES - 1 {
        let matches = match i % 8 {
            0 => format!("pname = [\"package{i}\", \"other{i}\", \"third{i}\"]"),
            1 => format!("pname = \"glob:lib{i}-*\""),
            2 => format!("system = \"riscv{i}-linux\", output = \"out\""),
            3 => format!("submitter = [\"somebody-{i}\", \"@ci\"], version = \"{i}\""),
            4 => format!("env.VARIABLE_{i} = \"1\""),
            5 => format!("owner = \"owner-{i}\", size = {{ min = \"1 GiB\" }}"),
            6 => format!("not = {{ pname = {{ not = \"package{i}\" }} }}"),
            _ => format!("version = \"glob:{i}.*.*\", content-addressed = false"),
        };
        let _ = write!(
            text,
            "[[rule]]\nname = \"rule {i}\"\nmatch = {{ {matches} }}\nrequire = \"derivation\"\n"
        );
    }
    text.push_str(
        "[[rule]]\nname = \"rest\"\nmatch = {}\nrequire = { all = [\"derivation\", { any = [{ rebuilds = 2 }, { submitters = 2 }] }, \
         { approvals = 1, from = \"core\" }] }\n",
    );
    text
}

fn main() -> ExitCode {
    let text = policy();
    let start = Instant::now();
    let policy = Policy::parse(&text, "bench.toml", "main").expect("the policy is right");
    let parsed = start.elapsed();
    let env = [("NAME".to_owned(), "hello".to_owned())].into();
    let groups = ["staff".to_owned()];
    let mut evidence = Evidence::only(Provenance::Derivation);
    evidence.rebuilds.push(Rebuild {
        verifier: "v".into(),
        owner: Some("o".into()),
        outcome: Outcome::Match,
        inputs_rebuilt: false,
        nar_hash: None,
        builds: 1,
    });
    // all of them come to the last rule
    let names = [
        "hello-2.12.1",
        "lib-9.1",
        "python3.12-requests-2.32.3",
        "a-package-with-a-rather-long-name-2024-01-01",
    ];
    let (mut worst, mut total) = (0.0_f64, 0.0);
    for name in names {
        let path = Scenario::path(name).expect("a name");
        let built =
            Built { derivation: &path, output: "out", system: "x86_64-linux", builder: "/bin/sh", env: &env };
        let claim = Claim {
            cache: "main",
            path: &path,
            nar_hash: pushgate_formats::Sha256::of(b"nar"),
            nar_size: 1 << 20,
            submitter: Identity { name: "carol", owner: Some("carol"), groups: &groups },
            content_addressed: Fact::Known(false),
            built: Fact::Known(built),
            sources: Fact::Known(&[]),
        };
        let start = Instant::now();
        for now in 0..ROUNDS {
            let moment = Moment { now: u64::from(now), announced: 0 };
            black_box(decide(black_box(&policy), black_box(&claim), black_box(&evidence), moment));
        }
        let micros = start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS);
        worst = worst.max(micros);
        total += micros;
    }
    let average = total / names.len() as f64;
    println!(
        "policy: {RULES} rules, {average:.2} µs a decision on average, {worst:.2} µs the slowest claim; read in {:.0} µs",
        parsed.as_secs_f64() * 1e6
    );
    if average < BOUND {
        ExitCode::SUCCESS
    } else {
        eprintln!("a decision takes more than {BOUND} µs");
        ExitCode::FAILURE
    }
}
