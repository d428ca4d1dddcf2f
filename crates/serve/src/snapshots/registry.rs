//! All runs of a warehouse: what is in memory is what is on the disk, and the disk comes first.
//!
//! Every change is written down (see [`super`]) before anybody is told. A run's files are written once; only an
//! agent's publication may be replaced, and only while its run is open. Calls block; servers run them on
//! threads that may.

use super::checks::{Places, arrival};
use super::error::MergeServiceError;
use super::files;
use super::merging::{self, Merger};
use super::record::{
    Announcement, Decision, FORMAT, Outcome, Published, Rule, RunState, Verdict, Weighting,
};
use pmill_engine::snapshots;
use pmill_snapshot::Digest;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, watch};

/// The most runs that are held.
pub const MAX_RUNS: usize = 10_000;

/// What a publication came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// It counts.
    Accepted,
    /// It was there already.
    Repeated,
    /// It takes the place of an earlier step.
    Replaced,
}

/// What an agent publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The run.
    pub run: String,
    /// The agent's name.
    pub agent: String,
    /// Where the snapshot is.
    pub uri: String,
    /// Training step.
    pub step: u64,
    /// What the agent says its content is.
    pub digest: Option<Digest>,
    /// Training examples seen.
    pub examples: u64,
}

/// Means of checks and merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Threads; `None` is one per processor.
    pub threads: Option<usize>,
    /// Bytes of a merge's buffers; `None` is the library's default.
    pub memory_limit_bytes: Option<u64>,
}

/// One run and those who watch it.
#[derive(Debug)]
struct Cell {
    folder: PathBuf,
    state: Mutex<RunState>,
    changes: watch::Sender<u64>,
}

impl Cell {
    fn state(&self) -> MutexGuard<'_, RunState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changes.send_modify(|version| *version += 1);
    }
}

/// All runs of a warehouse.
#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    places: Places,
    outputs: Places,
    limits: Limits,
    merger: Arc<dyn Merger>,
    runs: Mutex<BTreeMap<String, Arc<Cell>>>,
    /// Told whenever a run waits for its merge.
    pub merge_wanted: Notify,
    _lock: File,
}

/// Unix time in milliseconds.
#[must_use]
pub fn now_unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

impl Registry {
    /// Opens the runs of a warehouse folder, which is made when it is missing.
    ///
    /// # Errors
    /// Another service at work there, a warehouse that is not a local folder, unreadable state.
    pub fn open(
        warehouse: &str,
        places: Places,
        outputs: Places,
        limits: Limits,
        merger: Arc<dyn Merger>,
    ) -> Result<Self, MergeServiceError> {
        let path = match warehouse.split_once("://") {
            Some(("file", path)) => path,
            Some((scheme, _)) => {
                return Err(MergeServiceError::invalid(format!(
                    "the merge service keeps its state and models in a local warehouse, not in `{scheme}`; name a folder"
                )));
            }
            None => warehouse,
        };
        let folder = Path::new(path).join("merge-runs");
        files::make_folder(&folder)?;
        let folder = folder
            .canonicalize()
            .map_err(|source| MergeServiceError::Storage {
                action: "read",
                path: folder.clone(),
                source,
            })?;
        let lock = files::lock(&folder.join(".lock"))?;
        let mut runs = BTreeMap::new();
        for name in files::folders(&folder)? {
            if let Some(state) = load(&folder.join(&name))? {
                runs.insert(name.clone(), cell(folder.join(&name), state));
            }
        }
        Ok(Self {
            folder,
            places,
            outputs,
            limits,
            merger,
            runs: Mutex::new(runs),
            merge_wanted: Notify::new(),
            _lock: lock,
        })
    }

