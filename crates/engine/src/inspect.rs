//! What a warehouse holds, for people and programs.

use std::fmt;

use chrono::{DateTime, SecondsFormat};
use pmill_store::{Job, JobName, JobVersion, TableState, Warehouse};
use serde::Serialize;

use crate::error::EngineError;
use crate::job::{Facts, parse};
use crate::memory::{ByteSize, default_limit};
use crate::score::RecordedScore;
use crate::session::Session;
use crate::settings::RecordedSettings;
use crate::sources::{self, SourceStatus};
use crate::verify::{self, Skew, Verified};

/// One table of a job.
#[derive(Debug, Clone, Serialize)]
pub struct TableReport {
    /// Its name.
    pub table: &'static str,
    /// Version of the commit.
    pub version: u64,
    /// Files.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
}

/// One job.
#[derive(Debug, Clone, Serialize)]
pub struct JobReport {
    /// Its name.
    pub job: String,
    /// Its tables.
    pub tables: Vec<TableReport>,
    /// What counting found.
    pub facts: Facts,
    /// Settings of the count.
    pub settings: RecordedSettings,
    /// Settings of the scores.
    pub score: Option<RecordedScore>,
    /// Whether the scores are of an older version of the pairs.
    pub score_is_stale: bool,
    /// Files counted.
    pub sources_counted: u64,
    /// Files and rows taken out again.
    pub sources_retracted: Vec<String>,
    /// Files skipped, with the reason.
    pub sources_skipped: Vec<String>,
    /// The versions that can be read, oldest first.
    pub versions: Vec<VersionReport>,
    /// How the pairs are spread over the terms, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skew: Option<Skew>,
    /// What the check found, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

/// One version of a job.
#[derive(Debug, Clone, Serialize)]
pub struct VersionReport {
    /// The version.
    pub version: u64,
    /// When it was committed, in UTC.
    pub time: String,
    /// Rows of the corpus by then; `None` when the table does not say.
    pub rows: Option<u64>,
    /// Pairs by then.
    pub pairs: Option<u64>,
    /// The version whose rows these are, in other files.
    pub compaction_of: Option<u64>,
}

impl From<JobVersion> for VersionReport {
    fn from(version: JobVersion) -> Self {
        let facts = version.facts.and_then(|facts| parse::<Facts>(&facts).ok());
        Self {
            version: version.version,
            time: DateTime::from_timestamp_millis(version.time_ms)
                .unwrap_or_default()
                .to_rfc3339_opts(SecondsFormat::Secs, true),
            rows: facts.as_ref().map(|facts| facts.rows),
            pairs: facts.map(|facts| facts.pairs),
            compaction_of: version.rows_of,
        }
    }
}

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Depth {
    /// At the logs.
    #[default]
    Logs,
    /// At the pairs too, for their skew.
    Skew,
    /// At every row, checking what the tables promise.
    Verify,
}

/// What was asked for.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Report {
    /// All jobs by name.
    Jobs {
        /// Names.
        jobs: Vec<String>,
    },
    /// One job.
    Job(Box<JobReport>),
}

/// Looks at a warehouse, or at one job in it.
///
/// # Errors
/// When it cannot be read or the job does not exist.
pub fn inspect(
    warehouse: &str,
    name: Option<&str>,
    version: Option<u64>,
    depth: Depth,
) -> Result<Report, EngineError> {
    let warehouse = Warehouse::open(warehouse)?;
    let session = Session::new(1, default_limit(), None)?;
    let Some(name) = name else {
        let jobs = session.wait(warehouse.jobs())?;
        return Ok(Report::Jobs {
            jobs: jobs.iter().map(ToString::to_string).collect(),
        });
    };
    let name = JobName::new(name)?;
    let job = session.wait(Job::open_existing_at(&warehouse, &name, version))?;
    let versions = session.wait(Job::versions(&warehouse, &name))?;
    let sources = session.wait(sources::read(session.context(), &job))?;
    let of = |status| sources.iter().filter(move |row| row.status == status);
    let (verified, skew) = match depth {
        Depth::Logs => (None, None),
        Depth::Skew => {
            let skew = verify::skew(&warehouse, &job, session.handle())?;
            (None, Some(skew))
        }
        Depth::Verify => {
            let (verified, skew) = verify::verify(&warehouse, &job, &sources, session.handle())?;
            (Some(verified), Some(skew))
        }
    };
    let score = job.pmi_settings()?;
    let mut tables = vec![
        table("vocab", &job.vocab)?,
        table("pairs", &job.pairs)?,
        table("sources", &job.sources)?,
    ];
    if let Some(outside) = &job.outside {
        tables.push(table("outside", outside)?);
    }
    if let Some(tail) = &job.tail {
        tables.push(table("tail", tail)?);
    }
    if let Some(pmi) = &job.pmi {
        tables.push(table("pmi", pmi)?);
    }
    Ok(Report::Job(Box::new(JobReport {
        job: name.to_string(),
        tables,
        facts: parse(&job.facts()?)?,
        settings: parse(&job.settings()?)?,
        score_is_stale: job.pmi_is_stale()?,
        score: score.map(|(settings, _)| parse(&settings)).transpose()?,
        sources_counted: of(SourceStatus::Counted).count() as u64,
        sources_retracted: of(SourceStatus::Retracted)
            .map(|row| {
                let what = row.message.as_deref().unwrap_or("all");
                // A list of rows may be long.
                let shown: String = what.chars().take(60).collect();
                let more = if shown.len() < what.len() { "…" } else { "" };
                format!("{}: {shown}{more}", row.display())
            })
            .collect(),
        sources_skipped: of(SourceStatus::Skipped)
            .filter_map(|row| row.message.clone())
            .collect(),
        versions: versions.into_iter().map(VersionReport::from).collect(),
        skew,
        verified,
    })))
}

