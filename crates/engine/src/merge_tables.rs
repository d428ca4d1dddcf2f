//! Sums count tables of any warehouses into a new job or an existing one, in one pass.
//!
//! In: N jobs at their newest versions, and the target's. Out: one version of the target. The pairs
//! are streamed by ranges of left ids, so memory does not grow with the tables: one vocabulary, and for
//! each thread an accumulator, a writer and one row group of each table.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pmill_count::{Accumulator, CountSettings as KernelSettings, Side, Tail};
use pmill_store::{DataFile, Job, JobName, Warehouse, killpoint};
use pmill_text::{TermCount, Vocabulary, merge_sorted};
use serde::Serialize;

use crate::counting::{Aside, Counting, Parts, RangeFile};
use crate::error::EngineError;
use crate::job::Facts;
use crate::job::base::Base;
use crate::job::cleanup::{after, clean_up, renew};
use crate::job::commit::{Changes, Target};
use crate::job::run::{reach, units_of};
use crate::job::totals::with_count;
use crate::memory::{ByteSize, peak_rss};
use crate::outside::OutsideFile;
use crate::pairs_table::{Blocks, PairsTable};
use crate::progress::{Progress, StopFlag, Unit as Steps};
use crate::remap::{Relation, Remapped, remap};
use crate::session::Session;
use crate::settings::{ContextKind, RecordedSettings};
use crate::slices::Slices;
use crate::sources::{SourceRow, SourceStatus};
use crate::stored::StoredTable;
use crate::tables::{sliced_ranges, table_ranges};
use crate::tail::{StoredTail, TailFacts, held_bytes, sums_bytes};
use crate::work::{SCRATCH, WorkFolder};

/// What one table and one thread hold at most while they are merged: a row group as stored, its
/// pages, one batch.
const READER_BYTES: u64 = 12 << 20;
/// What a table writer holds.
const WRITER_BYTES: u64 = 24 << 20;

/// What to sum into which job.
#[derive(Debug, Clone)]
pub struct MergeJob {
    /// Warehouse location.
    pub warehouse: String,
    /// Job name; made if it is not there.
    pub name: String,
    /// `WAREHOUSE/JOB`, or `JOB` of the same warehouse.
    pub from: Vec<String>,
    /// Bring tables of other vocabularies to the target's by term, and leave out what has no term.
    pub remap: bool,
    /// Memory limit.
    pub memory_limit: ByteSize,
    /// Threads.
    pub threads: usize,
}

