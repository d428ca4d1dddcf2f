//! The driver's side: has units run on the cluster, one Ballista job each, and watches manifests.
//!
//! Ballista's word counts for little here: a unit is done when its manifest is there. A job that
//! failed, was forgotten or hangs is submitted again, a limited number of times; every wait has an
//! end.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use ballista_core::serde::protobuf::{
    CancelJobParams, ExecuteQueryParams, GetJobStatusParams, KeyValuePair,
    execute_query_params::Query, execute_query_result, job_status,
};
use ballista_core::version::insert_version_header;
use datafusion_proto::physical_plan::AsExecutionPlan;
use datafusion_proto::protobuf::PhysicalPlanNode;
use pmill_engine::job::distributed::{Failure, Phase, PlanFolder, Runner, UnitSpec};
use pmill_engine::progress::{Progress, StopFlag};
use pmill_engine::{EngineError, Kind};

use crate::codec::UnitCodec;
use crate::error::ClusterError;
use crate::net::{ClientSecurity, SchedulerClient};
use crate::proto::HelloReply;
use crate::unit_exec::{UnitExec, final_reason};

/// How often manifests are looked for.
const LOOK: Duration = Duration::from_millis(100);
/// How often the scheduler is asked for a unit's job.
const ASK: Duration = Duration::from_secs(1);
/// Units submitted beyond the slots, so that no slot waits for the driver.
const AHEAD: usize = 4;
/// A unit this many times slower than the median is begun a second time elsewhere.
const SLOW: u32 = 4;
/// And not before it has run so long.
const SLOW_AT_LEAST: Duration = Duration::from_secs(10);

/// When a driver gives up.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long nothing may come: no scheduler, no executor, no manifest.
    pub nothing: Duration,
    /// Times that a unit may fail.
    pub attempts: u32,
}

/// Asks a scheduler what its cluster has.
///
/// # Errors
/// When it is away or refuses.
pub fn cluster_state(url: &str, security: &ClientSecurity) -> Result<HelloReply, ClusterError> {
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut client = SchedulerClient::new(url, security)?;
        client.hello("client").await
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, ClusterError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| ClusterError::Stopped {
            what: "the driver's runtime",
            reason: error.to_string(),
        })
}

/// Runs units on a cluster.
pub struct ClusterRunner<'a> {
    runtime: tokio::runtime::Runtime,
    client: SchedulerClient,
    patience: Patience,
    progress: &'a dyn Progress,
    /// Seconds of finished units, for the median.
    took: Vec<f32>,
}

/// A unit that was submitted and has no manifest yet.
struct Submitted {
    spec: UnitSpec,
    /// Ballista's jobs that run it; more than one when it is slow.
    jobs: Vec<String>,
    asked: Instant,
    lost_polls: u32,
    /// When it was first seen to have begun.
    began: Option<Instant>,
    /// When a job ended without a manifest: manifests may come late on a shared file system.
    ended: Option<Instant>,
}

impl<'a> ClusterRunner<'a> {
    /// Connects to the scheduler, and checks that it is the same version.
    ///
    /// # Errors
    /// When it is away or refuses.
    pub fn connect(
        url: &str,
        security: &ClientSecurity,
        patience: Patience,
        progress: &'a dyn Progress,
    ) -> Result<Self, ClusterError> {
        let runtime = runtime()?;
        let client = runtime.block_on(async {
            let mut client = SchedulerClient::new(url, security)?;
            client.hello("client").await?;
            Ok::<_, ClusterError>(client)
        })?;
        Ok(Self {
            runtime,
            client,
            patience,
            progress,
            took: Vec::new(),
        })
    }

    fn submit(&mut self, spec: &UnitSpec) -> Result<String, ClusterError> {
        let bug = |error: String| ClusterError::Engine(EngineError::Bug(error));
        let plan = UnitExec::plan(spec).map_err(|error| bug(error.to_string()))?;
        let codec = UnitCodec::default();
        let message = PhysicalPlanNode::try_from_physical_plan(plan, &codec)
            .map_err(|error| bug(error.to_string()))?;
        let mut bytes = Vec::new();
        message
            .try_encode(&mut bytes)
            .map_err(|error| bug(error.to_string()))?;
        let setting = |key: &str, value: &str| KeyValuePair {
            key: key.to_owned(),
            value: Some(value.to_owned()),
        };
        let params = ExecuteQueryParams {
            query: Some(Query::PhysicalPlan(bytes)),
            settings: vec![
                setting("ballista.job.name", &spec.work.name()),
                setting("ballista.planner.adaptive.enabled", "false"),
                setting("ballista.scheduler.max_partitions_per_task", "1"),
            ],
            session_id: uuid::Uuid::new_v4().to_string(),
            operation_id: uuid::Uuid::new_v4().to_string(),
        };
        let mut request = tonic::Request::new(params);
        insert_version_header(request.metadata_mut());
        let reply = self
            .runtime
            .block_on(self.client.ballista.execute_query(request))
            .map_err(|status| self.client.explain(&status))?;
        match reply.into_inner().result {
            Some(execute_query_result::Result::Success(success)) => Ok(success.job_id),
            other => Err(ClusterError::Refused {
                url: self.client.url.clone(),
                reason: format!("{other:?}"),
            }),
        }
    }

