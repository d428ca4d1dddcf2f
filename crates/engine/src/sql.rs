//! SQL over a warehouse: reads only.

use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::prelude::ParquetReadOptions;
use pmill_store::{Job, JobName, Warehouse, store_is_away};
use pmill_text::{FeatureExtractor, FeatureSpec};

use crate::catalog;
use crate::error::{EngineError, nearest_name};
use crate::features_function;
use crate::input;
use crate::job::parse;
use crate::memory::ByteSize;
use crate::ngrams_function;
use crate::session::{Session, query};
use crate::settings::RecordedSettings;
use crate::time_travel;

/// Text as an SQL literal.
#[must_use]
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A column's name in SQL, whatever is in it.
#[must_use]
pub fn name(column: &str) -> String {
    format!("\"{}\"", column.replace('"', "\"\""))
}

pub(crate) fn read_only() -> SQLOptions {
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
}

/// A session whose tables are a warehouse's jobs.
pub struct SqlSession {
    session: Session,
}

impl SqlSession {
    /// Opens a warehouse for queries. Parquet files can be named in `FROM` by their path.
    ///
    /// # Errors
    /// When the warehouse cannot be listed.
    pub fn open(warehouse: &str, threads: usize, limit: ByteSize) -> Result<Self, EngineError> {
        Self::open_at(warehouse, &[], threads, limit)
    }

    /// As [`Self::open`], with some jobs as a version shows them.
    ///
    /// # Errors
    /// When the warehouse cannot be listed, or has no such job or version.
    pub fn open_at(
        warehouse: &str,
        versions: &[(JobName, u64)],
        threads: usize,
        limit: ByteSize,
    ) -> Result<Self, EngineError> {
        let warehouse = Warehouse::open(warehouse)?;
        let session = Session::new(threads, limit, None)?.with_file_tables();
        session.wait(catalog::register_at(
            session.context(),
            &warehouse,
            versions,
        ))?;
        Ok(Self { session })
    }

    /// A session that reads files only.
    ///
    /// # Errors
    /// When the runtime cannot start.
    pub fn without_warehouse(threads: usize, limit: ByteSize) -> Result<Self, EngineError> {
        let session = Session::new(threads, limit, None)?.with_file_tables();
        Ok(Self { session })
    }

    /// Adds the SQL function `features(text)` with the settings that a job was counted with.
    ///
    /// # Errors
    /// When there is no such job, or a file that its settings name is not there any more.
    pub fn add_features_of(&self, warehouse: &str, job: &str) -> Result<(), EngineError> {
        let warehouse = Warehouse::open(warehouse)?;
        let name = JobName::new(job)?;
        let job = self.session.wait(Job::open_existing(&warehouse, &name))?;
        let recorded: RecordedSettings = parse(&job.settings()?)?;
        self.add_features(&recorded.given.features)
    }

    /// Makes files the table `input`; their columns are merged by name.
    ///
    /// # Errors
    /// When a path leads to no file, or a file is not Parquet.
    pub fn add_input(&self, paths: &[String]) -> Result<(), EngineError> {
        let files: Vec<String> = input::expand(paths)?
            .into_iter()
            .map(|file| file.uri)
            .collect();
        self.session.wait(async {
            let context = self.session.context();
            let options = ParquetReadOptions::default().file_extension("");
            let frame = context.read_parquet(files, options).await.map_err(query)?;
            context
                .register_table("input", frame.into_view())
                .map_err(query)?;
            Ok(())
        })
    }

    /// Adds the SQL functions `features(text)` of a feature spec, and `ngrams(list, n)`.
    ///
    /// # Errors
    /// When a file that the spec names cannot be read.
    pub fn add_features(&self, spec: &FeatureSpec) -> Result<(), EngineError> {
        let extractor = Arc::new(FeatureExtractor::new(spec)?);
        self.session
            .context()
            .register_udf(features_function::features(extractor));
        self.session
            .context()
            .register_udf(ngrams_function::ngrams());
        Ok(())
    }

    /// Makes a query a table of the session.
    ///
    /// # Errors
    /// When the query does not parse or plan.
    pub fn add_view(&self, name: &str, sql: &str) -> Result<(), EngineError> {
        self.session.wait(async {
            let context = self.session.context();
            let frame = context
                .sql_with_options(sql, read_only())
                .await
                .map_err(|error| self.explain(error))?;
            context
                .register_table(name, frame.into_view())
                .map_err(query)?;
            Ok(())
        })
    }

    /// Starts a query. Statements that change anything are refused.
    ///
    /// # Errors
    /// When the statement does not parse or plan; an unknown table is answered with the nearest one.
    pub fn query(&self, sql: &str) -> Result<SendableRecordBatchStream, EngineError> {
        self.session.wait(async {
            let sql = time_travel::rewrite(sql).map_err(EngineError::Query)?;
            let frame = self
                .session
                .context()
                .sql_with_options(&sql, read_only())
                .await
                .map_err(|error| self.explain(error))?;
            frame.execute_stream().await.map_err(query)
        })
    }

    /// The runtime that drives the stream.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Adds the tables that exist to "table not found".
    fn explain(&self, error: datafusion::error::DataFusionError) -> EngineError {
        let text = error.strip_backtrace();
        if store_is_away(&text) {
            return EngineError::Away(text);
        }
        // What the catalog says needs no name of a layer.
        let text = text
            .strip_prefix("External error: ")
            .map_or(text.clone(), str::to_owned);
        let Some(at) = text.find("table '") else {
            return EngineError::Query(text);
        };
        if !text.contains("not found") {
            return EngineError::Query(text);
        }
        let asked = text[at + 7..].split('\'').next().unwrap_or_default();
        let asked = asked.strip_prefix("datafusion.").unwrap_or(asked);
        let asked = asked.strip_prefix("public.").unwrap_or(asked);
        let context = self.session.context();
        let known: Vec<String> = context
            .catalog_names()
            .iter()
            .filter_map(|name| context.catalog(name))
            .flat_map(|catalog| {
                catalog.schema_names().into_iter().flat_map(move |schema| {
                    let tables = catalog
                        .schema(&schema)
                        .map(|s| s.table_names())
                        .unwrap_or_default();
                    tables
                        .into_iter()
                        .map(move |table| format!("{schema}.{table}"))
                })
            })
            .filter(|name| !name.starts_with("information_schema"))
            .collect();
        let nearest = nearest_name(asked, known.iter().map(String::as_str))
            .map(|name| format!(" (did you mean `{name}`?)"))
            .unwrap_or_default();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        EngineError::Query(format!(
            "no table `{asked}`{nearest}; the warehouse has: {known}"
        ))
    }
}