/// What a merge would sum.
#[derive(Debug, Clone, Serialize)]
pub struct MergePlan {
    /// Job name.
    pub job: String,
    /// Whether it is there already.
    pub exists: bool,
    /// Tables: name, version of `pairs`, pairs, bytes.
    pub from: Vec<(String, u64, u64, u64)>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// The closing summary; field names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct MergeSummary {
    /// `merged`, or `unchanged` when all of it had been merged before.
    pub status: &'static str,
    /// Job name.
    pub job: String,
    /// Version of `pairs` that holds the result.
    pub version: u64,
    /// Tables summed, the target's own not among them.
    pub tables: u64,
    /// Rows of all files in the counts.
    pub rows: u64,
    /// Features met in them.
    pub tokens: u64,
    /// Distinct features.
    pub types: u64,
    /// Terms of the vocabulary.
    pub terms: u64,
    /// Pairs stored.
    pub pairs: u64,
    /// Pairs read, the target's own among them.
    pub read_pairs: u64,
    /// Bytes of the tables' pairs that were read.
    pub read_bytes: u64,
    /// Terms without a place in the target's vocabulary, with `remap`.
    pub dropped_terms: u64,
    /// Pairs that held such a term.
    pub dropped_pairs: u64,
    /// Seconds.
    pub seconds: f64,
    /// Most memory held, if the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// A table to be summed.
struct Part {
    shown: String,
    warehouse: Warehouse,
    base: Base,
    relation: Relation,
}

/// All that a merge starts from.
struct Plan {
    target: Option<Base>,
    parts: Vec<Part>,
    vocabulary: Arc<Vocabulary>,
    /// Every file that is summed was summed before.
    contained: bool,
    notes: Vec<String>,
}

/// Says what [`merge`] would sum. Writes nothing.
///
/// # Errors
/// As [`merge`], up to the point where pairs are read.
pub fn plan_merge(job: &MergeJob) -> Result<MergePlan, EngineError> {
    let session = Session::new(1, job.memory_limit, None)?;
    let (name, warehouse) = (JobName::new(&job.name)?, Warehouse::open(&job.warehouse)?);
    let plan = job.plan(&session, &warehouse, &name)?;
    let from = plan
        .parts
        .iter()
        .map(|part| {
            let pairs = &part.base.job.pairs;
            let bytes = pairs.files()?.iter().map(|file| file.size).sum();
            Ok((
                part.shown.clone(),
                pairs.version(),
                part.base.facts.pairs,
                bytes,
            ))
        })
        .collect::<Result<_, EngineError>>()?;
    Ok(MergePlan {
        job: job.name.clone(),
        exists: plan.target.is_some(),
        from,
        notes: plan.notes,
    })
}

/// Sums the tables and commits the sum as one version.
///
/// # Errors
/// Tables of other settings or vocabularies, a file that is in two of them, a sum beyond 64 bits;
/// whatever is wrong with disk, memory or warehouses. Nothing is committed then.
pub fn merge(
    job: &MergeJob,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<MergeSummary, EngineError> {
    merge_by(job, progress, stop, |merging, job_folder, summary| {
        merging.run(job_folder, summary)
    })
}

/// As [`merge`], with the pairs summed by whoever `sum` finds: it commits, and gives the facts.
pub(crate) fn merge_by(
    job: &MergeJob,
    progress: &dyn Progress,
    stop: &StopFlag,
    sum: impl FnOnce(&Merging<'_>, &Path, &mut MergeSummary) -> Result<Facts, EngineError>,
) -> Result<MergeSummary, EngineError> {
    let started = Instant::now();
    let (name, warehouse) = (JobName::new(&job.name)?, Warehouse::open(&job.warehouse)?);
    // Everything is looked at before anything is written.
    let session = Session::new(job.threads, job.memory_limit, None)?;
    job.plan(&session, &warehouse, &name)?;
    let Some(job_folder) = warehouse.work_folder(&name) else {
        return Err(EngineError::Setting(
            "this build writes warehouses on local disk only".into(),
        ));
    };
    let fresh = !job_folder.exists();
    let lock = warehouse.lock(&name)?;
    let scratch = job_folder.join(SCRATCH);
    let result = (|| {
        renew(&scratch)?;
        let mut plan = job.plan(&session, &warehouse, &name)?;
        let mut summary = MergeSummary {
            status: "unchanged",
            job: job.name.clone(),
            version: 0,
            tables: plan.parts.len() as u64,
            rows: 0,
            tokens: 0,
            types: 0,
            terms: plan.vocabulary.len() as u64,
            pairs: 0,
            read_pairs: 0,
            read_bytes: 0,
            dropped_terms: 0,
            dropped_pairs: 0,
            seconds: 0.0,
            peak_memory_bytes: None,
            notes: std::mem::take(&mut plan.notes),
        };
        let facts = match &plan.target {
            Some(target) if plan.contained => {
                summary.version = target.job.pairs.version();
                summary
                    .notes
                    .push("all of it was merged before; nothing changed".into());
                target.facts.clone()
            }
            _ => {
                summary.status = "merged";
                let merging = Merging {
                    job,
                    name: &name,
                    warehouse: &warehouse,
                    session: &session,
                    plan: &plan,
                    progress,
                    stop,
                };
                sum(&merging, &job_folder, &mut summary)?
            }
        };
        clean_up(&session, &warehouse, &name, &job_folder, &lock)?;
        summary.rows = facts.rows;
        summary.tokens = facts.tokens;
        summary.types = facts.types;
        summary.pairs = facts.pairs;
        summary.seconds = started.elapsed().as_secs_f64();
        summary.peak_memory_bytes = peak_rss().map(|size| size.0);
        Ok(summary)
    })();
    let _ = std::fs::remove_dir_all(&scratch);
    after(&result, fresh, &warehouse, &name, &job_folder, &lock);
    result
}

impl MergeJob {
    fn plan(
        &self,
        session: &Session,
        warehouse: &Warehouse,
        name: &JobName,
    ) -> Result<Plan, EngineError> {
        let target = Base::open(session, warehouse, name)?;
        let mut notes = Vec::new();
        let mut parts: Vec<Part> = Vec::new();
        for from in &self.from {
            let (location, job) = from
                .trim_end_matches('/')
                .rsplit_once('/')
                .unwrap_or((&self.warehouse, from));
            let there = Warehouse::open(location)?;
            let job_name = JobName::new(job)?;
            if there.url() == warehouse.url() && job_name == *name {
                return Err(EngineError::Setting(format!(
                    "--from `{from}` is the job that is merged into; it is in the sum anyway"
                )));
            }
            let stored = session.wait(Job::open_existing(&there, &job_name))?;
            let base = Base::of(session, &there, stored)?;
            let (first_shown, first) = match (&target, parts.first()) {
                (Some(target), _) => (name.to_string(), target),
                (None, Some(part)) => (part.shown.clone(), &part.base),
                (None, None) => (from.clone(), &base),
            };
            let relation = Relation::of(&base.vocabulary, &first.vocabulary);
            self.check(from, &base, &relation, &first_shown, first, &mut notes)?;
            parts.push(Part {
                shown: from.clone(),
                warehouse: there,
                base,
                relation,
            });
        }
        let Some(first) = target.as_ref().or(parts.first().map(|part| &part.base)) else {
            return Err(EngineError::Setting("--from names no table".into()));
        };
        let vocabulary = first.vocabulary.clone();
        let contained = contained(target.as_ref(), &parts);
        if !contained {
            refuse_overlap(name, target.as_ref(), &parts)?;
        }
        Ok(Plan {
            target,
            parts,
            vocabulary,
            contained,
            notes,
        })
    }

    /// Two tables may be summed when they were counted alike.
    fn check(
        &self,
        shown: &str,
        base: &Base,
        relation: &Relation,
        first_shown: &str,
        first: &Base,
        notes: &mut Vec<String>,
    ) -> Result<(), EngineError> {
        let differences = base.recorded.differences(&first.recorded);
        if !differences.is_empty() {
            return Err(EngineError::Setting(format!(
                "`{shown}` was counted with other settings than `{first_shown}`, so they cannot be summed\n  {}",
                differences.join("\n  ")
            )));
        }
        if base.recorded.given.sketch.is_some() {
            if self.remap {
                return Err(EngineError::Setting(
                    "--remap does not go with jobs that have a sketch: its pairs cannot be brought to other ids".into(),
                ));
            }
            if !matches!(relation, Relation::Same) {
                return Err(EngineError::Setting(format!(
                    "`{shown}` and `{first_shown}` have a sketch, and other vocabularies (or the same terms in another order): sketches are summed only over the same ids; count with --vocab FILE to have one vocabulary from the start"
                )));
            }
        }
        let drops_by_rank = first
            .recorded
            .given
            .context
            .max_features_per_document
            .is_some();
        let why = match relation {
            Relation::Same => None,
            Relation::Reordered(_) if !drops_by_rank => None,
            Relation::Reordered(_) => Some(
                "they have the same terms in another order, and `max-features-per-document` chose by that order".to_owned(),
            ),
            Relation::Different {
                only_here,
                only_there,
                ..
            } => Some(format!(
                "{only_here} terms of `{shown}` are not in the vocabulary of `{first_shown}`, {only_there} the other way round"
            )),
        };
        if let Some(why) = why {
            if base.slices.is_some() && matches!(relation, Relation::Different { .. }) {
                return Err(EngineError::Setting(format!(
                    "`{shown}` and `{first_shown}` have different vocabularies: {why}. Jobs that are counted by slice are summed only over the same terms: count with --vocab FILE to have one vocabulary from the start"
                )));
            }
            if !self.remap {
                return Err(EngineError::Setting(format!(
                    "`{shown}` and `{first_shown}` have different vocabularies: {why}. --remap sums them by term and leaves out the pairs of terms that `{first_shown}` does not have; count with --vocab FILE to have one vocabulary from the start"
                )));
            }
            notes.push(format!("{why}; summed by term"));
        }
        if base.subsample != first.subsample {
            if !self.remap {
                return Err(EngineError::Setting(format!(
                    "`{shown}` and `{first_shown}` were subsampled with other chances, so their sum is no table that one count would give; --remap sums them nevertheless"
                )));
            }
            notes.push(format!(
                "`{shown}` was subsampled with other chances than `{first_shown}`"
            ));
        }
        Ok(())
    }
}

fn counted(base: &Base) -> impl Iterator<Item = &SourceRow> {
    base.sources
        .iter()
        .filter(|row| row.status == SourceStatus::Counted)
}

/// Whether the target has every file of the parts already, just as they have it.
fn contained(target: Option<&Base>, parts: &[Part]) -> bool {
    let Some(target) = target else { return false };
    let known: HashMap<&str, &SourceRow> =
        counted(target).map(|row| (row.uri.as_str(), row)).collect();
    let mut rows = parts.iter().flat_map(|part| counted(&part.base)).peekable();
    rows.peek().is_some()
        && rows.all(|row| {
            known
                .get(row.uri.as_str())
                .is_some_and(|other| other.size == row.size && other.etag == row.etag)
        })
}

fn refuse_overlap(
    name: &JobName,
    target: Option<&Base>,
    parts: &[Part],
) -> Result<(), EngineError> {
    let own = target.map(|base| (name.as_str(), base));
    let tables = parts.iter().map(|part| (part.shown.as_str(), &part.base));
    let mut seen: HashMap<&str, &str> = HashMap::new();
    for (shown, base) in own.into_iter().chain(tables) {
        for row in counted(base) {
            if let Some(other) = seen.insert(&row.uri, shown) {
                return Err(EngineError::Setting(format!(
                    "`{}` is in `{other}` and in `{shown}`: its rows would be counted twice; retract it from one of them",
                    row.display()
                )));
            }
        }
    }
    Ok(())
}

/// One merge at work.
pub(crate) struct Merging<'a> {
    pub(crate) job: &'a MergeJob,
    pub(crate) name: &'a JobName,
    pub(crate) warehouse: &'a Warehouse,
    session: &'a Session,
    plan: &'a Plan,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) stop: &'a StopFlag,
}

/// What a merge has before pairs are read.
pub(crate) struct Begun<'a> {
    pub(crate) target: Target<'a>,
    /// The vocabulary with the sums of all tables.
    pub(crate) vocabulary: Vocabulary,
    /// Its sums by slice.
    slices: Option<Slices>,
    outside: Option<DataFile>,
    /// Facts of the sum, but for its pairs.
    facts: Facts,
    /// The pairs of all tables, the target's first.
    pub(crate) tables: Vec<PairsTable>,
}

impl<'a> Merging<'a> {
    /// All that comes before the pairs.
    pub(crate) fn begin(
        &self,
        digest: &str,
        summary: &mut MergeSummary,
    ) -> Result<Begun<'a>, EngineError> {
        let target = Target {
            session: self.session,
            warehouse: self.warehouse,
            name: self.name,
            progress: self.progress,
            base: self
                .plan
                .target
                .as_ref()
                .map(|base| base.job.pairs.version()),
            settings: self.first().job.settings()?,
        };
        let mut facts = self.facts()?;
        let (vocabulary, outside, dropped) = self.terms(&target, digest)?;
        summary.dropped_terms = dropped;
        facts.types = with_count(&vocabulary) + outside.as_ref().map_or(0, |file| file.rows);
        facts.terms = vocabulary.len() as u64;
        let slices = self.slices(&vocabulary)?;
        facts.slices = slices.as_ref().map(Slices::facts).unwrap_or_default();
        let tables: Vec<PairsTable> = self
            .places()
            .zip(self.maps())
            .map(|((warehouse, base), map)| {
                let pairs = base.pairs(warehouse, self.session.handle())?;
                // A table whose terms get other ids gets those of its slices with them.
                Ok(match (&slices, &base.slices) {
                    (Some(to), Some(from)) if map.is_none() => pairs.moved(Blocks::of(from, to)?),
                    _ => pairs,
                })
            })
            .collect::<Result<_, EngineError>>()?;
        summary.read_bytes = tables.iter().map(PairsTable::bytes).sum();
        summary.read_pairs = self.bases().map(|base| base.facts.pairs).sum();
        Ok(Begun {
            target,
            vocabulary,
            slices,
            outside,
            facts,
            tables,
        })
    }

