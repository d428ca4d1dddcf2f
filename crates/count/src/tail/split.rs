//! A sink before a sink: exact pairs go on, the others into the sketch.

use super::{Entry, Tail};
use crate::error::Result;
use crate::sink::RowSink;

/// Pairs that wait for the sketch: 128 KiB, which stay in the cache of one core.
const WAITING: usize = 8192;

/// Gives the exact head of each row to `sink`, and keeps the rest for the sketch.
///
/// [`Self::finish`] must be called: what waits is not in the sketch before.
#[derive(Debug)]
pub struct TailSplit<'a, S> {
    tail: &'a Tail,
    sink: S,
    waiting: Vec<Entry>,
}

impl<'a, S: RowSink> TailSplit<'a, S> {
    pub(super) fn new(tail: &'a Tail, sink: S) -> Self {
        Self {
            tail,
            sink,
            waiting: Vec::with_capacity(WAITING),
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.tail.add(&self.waiting)?;
        self.waiting.clear();
        Ok(())
    }

    /// Puts what waits into the sketch.
    ///
    /// # Errors
    /// When the counts leave 63 bits.
    pub fn finish(mut self) -> Result<()> {
        self.flush()
    }
}

impl<S: RowSink> RowSink for TailSplit<'_, S> {
    fn row(&mut self, left: u32, right: &[u32], counts: &[u64]) -> Result<()> {
        let exact = self.tail.settings.exact_terms;
        let cut = if left < exact {
            right.partition_point(|id| *id < exact)
        } else {
            0
        };
        if cut > 0 {
            self.sink.row(left, &right[..cut], &counts[..cut])?;
        }
        for (&right, &count) in right[cut..].iter().zip(&counts[cut..]) {
            self.waiting.push(Entry { left, right, count });
            if self.waiting.len() == WAITING {
                self.flush()?;
            }
        }
        Ok(())
    }
}