    fn job_state(&mut self, job: &str) -> Result<Option<job_status::Status>, ClusterError> {
        let request = GetJobStatusParams {
            job_id: job.to_owned(),
        };
        self.runtime
            .block_on(self.client.ballista.get_job_status(request))
            .map(|reply| reply.into_inner().status.and_then(|status| status.status))
            .map_err(|status| self.client.explain(&status))
    }

    fn slots(&mut self) -> Result<usize, ClusterError> {
        let reply = self.runtime.block_on(self.client.hello("client"))?;
        Ok(reply.executors.iter().map(|e| e.slots as usize).sum())
    }

    /// Takes queued tasks from the cluster. What runs sees the new epoch, or its own limit.
    fn cancel(&mut self, submitted: &HashMap<String, Submitted>) {
        for job in submitted.values().flat_map(|unit| &unit.jobs) {
            let request = CancelJobParams {
                job_id: job.clone(),
            };
            let asked = self.client.ballista.cancel_job(request);
            let cancelled = self
                .runtime
                .block_on(async { tokio::time::timeout(Duration::from_secs(2), asked).await });
            if !matches!(cancelled, Ok(Ok(_))) {
                tracing::warn!(%job, "not cancelled");
                return;
            }
        }
    }

    fn median(&self) -> Option<Duration> {
        if self.took.len() < 3 {
            return None;
        }
        let mut sorted = self.took.clone();
        sorted.sort_by(f32::total_cmp);
        Some(Duration::from_secs_f32(sorted[sorted.len() / 2]))
    }
}

impl Runner for ClusterRunner<'_> {
    fn run(
        &mut self,
        folder: &PlanFolder,
        phase: Phase,
        units: Vec<UnitSpec>,
        done: &mut dyn FnMut(&UnitSpec),
        stop: &StopFlag,
    ) -> Result<(), EngineError> {
        self.took.clear();
        let mut work = PhaseRun {
            runner: self,
            folder,
            phase,
            waiting: units
                .into_iter()
                .map(|spec| (Instant::now(), spec))
                .collect(),
            submitted: HashMap::new(),
            failed: HashMap::new(),
            failures_seen: HashSet::new(),
            slots: 0,
            slots_asked: None,
            last_sign: Instant::now(),
            last_error: String::new(),
        };
        let result = work.until_done(done, stop);
        if let Err(error) = &result {
            let submitted = std::mem::take(&mut work.submitted);
            self.cancel(&submitted);
            // Units that run for nobody any more see that somebody came after us. When a newer
            // driver has taken over it needs its units, and they are not ended.
            let epoch = submitted.values().next().map_or(0, |unit| unit.spec.epoch);
            if !submitted.is_empty() && !folder.superseded(epoch) {
                let ended = folder.end_all();
                tracing::info!(%error, ?ended, "units ended");
            }
        }
        result
    }
}

/// One phase on the cluster.
struct PhaseRun<'r, 'a> {
    runner: &'r mut ClusterRunner<'a>,
    folder: &'r PlanFolder,
    phase: Phase,
    /// With the moment before which a unit is not to be tried.
    waiting: VecDeque<(Instant, UnitSpec)>,
    submitted: HashMap<String, Submitted>,
    /// How often each unit failed.
    failed: HashMap<String, u32>,
    failures_seen: HashSet<String>,
    slots: usize,
    slots_asked: Option<Instant>,
    /// When something last came.
    last_sign: Instant,
    last_error: String,
}

