//! Merges (or compares) the snapshots given and prints what it took: what benchmarks run.
//!
//! `merge OUTPUT SNAPSHOT... [--threads N] [--no-sync] [--digest NAME] [--settings JSON]`, and
//! `merge --distance SNAPSHOT... [--threads N]`.

use pmill_snapshot::{DistanceSettings, MergeSettings, SnapshotPath, distance, merge, plan_merge};
use std::path::PathBuf;

#[expect(clippy::print_stdout, reason = "the report is this program's result")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut settings = MergeSettings {
        overwrite: true,
        ..MergeSettings::default()
    };
    let mut places = Vec::new();
    let mut compare = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--threads" => {
                settings.threads = Some(
                    arguments
                        .next()
                        .ok_or("--threads needs a number")?
                        .parse()?,
                )
            }
            "--distance" => compare = true,
            "--no-sync" => settings.sync = false,
            "--digest" => {
                settings.digests = arguments.next().ok_or("--digest needs a name")?.parse()?;
            }
            "--settings" => {
                settings = serde_json::from_str(&arguments.next().ok_or("--settings needs JSON")?)?
            }
            _ => places.push(argument),
        }
    }
    if compare {
        let started = std::time::Instant::now();
        let inputs = places
            .iter()
            .map(SnapshotPath::local)
            .collect::<Result<Vec<_>, _>>()?;
        let settings = DistanceSettings {
            threads: settings.threads,
            ..DistanceSettings::default()
        };
        let report = distance(&inputs, &settings, &|_| true)?;
        println!("{}{:.3} s", report.text(), started.elapsed().as_secs_f64());
        return Ok(());
    }
    let (output, inputs) = places
        .split_first()
        .ok_or("usage: merge OUTPUT SNAPSHOT...")?;
    let inputs = inputs
        .iter()
        .map(SnapshotPath::local)
        .collect::<Result<Vec<_>, _>>()?;
    let plan = plan_merge(&inputs, &PathBuf::from(output), &settings)?;
    let report = merge(&plan, &|_| true)?;
    // The largest resident size so far, from the system's own account.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap_or("VmHWM unknown");
    println!(
        "{:.3} s, read {:.3} GB, wrote {:.3} GB, {} elements by whole numbers, {} warnings, {peak}",
        report.seconds,
        report.bytes.0 as f64 / 1e9,
        report.bytes.1 as f64 / 1e9,
        report.exact_elements,
        report.warnings.len(),
    );
    Ok(())
}