    fn runs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Cell>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, run: &str) -> Result<Arc<Cell>, MergeServiceError> {
        self.runs()
            .get(run)
            .cloned()
            .ok_or_else(|| MergeServiceError::UnknownRun {
                run: run.to_owned(),
            })
    }

    /// Opens a run; the deadline counts from `now_unix_ms`.
    ///
    /// # Errors
    /// Those of [`Announcement::check`]; another announcement under the same name; an output that may not be, that
    /// exists, or that is another run's.
    pub fn announce(
        &self,
        mut announcement: Announcement,
        now_unix_ms: u64,
    ) -> Result<RunState, MergeServiceError> {
        announcement.check()?;
        if let Rule::Deadline { seconds, .. } = announcement.rule {
            let deadline = now_unix_ms.saturating_add(seconds.saturating_mul(1000));
            announcement.deadline_unix_ms = Some(deadline);
        }
        if let Some(output) = &mut announcement.output {
            *output = self.outputs.output(output)?;
            // Said when the run begins, and not when its agents have trained.
            let is_new = !self.runs().contains_key(&announcement.run);
            if is_new && snapshots::is_taken(Path::new(output))? {
                return Err(MergeServiceError::Conflict {
                    what: format!("output `{output}` exists already; remove it or choose another"),
                });
            }
        }
        let mut runs = self.runs();
        if let Some(cell) = runs.get(&announcement.run) {
            let state = cell.state().clone();
            if state.announcement.same_as(&announcement) {
                return Ok(state);
            }
            return Err(MergeServiceError::Conflict {
                what: format!(
                    "run `{}` was announced with other settings; choose another name",
                    announcement.run
                ),
            });
        }
        if let Some(output) = &announcement.output {
            let within = |a: &str, b: &str| Path::new(a).starts_with(b);
            let others = runs.values().filter_map(|cell| {
                let other = &cell.state().announcement;
                let place = other.output.as_deref()?;
                (within(place, output) || within(output, place)).then(|| other.run.clone())
            });
            if let Some(other) = others.take(1).next() {
                return Err(MergeServiceError::Conflict {
                    what: format!("output `{output}` is that of run `{other}`; choose another"),
                });
            }
        }
        if runs.len() >= MAX_RUNS {
            return Err(MergeServiceError::Full {
                limit: MAX_RUNS,
                path: self.folder.clone(),
            });
        }
        let folder = self.folder.join(&announcement.run);
        files::make_folder(&folder.join("agents"))?;
        files::sync_folder(&self.folder)?;
        files::put(&folder.join("run.json"), &announcement)?;
        let state = RunState {
            announcement,
            published: BTreeMap::new(),
            decision: None,
            outcome: None,
        };
        runs.insert(state.announcement.run.clone(), cell(folder, state.clone()));
        Ok(state)
    }

    /// Takes a publication in: reads and checks the snapshot, writes it down, and sees whether the rule is met.
    ///
    /// # Errors
    /// An unknown run or agent, a run that is closed, contradictions with what this agent has published, and
    /// everything that [`arrival`] finds.
    pub fn publish(
        &self,
        publication: &Publication,
        now_unix_ms: u64,
    ) -> Result<(Receipt, Published, RunState), MergeServiceError> {
        let cell = self.cell(&publication.run)?;
        // The deadline may have passed with nobody looking.
        self.settle(&cell, now_unix_ms)?;
        let announcement = cell.state().announcement.clone();
        let agent = announcement.agent(&publication.agent)?;
        if announcement.weighting == Weighting::Examples && publication.examples == 0 {
            return Err(MergeServiceError::invalid(format!(
                "run `{}` weighs by examples, so agent `{}` must say how many it saw",
                publication.run, publication.agent
            )));
        }
        {
            let state = cell.state();
            if let Some(earlier) = repeated(&state, agent, publication, &self.places)? {
                return Ok((Receipt::Repeated, earlier, state.clone()));
            }
        }
        let resolved = self.places.resolve(&publication.uri)?;
        let path = snapshots::open(&resolved)?;
        let mut settings = announcement.settings.clone();
        settings.threads = self.limits.threads;
        loop {
            let reference = reference(&cell.state(), agent);
            let reference_path = match &reference {
                Some(reference) => Some(snapshots::open(reference.uri.as_ref())?),
                None => None,
            };
            let checked = arrival(
                &path,
                publication.digest,
                reference_path.as_ref(),
                &settings,
            )?;
            let published = Published {
                agent: publication.agent.clone(),
                uri: resolved.display().to_string(),
                step: publication.step,
                digest: checked.digest,
                examples: publication.examples,
            };
            let mut state = cell.state();
            if let Some(earlier) = repeated(&state, agent, publication, &self.places)? {
                return Ok((Receipt::Repeated, earlier, state.clone()));
            }
            if self::reference(&state, agent) != reference {
                // Another agent came first, so this one has to be held against it.
                continue;
            }
            let receipt = stand(&state, agent, &published)?;
            if receipt == Receipt::Repeated {
                return Ok((receipt, published, state.clone()));
            }
            let file = cell.folder.join("agents").join(format!("{agent}.json"));
            files::put(&file, &published)?;
            state.published.insert(agent, published.clone());
            drop(state);
            cell.tell();
            self.settle(&cell, now_unix_ms)?;
            return Ok((receipt, published, cell.state().clone()));
        }
    }

    /// A run as it stands.
    ///
    /// # Errors
    /// An unknown run.
    pub fn get(&self, run: &str) -> Result<RunState, MergeServiceError> {
        Ok(self.cell(run)?.state().clone())
    }

    /// All runs, by name.
    #[must_use]
    pub fn list(&self) -> Vec<RunState> {
        let cells: Vec<_> = self.runs().values().cloned().collect();
        cells.iter().map(|cell| cell.state().clone()).collect()
    }

    /// A number that grows with every change of a run.
    ///
    /// # Errors
    /// An unknown run.
    pub fn changes(&self, run: &str) -> Result<watch::Receiver<u64>, MergeServiceError> {
        Ok(self.cell(run)?.changes.subscribe())
    }

    /// Sees which open runs have met their rule at this time, or can no longer.
    ///
    /// # Errors
    /// State that cannot be written.
    pub fn tick(&self, now_unix_ms: u64) -> Result<(), MergeServiceError> {
        let cells: Vec<_> = self.runs().values().cloned().collect();
        cells
            .iter()
            .try_for_each(|cell| self.settle(cell, now_unix_ms))
    }

    fn settle(&self, cell: &Cell, now_unix_ms: u64) -> Result<(), MergeServiceError> {
        let mut state = cell.state();
        match state.verdict(now_unix_ms) {
            Verdict::Wait => return Ok(()),
            Verdict::Merge { reason } => {
                let decision = state.decide(reason);
                files::put(&cell.folder.join("decision.json"), &decision)?;
                state.decision = Some(decision);
            }
            Verdict::Fail { message } => {
                let outcome = Outcome::Failed { message };
                files::put(&cell.folder.join("outcome.json"), &outcome)?;
                state.outcome = Some(outcome);
            }
        }
        drop(state);
        cell.tell();
        self.merge_wanted.notify_one();
        Ok(())
    }

    /// Runs that are decided and not merged, by name.
    #[must_use]
    pub fn waiting_for_merge(&self) -> Vec<String> {
        self.list()
            .into_iter()
            .filter(|state| state.decision.is_some() && state.outcome.is_none())
            .map(|state| state.announcement.run)
            .collect()
    }

    /// Runs the merge of a decided run to its end, going on where an earlier one stopped; `go_on` is asked after
    /// each slice.
    ///
    /// # Errors
    /// Only what trying again may help with; a merge that can never be is an [`Outcome`].
    pub fn merge(
        &self,
        run: &str,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Outcome, MergeServiceError> {
        let cell = self.cell(run)?;
        let state = cell.state().clone();
        if let Some(outcome) = state.outcome {
            return Ok(outcome);
        }
        let Some(decision) = &state.decision else {
            return Err(MergeServiceError::Internal {
                what: format!("run `{run}` is not decided"),
            });
        };
        let outcome = merging::merge(
            &cell.folder,
            &state.announcement,
            decision,
            self.limits,
            self.merger.as_ref(),
            go_on,
        )?;
        self.finish(&cell, outcome)
    }

    /// Gives a decided run up.
    ///
    /// # Errors
    /// State that cannot be written.
    pub fn fail(&self, run: &str, message: String) -> Result<Outcome, MergeServiceError> {
        let cell = self.cell(run)?;
        self.finish(&cell, Outcome::Failed { message })
    }

    fn finish(&self, cell: &Cell, outcome: Outcome) -> Result<Outcome, MergeServiceError> {
        files::put(&cell.folder.join("outcome.json"), &outcome)?;
        cell.state().outcome = Some(outcome.clone());
        cell.tell();
        Ok(outcome)
    }
}

