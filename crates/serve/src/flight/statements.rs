//! What clients left with the server: prepared statements, and queries that run.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use datafusion::arrow::record_batch::RecordBatch;
use tokio::task::AbortHandle;
use uuid::Uuid;

use crate::auth::User;
use crate::error::ServeError;

/// Prepared statements of one user at a time.
const MOST: usize = 1_000;
/// A prepared statement that nobody used for this long is forgotten.
const UNUSED: Duration = Duration::from_secs(3600);
/// Rows of parameters bound to one statement.
pub(super) const MOST_ROWS: usize = 10_000;

#[derive(Default)]
pub(super) struct Statements {
    prepared: Mutex<HashMap<Uuid, Kept>>,
    running: Mutex<HashMap<Uuid, (User, AbortHandle)>>,
}

struct Kept {
    user: User,
    sql: String,
    parameters: Vec<RecordBatch>,
    used: Instant,
}

impl Statements {
    pub(super) fn prepare(&self, user: &User, sql: String) -> Result<Uuid, ServeError> {
        let mut prepared = self.prepared();
        let now = Instant::now();
        prepared.retain(|_, kept| now - kept.used < UNUSED);
        if prepared.values().filter(|kept| kept.user == *user).count() >= MOST {
            return Err(ServeError::TooComplex(format!(
                "{MOST} prepared statements are open already; close some"
            )));
        }
        let id = Uuid::new_v4();
        prepared.insert(
            id,
            Kept {
                user: user.clone(),
                sql,
                parameters: Vec::new(),
                used: now,
            },
        );
        Ok(id)
    }

    pub(super) fn bind(
        &self,
        user: &User,
        handle: &[u8],
        parameters: Vec<RecordBatch>,
    ) -> Result<(), ServeError> {
        self.with(user, handle, |kept| kept.parameters = parameters)
    }

    /// The statement and its parameters.
    pub(super) fn get(
        &self,
        user: &User,
        handle: &[u8],
    ) -> Result<(String, Vec<RecordBatch>), ServeError> {
        self.with(user, handle, |kept| {
            (kept.sql.clone(), kept.parameters.clone())
        })
    }

    pub(super) fn close(&self, user: &User, handle: &[u8]) -> Result<(), ServeError> {
        self.with(user, handle, |_| ())?;
        if let Ok(id) = Uuid::from_slice(handle) {
            self.prepared().remove(&id);
        }
        Ok(())
    }

    fn with<T>(
        &self,
        user: &User,
        handle: &[u8],
        work: impl FnOnce(&mut Kept) -> T,
    ) -> Result<T, ServeError> {
        let unknown = ServeError::Unknown("prepared statement");
        let Ok(id) = Uuid::from_slice(handle) else {
            return Err(unknown);
        };
        let mut prepared = self.prepared();
        let Some(kept) = prepared.get_mut(&id).filter(|kept| kept.user == *user) else {
            return Err(unknown);
        };
        kept.used = Instant::now();
        Ok(work(kept))
    }

    pub(super) fn started(&self, id: Uuid, user: &User, query: AbortHandle) {
        let mut running = self.running();
        running.retain(|_, (_, query)| !query.is_finished());
        running.insert(id, (user.clone(), query));
    }

    /// Stops a query of this user. `false` when it does not run (any more).
    pub(super) fn cancel(&self, user: &User, id: Uuid) -> bool {
        let mut running = self.running();
        match running.get(&id) {
            Some((of, query)) if of == user && !query.is_finished() => {
                query.abort();
                running.remove(&id);
                true
            }
            _ => false,
        }
    }

    fn prepared(&self) -> MutexGuard<'_, HashMap<Uuid, Kept>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Uuid, (User, AbortHandle)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