impl PhaseRun<'_, '_> {
    fn until_done(
        &mut self,
        done: &mut dyn FnMut(&UnitSpec),
        stop: &StopFlag,
    ) -> Result<(), EngineError> {
        let epoch = self.waiting.front().map_or(0, |(_, spec)| spec.epoch);
        loop {
            if stop.is_set() {
                return Err(EngineError::Interrupted);
            }
            if self.folder.superseded(epoch) {
                return Err(EngineError::NotNow(
                    "a run of this job that started later has taken it over, or it was cancelled"
                        .into(),
                ));
            }
            let looked = Instant::now();
            self.collect(done)?;
            let looked = looked.elapsed();
            if self.waiting.is_empty() && self.submitted.is_empty() {
                return Ok(());
            }
            self.hear_failures()?;
            self.count_slots()?;
            self.submit_some()?;
            self.ask_for_jobs()?;
            self.second_attempts()?;
            let silent = self.last_sign.elapsed();
            if silent > self.runner.patience.nothing {
                return Err(EngineError::NotNow(format!(
                    "nothing has come from the cluster at {} for {} s ({} slots there; {} units of the phase `{}` are left{}); run the same command again to go on",
                    self.runner.client.url,
                    silent.as_secs(),
                    self.slots,
                    self.waiting.len() + self.submitted.len(),
                    self.phase.name(),
                    if self.last_error.is_empty() {
                        String::new()
                    } else {
                        format!("; last: {}", self.last_error)
                    },
                )));
            }
            // A folder of very many manifests takes a while to list.
            std::thread::sleep(LOOK.max(looked * 4));
        }
    }

    /// Takes what has a manifest off the lists, and notes what has begun.
    fn collect(&mut self, done: &mut dyn FnMut(&UnitSpec)) -> Result<(), EngineError> {
        let there = self.folder.done()?;
        let mut came = 0;
        let took = &mut self.runner.took;
        self.submitted.retain(|name, unit| {
            if !there.contains(name) {
                return true;
            }
            if let Some(began) = unit.began {
                took.push(began.elapsed().as_secs_f32());
            }
            done(&unit.spec);
            came += 1;
            false
        });
        self.waiting.retain(|(_, spec)| {
            let come = there.contains(&spec.work.name());
            if come {
                done(spec);
                came += 1;
            }
            !come
        });
        if came > 0 {
            self.last_sign = Instant::now();
        }
        if self.submitted.values().any(|unit| unit.began.is_none()) {
            for mark in self.folder.begun()? {
                let name = mark.rsplit_once('.').map_or(&mark[..], |(name, _)| name);
                if let Some(unit) = self.submitted.get_mut(name) {
                    unit.began.get_or_insert_with(Instant::now);
                }
            }
        }
        Ok(())
    }

    /// Reads why attempts failed. What cannot pass ends the job; the rest is tried again.
    fn hear_failures(&mut self) -> Result<(), EngineError> {
        for failure in self.folder.new_failures(&mut self.failures_seen)? {
            // An older driver's units fail because they were ended.
            let ours = self
                .submitted
                .get(&failure.unit)
                .is_some_and(|unit| unit.spec.epoch == failure.epoch);
            if !ours {
                continue;
            }
            let Some(unit) = self.submitted.remove(&failure.unit) else {
                continue;
            };
            self.again(unit.spec, &failure)?;
        }
        Ok(())
    }

    fn again(&mut self, spec: UnitSpec, failure: &Failure) -> Result<(), EngineError> {
        let name = spec.work.name();
        let times = self.failed.entry(name.clone()).or_insert(0);
        *times += 1;
        let inputs = if failure.inputs.is_empty()
            || failure
                .inputs
                .iter()
                .all(|input| failure.message.contains(input.as_str()))
        {
            String::new()
        } else {
            format!("; the unit reads {}", failure.inputs.join(", "))
        };
        if !failure.again && self.phase == Phase::Query && failure.user {
            // What is wrong with a row is said as it is in process.
            return Err(EngineError::Query(failure.message.clone()));
        }
        if !failure.again {
            let text = format!("{} (unit {name}{inputs})", failure.message);
            return Err(if failure.user {
                EngineError::Setting(text)
            } else {
                EngineError::NotNow(text)
            });
        }
        if *times >= self.runner.patience.attempts {
            let text = format!(
                "unit {name} failed {times} times, the last time so: {}{inputs}",
                failure.message
            );
            return Err(if failure.user {
                EngineError::Setting(text)
            } else {
                EngineError::NotNow(text)
            });
        }
        let pause = Duration::from_millis(200) * 2_u32.pow((*times).min(8));
        self.runner.progress.retried();
        self.runner.progress.note(&format!(
            "unit {name} failed and is tried again: {}",
            failure.message
        ));
        tracing::warn!(unit = %name, times = *times, reason = %failure.message, "unit is tried again");
        self.waiting.push_front((Instant::now() + pause, spec));
        Ok(())
    }

    fn count_slots(&mut self) -> Result<(), EngineError> {
        let due = self
            .slots_asked
            .is_none_or(|asked| asked.elapsed() > Duration::from_secs(2));
        if !due {
            return Ok(());
        }
        self.slots_asked = Some(Instant::now());
        match self.runner.slots() {
            Ok(slots) => self.slots = slots,
            Err(error) => self.away(error)?,
        }
        Ok(())
    }

