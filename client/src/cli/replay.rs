//! The command line of `pushgate policy replay`.

use std::path::PathBuf;

use clap::Args;

use super::{Gateway, admin::cache};

/// Try a changed policy on what a gateway has decided, and list each decision that would differ
///
/// Each decision is made again by the new file, from the facts that were recorded with it and at the time of then. Where
/// the new file asks for facts that weren't looked up then, the decision can't be told; those are counted apart. Nothing
/// changes at the gateway.
///
/// Exit codes: 0 nothing differs, 1 error, 2 wrong arguments, 3 something differs.
#[derive(Debug, Args)]
pub struct Replay {
    /// The new policy file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Name of the cache whose decisions are tried, and that the file is for
    #[arg(long, value_name = "CACHE", default_value = "main", value_parser = cache)]
    pub cache: String,
    /// Decisions that came before the last one of their claim as well
    #[arg(long)]
    pub every: bool,
    /// Read the decisions from a file that --dump wrote, and ask no gateway
    #[arg(long, value_name = "FILE", conflicts_with = "dump")]
    pub decisions: Option<PathBuf>,
    /// Write all decisions into a file too, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub gateway: Gateway,
}
