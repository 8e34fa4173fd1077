//! The command line. Knows the arguments and nothing of what they do.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::confine::Confinement;

/// Rebuilds derivations for a pushgate gateway and attests to what came out.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a key, and enrol it at a gateway with a verifier's invite
    Join(Join),
    /// Take jobs, build, report; until it is told to stop
    Run(Run),
    /// Say whether builds can be confined on this machine, and how
    Doctor(Doctor),
    /// Become the first process of a build's namespaces
    #[command(hide = true)]
    Confine(Confine),
    /// Look around inside a sandbox
    #[command(hide = true)]
    Probe(Probe),
}

#[derive(Debug, clap::Args)]
pub struct Join {
    /// The gateway's address
    pub url: String,
    /// One-time code from `pushgate-gateway invite NAME --role verifier`
    #[arg(long, value_name = "CODE")]
    pub invite: String,
    /// Where the key, the settings and the jobs go
    #[arg(long, value_name = "DIR")]
    pub work_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct Run {
    /// The directory of `join`
    #[arg(long, value_name = "DIR")]
    pub work_dir: PathBuf,
    /// What is built, and within which bounds (see docs/verifier.md)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Builds at a time
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Fetch sources from addresses that begin so; may be given more than once
    #[arg(long, value_name = "URLPREFIX")]
    pub fetch: Vec<String>,
    /// Do one job and end
    #[arg(long)]
    pub once: bool,
}

#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// Where the trial build goes
    #[arg(long, value_name = "DIR")]
    pub work_dir: PathBuf,
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Confine {
    #[command(flatten)]
    pub how: Confinement,
    /// The command
    #[arg(last = true, required = true)]
    pub command: Vec<std::ffi::OsString>,
}

#[derive(Debug, clap::Args)]
pub struct Probe {
    /// A port on which the host listens
    #[arg(long)]
    pub port: u16,
    /// A file of the host
    #[arg(long)]
    pub file: PathBuf,
    /// Where to say that all is well
    #[arg(long)]
    pub out: PathBuf,
}
