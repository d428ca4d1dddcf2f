//! What there is: catalogs, schemas, tables, and what this server can do.

use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetTables, SqlInfo};
use datafusion::arrow::record_batch::RecordBatch;
use tonic::Status;

use super::Flight;
use crate::error::ServeError;
use crate::library::Dialect;

fn bug(error: impl std::fmt::Display) -> Status {
    ServeError::Bug(error.to_string()).status()
}

impl Flight {
    pub(super) async fn list_schemas(
        &self,
        query: CommandGetDbSchemas,
    ) -> Result<RecordBatch, Status> {
        let snapshot = self.service.snapshot().await?;
        let catalog = self.service.library().catalog();
        let mut builder = query.into_builder();
        for (job, _) in snapshot.jobs() {
            builder.append(catalog, job.as_str());
        }
        builder.append(catalog, "information_schema");
        builder.build().map_err(bug)
    }

    pub(super) async fn list_tables(&self, query: CommandGetTables) -> Result<RecordBatch, Status> {
        let snapshot = self.service.snapshot().await?;
        let catalog = self.service.library().catalog();
        let with_schema = query.include_schema;
        let provider = snapshot.context(Dialect::Plain).catalog(catalog);
        let mut builder = query.into_builder();
        let empty = datafusion::arrow::datatypes::Schema::empty();
        for (job, _) in snapshot.jobs() {
            let Some(schema) = provider.as_ref().and_then(|all| all.schema(job.as_str())) else {
                continue;
            };
            for table in schema.table_names() {
                let columns = match with_schema {
                    false => None,
                    true => schema
                        .table(&table)
                        .await
                        .map_err(|error| ServeError::from_engine(error, "").status())?
                        .map(|table| table.schema()),
                };
                let columns = columns.as_deref().unwrap_or(&empty);
                builder
                    .append(catalog, job.as_str(), &table, "TABLE", columns)
                    .map_err(bug)?;
            }
        }
        builder.build().map_err(bug)
    }
}

/// What the server says of itself.
pub(super) fn info() -> Result<SqlInfoData, Status> {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "pmill");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    info.append(SqlInfo::FlightSqlServerReadOnly, true);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    // 0: none.
    info.append(SqlInfo::FlightSqlServerTransaction, 0_i32);
    info.append(SqlInfo::FlightSqlServerCancel, true);
    info.append(SqlInfo::FlightSqlServerStatementTimeout, 0_i32);
    info.append(SqlInfo::FlightSqlServerBulkIngestion, false);
    info.append(SqlInfo::SqlDdlCatalog, false);
    info.append(SqlInfo::SqlDdlSchema, false);
    info.append(SqlInfo::SqlDdlTable, false);
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    // SqlSupportedCaseSensitivity: 3 folds to lower case, 1 takes names as they are.
    info.append(SqlInfo::SqlIdentifierCase, 3_i64);
    info.append(SqlInfo::SqlQuotedIdentifierCase, 1_i64);
    info.append(SqlInfo::SqlAllTablesAreSelectable, true);
    info.build().map_err(bug)
}