fn cell(folder: PathBuf, state: RunState) -> Arc<Cell> {
    Arc::new(Cell {
        folder,
        state: Mutex::new(state),
        changes: watch::Sender::new(0),
    })
}

/// Reads a run; `None` for a folder that never became one.
fn load(folder: &Path) -> Result<Option<RunState>, MergeServiceError> {
    let Some(announcement) = files::get::<Announcement>(&folder.join("run.json"))? else {
        return Ok(None);
    };
    if announcement.format != FORMAT {
        return Err(MergeServiceError::invalid(format!(
            "`{}` has the format {}, this program reads {FORMAT}; use the version that wrote it",
            folder.join("run.json").display(),
            announcement.format
        )));
    }
    let mut published = BTreeMap::new();
    for agent in 0..announcement.agents.len() {
        let file = folder.join("agents").join(format!("{agent}.json"));
        if let Some(record) = files::get::<Published>(&file)? {
            published.insert(agent, record);
        }
    }
    Ok(Some(RunState {
        announcement,
        published,
        decision: files::get::<Decision>(&folder.join("decision.json"))?,
        outcome: files::get::<Outcome>(&folder.join("outcome.json"))?,
    }))
}

/// The snapshot that a new one is held against: that of the first other agent.
fn reference(state: &RunState, agent: usize) -> Option<Published> {
    state
        .published
        .iter()
        .find(|(other, _)| **other != agent)
        .map(|(_, published)| published.clone())
}

