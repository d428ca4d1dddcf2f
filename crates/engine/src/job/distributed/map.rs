//! Count: the kept token ids of a unit become sorted runs.

use datafusion::execution::memory_pool::MemoryConsumer;

use super::spec::{CountDone, TermsDone};
use super::worker::Running;
use crate::dictionaries::StoredDictionary;
use crate::error::EngineError;
use crate::tokens::TokenStore;

impl Running<'_> {
    pub(super) fn count(&self, terms: &str) -> Result<CountDone, EngineError> {
        let done: TermsDone = self.folder.need(terms)?;
        let Some((name, stored)) = done.tokens else {
            return Err(EngineError::Bug(format!("`{terms}` kept no tokens")));
        };
        let data = self.outbox()?;
        let known = self.vocabulary()?;
        let vocabulary = &known.vocabulary;
        let maps = match &self.loaded.given {
            // Ids of the given terms' own order lead to the ids that the counts gave them.
            Some(given) => {
                let map = (0..given.len() as u32)
                    .map(|id| {
                        vocabulary.lookup(given.term(id)).ok_or_else(|| {
                            EngineError::Bug("a given term is not in the vocabulary".into())
                        })
                    })
                    .collect::<Result<Vec<u32>, _>>()?;
                vec![map]
            }
            None => done
                .dictionaries
                .iter()
                .map(|(name, terms)| {
                    StoredDictionary::Disk {
                        path: self.fetch(name)?,
                        terms: *terms,
                    }
                    .remap(vocabulary)
                })
                .collect::<Result<_, _>>()?,
        };
        let environment = self.prepared().session.context().runtime_env();
        let reservation = MemoryConsumer::new("tokens").register(&environment.memory_pool);
        let tokens = TokenStore::open(
            environment.disk_manager.clone(),
            reservation,
            self.fetch(&name)?,
            stored,
        );
        let run = self.run(self.budget(&[])?, None);
        let counting = run.counting(
            vocabulary,
            &known.facts,
            known.subsample.as_ref(),
            &self.header.digest,
        )?;
        let mut counted = CountDone {
            runs: Vec::new(),
            dropped_features: 0,
        };
        let mut block_number = 0;
        let mut flush = |block: pmill_count::TokenBlock| {
            counted.dropped_features += block.dropped_features();
            let prepared = block.prepare(self.worker.limits.threads)?;
            let prefix = format!("{}-{block_number:03}", self.attempt_name());
            block_number += 1;
            counted
                .runs
                .extend(counting.write_runs(&prepared, &data, &prefix, None)?);
            Ok(prepared.recycle())
        };
        let last = counting.fill(tokens, &maps, &mut flush)?;
        if !last.is_empty() {
            flush(last)?;
        }
        Ok(counted)
    }
}
