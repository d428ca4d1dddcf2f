//! `pmill run`: a pipeline file, step by step.

use std::path::PathBuf;

use clap::Args;
use pmill_engine::job::CountJob;

use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output};
use crate::pipeline::Pipeline;
use crate::{count, score, sql};

/// Run a pipeline file: count, score and what else it names.
#[derive(Args, Debug)]
#[command(after_help = "\
A flag beats --set, --set beats the file, the file beats the defaults. Paths in the file are
relative to the folder where pmill is started.

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
}

impl RunArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let mut pipeline = Pipeline::read(&self.pipeline, &self.set)?;
        if let Some(warehouse) = self.warehouse {
            pipeline.warehouse = warehouse;
        }
        for (key, empty) in [
            ("name", pipeline.name.is_empty()),
            ("warehouse", pipeline.warehouse.is_empty()),
            ("input.paths", pipeline.input.paths.is_empty()),
            ("input.text", pipeline.input.text.is_empty()),
        ] {
            if empty {
                return Err(Failure::user(format!(
                    "`{}`: `{key}` is not set; set it in the file or by --set {key}=…",
                    self.pipeline.display()
                )));
            }
        }
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
        let (mut steps, mut text) = (serde_json::Map::new(), String::new());
        let mut add = |name: &str, output: Output| {
            if let Output::Summary { json, text: more } = output {
                steps.insert(name.to_owned(), json);
                text.push_str(&more);
            }
        };
        add("count", count::count(&job, &global)?);
        if let Some(settings) = &pipeline.score {
            add(
                "score",
                score::run(&pipeline.warehouse, &pipeline.name, settings, &global)?,
            );
        }
        for export in &pipeline.export {
            sql::query(
                &pipeline.warehouse,
                &export.sql,
                export.format,
                Some(export.output.clone()),
                &global,
            )?;
            add(
                "export",
                Output::Summary {
                    json: serde_json::json!({ "output": export.output }),
                    text: format!("wrote {}\n", export.output.display()),
                },
            );
        }
        Ok(Output::Summary {
            json: steps.into(),
            text,
        })
    }
}

fn dry_run(pipeline: &Pipeline, job: &CountJob, global: &Global) -> Outcome {
    let output = count::dry_run(job, global)?;
    let Output::Summary { mut json, mut text } = output else {
        return Ok(output);
    };
    if let Some(score) = &pipeline.score {
        text.push_str(&format!("  then: score by {}\n", score.measures.join(", ")));
        json["score"] = count::json(score);
    }
    for export in &pipeline.export {
        text.push_str(&format!("  then: write {}\n", export.output.display()));
    }
    Ok(Output::Summary { json, text })
}
