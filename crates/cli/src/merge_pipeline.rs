//! `pmill run` on a pipeline file with a `[merge]` table: distances, the merge, the gate.

use std::path::{Path, PathBuf};

use pmill_engine::snapshots;
use pmill_snapshot::{DistanceSettings, MergeSettings, distance, merge, plan_merge};
use serde::Deserialize;
use serde_json::json;

use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output};
use crate::pipeline::{has_table, parse};
use crate::progress::stop_flag;
use crate::snapshot::merge_text;
use crate::snapshot_gate::{self, GateOptions, OnWorse};

/// A pipeline file that merges. Paths in it are relative to the folder where pmill is started.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergePipeline {
    /// Its name.
    #[serde(default)]
    #[expect(dead_code, reason = "a pipeline file may carry a name")]
    pub name: String,
    /// What is merged.
    pub merge: Merge,
}

/// What is merged, and how.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// Snapshots: paths, URIs and globs over paths; those of a glob in the order of their names.
    pub snapshots: Vec<String>,
    /// Folder to make, or one .safetensors file.
    pub output: PathBuf,
    /// How to merge; flags for threads and memory beat it.
    #[serde(default)]
    pub settings: MergeSettings,
    /// Whether the result is good enough; without this table it is not asked.
    pub gate: Option<Gate>,
    /// How far the snapshots are apart; without this table it is not measured.
    pub distance: Option<Distance>,
}

/// The gate.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Command that prints the loss of the model whose path it is given.
    pub evaluate: String,
    /// What to do when the merged model is worse.
    #[serde(default)]
    pub on_worse: OnWorse,
    /// Also judge the merges without each snapshot.
    #[serde(default)]
    pub leave_one_out: bool,
    /// Seconds that one evaluation may take.
    #[serde(default = "hour")]
    pub timeout_seconds: u64,
    /// Folder for models to judge when they are in a store.
    pub scratch: Option<PathBuf>,
}

fn hour() -> u64 {
    3600
}

/// The measure of distance.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distance {
    /// Page with heat maps to write.
    pub html: Option<PathBuf>,
}

/// The paths of the list, globs spelt out.
fn places(list: &[String]) -> Result<Vec<PathBuf>, Failure> {
    let mut places = Vec::new();
    for text in list {
        if !text.contains(['*', '?', '[']) || text.contains("://") {
            places.push(PathBuf::from(text));
            continue;
        }
        let found = glob::glob(text)
            .map_err(|error| Failure::user(format!("merge.snapshots `{text}`: {error}")))?;
        let before = places.len();
        for place in found {
            places.push(place.map_err(|error| Failure::user(error.to_string()))?);
        }
        if places.len() == before {
            return Err(Failure::user(format!(
                "merge.snapshots `{text}` matches nothing; name folders or files that exist"
            )));
        }
    }
    if places.is_empty() {
        return Err(Failure::user(
            "merge.snapshots is empty; name the snapshots to merge",
        ));
    }
    Ok(places)
}

impl MergePipeline {
    /// Reads a pipeline file that merges and lays `settings` (`key.path=value`) over it; `None` when it has no
    /// `[merge]` table, or cannot be read at all.
    ///
    /// # Errors
    /// Unknown keys and values that cannot be used, with line and column.
    pub fn read(path: &Path, settings: &[String]) -> Result<Option<Self>, Failure> {
        let Ok(text) = std::fs::read_to_string(path) else {
            return Ok(None);
        };
        if !has_table(&text, "merge") {
            return Ok(None);
        }
        parse(&text, settings)
            .map(Some)
            .map_err(|message| Failure::user(format!("`{}`: {message}", path.display())))
    }

    /// Runs the pipeline.
    pub fn run(self, global: &Global, dry_run: bool) -> Outcome {
        let Merge {
            snapshots: named,
            output,
            mut settings,
            gate,
            distance: measure,
        } = self.merge;
        settings.threads = global
            .threads
            .map(std::num::NonZero::get)
            .or(settings.threads);
        if let Some(limit) = global.memory_limit {
            settings.memory_limit_bytes = limit.0;
        }
        let places = places(&named)?;
        let inputs = snapshots::open_all(&places)?;
        let plan = snapshots::at_its_target(plan_merge(&inputs, &output, &settings)?)?;
        if dry_run {
            let gate = gate.map(|gate| gate.evaluate);
            let then = gate
                .iter()
                .map(|command| format!("  then: judge it by `{command}`\n"));
            return Ok(Output::Summary {
                text: format!(
                    "would merge {} snapshots ({} bytes) into {}\n{}",
                    places.len(),
                    plan.input_bytes(),
                    output.display(),
                    then.collect::<String>()
                ),
                json: json!({"snapshots": places, "output": output, "evaluate": gate}),
            });
        }
        let stop = stop_flag();
        let on_progress = |_| !stop.is_set();
        let (mut steps, mut text) = (serde_json::Map::new(), String::new());
        if let Some(measure) = measure {
            let distance_settings = DistanceSettings {
                threads: settings.threads,
                ..DistanceSettings::default()
            };
            let report = distance(&inputs, &distance_settings, &on_progress)?;
            if let Some(path) = &measure.html {
                std::fs::write(path, report.html()).map_err(|error| {
                    Failure::user(format!("cannot write `{}`: {error}", path.display()))
                })?;
                text.push_str(&format!("wrote {}\n", path.display()));
            }
            text.push_str(&format!(
                "consensus distance {:.6}: {}\n",
                report.consensus, report.reason
            ));
            steps.insert("distance".to_owned(), json!(report));
        }
        let merged = match gate {
            Some(gate) => {
                let options = GateOptions {
                    evaluate: Some(gate.evaluate),
                    gate: gate.on_worse,
                    leave_one_out: gate.leave_one_out,
                    evaluate_timeout: gate.timeout_seconds,
                    scratch: gate
                        .scratch
                        .or_else(|| std::env::var_os("PMILL_SCRATCH").map(PathBuf::from)),
                };
                let (report, gate) =
                    snapshot_gate::gated(&inputs, &output, &settings, &options, &on_progress)?;
                text.push_str(&format!("{}{}", gate.text(), merge_text(&report)));
                snapshot_gate::object(&report, &gate)
            }
            None => {
                let report = merge(&plan, &on_progress)?;
                text.push_str(&merge_text(&report));
                json!(report)
            }
        };
        steps.insert("merge".to_owned(), merged);
        Ok(Output::Summary {
            json: steps.into(),
            text,
        })
    }
}
