//! Servers over a warehouse: Flight SQL, PostgreSQL, and a web page.
//!
//! ```text
//! flight ──┐
//! postgres ┼─ auth ─ service ─ guard ─ library ─ table ─ runs
//! web ─────┘          │ limits, traces  (versions, footers, plans, index of terms)
//! ```
//!
//! [`service::Service`] takes a statement and gives back a bounded stream of rows; it knows nothing of
//! protocols. The module `server` listens, lets in, and stops.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod auth;
pub mod error;
pub mod flight;
pub mod guard;
pub mod health;
pub mod heavy;
pub mod library;
pub mod limits;
pub mod listen;
pub mod metrics;
pub mod pairs;
pub mod parsing;
pub mod postgres;
pub mod runs;
pub mod server;
pub mod service;
pub mod settings;
pub mod shared;
pub mod snapshots;
pub mod table;
pub mod tls;
pub mod traces;
pub mod web;

pub use error::ServeError;
