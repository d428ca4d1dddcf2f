//! `cooccur(files, column [, context …])`: counts files while the query runs.
//!
//! The first partition that is asked counts and scores into a warehouse in a temporary folder, with the code and the
//! bounds of `pmill count` and `pmill score`; then every partition streams its share of the table's files. Counting
//! takes half of what the session's pool has left, and is stopped when the query is given up.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{exec_datafusion_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::prelude::{ParquetReadOptions, SessionContext, cast, ident};
use futures::{StreamExt, TryStreamExt};
use pmill_stats::catalogue::{COOCCUR, TableFunctionDoc};
use tokio::sync::{OnceCell, oneshot};

use super::arguments::Arguments;
use super::planned::external;
use super::temporary::TemporaryFolder;
use crate::error::EngineError;
use crate::job::{self, CountJob};
use crate::memory::{ByteSize, SMALLEST_LIMIT, default_limit};
use crate::progress::{Quiet, StopFlag};
use crate::score::{ScoreSettings, score};
use crate::settings::{ContextKind, CountSettings, OnBadFile};
use crate::text::{FeatureExtractor, FeatureSpec};

pub(super) static DOC: &TableFunctionDoc = &COOCCUR;

/// The name of the job in the temporary warehouse.
const JOB: &str = "counted";

#[derive(Debug)]
pub(super) struct Cooccur;

/// What is counted: everything but the means.
#[derive(Debug, Clone)]
struct Request {
    inputs: Vec<String>,
    settings: CountSettings,
    on_bad_file: OnBadFile,
    score: ScoreSettings,
}

impl TableFunctionImpl for Cooccur {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let arguments = Arguments::new(DOC, args.exprs())?;
        let request = Request {
            inputs: arguments.texts("files")?,
            settings: settings(&arguments)?,
            on_bad_file: arguments.word("on_bad_file")?.unwrap_or_default(),
            score: ScoreSettings {
                measures: Vec::new(),
                marginals: arguments.word("marginals")?,
                min_pair_count: arguments.number("min_pair_count")?.unwrap_or(0.0),
                ..ScoreSettings::default()
            },
        };
        // What is wrong with the settings is told before anything is read.
        let extractor = FeatureExtractor::new(&request.settings.features)
            .map_err(|error| external(EngineError::from(error)))?;
        crate::settings::RecordedSettings::resolve(&request.settings, &extractor)
            .and_then(|recorded| request.score.resolve(&recorded))
            .map_err(external)?;
        Ok(Arc::new(CooccurTable { request }))
    }
}

fn settings(arguments: &Arguments) -> Result<CountSettings> {
    let mut settings = CountSettings {
        text: arguments.required_text("column")?,
        ..CountSettings::default()
    };
    let context = &mut settings.context;
    context.kind = arguments.word("context")?.unwrap_or(context.kind);
    if context.kind != ContextKind::Window {
        for name in ["window", "weight", "side", "out_of_vocabulary"] {
            if arguments
                .expression(name)
                .is_some_and(|value| !matches!(value, Expr::Literal(value, _) if value.is_null()))
            {
                return plan_err!(
                    "{}: `{name}` goes with context => 'window', and the context is 'document'",
                    DOC.name
                );
            }
        }
    }
    context.window = arguments.whole("window")?.unwrap_or(context.window);
    context.weight = arguments.word("weight")?.unwrap_or(context.weight);
    context.side = arguments.word("side")?.unwrap_or(context.side);
    context.out_of_vocabulary = arguments
        .word("out_of_vocabulary")?
        .unwrap_or(context.out_of_vocabulary);
    context.subsample = arguments.number("subsample")?;
    context.max_features_per_document = arguments.whole("max_features_per_document")?;
    settings.vocabulary.size = arguments.whole("vocab_size")?;
    settings.vocabulary.min_count = arguments.whole("min_count")?.unwrap_or(1);
    settings.vocabulary.file = arguments.text("vocab")?.map(PathBuf::from);
    settings.features = FeatureSpec {
        tokenizer: arguments.word("tokenizer")?.unwrap_or_default(),
        stop_words: arguments.word("stop_words")?,
        min_length: arguments.whole("min_length")?,
        drop_numeric: arguments.flag("drop_numeric")?.unwrap_or(false),
        lemma: arguments.word("lemma")?,
        phrases: arguments.text("phrases")?.map(PathBuf::from),
        concepts: arguments.text("concepts")?.map(PathBuf::from),
    };
    Ok(settings)
}

