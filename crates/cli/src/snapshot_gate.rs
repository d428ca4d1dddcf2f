//! `pmill snapshot merge --evaluate CMD`: a merged model gets its name only when it is good enough.
//!
//! The order: the merge, into a folder beside the output; the loss of each snapshot; that of the merged model; the
//! merges that leave one snapshot out, when asked for; then the output is given its name, or removed. The gate is
//! open when the merged model's loss is at most the mean loss of the snapshots.
//!
//! The command judges files. A snapshot in an object store is fetched to disk to be judged, one after the other; an
//! output in a store is merged to disk and uploaded when it has passed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use pmill_engine::snapshots::{at_its_target, is_remote};
use pmill_snapshot::{
    Digests, MergeReport, MergeSettings, OnProgress, SnapshotError, SnapshotPath, Weight, Weights,
    fetch, merge, plan_merge, published, upload_merged,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::units::Scratch;

/// Flags of the gate.
#[derive(Debug, Clone, Default, Args)]
pub struct GateOptions {
    /// Command that judges a model: it is given a path as its last argument (and in PMILL_SNAPSHOT) and
    /// prints a loss, a number that is better when smaller, as its last line; what is in a store is fetched first
    #[arg(long, value_name = "CMD")]
    pub evaluate: Option<String>,
    /// What to do when the merged model's loss is above the mean loss of the snapshots
    #[arg(long, value_enum, default_value_t = OnWorse::Refuse, requires = "evaluate")]
    pub gate: OnWorse,
    /// Also judge the merges that leave one snapshot out, and name those that are better left out
    #[arg(long, requires = "evaluate")]
    pub leave_one_out: bool,
    /// Seconds that one evaluation may take
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 3600,
        requires = "evaluate"
    )]
    pub evaluate_timeout: u64,
    /// Folder for what is fetched from a store to be judged, and for the merged model that goes to one: room for two
    /// models [default: beside a local output, else the system's]
    #[arg(long, value_name = "FOLDER", env = "PMILL_SCRATCH")]
    pub scratch: Option<PathBuf>,
}

/// What happens to a merged model that is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnWorse {
    /// It does not appear, and the exit code is 2.
    #[default]
    Refuse,
    /// It appears, and the report says so.
    Report,
}

/// One judged snapshot, or the merge without it.
#[derive(Debug, Clone, Serialize)]
pub struct Judged {
    /// Where the snapshot is.
    pub snapshot: String,
    /// The loss, of the snapshot or of the merge without it.
    pub loss: f64,
}

/// What the gate found.
#[derive(Debug, Clone, Serialize)]
pub struct GateReport {
    /// Whether the merged model's loss is at most the mean.
    pub passed: bool,
    /// The command.
    pub evaluate: String,
    /// Loss of each snapshot.
    pub locals: Vec<Judged>,
    /// Their plain mean.
    pub mean_local_loss: f64,
    /// Loss of the merged model; `null` in JSON when it is not finite.
    pub merged_loss: f64,
    /// Loss of the merge without each snapshot.
    pub leave_one_out: Vec<Judged>,
    /// Snapshots without which the merge has a smaller loss, the most harmful first.
    pub better_without: Vec<String>,
}

impl GateReport {
    /// What a person reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for judged in &self.locals {
            text.push_str(&format!("loss {:.6}  {}\n", judged.loss, judged.snapshot));
        }
        text.push_str(&format!(
            "loss {:.6}  mean of the {} snapshots\nloss {:.6}  merged\n",
            self.mean_local_loss,
            self.locals.len(),
            self.merged_loss
        ));
        for judged in &self.leave_one_out {
            text.push_str(&format!(
                "loss {:.6}  merged without {}\n",
                judged.loss, judged.snapshot
            ));
        }
        if !self.better_without.is_empty() {
            text.push_str(&format!(
                "better left out: {}\n",
                self.better_without.join(", ")
            ));
        }
        text
    }
}

fn settings(what: String) -> SnapshotError {
    SnapshotError::Settings { what }
}

/// Runs the command on a model and reads the loss; `name` is what people call the model.
fn loss(
    options: &GateOptions,
    command: &str,
    model: &Path,
    name: &str,
) -> Result<f64, SnapshotError> {
    let failed = |why: String| {
        settings(format!(
            "the evaluation `{command}` of `{name}` {why}; expected a number (the loss) as its last line on stdout"
        ))
    };
    let mut child = Command::new("sh")
        .args(["-c", &format!("{command} \"$1\""), "sh"])
        .arg(model)
        .env("PMILL_SNAPSHOT", model)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot start: {error}")))?;
    let mut stdout = child.stdout.take();
    // Read meanwhile, or a command that says much would wait for us.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(stdout) = &mut stdout {
            // What was read before an error is still judged.
            let _ = std::io::Read::read_to_end(stdout, &mut text);
        }
        text
    });
    let until = Instant::now() + Duration::from_secs(options.evaluate_timeout);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() >= until => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!(
                    "took longer than {} s",
                    options.evaluate_timeout
                )));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(failed(format!("was lost: {error}"))),
        }
    };
    if !status.success() {
        return Err(failed(format!("ended with {status}")));
    }
    let text = reader.join().unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let last = text
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty());
    let last = last.unwrap_or_default();
    last.parse()
        .map_err(|_| failed(format!("printed `{last}` at its end")))
}