/// The earlier publication when this one says nothing new, so that nothing has to be read; an error when the
/// run takes none any more.
fn repeated(
    state: &RunState,
    agent: usize,
    publication: &Publication,
    places: &Places,
) -> Result<Option<Published>, MergeServiceError> {
    let same = |earlier: &&Published| {
        let place = || places.resolve(&publication.uri);
        earlier.step == publication.step
            && earlier.examples == publication.examples
            && publication
                .digest
                .map_or(!state.is_open(), |digest| digest == earlier.digest)
            && (earlier.uri == publication.uri
                || place().is_ok_and(|path| path.display().to_string() == earlier.uri))
    };
    let merged = state.decision.as_ref().and_then(|decision| {
        let name = &state.announcement.agents[agent];
        decision.merged.iter().find(|record| record.agent == *name)
    });
    let known = if state.decision.is_some() {
        merged
    } else {
        state.published.get(&agent)
    };
    if let Some(earlier) = known.filter(same) {
        return Ok(Some(earlier.clone()));
    }
    if state.is_open() {
        return Ok(None);
    }
    let within = match merged {
        Some(record) => format!(
            "step {} of agent `{}` is in the merge",
            record.step, record.agent
        ),
        None => format!("agent `{}` is not in it", state.announcement.agents[agent]),
    };
    Err(MergeServiceError::Late {
        run: state.announcement.run.clone(),
        why: format!("{}; {within}", state.message()),
    })
}

/// How a checked publication stands to what the run has.
fn stand(
    state: &RunState,
    agent: usize,
    published: &Published,
) -> Result<Receipt, MergeServiceError> {
    let conflict = |what: String| Err(MergeServiceError::Conflict { what });
    let earlier = state.published.get(&agent);
    match earlier {
        Some(earlier) if earlier == published => return Ok(Receipt::Repeated),
        Some(earlier) if earlier.step > published.step => {
            return conflict(format!(
                "agent `{}` has published step {} already, which is later than step {}",
                earlier.agent, earlier.step, published.step
            ));
        }
        Some(earlier) if earlier.step == published.step && earlier.digest != published.digest => {
            return conflict(format!(
                "agent `{}` has published step {} with the digest {}, now it is {}; publish changed weights as a later step",
                earlier.agent, earlier.step, earlier.digest, published.digest
            ));
        }
        Some(earlier)
            if earlier.step == published.step && earlier.examples != published.examples =>
        {
            return conflict(format!(
                "agent `{}` has published step {} with {} examples, now with {}; publish a later step",
                earlier.agent, earlier.step, earlier.examples, published.examples
            ));
        }
        _ => {}
    }
    let twin = state
        .published
        .iter()
        .find(|(other, record)| **other != agent && record.digest == published.digest);
    if let (Some((_, twin)), false) = (twin, state.announcement.settings.allow_same) {
        return conflict(format!(
            "agent `{}` publishes the very weights that agent `{}` has published (digest {}); if that is meant, announce the run with allow_same",
            published.agent, twin.agent, twin.digest
        ));
    }
    Ok(if earlier.is_some() {
        Receipt::Replaced
    } else {
        Receipt::Accepted
    })
}
