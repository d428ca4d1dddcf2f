//! Shards: the units of a job shared out among processes that know only their number, as in a
//! Kubernetes Indexed Job or a Slurm array. No server: they meet in the plan's folder.
//!
//! A shard does its own units of a phase, then waits for the others. When nothing has come for a
//! while it does a missing unit itself, so that a job ends however few shards are left alive.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::drive::{Drive, Phase, Runner};
use super::folder::PlanFolder;
use super::spec::UnitSpec;
use super::worker::UnitWorker;
use crate::error::EngineError;
use crate::job::Recount;
use crate::progress::StopFlag;

/// One shard of a job.
pub struct Shard<'a> {
    /// Its number, from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// The phase after whose share it ends, without waiting for the others; `None`: it waits and
    /// goes on to the last.
    pub only: Option<Phase>,
    /// How long nothing may come before it does others' units.
    pub take_over_after: Duration,
    /// How long nothing may come before it gives up.
    pub patience: Duration,
    /// Runs its units.
    pub worker: &'a UnitWorker,
    /// Units that it ran.
    pub ran: u64,
}

/// What a shard did; field names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct ShardSummary {
    /// `done`, or `unchanged` when the job had been committed before.
    pub status: &'static str,
    /// Job name.
    pub job: String,
    /// Its number.
    pub shard: usize,
    /// How many there are.
    pub shards: usize,
    /// Units and ranges that it ran.
    pub units: u64,
    /// Seconds.
    pub seconds: f64,
}

impl Shard<'_> {
    /// Does the shard's part of the job.
    ///
    /// # Errors
    /// As the job's; when others' units do not come within the shard's patience.
    pub fn run(
        mut self,
        drive: &Drive<'_>,
        recounts: &[Recount],
    ) -> Result<ShardSummary, EngineError> {
        let started = Instant::now();
        let found = drive.run(recounts, &mut self)?;
        Ok(ShardSummary {
            status: if found.is_some() { "unchanged" } else { "done" },
            job: drive.job.name.clone(),
            shard: self.index,
            shards: self.count,
            units: self.ran,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    fn one(
        &mut self,
        spec: &UnitSpec,
        done: &mut dyn FnMut(&UnitSpec),
        stop: &StopFlag,
    ) -> Result<(), EngineError> {
        if self.worker.run(spec, stop)? {
            self.ran += 1;
        }
        done(spec);
        Ok(())
    }
}

impl Runner for Shard<'_> {
    fn run(
        &mut self,
        folder: &PlanFolder,
        phase: Phase,
        units: Vec<UnitSpec>,
        done: &mut dyn FnMut(&UnitSpec),
        stop: &StopFlag,
    ) -> Result<(), EngineError> {
        let (own, mut others): (Vec<_>, Vec<_>) = units
            .into_iter()
            .partition(|unit| unit.work.number() % self.count == self.index);
        for spec in &own {
            self.one(spec, done, stop)?;
        }
        // An earlier phase than the one asked for must be whole before that one can begin.
        if self.ends_after(phase) {
            return Ok(());
        }
        // Shards that take over begin at different units.
        if !others.is_empty() {
            let first = others.len() * self.index / self.count;
            others.rotate_left(first);
        }
        let mut last_came = Instant::now();
        let mut pause = Duration::from_millis(50);
        while !others.is_empty() {
            if stop.is_set() {
                return Err(EngineError::Interrupted);
            }
            let there = folder.done()?;
            let before = others.len();
            others.retain(|unit| {
                let came = there.contains(&unit.work.name());
                if came {
                    done(unit);
                }
                !came
            });
            if others.len() < before {
                (last_came, pause) = (Instant::now(), Duration::from_millis(50));
            }
            if others.is_empty() {
                break;
            }
            if last_came.elapsed() > self.patience {
                return Err(EngineError::NotNow(format!(
                    "{} unit(s) of the phase `{}` are missing, and no shard has finished one for {} s; run the missing shards again",
                    others.len(),
                    phase.name(),
                    self.patience.as_secs()
                )));
            }
            if last_came.elapsed() > self.take_over_after {
                let spec = others.remove(0);
                self.one(&spec, done, stop)?;
                continue;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        Ok(())
    }

    fn leads(&self) -> Option<Duration> {
        (self.index > 0).then_some(self.take_over_after)
    }

    fn ends_after(&self, phase: Phase) -> bool {
        self.only.is_some_and(|only| phase >= only)
    }
}