/// Where models wait for the gate, and where those of a store are fetched to.
struct Room {
    /// Beside a local output, which gets its name by a rename.
    models: PathBuf,
    fetched: PathBuf,
    /// Removed at the end in any case: the next run would not find it.
    _scratch: Scratch,
}

impl Room {
    fn new(output: &Path, options: &GateOptions) -> Self {
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let root = options.scratch.clone().unwrap_or_else(std::env::temp_dir);
        let scratch = root.join(format!("pmill-gate-{}-{name}", std::process::id()));
        let beside = output.with_file_name(format!(".{name}.pmill-gate"));
        let (models, fetched) = match (is_remote(output), &options.scratch) {
            (true, _) => (scratch.join("models"), scratch.join("fetched")),
            (false, Some(_)) => (beside, scratch.join("fetched")),
            (false, None) => (beside.clone(), beside.join("fetched")),
        };
        Self {
            models,
            fetched,
            _scratch: Scratch(scratch),
        }
    }

    /// The loss of a snapshot, which is fetched first when it is in a store.
    fn judge(
        &self,
        snapshot: &SnapshotPath,
        settings: &MergeSettings,
        options: &GateOptions,
        command: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<f64, SnapshotError> {
        let name = snapshot.location();
        if !is_remote(Path::new(&name)) {
            return loss(options, command, Path::new(&name), &name);
        }
        // What another run left there is of another snapshot, perhaps.
        remove(&self.fetched)?;
        let model = fetch(snapshot, &self.fetched, settings.threads, on_progress)?;
        let loss = loss(options, command, &model, &name)?;
        remove(&self.fetched)?;
        Ok(loss)
    }
}

fn remove(folder: &Path) -> Result<(), SnapshotError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(SnapshotError::Write {
            path: folder.display().to_string(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// The weights that are left without one input, in the same proportions.
fn without(weights: &Weights, left_out: usize) -> Weights {
    let rest = |list: &[Weight]| {
        let mut list = list.to_vec();
        list.remove(left_out);
        Weights::Examples(list)
    };
    match weights {
        Weights::Uniform => Weights::Uniform,
        Weights::Fractions(list) | Weights::Examples(list) => rest(list),
    }
}

/// Merges behind the gate.
///
/// # Errors
/// Those of a merge; an evaluation that gives no loss; a merged model that is worse, unless it is only to be
/// reported.
pub fn gated(
    inputs: &[SnapshotPath],
    output: &Path,
    merge_settings: &MergeSettings,
    options: &GateOptions,
    on_progress: OnProgress<'_>,
) -> Result<(MergeReport, GateReport), SnapshotError> {
    let Some(command) = options.evaluate.as_deref() else {
        return Err(settings("a gate needs a command that evaluates".to_owned()));
    };
    // Everything that can be refused is refused before anything is evaluated.
    let plan = at_its_target(plan_merge(inputs, output, merge_settings)?)?;
    let room = Room::new(output, options);
    // The same merge has passed before, or this is an error.
    let there = match merge_settings.overwrite {
        true => None,
        false => published(&plan)?,
    };
    let was_there = there.is_some();
    let mut report = match there {
        Some(report) => report,
        None => {
            let place = room.models.join(output.file_name().unwrap_or_default());
            merge(&plan_merge(inputs, &place, merge_settings)?, on_progress)?
        }
    };
    let candidate = PathBuf::from(&report.target);
    let judge = |snapshot: &SnapshotPath| {
        room.judge(snapshot, merge_settings, options, command, on_progress)
    };

    let mut locals = Vec::with_capacity(inputs.len());
    for input in inputs {
        let (snapshot, loss) = (input.location(), judge(input)?);
        if !loss.is_finite() {
            return Err(settings(format!(
                "the loss of `{snapshot}` is {loss}, expected a finite number; leave this snapshot out"
            )));
        }
        locals.push(Judged { snapshot, loss });
    }
    let mean_local_loss =
        locals.iter().map(|judged| judged.loss).sum::<f64>() / locals.len() as f64;
    let merged_loss = judge(&pmill_engine::snapshots::open(&candidate)?)?;
    let mut gate = GateReport {
        passed: merged_loss <= mean_local_loss,
        evaluate: command.to_owned(),
        locals,
        mean_local_loss,
        merged_loss,
        leave_one_out: Vec::new(),
        better_without: Vec::new(),
    };
    if options.leave_one_out && inputs.len() > 1 {
        let room = &room.models;
        leave_one_out(inputs, merge_settings, options, command, room, &mut gate)?;
    }
    if !gate.passed && options.gate == OnWorse::Refuse {
        if !was_there {
            remove(&room.models)?;
        }
        let hint = match gate.better_without.first() {
            Some(snapshot) => format!("; it would be better without `{snapshot}`"),
            None => String::new(),
        };
        return Err(settings(format!(
            "the merged model's loss {merged_loss} is above the mean loss {mean_local_loss} of the {} snapshots{hint}; `{}` {}; choose other snapshots, train on with more mixing, or take it with --gate report",
            inputs.len(),
            output.display(),
            if was_there {
                "is there from before"
            } else {
                "was not written"
            },
        )));
    }
    if !was_there {
        match is_remote(output) {
            true => upload_merged(&plan, &candidate, on_progress)?,
            false => publish(&candidate, output)?,
        }
        remove(&room.models)?;
        report.target = output.display().to_string();
    }
    Ok((report, gate))
}

fn leave_one_out(
    inputs: &[SnapshotPath],
    merge_settings: &MergeSettings,
    options: &GateOptions,
    command: &str,
    room: &Path,
    gate: &mut GateReport,
) -> Result<(), SnapshotError> {
    let folder = room.join("without");
    for left_out in 0..inputs.len() {
        let mut rest = inputs.to_vec();
        rest.remove(left_out);
        let mut settings = merge_settings.clone();
        settings.weights = without(&merge_settings.weights, left_out);
        // A model that is judged and thrown away.
        settings.sync = false;
        settings.digests = Digests::None;
        settings.overwrite = true;
        settings.side_files_from = None;
        merge(&plan_merge(&rest, &folder, &settings)?, &|_| true)?;
        gate.leave_one_out.push(Judged {
            snapshot: inputs[left_out].location(),
            loss: loss(options, command, &folder, "the merge without one")?,
        });
        remove(&folder)?;
    }
    let mut better: Vec<&Judged> = gate
        .leave_one_out
        .iter()
        .filter(|judged| judged.loss < gate.merged_loss)
        .collect();
    better.sort_by(|a, b| a.loss.total_cmp(&b.loss));
    gate.better_without = better
        .iter()
        .map(|judged| judged.snapshot.clone())
        .collect();
    Ok(())
}

/// Gives a model that has passed its name: one rename for a folder; for a file its manifest first.
fn publish(candidate: &Path, output: &Path) -> Result<(), SnapshotError> {
    let write = |path: &Path| {
        let path = path.display().to_string();
        move |source| SnapshotError::Write { path, source }
    };
    if candidate.is_file() {
        let manifest = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!("{name}.pmill-merge.json"))
        };
        std::fs::rename(manifest(candidate), manifest(output)).map_err(write(output))?;
    } else if output.is_dir() {
        remove(output)?;
    }
    std::fs::rename(candidate, output).map_err(write(output))?;
    let folder = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(write(folder))
}

/// The report of a gated merge as one object.
pub fn object(report: &MergeReport, gate: &GateReport) -> serde_json::Value {
    let mut value = json!(report);
    value["gate"] = json!(gate);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &str, seconds: u64) -> Result<f64, String> {
        let options = GateOptions {
            evaluate_timeout: seconds,
            ..GateOptions::default()
        };
        let model = "/models/it's 1";
        loss(&options, command, Path::new(model), model).map_err(|error| error.to_string())
    }

    #[test]
    fn a_loss_is_the_last_line_and_the_path_the_last_argument() {
        assert_eq!(run("printf 'epoch 1\\n0.25\\n\\n' #", 9), Ok(0.25));
        let named = "f() { [ \"$1\" = a ] && [ \"$2\" = \"/models/it's 1\" ] && [ \"$PMILL_SNAPSHOT\" = \"$2\" ] && echo 1.5e1; }; f a";
        assert_eq!(run(named, 9), Ok(15.0));
        assert!(run("echo nan #", 9).unwrap().is_nan());
    }

    #[test]
    fn a_command_that_gives_no_loss_is_an_error_that_says_why() {
        assert!(
            run("echo ready #", 9)
                .unwrap_err()
                .contains("printed `ready`")
        );
        assert!(run("true", 9).unwrap_err().contains("printed ``"));
        assert!(run("exit 3 #", 9).unwrap_err().contains("exit status: 3"));
        assert!(run("sleep 5 #", 0).unwrap_err().contains("longer than 0 s"));
    }
}
