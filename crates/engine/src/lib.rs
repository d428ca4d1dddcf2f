//! The engine: from Parquet files to committed tables.
//!
//! ```text
//! input ─ scan ─ read ─ vocabulary ─ counting ─ tables ─ commit        (job)
//!        column  tokens  dictionaries
//! ```
//!
//! The functions here are blocking: they own a runtime ([`session::Session`]) and must be called
//! from a thread outside any other.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod annotate;
pub mod budget;
pub mod catalog;
pub mod column;
pub mod compact;
pub mod correlate;
pub mod counting;
pub mod dictionaries;
pub mod drift;
pub mod error;
pub mod evaluate;
pub mod expression;
pub mod features_function;
mod footer;
pub mod input;
pub mod inspect;
pub mod job;
pub mod memory;
pub mod merge_tables;
mod ngrams_function;
pub mod outside;
mod pages;
pub mod pairs_table;
pub mod progress;
pub mod read;
mod remap;
mod remote_input;
pub mod row_choice;
pub mod row_set;
pub mod rows;
pub mod sample;
pub mod scan;
pub mod score;
pub mod session;
pub mod settings;
pub mod slices;
pub mod snapshots;
pub mod sources;
pub mod sql;
pub mod stored;
pub mod stores;
pub mod table_functions;
pub mod tables;
pub mod tail;
pub mod time_travel;
pub mod tokens;
pub mod units;
pub mod unwind;
pub mod vacuum;
pub mod verify;
pub mod vocabulary;
pub mod work;
pub mod workers;

pub use error::{EngineError, FileFault, Kind};
pub use pmill_stats as stats;
pub use pmill_store as store;
pub use pmill_text as text;
/// The kernel's settings.
pub mod count_settings {
    pub use pmill_count::{OutOfVocabulary, Side, TailSettings, Weight};
}