    /// Left ids of each file of the sum.
    ///
    /// # Errors
    /// When slices and terms are too many for ids.
    pub(crate) fn ranges(&self, begun: &Begun<'_>) -> Result<Vec<Range<u32>>, EngineError> {
        let reach = reach(&self.first().recorded.given.context, &begun.facts);
        match &begun.slices {
            None => Ok(table_ranges(&begun.vocabulary, reach)),
            Some(slices) => sliced_ranges(slices, reach),
        }
    }

    /// Ids of the sum.
    fn size(&self, begun: &Begun<'_>) -> Result<u32, EngineError> {
        match &begun.slices {
            None => Ok(self.first().vocabulary_size()),
            Some(slices) => slices.ids(),
        }
    }

    /// A table's left ids in parts of about the same work.
    pub(crate) fn ranges_of(&self, base: &Base) -> Vec<Range<u32>> {
        let context = &base.recorded.given.context;
        table_ranges(&base.vocabulary, reach(context, &base.facts))
    }

    /// Makes the summed files visible.
    pub(crate) fn commit(
        &self,
        begun: Begun<'_>,
        files: Vec<RangeFile>,
        digest: &str,
        summary: &mut MergeSummary,
    ) -> Result<Facts, EngineError> {
        let mut facts = begun.facts;
        facts.pairs = files.iter().map(|file| file.pairs).sum();
        facts.units = units_of(&files).to_string();
        let mut tail = self.tail()?;
        facts.tail = tail.as_mut().map(|tail| {
            let mut facts = self.bases().filter_map(|base| base.facts.tail.as_ref());
            let taken = facts.any(|facts| facts.distinct_is_upper_bound);
            TailFacts::of(tail, taken)
        });
        summary.version = begun.target.commit(
            Changes {
                vocab: None,
                vocabulary: &begun.vocabulary,
                slices: begun.slices.as_ref(),
                sources: &mut self.sources(),
                pairs: files,
                outside: begun.outside,
                tail,
                facts: &facts,
                subsample: self.first().subsample.as_ref(),
            },
            digest,
        )?;
        Ok(facts)
    }

