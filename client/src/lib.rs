//! The client of pushgate: joins gateways, pushes store paths to them, and asks what became of them. The command
//! `pushgate` is a thin layer over this library: reading arguments ([`cli`]) and printing ([`output`]) stay out of what
//! does the work.

pub mod admin;
pub mod api;
pub mod build;
pub mod cli;
pub mod clock;
pub mod config;
pub mod difference;
pub mod join;
pub mod keyfile;
pub mod nix;
pub mod output;
pub mod policy;
pub mod progress;
pub mod push;
pub mod review;
pub mod session;
pub mod status;
pub mod token;
