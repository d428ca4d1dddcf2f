//! `pmill run`: a pipeline file, step by step.

use std::path::PathBuf;

use clap::Args;
use pmill_engine::job::CountJob;
use pmill_engine::score::ScoreSettings;
use pmill_engine::sql::SqlSession;

use crate::limits::Global;
use crate::merge_pipeline::MergePipeline;
use crate::outcome::{Failure, Outcome, Output};
use crate::pipeline::Pipeline;
use crate::{compact, count, score, sql, vacuum};

/// Run a pipeline file: count, score and what else it names.
#[derive(Args, Debug)]
#[command(after_help = "\
A flag beats --set, --set beats the file, the file beats the defaults. Paths in the file are
relative to the folder where pmill is started. With --cluster, count and score run on the cluster, and
the steps after them in this process.

Example:
  pmill run pipelines/captions.toml --warehouse wh --set input.paths='[\"captions/\"]'")]
pub struct RunArgs {
    /// The pipeline file
    pipeline: PathBuf,
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: Option<String>,
    /// Lay a setting over the file: vocabulary.size=20000
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Show inputs, plan and outputs; write nothing
    #[arg(long)]
    dry_run: bool,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    size: crate::units::SizeArgs,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    units: crate::units::CommonArgs,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    cluster: crate::cluster::ClusterArgs,
}

impl RunArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        if let Some(pipeline) = MergePipeline::read(&self.pipeline, &self.set)? {
            // Snapshots are merged in this process, also with --cluster.
            return pipeline.run(global, self.dry_run);
        }
        let pipeline = self.read(&self.set)?;
        let Some(repeat) = &pipeline.repeat else {
            return self.once(pipeline, global);
        };
        let Some(list) = pipeline.export.first().map(|export| &export.output) else {
            return Err(Failure::user(format!(
                "`{}`: [repeat] feeds the first [[export]], and there is none",
                self.pipeline.display()
            )));
        };
        let list = toml::Value::String(list.display().to_string());
        let (mut passes, mut text) = (Vec::new(), String::new());
        for pass in 1..=repeat.passes.get() {
            let mut set = self.set.clone();
            set.push(format!("name={}_{pass}", pipeline.name));
            if pass > 1 {
                set.push(format!("{}={list}", repeat.feed));
            }
            match self.once(self.read(&set)?, global)? {
                Output::Summary { json, text: more } => {
                    passes.push(json);
                    text.push_str(&more);
                }
                other => return Ok(other),
            }
            if self.dry_run {
                text.push_str("  and so on, with what was written\n");
                break;
            }
        }
        let json = serde_json::json!({ "passes": passes });
        Ok(Output::Summary { json, text })
    }

    fn read(&self, set: &[String]) -> Result<Pipeline, Failure> {
        let mut pipeline = Pipeline::read(&self.pipeline, set)?;
        if let Some(warehouse) = &self.warehouse {
            pipeline.warehouse.clone_from(warehouse);
        }
        Ok(pipeline)
    }

    fn once(&self, mut pipeline: Pipeline, global: &Global) -> Outcome {
        for (key, empty) in [
            ("name", pipeline.name.is_empty()),
            ("warehouse", pipeline.warehouse.is_empty()),
            // Without a text column nothing is counted: the queries are all there is to do.
            (
                "input.paths",
                pipeline.input.paths.is_empty() && !pipeline.input.text.is_empty(),
            ),
            (
                "input.text",
                pipeline.input.text.is_empty() && pipeline.export.is_empty(),
            ),
        ] {
            if empty {
                return Err(Failure::user(format!(
                    "`{}`: `{key}` is not set; set it in the file or by --set {key}=…",
                    self.pipeline.display()
                )));
            }
        }
        pipeline.fill()?;
        let mut global = global.clone();
        global.memory_limit = global.memory_limit.or(pipeline.limits.memory_limit);
        global.threads = global.threads.or(pipeline.limits.threads);
        let job = CountJob {
            warehouse: pipeline.warehouse.clone(),
            name: pipeline.name.clone(),
            inputs: pipeline.input.paths.clone(),
            settings: pipeline.count_settings(),
            on_bad_file: pipeline.input.on_bad_file,
            memory_limit: global.memory_limit(),
            threads: global.threads(),
        };
        if self.dry_run {
            return dry_run(&pipeline, &job, &global);
        }
        let keep = pipeline.maintenance.keep()?;
        let (mut steps, mut text) = (serde_json::Map::new(), String::new());
        let mut add = |name: &str, output: Output| {
            if let Output::Summary { json, text: more } = output {
                steps.insert(name.to_owned(), json);
                text.push_str(&more);
            }
        };
        if !pipeline.input.text.is_empty() {
            add("count", self.count(&job, &global)?);
        }
        if let Some(settings) = &pipeline.score {
            add(
                "score",
                self.score((&pipeline.warehouse, &pipeline.name), settings, &global)?,
            );
        }
        if !pipeline.export.is_empty() {
            let outputs = export(&pipeline, &global)?;
            let text = outputs
                .iter()
                .map(|output| format!("wrote {output}\n"))
                .collect();
            let json = serde_json::json!({ "outputs": outputs });
            add("export", Output::Summary { json, text });
        }
        let Pipeline {
            warehouse, name, ..
        } = &pipeline;
        if pipeline.maintenance.compact {
            add("compact", compact::run(warehouse, name, false, &global)?);
        }
        if let Some(keep) = keep {
            add("vacuum", vacuum::run(warehouse, name, keep, false)?);
        }
        Ok(Output::Summary {
            json: steps.into(),
            text,
        })
    }
}

