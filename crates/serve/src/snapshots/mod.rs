//! The merge service: agents announce a run, publish their snapshots, and get one merge (gRPC).
//!
//! The way of a publication: [`server`] takes the message, [`checks`] reads the snapshot and holds it against
//! the run's first, [`registry`] writes it down and sees whether the rule is met, [`merging`] runs the one merge,
//! and watchers are told. All state is files under `WAREHOUSE/merge-runs/RUN/` (module `files`), each written whole
//! and then renamed, so what a restarted service finds is what it had:
//!
//! ```text
//! run.json        the announcement
//! agents/A.json   what agent A published
//! decision.json   who is merged; no publication is taken after it
//! outcome.json    the merged snapshot, or why there is none
//! merged/         the merged snapshot, unless the run was announced with a place in an object store
//! ```
//!
//! Held in memory: those records. Merges run one after the other, checks two at a time.

pub mod checks;
pub mod client;
mod convert;
mod error;
mod files;
pub mod merging;
pub mod record;
pub mod registry;
pub mod server;

/// The messages and stubs of `proto/snapshot.proto`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod proto {
    tonic::include_proto!("pmill.snapshot.v1");
}

/// Chooses the cryptography of TLS for the whole process: other crates bring a second one in, and rustls then
/// refuses to guess.
fn choose_cryptography() {
    // An error says that it was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

pub use client::{Client, ClientSettings};
pub use error::MergeServiceError;
pub use merging::{InProcess, Job, Merger};
pub use registry::Registry;
pub use server::{ServerSettings, serve};
