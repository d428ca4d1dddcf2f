//! Rows of a unit as a file, and the scan that takes the place of a fragment.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Sender;

use super::super::place::{self, is_remote};
use super::drive::QueryFolder;
use crate::error::EngineError;
use crate::progress::StopFlag;
use crate::session::Session;

/// Batches that are read ahead.
const AHEAD: usize = 2;

/// What a unit left; its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct QueryDone {
    /// The file, an Arrow IPC stream.
    pub(super) file: String,
    pub(in super::super) rows: u64,
    pub(super) bytes: u64,
}

/// Writes the rows of a stream to a file; gives rows and bytes.
pub(super) fn write(
    session: &Session,
    mut stream: SendableRecordBatchStream,
    path: &Path,
    stop: &StopFlag,
) -> std::result::Result<(u64, u64), EngineError> {
    let failed = |error: datafusion::arrow::error::ArrowError| match error {
        datafusion::arrow::error::ArrowError::IoError(_, source) => {
            place::io("write", path, source)
        }
        other => EngineError::Bug(format!("rows of a query cannot be written: {other}")),
    };
    let file = File::create(path).map_err(|source| place::io("write", path, source))?;
    let options = IpcWriteOptions::default()
        .try_with_compression(Some(arrow_ipc::CompressionType::ZSTD))
        .map_err(failed)?;
    let schema = stream.schema();
    let mut writer = StreamWriter::try_new_with_options(BufWriter::new(file), &schema, options)
        .map_err(failed)?;
    let mut rows = 0;
    while let Some(batch) = session.next_batch(&mut stream, stop)? {
        rows += batch.num_rows() as u64;
        writer.write(&batch).map_err(failed)?;
    }
    let mut out = writer.into_inner().map_err(failed)?;
    out.flush()
        .map_err(|source| place::io("write", path, source))?;
    let file = out
        .into_inner()
        .map_err(|error| place::io("write", path, error.into_error()))?;
    let length = file.metadata().map(|found| found.len());
    let bytes = length.map_err(|source| place::io("look at", path, source))?;
    Ok((rows, bytes))
}

/// The rows of a fragment that units have left: partition `i` is the file of unit `i`.
#[derive(Debug)]
pub(super) struct UnitRows {
    folder: Arc<QueryFolder>,
    files: Vec<String>,
    properties: Arc<PlanProperties>,
}

impl UnitRows {
    /// Takes the place of `fragment`.
    pub(super) fn new(
        folder: &Arc<QueryFolder>,
        files: Vec<String>,
        fragment: &Arc<dyn ExecutionPlan>,
    ) -> Self {
        Self {
            folder: folder.clone(),
            files,
            properties: fragment.properties().clone(),
        }
    }
}

impl DisplayAs for UnitRows {
    fn fmt_as(&self, _: DisplayFormatType, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "UnitRows: {} files", self.files.len())
    }
}

impl ExecutionPlan for UnitRows {
    fn name(&self) -> &str {
        "UnitRows"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let file = self.files.get(partition).cloned().ok_or_else(|| {
            DataFusionError::Internal(format!("no unit left the rows of partition {partition}"))
        })?;
        let folder = self.folder.clone();
        let mut stream = RecordBatchReceiverStream::builder(self.schema(), AHEAD);
        let (sender, schema) = (stream.tx(), self.schema());
        stream.spawn_blocking(move || {
            let (path, _fetched) = folder
                .local(&file)
                .map_err(|error| DataFusionError::External(Box::new(error)))?;
            read(&path, &schema, &sender)
        });
        Ok(stream.build())
    }
}

/// A file that was brought to this machine; it goes away when it was read.
pub(super) struct Fetched(PathBuf);

impl Drop for Fetched {
    fn drop(&mut self) {
        // It lies in a folder for temporary files, which goes away too.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A file of a plan as one of this machine.
pub(super) fn local(
    from: &Path,
    scratch: &Path,
) -> std::result::Result<(PathBuf, Option<Fetched>), EngineError> {
    if !is_remote(from) {
        return Ok((from.to_owned(), None));
    }
    let to = scratch.join(from.file_name().unwrap_or_default());
    place::fetch(from, &to)?;
    Ok((to.clone(), Some(Fetched(to))))
}

/// Sends the batches of a file. The end is told by all of them having come.
fn read(path: &Path, schema: &SchemaRef, sender: &Sender<Result<RecordBatch>>) -> Result<()> {
    let file = File::open(path).map_err(|source| {
        DataFusionError::External(Box::new(EngineError::NotNow(format!(
            "rows of the query are gone from `{}` ({source}): its work folder was removed; ask again",
            path.display()
        ))))
    })?;
    let reader = StreamReader::try_new(BufReader::with_capacity(1 << 20, file), None)?;
    for batch in reader {
        // Units may know more of their columns (that they hold no nulls).
        let batch = batch?.with_schema(schema.clone())?;
        if sender.blocking_send(Ok(batch)).is_err() {
            // Nobody wants more.
            return Ok(());
        }
    }
    Ok(())
}
