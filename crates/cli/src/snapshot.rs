//! `pmill snapshot inspect|merge|distance|interpolate|mix`: flags around the library, nothing more.

use clap::{Args, Subcommand, ValueEnum};
use pmill_engine::Kind;
use pmill_engine::memory::ByteSize;
use pmill_engine::progress::{Progress as _, Unit};
use pmill_engine::snapshots::{self, open_all};
use pmill_snapshot::{
    Algorithm, DType, Digests, DistanceSettings, ErrorKind, InspectSettings, LowRank, MatrixReport,
    MergePlan, MergeReport, MergeSettings, MixingMatrix, OnProgress, Points, Progress, Schedule,
    SnapshotError, TensorRule, Topology, Weight, Weights, distance, inspect_with, merge,
    plan_interpolate, plan_merge, plan_mix,
};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output};
use crate::progress::{Bar, stop_flag};
use crate::snapshot_gate::{self, GateOptions, gated};

/// Model snapshots: look at them, compare, merge and mix them.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: SnapshotCommand,
    /// Threads that compute; all processors by default.
    #[arg(skip)]
    threads: Option<usize>,
    /// Bytes that the buffers may take.
    #[arg(skip)]
    memory_limit: Option<u64>,
    /// Check and say what would be done, and write nothing.
    #[arg(long, global = true)]
    pub dry_run: bool,
}

/// The commands on snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// List tensors, shapes, types, files and metadata of a snapshot.
    Inspect {
        /// A folder, a .safetensors file or an index file; a path or s3://BUCKET/KEY.
        snapshot: PathBuf,
        /// Read all data: digests and counts of NaN and infinity.
        #[arg(long)]
        data: bool,
        /// How the data is digested.
        #[arg(long, value_parser = ["xxh3", "blake3"], default_value = "xxh3", requires = "data")]
        digest: String,
    },
    /// Average snapshots into one, exactly.
    Merge {
        /// Two or more snapshots.
        #[arg(required = true)]
        snapshots: Vec<PathBuf>,
        /// Folder to make, or one .safetensors file; a path or s3://BUCKET/KEY.
        #[arg(long, short)]
        output: PathBuf,
        /// A weight for each snapshot, such as 0.5,0.25,1/4; they must sum to 1.
        #[arg(long, value_delimiter = ',', conflicts_with = "examples")]
        weights: Vec<Weight>,
        /// The number of training examples that each snapshot saw, as weights of any sum.
        #[arg(long, value_delimiter = ',')]
        examples: Vec<Weight>,
        /// How to merge.
        #[command(flatten)]
        options: MergeOptions,
        /// Whether the result is good enough.
        #[command(flatten)]
        gate: GateOptions,
        /// Where its slices are averaged.
        #[cfg(feature = "cluster")]
        #[command(flatten)]
        cluster: Box<crate::snapshot_cluster::MergeClusterArgs>,
    },
    /// Say how far snapshots are from each other, and whether a merge may work.
    Distance {
        /// Two or more snapshots.
        #[arg(required = true, num_args = 2..)]
        snapshots: Vec<PathBuf>,
        /// Only tensors whose name this glob matches.
        #[arg(long)]
        tensors: Option<String>,
        /// Write a page with heat maps here.
        #[arg(long)]
        html: Option<PathBuf>,
    },
    /// Write models along the segment, or over the simplex, between snapshots.
    Interpolate {
        /// Two or more snapshots.
        #[arg(required = true, num_args = 2..)]
        snapshots: Vec<PathBuf>,
        /// Folder to make, with one model folder for each point.
        #[arg(long, short)]
        output: PathBuf,
        /// Steps from one snapshot to another.
        #[arg(long, default_value_t = 10)]
        steps: u64,
        /// How to merge.
        #[command(flatten)]
        options: MergeOptions,
    },
    /// One gossip round: every agent takes in some of the others.
    Mix {
        /// The agents' snapshots, in the order of the matrix.
        #[arg(required = true)]
        snapshots: Vec<PathBuf>,
        /// Folder to make, with one model folder for each agent.
        #[arg(long, short)]
        output: Option<PathBuf>,
        /// Who mixes with whom.
        #[arg(long, value_enum, required_unless_present_any = ["matrix", "edges"])]
        topology: Option<TopologyName>,
        /// A file with the mixing matrix, one row a line or JSON.
        #[arg(long, conflicts_with_all = ["topology", "edges"])]
        matrix: Option<PathBuf>,
        /// A file with one edge a line (two agents, from 0), for Metropolis-Hastings weights.
        #[arg(long, conflicts_with = "topology")]
        edges: Option<PathBuf>,
        /// Number of random peers, or the probability of a pair in a matching.
        #[arg(long, default_value_t = 1.0)]
        peers: f64,
        /// Seed of the random choices.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// The round, from 0.
        #[arg(long, default_value_t = 0)]
        round: u64,
        /// Rounds in all, for a schedule.
        #[arg(long, default_value_t = 1)]
        rounds: u64,
        /// How `--peers` changes over the rounds.
        #[arg(long, value_enum, default_value_t = ScheduleName::Fixed)]
        schedule: ScheduleName,
        /// Factor on `--peers` in the last round, for `linear` and `cosine`.
        #[arg(long, default_value_t = 0.0)]
        last: f64,
        /// Length of the window in rounds, for `late`.
        #[arg(long, default_value_t = 1)]
        window: u64,
        /// How to merge.
        #[command(flatten)]
        options: MergeOptions,
    },
    /// The merge service and its clients.
    #[cfg(feature = "serve")]
    #[command(flatten)]
    Service(crate::snapshot_service::ServiceCommand),
}

