//! The pushgate server. The life of a push is in [`push`], a module a stage; [`db`] and [`blobs`] are the seams to what
//! stores it; [`http`] holds the routes.

pub mod acts;
pub mod app;
pub mod blobs;
pub mod caches;
pub mod clock;
pub mod config;
pub mod db;
pub mod error;
pub mod http;
pub mod identities;
pub mod limits;
pub mod push;
pub mod random;
pub mod tokens;
pub mod upstream;
