//! The `pushgate-verifier` command: reads arguments, calls the library, prints.

use std::{io::IsTerminal, path::Path, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use pushgate_verifier::{
    api::printable,
    cli::{Cli, Command, Doctor, Join, Run},
    config::Config,
    join, probe, run,
    sandbox::{self, SAYS},
    workdir::WorkDir,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        // before any thread is started: namespaces belong to threads
        Command::Confine(args) => return args.how.run(&args.command),
        Command::Probe(args) => {
            return match probe::look(&args) {
                Ok(()) => ExitCode::SUCCESS,
                Err(found) => {
                    eprintln!("{SAYS}{found}");
                    ExitCode::FAILURE
                }
            };
        }
        _ => {}
    }
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("PUSHGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match start(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // one line, with its causes, each fit for a terminal wherever its text comes from
            let causes: Vec<_> = error.chain().map(|cause| printable(&cause.to_string())).collect();
            eprintln!("error: {}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn start(command: Command) -> Result<()> {
    match command {
        Command::Join(Join { url, invite, work_dir }) => {
            let joined = join::join(&WorkDir::hold(&work_dir)?, &url, &invite).await?;
            println!("joined {} as {}", joined.url, joined.verifier);
            Ok(())
        }
        Command::Run(Run { work_dir, config, jobs, fetch, once }) => {
            let mut config = load(config.as_deref())?;
            config.jobs = jobs.unwrap_or(config.jobs);
            config.fetch.extend(fetch);
            run::run(&WorkDir::hold(&work_dir)?, config.checked()?, once).await
        }
        Command::Doctor(Doctor { work_dir, config }) => {
            let found = sandbox::check(&WorkDir::hold(&work_dir)?, &load(config.as_deref())?).await?;
            println!("builds run in: {}", found.limits);
            println!("nix {}", found.nix_version);
            Ok(())
        }
        Command::Confine(_) | Command::Probe(_) => unreachable!("done before the runtime"),
    }
}

fn load(path: Option<&Path>) -> Result<Config> {
    Ok(path.map_or_else(|| Ok(Config::default()), Config::load)?)
}