/// Options of all commands that write models.
#[derive(Debug, Args)]
pub struct MergeOptions {
    /// Type of the averaged tensors, such as BF16; they keep theirs by default.
    #[arg(long)]
    pub output_dtype: Option<DType>,
    /// PATTERN=mean, PATTERN=copy:K, PATTERN=skip or PATTERN=recalibrate; the first that matches decides.
    #[arg(long = "rule")]
    pub rules: Vec<TensorRule>,
    /// Average NaN and infinity instead of refusing them.
    #[arg(long)]
    pub allow_nonfinite: bool,
    /// What to do with the factors of low-rank adapters.
    #[arg(long, value_enum, default_value_t = LowRankName::Refuse)]
    pub lora: LowRankName,
    /// The snapshot (from 0) whose config and tokenizer files come along.
    #[arg(long)]
    pub side_files_from: Option<usize>,
    /// Merge although config.json says that the architectures differ.
    #[arg(long)]
    pub allow_config_differences: bool,
    /// Merge although one snapshot is given twice.
    #[arg(long)]
    pub allow_same: bool,
    /// Cut the output into files of at most this size.
    #[arg(long, value_name = "SIZE")]
    pub max_shard_size: Option<ByteSize>,
    /// Replace an output that exists.
    #[arg(long)]
    pub overwrite: bool,
    /// Do not wait until the output is on the disk.
    #[arg(long)]
    pub no_sync: bool,
    /// Digests of inputs and output in the manifest: xxh3 against accidents, blake3 against adversaries too.
    #[arg(long, value_enum, default_value_t = DigestName::Xxh3)]
    pub digest: DigestName,
    /// What `--digest none` was called.
    #[arg(long, hide = true, conflicts_with = "digest")]
    pub no_digests: bool,
}

/// Names of [`Digests`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DigestName {
    /// XXH3 of 128 bits.
    Xxh3,
    /// BLAKE3; several times slower.
    Blake3,
    /// The inputs are not digested.
    None,
}

impl From<DigestName> for Digests {
    fn from(name: DigestName) -> Self {
        match name {
            DigestName::Xxh3 => Self::All(Algorithm::Xxh3),
            DigestName::Blake3 => Self::All(Algorithm::Blake3),
            DigestName::None => Self::None,
        }
    }
}

/// Names of [`LowRank`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LowRankName {
    /// Refuse them.
    Refuse,
    /// Average the factors all the same.
    Factors,
    /// Average the products; the ranks add up.
    Products,
}

/// Names of the built-in topologies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TopologyName {
    /// Two neighbours.
    Ring,
    /// The one before.
    Left,
    /// All.
    Complete,
    /// One peer, at distances 1, 2, 4, ...
    Exponential,
    /// `--peers` random others.
    Random,
    /// Random pairs, each with probability `--peers`.
    Matching,
}

/// Names of [`Schedule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScheduleName {
    /// Always `--peers`.
    Fixed,
    /// To `--last` in a straight line.
    Linear,
    /// To `--last` along half a cosine wave.
    Cosine,
    /// Only in the last `--window` rounds.
    Late,
}

