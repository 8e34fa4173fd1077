//! Whole-system tests, one binary: each module is a theme.

mod access;
mod admin;
mod attacks_bytes;
mod attacks_claims;
mod attacks_http;
mod attacks_identity;
mod attacks_limits;
mod attacks_resources;
mod attacks_stock;
mod audit;
mod consumers;
mod corpus;
mod crash;
mod damage;
mod faults;
mod http;
mod load;
mod policy;
mod pushes;
mod reads;
mod rebuild;
mod review;
mod static_files;
mod stock;
mod upstream;
mod verifiers;
