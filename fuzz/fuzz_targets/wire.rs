//! Any bytes as all that clients of `pmill serve` send and it parses itself: tickets, headers, statements, patterns.

#![no_main]

use std::sync::LazyLock;

use datafusion_postgres::datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use libfuzzer_sys::fuzz_target;
use pmill_serve::parsing::any_bytes;

static SQL: LazyLock<PostgresCompatibilityParser> = LazyLock::new(PostgresCompatibilityParser::new);

fuzz_target!(|bytes: &[u8]| any_bytes(bytes, &SQL));