impl MergeOptions {
    fn settings(&self, args: &SnapshotArgs) -> MergeSettings {
        let defaults = MergeSettings::default();
        MergeSettings {
            weights: Weights::Uniform,
            output_dtype: self.output_dtype,
            rules: self.rules.clone(),
            allow_nonfinite: self.allow_nonfinite,
            low_rank: match self.lora {
                LowRankName::Refuse => LowRank::Refuse,
                LowRankName::Factors => LowRank::Factors,
                LowRankName::Products => LowRank::Products,
            },
            side_files_from: self.side_files_from,
            allow_config_differences: self.allow_config_differences,
            allow_same: self.allow_same,
            max_shard_bytes: self.max_shard_size.map(|size| size.0),
            overwrite: self.overwrite,
            sync: !self.no_sync,
            digests: if self.no_digests {
                Digests::None
            } else {
                self.digest.into()
            },
            threads: args.threads,
            memory_limit_bytes: args.memory_limit.unwrap_or(defaults.memory_limit_bytes),
        }
    }

    /// The settings with these weights, or by these examples.
    fn weighted(
        &self,
        args: &SnapshotArgs,
        weights: &[Weight],
        examples: &[Weight],
    ) -> MergeSettings {
        let mut settings = self.settings(args);
        if !weights.is_empty() {
            settings.weights = Weights::Fractions(weights.to_vec());
        } else if !examples.is_empty() {
            settings.weights = Weights::Examples(examples.to_vec());
        }
        settings
    }
}

pub(crate) fn read_text(path: &PathBuf) -> Result<String, SnapshotError> {
    std::fs::read_to_string(path).map_err(|source| SnapshotError::Read {
        path: path.display().to_string(),
        source,
    })
}

pub(crate) fn edges(text: &str) -> Result<Vec<(usize, usize)>, SnapshotError> {
    let mut edges = Vec::new();
    for (position, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line
            .split([' ', '\t', ','])
            .filter(|word| !word.is_empty())
            .collect();
        match words.as_slice() {
            [] => {}
            [a, b] => match (a.parse(), b.parse()) {
                (Ok(a), Ok(b)) => edges.push((a, b)),
                _ => return Err(edge_error(position, line)),
            },
            _ => return Err(edge_error(position, line)),
        }
    }
    Ok(edges)
}

fn edge_error(position: usize, line: &str) -> SnapshotError {
    SnapshotError::Matrix {
        what: format!(
            "line {}: `{line}` is not an edge, expected two agents such as `0 1`",
            position + 1
        ),
    }
}

impl SnapshotArgs {
    /// Runs the command.
    pub fn run(mut self, global: &Global) -> Outcome {
        #[cfg(feature = "serve")]
        if let SnapshotCommand::Service(command) = &self.command {
            return command.run(global, self.dry_run);
        }
        self.threads = Some(global.threads());
        self.memory_limit = global.memory_limit.map(|size| size.0);
        #[cfg(feature = "cluster")]
        if let Some(outcome) = self.on_cluster(global) {
            return outcome;
        }
        let bar = Bar::new(global);
        let stop = stop_flag();
        let done = AtomicU64::new(0);
        let on_progress = |progress: Progress| {
            let before = done.fetch_max(progress.done_bytes, Ordering::Relaxed);
            if before == 0 {
                bar.phase("merge", progress.total_bytes, Unit::Bytes);
            }
            bar.advance(progress.done_bytes.saturating_sub(before), 0);
            !stop.is_set()
        };
        let result = run(&self, global.json, &on_progress);
        bar.clear();
        Ok(match result? {
            Value::String(text) if self.writes() => Output::Summary {
                json: Value::Null,
                text,
            },
            Value::String(text) => Output::Bytes(text.into_bytes()),
            json => Output::Summary {
                json,
                text: String::new(),
            },
        })
    }

