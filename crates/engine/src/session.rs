//! DataFusion's session as pmill sets it up: memory pool, temporary files, functions.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use futures::StreamExt;
use pmill_store::store_is_away;
use tokio::runtime::{Handle, Runtime};

use crate::error::EngineError;
use crate::memory::ByteSize;
use crate::progress::StopFlag;
use crate::stores::Stores;

/// A runtime and a DataFusion context that share one memory limit.
pub struct Session {
    runtime: Runtime,
    context: SessionContext,
}

impl Session {
    /// A session of `threads` threads within `limit` bytes; temporary files go to `scratch`, or to
    /// the system's folder for them.
    ///
    /// # Errors
    /// When the runtime cannot start or the folder cannot be used.
    pub fn new(
        threads: usize,
        limit: ByteSize,
        scratch: Option<&Path>,
    ) -> Result<Self, EngineError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .enable_all()
            .build()
            .map_err(|source| EngineError::Io {
                action: "start",
                path: "thread pool".into(),
                source,
            })?;
        let context = context(threads, limit, scratch)?;
        Ok(Self { runtime, context })
    }

    /// Lets queries name files in `FROM`.
    #[must_use]
    pub fn with_file_tables(self) -> Self {
        Self {
            runtime: self.runtime,
            context: self.context.enable_url_table(),
        }
    }

    /// The context.
    #[must_use]
    pub fn context(&self) -> &SessionContext {
        &self.context
    }

    /// The runtime, for threads outside it.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// Gives the batches of one Parquet file to `each`, in order, on the calling thread. `context` is
    /// this session's, perhaps with other settings.
    ///
    /// # Errors
    /// When the file cannot be read, those of `each`, a stop.
    pub(crate) fn each_batch(
        &self,
        context: &SessionContext,
        url: &url::Url,
        stop: &StopFlag,
        mut each: impl FnMut(RecordBatch) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut stream = self
            .wait(async {
                let options = ParquetReadOptions::default();
                let frame = context.read_parquet(url.as_str(), options).await?;
                frame.execute_stream().await
            })
            .map_err(query)?;
        while let Some(batch) = self.wait(stream.next()) {
            if stop.is_set() {
                return Err(EngineError::Interrupted);
            }
            each(batch.map_err(query)?)?;
        }
        Ok(())
    }

    /// Waits for the next batch of a stream, from a thread outside the runtime, unless told to stop: an
    /// aggregate reads all its input before it gives anything.
    ///
    /// # Errors
    /// Those of the query; [`EngineError::Interrupted`] when told to stop.
    pub fn next_batch(
        &self,
        stream: &mut SendableRecordBatchStream,
        stop: &StopFlag,
    ) -> Result<Option<RecordBatch>, EngineError> {
        /// How often it is looked whether to stop.
        const LOOK: Duration = Duration::from_millis(100);
        self.wait(async {
            loop {
                if stop.is_set() {
                    return Err(EngineError::Interrupted);
                }
                tokio::select! {
                    batch = stream.next() => return batch.transpose().map_err(query),
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        })
    }

    /// Waits for a future, from a thread outside the runtime.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

/// Rows of a query, as they come.
pub type RowStream = SendableRecordBatchStream;

/// A context of `threads` partitions within `limit` bytes, with all functions of pmill; temporary
/// files go to `scratch`, or to the system's folder for them.
///
/// # Errors
/// When the folder cannot be used.
pub fn context(
    threads: usize,
    limit: ByteSize,
    scratch: Option<&Path>,
) -> Result<SessionContext, EngineError> {
    let pool = GreedyMemoryPool::new(usize::try_from(limit.0).unwrap_or(usize::MAX));
    let disk = match scratch {
        Some(folder) => DiskManagerMode::Directories(vec![folder.to_owned()]),
        None => DiskManagerMode::OsTmpDirectory,
    };
    let environment = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_object_store_registry(Arc::new(Stores::default()))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(disk))
        .build_arc()
        .map_err(query)?;
    let mut config = SessionConfig::new()
        .with_information_schema(true)
        .with_target_partitions(threads.max(1));
    // Old writers mark text as plain bytes.
    config.options_mut().execution.parquet.binary_as_string = true;
    let mut context = SessionContext::new_with_config_rt(config, environment);
    pmill_stats::register_all(&mut context).map_err(query)?;
    Ok(context)
}

/// An engine error as the user's: queries and plans come from the user. What we put inside and what
/// may pass stays that.
#[must_use]
pub fn query(error: DataFusionError) -> EngineError {
    if let DataFusionError::External(inner) = error.find_root()
        && let Some(EngineError::NotNow(text)) = inner.downcast_ref()
    {
        return EngineError::NotNow(text.clone());
    }
    let text = error.strip_backtrace();
    if store_is_away(&text) {
        return EngineError::Away(text);
    }
    EngineError::Query(text)
}
