//! The sketches of one run: what is added, what is taken, and what a try that died kept of both.

use std::io::BufReader;

use pmill_count::{CountError, Tail, TailSettings};
use pmill_text::Vocabulary;

use super::base::Base;
use super::run::Run;
use crate::error::EngineError;
use crate::tail::StoredTail;
use crate::work::WorkFolder;

/// Sketches that blocks are counted into.
pub(super) struct Tails {
    added: Tail,
    taken: Option<Tail>,
}

impl Run<'_> {
    /// How many sketches a run holds: what is taken has one of its own.
    pub(super) fn sketches(&self) -> u64 {
        1 + u64::from(!self.taken.is_empty())
    }

    /// Empty sketches; `None` for a job without one.
    pub(super) fn tails(&self, vocabulary: &Vocabulary) -> Result<Option<Tails>, EngineError> {
        let Some(settings) = &self.job.settings.sketch else {
            return Ok(None);
        };
        let size = u32::try_from(vocabulary.len()).unwrap_or(u32::MAX);
        Ok(Some(Tails {
            added: Tail::new(settings, size)?,
            taken: match self.taken {
                [] => None,
                _ => Some(Tail::new(settings, size)?),
            },
        }))
    }

    /// The job's sketch after this run.
    pub(super) fn settle(
        &self,
        tails: Tails,
        vocabulary: &Vocabulary,
    ) -> Result<Tail, EngineError> {
        let Tails { mut added, taken } = tails;
        if let Some(base) = self.base
            && let Some(stored) = self.stored_tail(base)?
        {
            stored.add_to(&mut added)?;
        }
        if let Some(mut taken) = taken {
            let taken_out = added.subtract(&mut taken);
            taken_out.map_err(|error| name_term(error, vocabulary))?;
        }
        Ok(added)
    }

    fn stored_tail(&self, base: &Base) -> Result<Option<StoredTail>, EngineError> {
        StoredTail::open(self.warehouse, &base.job, self.prepared.session.handle())
    }
}

impl Tails {
    /// Where the pairs of a unit go.
    pub(super) fn of(&self, taken: bool) -> &Tail {
        match &self.taken {
            Some(tail) if taken => tail,
            _ => &self.added,
        }
    }

    fn name(unit: usize) -> String {
        format!("tail-{unit:05}.sketch")
    }

    /// Keeps what the units up to this one came to; before the unit's manifest.
    pub(super) fn keep(&mut self, work: &WorkFolder, unit: usize) -> Result<(), EngineError> {
        work.put_with(&Self::name(unit), |file| {
            self.added.save(file)?;
            self.taken.as_mut().map_or(Ok(()), |taken| taken.save(file))
        })
    }

    /// Forgets what was kept before a unit; after the unit's manifest.
    pub(super) fn forget_before(work: &WorkFolder, unit: usize) -> Result<(), EngineError> {
        match unit.checked_sub(1) {
            None => Ok(()),
            Some(before) => work.remove(&Self::name(before)),
        }
    }

    /// Goes on from what was kept with the last unit that has a manifest.
    pub(super) fn go_on(&mut self, work: &WorkFolder, unit: usize) -> Result<(), EngineError> {
        let path = work.path().join(Self::name(unit));
        let io = |source| EngineError::Io {
            action: "read",
            path: path.display().to_string(),
            source,
        };
        let file = std::fs::File::open(&path).map_err(io)?;
        let mut file = BufReader::with_capacity(1 << 20, file);
        self.added.load(&mut file)?;
        if let Some(taken) = &mut self.taken {
            taken.load(&mut file)?;
        }
        Ok(())
    }
}

/// Tells by its term what would go below zero.
fn name_term(error: CountError, vocabulary: &Vocabulary) -> EngineError {
    let never = "what is to be taken out was never counted; nothing was changed";
    match error {
        CountError::NegativeTail {
            id,
            count,
            subtract,
        } => EngineError::Setting(format!(
            "the sketched pairs of `{}` have count {count} in weight units, and {subtract} would be taken out: {never}",
            vocabulary.term(id)
        )),
        CountError::NegativeCell {
            hash,
            bucket,
            count,
            subtract,
        } => EngineError::Setting(format!(
            "cell {bucket} of hash row {hash} of the sketch has count {count} in weight units, and {subtract} would be taken out: {never}"
        )),
        error => EngineError::Count(error),
    }
}

/// A limit too small for the sketches is told before anything is read.
pub(super) fn reserve(
    limit: crate::memory::ByteSize,
    settings: Option<&TailSettings>,
    copies: u64,
) -> Result<crate::memory::ByteSize, EngineError> {
    use crate::memory::{ByteSize, SMALLEST_LIMIT};
    let Some(settings) = settings else {
        return Ok(limit);
    };
    let held = crate::tail::held_bytes(settings, copies);
    match limit.0.checked_sub(held) {
        Some(left) if left >= SMALLEST_LIMIT.0 => Ok(ByteSize(left)),
        _ => Err(EngineError::Memory {
            limit: limit.to_string(),
            reason: format!(
                "{} of {} hash rows of {} cells, and a row on its way to the table, take {}; give --memory-limit {} or fewer --sketch-buckets",
                if copies == 1 {
                    "a sketch"
                } else {
                    "two sketches (what is added, what is taken)"
                },
                settings.hashes,
                settings.buckets,
                ByteSize(held),
                ByteSize(held + SMALLEST_LIMIT.0)
            ),
        }),
    }
}