    /// The scheduler is away: it is waited for. A refusal is final.
    fn away(&mut self, error: ClusterError) -> Result<(), EngineError> {
        if error.kind() != Kind::NotNow {
            return Err(error.into());
        }
        self.last_error = error.to_string();
        Ok(())
    }

    fn submit_some(&mut self) -> Result<(), EngineError> {
        if self.slots == 0 {
            return Ok(());
        }
        let now = Instant::now();
        let mut looked = 0;
        while self.submitted.len() < self.slots + AHEAD && looked < self.waiting.len() {
            let Some((not_before, spec)) = self.waiting.pop_front() else {
                break;
            };
            if not_before > now {
                self.waiting.push_back((not_before, spec));
                looked += 1;
                continue;
            }
            match self.runner.submit(&spec) {
                Ok(job) => {
                    self.submitted.insert(
                        spec.work.name(),
                        Submitted {
                            spec,
                            jobs: vec![job],
                            asked: now,
                            lost_polls: 0,
                            began: None,
                            ended: None,
                        },
                    );
                }
                Err(error) => {
                    self.waiting.push_front((now, spec));
                    return self.away(error);
                }
            }
        }
        Ok(())
    }

    /// Asks what became of jobs. A job that is not known any more is submitted again.
    fn ask_for_jobs(&mut self) -> Result<(), EngineError> {
        let due: Vec<String> = self
            .submitted
            .iter()
            .filter(|(_, unit)| unit.asked.elapsed() > ASK)
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(unit) = self.submitted.get_mut(&name) else {
                continue;
            };
            unit.asked = Instant::now();
            let Some(job) = unit.jobs.last().cloned() else {
                continue;
            };
            let state = match self.runner.job_state(&job) {
                Ok(state) => state,
                Err(error) => {
                    let Some(unit) = self.submitted.get_mut(&name) else {
                        continue;
                    };
                    unit.lost_polls += 1;
                    if unit.lost_polls >= 3 {
                        self.resubmit(&name);
                    }
                    self.away(error)?;
                    // The others would wait as long for the same answer.
                    return Ok(());
                }
            };
            let Some(unit) = self.submitted.get_mut(&name) else {
                continue;
            };
            unit.lost_polls = 0;
            match state {
                None => self.resubmit(&name),
                Some(job_status::Status::Queued(_) | job_status::Status::Running(_)) => {}
                Some(job_status::Status::Failed(failed)) => {
                    // Its own word comes first: it may be in the folder and not read yet.
                    let since = *unit.ended.get_or_insert_with(Instant::now);
                    if since.elapsed() > ASK
                        && let Some(unit) = self.submitted.remove(&name)
                    {
                        let is_final = final_reason(&failed.error);
                        let failure = Failure {
                            unit: name,
                            again: is_final.is_none(),
                            user: is_final.is_some(),
                            message: is_final.unwrap_or(failed.error),
                            inputs: unit.spec.work.inputs(),
                            epoch: unit.spec.epoch,
                            process: 0,
                            at_ms: 0,
                        };
                        self.again(unit.spec, &failure)?;
                    }
                }
                Some(job_status::Status::Successful(_)) => {
                    let since = *unit.ended.get_or_insert_with(Instant::now);
                    if since.elapsed() > ASK * 5 {
                        self.resubmit(&name);
                    }
                }
            }
        }
        Ok(())
    }

    fn resubmit(&mut self, name: &str) {
        if let Some(unit) = self.submitted.remove(name) {
            tracing::warn!(unit = %name, "the scheduler has lost the unit's job; it is submitted again");
            self.waiting.push_front((Instant::now(), unit.spec));
        }
    }

    /// Begins a second time what takes much longer than others, elsewhere if there is room.
    fn second_attempts(&mut self) -> Result<(), EngineError> {
        if self.submitted.len() >= self.slots || !self.waiting.is_empty() {
            return Ok(());
        }
        let Some(median) = self.runner.median() else {
            return Ok(());
        };
        let slow = (median * SLOW).max(SLOW_AT_LEAST);
        let names: Vec<String> = self
            .submitted
            .iter()
            .filter(|(_, unit)| {
                unit.jobs.len() == 1 && unit.began.is_some_and(|began| began.elapsed() > slow)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            let Some(spec) = self.submitted.get(&name).map(|unit| unit.spec.clone()) else {
                continue;
            };
            match self.runner.submit(&spec) {
                Ok(job) => {
                    tracing::info!(unit = %name, "slow; begun a second time");
                    if let Some(unit) = self.submitted.get_mut(&name) {
                        unit.jobs.push(job);
                    }
                }
                Err(error) => return self.away(error),
            }
        }
        Ok(())
    }
}
