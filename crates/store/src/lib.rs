//! The warehouse: count tables and PMI tables as Delta tables, one folder a job.
//!
//! ```text
//! WAREHOUSE/
//!   captions/            one job
//!     vocab/             Delta table: id, token, count, documents
//!     pairs/             Delta table: left_id, right_id, count, sorted by both
//!     sources/           Delta table: what was counted, skipped and taken out
//!     outside/           Delta table: terms outside the vocabulary, with their counts
//!     tail/              Delta table: the sketch of the pairs that are not in `pairs`, if the job has one
//!     pmi/               Delta table: scores, written by `pmill score`
//!   .pmill/captions/     work in progress: lock, plan, runs, manifests
//! ```
//!
//! # The commit protocol
//!
//! A batch changes several tables, and a reader must see all of it or nothing. Delta commits are
//! atomic for one table only, so the tables are committed in this order: `vocab`, `outside`, `tail`,
//! `sources`, and last `pairs`, whose table properties carry the versions of the others. A reader opens
//! `pairs` first and then just the versions that it names ([`Job::open`]). A process that dies in
//! between leaves versions of `vocab`, `outside`, `tail` or `sources` that no `pairs` version names: nobody reads
//! them, and the next commit replaces them.
//!
//! Delta has no unsigned types: ids are stored as `integer` (vocabularies hold fewer than 2³¹
//! terms) and counts as `long` (a count above 2⁶³ − 1 is refused, never wrapped).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod delta;
mod error;
mod history;
mod job;
pub mod killpoint;
mod pairs;
pub mod remote;
pub mod schema;
mod sweep;
mod target;
mod vacuum;
mod warehouse;
mod writer;

pub use delta::{DataFile, TableState};
pub use error::{Kind, StoreError, store_is_away, work_kind};
pub use job::{CompactCommit, Job, JobCommit, JobName, JobVersion, PmiCommit};
pub use pairs::PairsWriter;
pub use sweep::Swept;
pub use vacuum::{Keep, TableVacuum, Vacuumed};
pub use warehouse::{JobLock, Warehouse, set_work_folder};
pub use writer::{TableWriter, table_properties};
