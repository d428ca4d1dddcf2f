//! Shares the memory limit out among what a count job holds.
//!
//! The limit is for the process. What is taken off first: the accumulators and table writers of
//! each thread, the decoder's buffers, the vocabulary. The rest holds tokens: four bytes a token
//! as it is read, and the block that the kernel counts (four to eight bytes a token).

use pmill_count::{Accumulator, CountSettings as KernelSettings, TokenBlock};

use crate::error::EngineError;
use crate::memory::ByteSize;

/// What a table writer holds: pages of one row group, and the batch that is being filled.
const WRITER_BYTES: u64 = 24 << 20;

/// The shares of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The limit.
    pub limit: ByteSize,
    /// Threads.
    pub threads: usize,
    /// Bytes for tokens as they are read; beyond, they go to disk.
    pub tokens: u64,
    /// Bytes of one worker's dictionary; beyond, it is written out and a new one is begun.
    pub dictionary: u64,
}

impl Budget {
    /// The shares before the vocabulary is known. `row_group` is the largest row group's bytes.
    ///
    /// # Errors
    /// When not even one thread would have room.
    pub fn new(limit: ByteSize, threads: usize, row_group: u64) -> Result<Self, EngineError> {
        let decoder = row_group + (16 << 20);
        let decoders = decoder.saturating_mul(threads as u64);
        if decoders > limit.0 / 2 {
            let needed = ByteSize(decoders * 2);
            return Err(EngineError::Memory {
                limit: limit.to_string(),
                reason: format!(
                    "decoding one row group needs {} and {threads} thread(s) do so at once; give --memory-limit {needed} or fewer --threads",
                    ByteSize(decoder)
                ),
            });
        }
        let rest = limit.0 - decoders;
        Ok(Self {
            limit,
            threads,
            tokens: rest / 2,
            dictionary: rest / 4 / threads as u64,
        })
    }

    /// Bytes for the kernel's block, once the vocabulary is known.
    ///
    /// # Errors
    /// When the vocabulary does not leave room for tokens.
    pub fn block(&self, kernel: &KernelSettings, vocabulary: u64) -> Result<usize, EngineError> {
        let size = kernel.vocabulary_size;
        let per_thread = Accumulator::bytes_for(size) as u64 + WRITER_BYTES;
        let fixed = vocabulary + per_thread * self.threads as u64;
        let room = self.limit.0.saturating_sub(fixed);
        let least = (TokenBlock::bytes_per_token(kernel) as u64) << 20;
        if room < least {
            return Err(EngineError::Memory {
                limit: self.limit.to_string(),
                reason: format!(
                    "a vocabulary of {size} terms takes {} with {} thread(s); give --memory-limit {} or a smaller --vocab-size",
                    ByteSize(fixed),
                    self.threads,
                    ByteSize(fixed + least)
                ),
            });
        }
        usize::try_from(room)
            .map_err(|_| EngineError::Bug("memory limit beyond the address space".into()))
    }

    /// Tokens of one unit: what one block can hold, by the bytes of text that they come from.
    /// Text has five bytes a token or more; a unit that has less per token fills several blocks.
    #[must_use]
    pub fn unit_bytes(&self) -> u64 {
        (self.tokens / 4).max(1 << 20) * 5
    }
}