fn schema() -> SchemaRef {
    let fields = DOC.columns.iter().map(|(name, _)| {
        let kind = match *name {
            "left" | "right" => DataType::Utf8View,
            _ => DataType::Float64,
        };
        Field::new(*name, kind, true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

#[derive(Debug)]
struct CooccurTable {
    request: Request,
}

#[async_trait]
impl TableProvider for CooccurTable {
    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(places) => Arc::new(schema().project(places)?),
            None => schema(),
        };
        let partitions = state.config().target_partitions().max(1);
        let counted = Arc::new(OnceCell::new());
        let streams = (0..partitions)
            .map(|number| -> Arc<dyn PartitionStream> {
                Arc::new(Share {
                    schema: schema.clone(),
                    request: self.request.clone(),
                    counted: counted.clone(),
                    number,
                    of: partitions,
                })
            })
            .collect();
        let plan = StreamingTableExec::try_new(schema, streams, None, [], false, limit)?;
        Ok(Arc::new(plan))
    }
}

/// The files of the counted table, as long as somebody reads them.
#[derive(Debug)]
struct Counted {
    files: Vec<PathBuf>,
    _folder: TemporaryFolder,
}

/// Counted once; a failure is every partition's, or the next would count again.
type Once = OnceCell<std::result::Result<Counted, Arc<DataFusionError>>>;

/// One partition: every `of`-th file from `number` on.
#[derive(Debug)]
struct Share {
    schema: SchemaRef,
    request: Request,
    counted: Arc<Once>,
    number: usize,
    of: usize,
}

impl PartitionStream for Share {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, task: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (schema, request, counted) = (
            self.schema.clone(),
            self.request.clone(),
            self.counted.clone(),
        );
        let (number, of) = (self.number, self.of);
        let stream = async move {
            let files = counted
                .get_or_init(async || count(request, task.clone()).await.map_err(Arc::new))
                .await
                .as_ref()
                .map_err(|error| DataFusionError::Shared(error.clone()))?
                .files
                .iter()
                .skip(number)
                .step_by(of)
                .map(|path| path.display().to_string())
                .collect();
            let rows = read(files, &schema, &task).await?;
            // The folder stays until the last batch is out.
            Ok::<_, DataFusionError>(rows.inspect(move |_| {
                let _keep = &counted;
            }))
        };
        Box::pin(RecordBatchStreamAdapter::new(
            self.schema.clone(),
            futures::stream::once(stream).try_flatten(),
        ))
    }
}

async fn read(
    files: Vec<String>,
    schema: &SchemaRef,
    task: &TaskContext,
) -> Result<SendableRecordBatchStream> {
    if files.is_empty() {
        let nothing = futures::stream::empty();
        return Ok(Box::pin(RecordBatchStreamAdapter::new(
            schema.clone(),
            nothing,
        )));
    }
    let config = task.session_config().clone().with_target_partitions(1);
    let context = SessionContext::new_with_config_rt(config, task.runtime_env());
    let columns = schema
        .fields()
        .iter()
        .map(|field| cast(ident(field.name()), field.data_type().clone()).alias(field.name()))
        .collect::<Vec<_>>();
    context
        .read_parquet(files, ParquetReadOptions::default())
        .await?
        .select(columns)?
        .execute_stream()
        .await
}

/// Sets the flag unless the work came to its end.
struct StopOnDrop(Arc<StopFlag>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

async fn count(request: Request, task: Arc<TaskContext>) -> Result<Counted> {
    let threads = task.session_config().target_partitions().max(1);
    let total = match task.memory_pool().memory_limit() {
        MemoryLimit::Finite(bytes) => bytes as u64,
        _ => default_limit().0,
    };
    // Half, or less when other operators or another `cooccur` have taken theirs.
    let reservation = MemoryConsumer::new(DOC.name).register(task.memory_pool());
    let mut share = (total / 2).max(SMALLEST_LIMIT.0);
    while reservation
        .try_grow(usize::try_from(share).unwrap_or(usize::MAX))
        .is_err()
    {
        if share <= SMALLEST_LIMIT.0 {
            return Err(external(EngineError::Memory {
                limit: ByteSize(total).to_string(),
                reason: format!(
                    "{} needs {SMALLEST_LIMIT} of it, and the rest of the query holds it; raise --memory-limit",
                    DOC.name
                ),
            }));
        }
        share = (share / 2).max(SMALLEST_LIMIT.0);
    }
    let parent = task
        .runtime_env()
        .disk_manager
        .temp_dir_paths()
        .into_iter()
        .next()
        .unwrap_or_else(std::env::temp_dir);
    let stop = Arc::new(StopFlag::default());
    let guard = StopOnDrop(stop.clone());
    let (done, outcome) = oneshot::channel();
    // A thread of its own: the job has a runtime, which must not start inside another.
    std::thread::Builder::new()
        .name("cooccur".to_owned())
        .spawn(move || {
            let counted = run(request, ByteSize(share), threads, &parent, &stop);
            // Nobody listens any more when the query was given up.
            let _ = done.send(counted);
        })
        .map_err(|error| exec_datafusion_err!("cannot start a thread: {error}"))?;
    let counted = outcome
        .await
        .map_err(|_| exec_datafusion_err!("counting ended without a result"))?
        .map_err(external);
    drop(guard);
    counted
}

fn run(
    request: Request,
    limit: ByteSize,
    threads: usize,
    parent: &std::path::Path,
    stop: &StopFlag,
) -> std::result::Result<Counted, EngineError> {
    let folder = TemporaryFolder::new(parent)?;
    let warehouse = folder.path().join("warehouse");
    let location = warehouse.display().to_string();
    let job = CountJob {
        warehouse: location.clone(),
        name: JOB.to_owned(),
        inputs: request.inputs,
        settings: request.settings,
        on_bad_file: request.on_bad_file,
        memory_limit: limit,
        threads,
    };
    job::count(&job, &Quiet, stop)?;
    score(&location, JOB, &request.score, threads, limit, &Quiet, stop)?;
    let table = warehouse.join(JOB).join("pmi");
    let io = |source| EngineError::Io {
        action: "list",
        path: table.display().to_string(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&table).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "parquet")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(Counted {
        files,
        _folder: folder,
    })
}