impl RunArgs {
    /// Counts on the cluster, if one was named.
    fn count(&self, job: &CountJob, global: &Global) -> Outcome {
        #[cfg(feature = "cluster")]
        if self.cluster.is_asked_for() {
            return self
                .cluster
                .count(job, &[], &self.size, &self.units, global);
        }
        count::count(job, global)
    }

    /// As [`Self::count`].
    fn score(&self, job: (&str, &str), settings: &ScoreSettings, global: &Global) -> Outcome {
        #[cfg(feature = "cluster")]
        if self.cluster.is_asked_for() {
            let summary = self.cluster.score(job, settings, &self.units, global)?;
            return Ok(score::output(&summary));
        }
        score::run(job.0, job.1, settings, global)
    }
}

/// Writes what the queries give, in order.
fn export(pipeline: &Pipeline, global: &Global) -> Result<Vec<String>, Failure> {
    let session = SqlSession::open(&pipeline.warehouse, global.threads(), global.memory_limit())?;
    if !pipeline.input.paths.is_empty() {
        session.add_input(&pipeline.input.paths)?;
    }
    session.add_features(&pipeline.features)?;
    for view in &pipeline.view {
        session.add_view(&view.name, &view.sql)?;
    }
    let mut outputs = Vec::new();
    for export in &pipeline.export {
        if let Some(folder) = export
            .output
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder).map_err(|error| {
                Failure::user(format!("cannot create `{}`: {error}", folder.display()))
            })?;
        }
        sql::write(
            &session,
            &export.sql,
            export.format,
            Some(export.output.clone()),
        )?;
        outputs.push(export.output.display().to_string());
    }
    Ok(outputs)
}

fn dry_run(pipeline: &Pipeline, job: &CountJob, global: &Global) -> Outcome {
    let (mut json, mut text) = (serde_json::json!({}), String::new());
    if !pipeline.input.text.is_empty() {
        let output = count::dry_run(job, global)?;
        let Output::Summary {
            json: plan,
            text: told,
        } = output
        else {
            return Ok(output);
        };
        (json, text) = (plan, told);
    }
    if let Some(score) = &pipeline.score {
        text.push_str(&format!("  then: score by {}\n", score.measures.join(", ")));
        json["score"] = count::json(score);
    }
    for export in &pipeline.export {
        text.push_str(&format!("  then: write {}\n", export.output.display()));
    }
    Ok(Output::Summary { json, text })
}