    /// The sketches of all tables in one; `None` when they have none.
    fn tail(&self) -> Result<Option<Tail>, EngineError> {
        let Some(settings) = &self.first().recorded.given.sketch else {
            return Ok(None);
        };
        let mut sum = Tail::new(settings, self.first().vocabulary_size())?;
        for (warehouse, base) in self.places() {
            let stored = StoredTail::open(warehouse, &base.job, self.session.handle())?;
            if let Some(stored) = stored {
                stored.add_to(&mut sum)?;
            }
        }
        Ok(Some(sum))
    }

    /// Tells of pairs that were left out.
    pub(crate) fn tell_dropped(
        &self,
        part: usize,
        pairs: u64,
        units: &str,
        summary: &mut MergeSummary,
    ) {
        if pairs > 0 {
            summary.dropped_pairs += pairs;
            summary.notes.push(format!(
                "{pairs} pairs of `{}` (sum of counts {units} units of 1/{}) hold a term without a place and were left out",
                self.plan.parts[part].shown,
                self.first().facts.weight_unit
            ));
        }
    }

    /// The tables whose sum this is with their warehouses, the target first.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&'a Warehouse, &'a Base)> {
        let own = self.plan.target.iter().map(|base| (self.warehouse, base));
        let parts = self.plan.parts.iter();
        own.chain(parts.map(|part| (&part.warehouse, &part.base)))
    }

    /// By table, in the order of [`Self::places`]: the ids in the sum's vocabulary, if they are others.
    pub(crate) fn maps(&self) -> Vec<Option<&'a [Option<u32>]>> {
        let own = self.plan.target.iter().map(|_| None);
        let parts = self.plan.parts.iter();
        own.chain(parts.map(|part| part.relation.map())).collect()
    }

    /// How many of the tables are the target's own: 0 or 1.
    pub(crate) fn own_tables(&self) -> usize {
        usize::from(self.plan.target.is_some())
    }

    /// Whether the tables have a sketch.
    pub(crate) fn is_sketched(&self) -> bool {
        self.first().recorded.given.sketch.is_some()
    }

    /// Whether the tables are counted by slice.
    pub(crate) fn is_sliced(&self) -> bool {
        self.first().slices.is_some()
    }

    /// Whether a pair stands once, with the smaller id on the left.
    pub(crate) fn symmetric(&self) -> bool {
        symmetric(&self.first().recorded)
    }

    fn run(&self, job_folder: &Path, summary: &mut MergeSummary) -> Result<Facts, EngineError> {
        let digest = self.digest();
        let work = WorkFolder::open(job_folder, &digest)?;
        let begun = self.begin(&digest, summary)?;
        let (own, others) = begun.tables.split_at(self.own_tables());
        let mut parts = Parts {
            runs: Vec::new(),
            tables: own.iter().collect(),
        };
        for (index, (part, table)) in self.plan.parts.iter().zip(others).enumerate() {
            match part.relation.map() {
                None => parts.tables.push(table),
                Some(map) => {
                    let map = match (&begun.slices, &part.base.slices) {
                        (Some(to), Some(from)) => Cow::Owned(sliced_map(from, to, map)),
                        _ => Cow::Borrowed(map),
                    };
                    let remapped =
                        self.remapped(index, part, table, &map, self.size(&begun)?, &work)?;
                    let (pairs, units) = (remapped.dropped_pairs, &remapped.dropped_units);
                    self.tell_dropped(index, pairs, units, summary);
                    let paths = remapped.runs.iter().map(|run| work.path().join(&run.name));
                    parts.runs.extend(paths.map(|path| (path, false)));
                }
            }
        }
        let files = self.pairs(&parts, &begun, &digest, &work)?;
        self.commit(begun, files, &digest, summary)
    }

    fn pairs(
        &self,
        parts: &Parts<'_>,
        begun: &Begun<'_>,
        digest: &str,
        work: &WorkFolder,
    ) -> Result<Vec<RangeFile>, EngineError> {
        let context = &self.first().recorded.given.context;
        let kernel = KernelSettings {
            context: context.to_context()?,
            vocabulary_size: self.size(begun)?,
        };
        let sources = parts.tables.len() + parts.runs.len();
        let counting = Counting {
            aside: Aside::default(),
            threads: self.threads(kernel.vocabulary_size, begun, sources)?,
            kernel,
            keep: None,
            block_bytes: 0,
            ranges: self.ranges(begun)?,
            folder: begun.target.folder("pairs"),
            batch: digest.to_owned(),
            progress: self.progress,
            stop: self.stop,
        };
        self.progress
            .phase("merge", counting.ranges.len() as u64, Steps::Parts);
        let (_, local) = self.warehouse.table_folder(self.name, "pairs");
        counting.merge(
            parts,
            |number| {
                let done: RangeFile = work.get(&format!("range-{number:05}.json")).ok()??;
                let path = local.as_ref()?.join(&done.file.name);
                (std::fs::metadata(path).ok()?.len() == done.file.size).then_some(done)
            },
            |number, file| {
                work.put(&format!("range-{number:05}.json"), file)?;
                killpoint::reach("a range is merged");
                Ok(())
            },
        )
    }

    /// As many threads as the memory limit has room for.
    fn threads(&self, size: u32, begun: &Begun<'_>, sources: usize) -> Result<usize, EngineError> {
        let a_thread =
            Accumulator::bytes_for(size) as u64 + WRITER_BYTES + READER_BYTES * sources as u64;
        let fixed = self.bases().map(|base| base.vocabulary.held_bytes() as u64);
        let of_slices = self.bases().filter_map(|base| base.slices.as_ref());
        let of_slices = of_slices.chain(&begun.slices).map(Slices::held_bytes);
        let vocabulary = begun.vocabulary.held_bytes() as u64;
        let of_sketch = match &self.first().recorded.given.sketch {
            None => 0,
            Some(sketch) => held_bytes(sketch, 1) + sums_bytes(begun.vocabulary.len(), 2),
        };
        let fixed = fixed.sum::<u64>() + vocabulary + of_slices.sum::<u64>() + of_sketch;
        let room = self.job.memory_limit.0.saturating_sub(fixed) / a_thread;
        if room == 0 {
            return Err(EngineError::Memory {
                limit: self.job.memory_limit.to_string(),
                reason: format!(
                    "merging {sources} tables with a vocabulary of {size} terms takes {}; give --memory-limit {} or merge fewer at once",
                    ByteSize(fixed + a_thread),
                    ByteSize(fixed + a_thread)
                ),
            });
        }
        Ok(self.job.threads.min(usize::try_from(room).unwrap_or(1)))
    }

    fn remapped(
        &self,
        index: usize,
        part: &Part,
        table: &PairsTable,
        map: &[Option<u32>],
        size: u32,
        work: &WorkFolder,
    ) -> Result<Remapped, EngineError> {
        let manifest = format!("remap-{index:05}.json");
        if let Some(done) = work.get(&manifest)? {
            return Ok(done);
        }
        self.progress.phase("remap", 1, Steps::Parts);
        let sizes = (0..map.len() as u32, size);
        let buffer = usize::try_from(self.job.memory_limit.0 / 4).unwrap_or(usize::MAX);
        let done = remap(
            table,
            sizes,
            map,
            symmetric(&part.base.recorded),
            buffer,
            (work.path(), &format!("remap-{index:05}")),
            self.stop,
        )?;
        work.put(&manifest, &done)?;
        killpoint::reach("a table is remapped");
        Ok(done)
    }

    /// The tables whose sum this is, the target first.
    fn bases(&self) -> impl Iterator<Item = &Base> {
        let parts = self.plan.parts.iter().map(|part| &part.base);
        self.plan.target.iter().chain(parts)
    }

    /// The table that gives settings and vocabulary.
    pub(crate) fn first(&self) -> &'a Base {
        self.plan
            .target
            .as_ref()
            .unwrap_or_else(|| &self.plan.parts[0].base)
    }

    /// Names the merge: the same tables at the same versions have the same name.
    pub(crate) fn digest(&self) -> String {
        let tables: Vec<_> = self
            .plan
            .parts
            .iter()
            .map(|part| {
                (
                    part.warehouse.url().as_str(),
                    part.base.job.name.as_str(),
                    part.base.job.pairs.version(),
                )
            })
            .collect();
        let base = self
            .plan
            .target
            .as_ref()
            .map(|base| base.job.pairs.version());
        let text = serde_json::to_vec(&("merge", base, tables)).unwrap_or_default();
        blake3::hash(&text).to_hex()[..16].to_owned()
    }

    fn facts(&self) -> Result<Facts, EngineError> {
        let mut sum = Facts {
            rows: 0,
            tokens: 0,
            types: 0,
            terms: 0,
            pairs: 0,
            units: "0".to_owned(),
            weight_unit: self.first().facts.weight_unit,
            dropped_features: 0,
            slices: Vec::new(),
            tail: None,
        };
        for base in self.bases() {
            let facts = &base.facts;
            for (sum, more) in [
                (&mut sum.rows, facts.rows),
                (&mut sum.tokens, facts.tokens),
                (&mut sum.dropped_features, facts.dropped_features),
            ] {
                *sum = sum.checked_add(more).ok_or_else(beyond)?;
            }
        }
        Ok(sum)
    }

    /// The vocabulary with the sums of all tables; the terms outside it; how many terms of the
    /// tables have no place in it.
    fn terms(
        &self,
        target: &Target<'_>,
        digest: &str,
    ) -> Result<(Vocabulary, Option<DataFile>, u64), EngineError> {
        let vocabulary = &self.plan.vocabulary;
        let mut tokens = vec![0_u64; vocabulary.len()];
        let mut documents = vec![0_u64; vocabulary.len()];
        let mut add = |id: u32, term: &TermCount| -> Result<(), EngineError> {
            let id = id as usize;
            tokens[id] = tokens[id].checked_add(term.tokens).ok_or_else(beyond)?;
            documents[id] = documents[id]
                .checked_add(term.documents)
                .ok_or_else(beyond)?;
            Ok(())
        };
        // Terms without a place, sorted, one list a table.
        let mut homeless: Vec<Vec<TermCount>> = Vec::new();
        let mut dropped = 0;
        for base in self.bases() {
            let mut list = Vec::new();
            for id in 0..base.vocabulary_size() {
                let term = TermCount {
                    term: base.vocabulary.term(id).to_owned(),
                    tokens: base.vocabulary.tokens(id),
                    documents: base.vocabulary.documents(id),
                };
                match vocabulary.lookup(&term.term) {
                    Some(id) => add(id, &term)?,
                    None => list.push(term),
                }
            }
            dropped += list.len() as u64;
            list.sort();
            homeless.push(list);
        }
        let stored: Vec<Option<StoredTable>> = self
            .plan
            .target
            .iter()
            .map(|base| base.outside(self.warehouse, self.session.handle()))
            .chain(
                self.plan
                    .parts
                    .iter()
                    .map(|part| part.base.outside(&part.warehouse, self.session.handle())),
            )
            .collect::<Result<_, _>>()?;
        // Kept only when every table has kept it.
        let stored: Option<Vec<StoredTable>> = stored.into_iter().collect();
        let mut outside = match &stored {
            None => None,
            Some(_) => Some(OutsideFile::create(
                &target.folder("outside"),
                &format!("part-00000-{digest}.parquet"),
            )?),
        };
        type Terms<'a> = Box<dyn Iterator<Item = Result<TermCount, EngineError>> + 'a>;
        let mut streams: Vec<Terms<'_>> = Vec::new();
        for table in stored.iter().flatten() {
            streams.push(Box::new(table.terms()));
        }
        for list in homeless {
            streams.push(Box::new(list.into_iter().map(Ok)));
        }
        for term in merge_sorted(streams) {
            let term: TermCount = term?;
            match vocabulary.lookup(&term.term) {
                Some(id) => add(id, &term)?,
                None => {
                    if let Some(outside) = &mut outside
                        && term.tokens > 0
                    {
                        outside.push(&term.term, term.tokens, term.documents)?;
                    }
                }
            }
        }
        let outside = outside.map(OutsideFile::finish).transpose()?;
        Ok((vocabulary.with_totals(tokens, documents), outside, dropped))
    }

    /// The sums of all tables by slice.
    fn slices(&self, vocabulary: &Vocabulary) -> Result<Option<Slices>, EngineError> {
        if self.first().slices.is_none() {
            return Ok(None);
        }
        let mut sums = Slices::new(vocabulary.len());
        for base in self.bases() {
            let Some(slices) = &base.slices else { continue };
            sums.add(slices, |id| vocabulary.lookup(base.vocabulary.term(id)))?;
        }
        sums.settle()?;
        Ok(Some(sums))
    }

    /// The files of all tables. What is counted in one stands for what another says of it.
    fn sources(&self) -> Vec<SourceRow> {
        let counted: HashMap<&str, usize> = self
            .bases()
            .enumerate()
            .flat_map(|(index, base)| counted(base).map(move |row| (row.uri.as_str(), index)))
            .collect();
        let mut rows: HashSet<&SourceRow> = HashSet::new();
        for (index, base) in self.bases().enumerate() {
            rows.extend(base.sources.iter().filter(|row| {
                counted
                    .get(row.uri.as_str())
                    .is_none_or(|other| *other == index)
            }));
        }
        // They are sorted when they are written.
        rows.into_iter().cloned().collect()
    }
}

/// By id of a sliced table: its id in another, where terms have the ids that `map` says.
fn sliced_map(from: &Slices, to: &Slices, map: &[Option<u32>]) -> Vec<Option<u32>> {
    let terms = to.terms() as u32;
    let places = to.places(from);
    let ids = places
        .iter()
        .flat_map(|place| map.iter().map(move |id| Some((*place)? * terms + (*id)?)));
    ids.collect()
}

fn symmetric(recorded: &RecordedSettings) -> bool {
    let context = &recorded.given.context;
    context.kind == ContextKind::Document || context.side == Side::Symmetric
}

fn beyond() -> EngineError {
    EngineError::Setting("a sum of the tables does not fit 64 bits".into())
}
