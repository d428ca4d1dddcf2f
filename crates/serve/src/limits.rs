//! The memory of one query: its own limit inside the limit of all.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryLimit, MemoryPool, MemoryReservation};
use pmill_engine::memory::ByteSize;

/// A pool that hands requests on to the shared one until the query has had its own share.
#[derive(Debug)]
pub struct QueryPool {
    shared: Arc<dyn MemoryPool>,
    limit: usize,
    used: AtomicUsize,
}

impl QueryPool {
    /// At most `limit` bytes of `shared`.
    #[must_use]
    pub fn new(shared: Arc<dyn MemoryPool>, limit: ByteSize) -> Self {
        Self {
            shared,
            limit: usize::try_from(limit.0).unwrap_or(usize::MAX),
            used: AtomicUsize::new(0),
        }
    }
}

impl fmt::Display for QueryPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "query(limit: {})", ByteSize(self.limit as u64))
    }
}

impl MemoryPool for QueryPool {
    fn name(&self) -> &str {
        "query"
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.used.fetch_add(additional, Ordering::Relaxed);
        self.shared.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.used.fetch_sub(shrink, Ordering::Relaxed);
        self.shared.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let grown = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(additional)
                    .filter(|sum| *sum <= self.limit)
            });
        if grown.is_err() {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{} asked for {} more",
                reservation.consumer().name(),
                ByteSize(additional as u64)
            )));
        }
        let shared = self.shared.try_grow(reservation, additional);
        if shared.is_err() {
            self.used.fetch_sub(additional, Ordering::Relaxed);
        }
        shared
    }

    fn reserved(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryConsumer};

    use super::*;

    #[test]
    fn a_query_is_held_to_its_own_limit_and_to_that_of_all() {
        let shared: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(150));
        let pool = |limit| -> Arc<dyn MemoryPool> {
            Arc::new(QueryPool::new(shared.clone(), ByteSize(limit)))
        };
        let (first, second) = (pool(100), pool(100));
        let one = MemoryConsumer::new("one").register(&first);
        let two = MemoryConsumer::new("two").register(&second);
        one.try_grow(100).unwrap();
        assert!(one.try_grow(1).is_err());
        // 50 are left of all, though 100 of its own would be.
        assert!(two.try_grow(51).is_err());
        two.try_grow(50).unwrap();
        drop(one);
        assert_eq!(shared.reserved(), 50);
        two.try_grow(50).unwrap();
        assert!(two.try_grow(1).is_err());
        drop(two);
        assert_eq!(shared.reserved(), 0);
    }
}
