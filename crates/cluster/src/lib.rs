//! Roles of a cluster: scheduler, executor and client on Ballista.
//!
//! ```text
//! pmill count --cluster ──(one Ballista job a unit)──▶ scheduler ◀──(polls for tasks)── executor
//!        │                                                                                │
//!        └────────── plan, manifests ─────────▶ shared folder ◀───── data, manifests ─────┘
//! ```
//!
//! Ballista queues tasks and gives them to executors; that is all it is trusted with. What is done
//! is told by manifests in the shared folder ([`pmill_engine::job::distributed`]), so a scheduler
//! that forgets its jobs, an executor that dies and a driver that starts again lose nothing but
//! time. Executors listen on nothing: they poll the scheduler, and no result is ever fetched.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod client;
mod codec;
mod error;
mod executor;
mod guard;
mod http;
mod metrics;
mod net;
mod scheduler;
mod unit_exec;

pub use client::{ClusterRunner, Patience, cluster_state};
pub use error::ClusterError;
pub use executor::{ExecutorConfig, run_executor};
pub use net::{ClientSecurity, ServerSecurity};
pub use scheduler::{SchedulerSettings, run_scheduler};

/// Messages of `proto/pmill/cluster/v1`.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    tonic::include_proto!("pmill.cluster.v1");
}

/// This program, for messages.
pub const PROGRAM: &str = concat!("pmill ", env!("CARGO_PKG_VERSION"));