    /// Merges on a cluster, when one was named.
    #[cfg(feature = "cluster")]
    fn on_cluster(&self, global: &Global) -> Option<Outcome> {
        let SnapshotCommand::Merge {
            snapshots,
            output,
            weights,
            examples,
            options,
            gate,
            cluster,
        } = &self.command
        else {
            return None;
        };
        if !cluster.is_asked_for() || self.dry_run {
            return None;
        }
        if gate.evaluate.is_some() {
            return Some(Err(Failure::user(
                "--evaluate judges a merge of this process; give --evaluate or --cluster (PMILL_CLUSTER)",
            )));
        }
        let settings = options.weighted(self, weights, examples);
        let merged = cluster.merge(snapshots, output, &settings, global);
        Some(merged.map(|report| Output::Summary {
            text: merge_text(&report),
            json: json!(report),
        }))
    }

    /// Whether the result is a model, and what is printed a summary.
    fn writes(&self) -> bool {
        match &self.command {
            SnapshotCommand::Inspect { .. } | SnapshotCommand::Distance { .. } => false,
            SnapshotCommand::Merge { .. } | SnapshotCommand::Interpolate { .. } => true,
            SnapshotCommand::Mix { output, .. } => output.is_some(),
            #[cfg(feature = "serve")]
            SnapshotCommand::Service(_) => false,
        }
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        let kind = match error.kind() {
            ErrorKind::User => Kind::User,
            ErrorKind::NotNow => Kind::NotNow,
            ErrorKind::Bug => Kind::Bug,
        };
        Self::Error(kind, crate::outcome::chain(&error))
    }
}

/// Runs a command.
///
/// Returns the object for `--json`; without `json` it returns `Value::String` with the text to print.
///
/// # Errors
/// Those of the library; [`SnapshotError::kind`] gives the exit code.
pub fn run(
    args: &SnapshotArgs,
    json: bool,
    on_progress: OnProgress<'_>,
) -> Result<Value, SnapshotError> {
    match &args.command {
        SnapshotCommand::Inspect {
            snapshot,
            data,
            digest,
        } => {
            let settings = InspectSettings {
                read_data: *data,
                algorithm: digest.parse().unwrap_or_default(),
                threads: args.threads,
            };
            let inventory = inspect_with(&snapshots::open(snapshot)?, settings)?;
            if json {
                object(&inventory)
            } else {
                Ok(inventory.text().into())
            }
        }
        SnapshotCommand::Merge {
            snapshots,
            output,
            weights,
            examples,
            options,
            gate,
            ..
        } => {
            let settings = options.weighted(args, weights, examples);
            if gate.evaluate.is_some() && !args.dry_run {
                let (report, gate) =
                    gated(&open_all(snapshots)?, output, &settings, gate, on_progress)?;
                return Ok(if json {
                    snapshot_gate::object(&report, &gate)
                } else {
                    format!("{}{}", gate.text(), merge_text(&report)).into()
                });
            }
            finish(
                plan_merge(&open_all(snapshots)?, output, &settings)?,
                args,
                json,
                on_progress,
            )
        }
        SnapshotCommand::Distance {
            snapshots,
            tensors,
            html,
        } => {
            let settings = DistanceSettings {
                tensors: tensors.clone(),
                threads: args.threads,
            };
            let report = distance(&open_all(snapshots)?, &settings, on_progress)?;
            if let Some(path) = html {
                std::fs::write(path, report.html()).map_err(|source| SnapshotError::Write {
                    path: path.display().to_string(),
                    source,
                })?;
            }
            if json {
                object(&report)
            } else {
                Ok(report.text().into())
            }
        }
        SnapshotCommand::Interpolate {
            snapshots,
            output,
            steps,
            options,
        } => {
            let points = Points::Grid { steps: *steps };
            finish(
                plan_interpolate(
                    &open_all(snapshots)?,
                    &points,
                    output,
                    &options.settings(args),
                )?,
                args,
                json,
                on_progress,
            )
        }
        SnapshotCommand::Mix {
            snapshots,
            output,
            options,
            ..
        } => {
            let matrix = mixing_matrix(&args.command, snapshots.len())?;
            let report = matrix.report();
            let Some(output) = output else {
                return if json {
                    Ok(json!({"matrix": report, "rows": matrix.entries()}))
                } else {
                    Ok(matrix_text(&report).into())
                };
            };
            let plan = plan_mix(
                &open_all(snapshots)?,
                &matrix,
                output,
                &options.settings(args),
            )?;
            let done = finish(plan, args, json, on_progress)?;
            Ok(match done {
                Value::Object(mut object) => {
                    object.insert(
                        "matrix".to_owned(),
                        serde_json::to_value(&report).unwrap_or_default(),
                    );
                    Value::Object(object)
                }
                Value::String(text) => format!("{}{text}", matrix_text(&report)).into(),
                other => other,
            })
        }
        #[cfg(feature = "serve")]
        SnapshotCommand::Service(_) => Err(SnapshotError::Internal {
            what: "the service has its own way".to_owned(),
        }),
    }
}

