//! Roles of a cluster: scheduler, executor and client on Ballista.

#![cfg_attr(test, allow(clippy::unwrap_used))]
