//! Whole-system tests, one binary: each module is a theme.

mod access;
mod attacks_claims;
mod attacks_http;
mod attacks_identity;
mod attacks_resources;
mod attacks_stock;
mod consumers;
mod corpus;
mod crash;
mod faults;
mod http;
mod pushes;
mod stock;
mod upstream;
