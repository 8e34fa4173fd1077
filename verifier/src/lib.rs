//! The rebuild worker. Leases jobs from a gateway, builds each with stock Nix in a store and a sandbox of its own, and
//! attests to what came out. Knows neither the cache's key nor what anybody claims.

pub mod api;
pub mod cgroup;
pub mod cli;
pub mod clock;
pub mod config;
pub mod confine;
pub mod job;
pub mod join;
pub mod key;
pub mod lease;
pub mod nix;
pub mod nix_log;
pub mod probe;
pub mod processes;
pub mod report;
pub mod run;
pub mod sandbox;
pub mod workdir;
