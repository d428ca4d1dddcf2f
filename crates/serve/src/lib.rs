//! Servers over a warehouse: Flight SQL, PostgreSQL, web page, snapshot service.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod snapshots;