fn mixing_matrix(command: &SnapshotCommand, agents: usize) -> Result<MixingMatrix, SnapshotError> {
    let SnapshotCommand::Mix {
        topology,
        matrix,
        edges: edge_file,
        peers,
        seed,
        round,
        rounds,
        schedule,
        last,
        window,
        ..
    } = command
    else {
        return Err(SnapshotError::Internal {
            what: "a mixing matrix for another command".to_owned(),
        });
    };
    if let Some(path) = matrix {
        return MixingMatrix::parse(&read_text(path)?);
    }
    if let Some(path) = edge_file {
        return Topology::Edges(edges(&read_text(path)?)?).matrix(agents, *round);
    }
    let schedule = match schedule {
        ScheduleName::Fixed => Schedule::Fixed,
        ScheduleName::Linear => Schedule::Linear { last: *last },
        ScheduleName::Cosine => Schedule::Cosine { last: *last },
        ScheduleName::Late => Schedule::Late { rounds: *window },
    };
    let peers = schedule.value(*peers, *round, *rounds);
    let topology = match topology {
        Some(TopologyName::Ring) => Topology::Ring,
        Some(TopologyName::Left) => Topology::Left,
        Some(TopologyName::Complete) => Topology::Complete,
        Some(TopologyName::Exponential) => Topology::Exponential,
        Some(TopologyName::Random) => Topology::Random { peers, seed: *seed },
        Some(TopologyName::Matching) => Topology::Matching {
            probability: peers,
            seed: *seed,
        },
        None => {
            return Err(SnapshotError::Settings {
                what: "name a topology, a matrix file or an edge file".to_owned(),
            });
        }
    };
    topology.matrix(agents, *round)
}

fn matrix_text(report: &MatrixReport) -> String {
    let kind = if report.doubly_stochastic {
        "doubly stochastic"
    } else {
        "row-stochastic"
    };
    format!(
        "{} agents, {kind}, spectral gap {:.6}\n",
        report.agents, report.spectral_gap
    )
}

fn object<T: serde::Serialize>(value: &T) -> Result<Value, SnapshotError> {
    serde_json::to_value(value).map_err(|error| SnapshotError::Internal {
        what: error.to_string(),
    })
}

fn finish(
    plan: MergePlan,
    args: &SnapshotArgs,
    json: bool,
    on_progress: OnProgress<'_>,
) -> Result<Value, SnapshotError> {
    let plan = snapshots::at_its_target(plan)?;
    if args.dry_run {
        let value = json!({
            "target": plan.target(), "input_bytes": plan.input_bytes(), "output_bytes": plan.output_bytes(),
            "warnings": plan.warnings, "recalibrate": plan.recalibrate, "skipped": plan.skipped,
        });
        if json {
            return Ok(value);
        }
        let mut text = format!(
            "would read {} bytes and write {} for each output\n",
            plan.input_bytes(),
            plan.output_bytes()
        );
        plan.warnings
            .iter()
            .for_each(|warning| text.push_str(&format!("warning: {warning}\n")));
        return Ok(text.into());
    }
    let report = merge(&plan, on_progress)?;
    if json {
        object(&report)
    } else {
        Ok(merge_text(&report).into())
    }
}

/// What a person reads of a merge.
pub(crate) fn merge_text(report: &MergeReport) -> String {
    let mut text = format!(
        "{}: read {} bytes, wrote {} in {:.2} s\n",
        report.target, report.bytes.0, report.bytes.1, report.seconds
    );
    for output in &report.outputs {
        let name = if output.folder.is_empty() {
            "digest"
        } else {
            output.folder.as_str()
        };
        text.push_str(&format!(
            "{name} {}  weights {}\n",
            output.digest,
            output.weights.join(" ")
        ));
    }
    for (title, list) in [
        ("recalibrate", &report.recalibrate),
        ("left out", &report.skipped),
        ("warning", &report.warnings),
    ] {
        list.iter()
            .for_each(|entry| text.push_str(&format!("{title}: {entry}\n")));
    }
    text
}