fn table(name: &'static str, state: &TableState) -> Result<TableReport, EngineError> {
    let files = state.files()?;
    Ok(TableReport {
        table: name,
        version: state.version(),
        files: files.len() as u64,
        bytes: files.iter().map(|file| file.size).sum(),
        rows: files.iter().map(|file| file.rows).sum(),
    })
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jobs { jobs } if jobs.is_empty() => writeln!(out, "no jobs yet"),
            Self::Jobs { jobs } => writeln!(out, "{}", jobs.join("\n")),
            Self::Job(job) => job.fmt(out),
        }
    }
}

/// Versions that are listed for a person.
const SHOWN_VERSIONS: usize = 10;
/// Slices that are.
const SHOWN_SLICES: usize = 20;

impl JobReport {
    fn fmt_versions(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = self.versions.len().saturating_sub(SHOWN_VERSIONS);
        writeln!(
            out,
            "  versions: {}{}",
            self.versions.len(),
            if hidden > 0 {
                format!(", the newest {SHOWN_VERSIONS} of them:")
            } else {
                String::new()
            }
        )?;
        for version in &self.versions[hidden..] {
            let what = match (version.compaction_of, version.rows, version.pairs) {
                (Some(of), ..) => format!("compaction of version {of}"),
                (None, Some(rows), Some(pairs)) => format!("{rows} rows, {pairs} pairs"),
                _ => String::new(),
            };
            writeln!(out, "    {:>4}  {}  {what}", version.version, version.time)?;
        }
        Ok(())
    }
}

impl fmt::Display for JobReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = &self.facts;
        writeln!(
            out,
            "job {}, counted by {}",
            self.job, self.settings.program
        )?;
        writeln!(
            out,
            "  {} rows, {} tokens, {} types, {} terms, {} pairs; weight unit 1/{}",
            facts.rows, facts.tokens, facts.types, facts.terms, facts.pairs, facts.weight_unit
        )?;
        if self.settings.given.slice.is_some() {
            writeln!(
                out,
                "  slices: {}{}",
                facts.slices.len(),
                if facts.slices.len() > SHOWN_SLICES {
                    format!(", the first {SHOWN_SLICES} of them:")
                } else {
                    String::new()
                }
            )?;
            for slice in facts.slices.iter().take(SHOWN_SLICES) {
                writeln!(
                    out,
                    "    {}: {} rows, {} tokens",
                    slice.slice.as_deref().unwrap_or("NULL"),
                    slice.rows,
                    slice.tokens
                )?;
            }
        }
        if let (Some(tail), Some(sketch)) = (&facts.tail, &self.settings.given.sketch) {
            tail.fmt(out, sketch, facts.weight_unit)?;
        }
        for table in &self.tables {
            writeln!(
                out,
                "  {:<8} version {:>3}, {:>12} rows, {:>4} files, {}",
                table.table,
                table.version,
                table.rows,
                table.files,
                ByteSize(table.bytes)
            )?;
        }
        writeln!(
            out,
            "  sources: {} counted, {} skipped{}",
            self.sources_counted,
            self.sources_skipped.len(),
            match self.sources_retracted.len() {
                0 => String::new(),
                taken => format!(", {taken} retracted"),
            }
        )?;
        for taken in &self.sources_retracted {
            writeln!(out, "    retracted: {taken}")?;
        }
        for reason in &self.sources_skipped {
            writeln!(out, "    {reason}")?;
        }
        self.fmt_versions(out)?;
        if let Some(skew) = &self.skew {
            skew.fmt(out)?;
        }
        if let Some(verified) = &self.verified {
            verified.fmt(out)?;
        }
        let settings =
            serde_json::to_string_pretty(&self.settings.given).map_err(|_| fmt::Error)?;
        writeln!(out, "  settings: {}", settings.replace('\n', "\n  "))?;
        if let Some(score) = &self.score {
            writeln!(
                out,
                "  scores{}:",
                if self.score_is_stale {
                    " (of an older version of pairs)"
                } else {
                    ""
                }
            )?;
            for (name, sql) in &score.columns {
                writeln!(out, "    {name} = {sql}")?;
            }
            writeln!(
                out,
                "    pair smoothing {}, unigram smoothing {}, pairs of count {} or more",
                score.pair_smoothing, score.unigram_smoothing, score.min_pair_count
            )?;
            writeln!(out, "    {}", score.event_space)?;
        }
        Ok(())
    }
}
