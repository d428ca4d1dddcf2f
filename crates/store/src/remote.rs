//! Object stores: `s3://BUCKET/KEY` for warehouses and inputs.
//!
//! Credentials, region and endpoint come from the usual `AWS_*` variables and from nowhere else; they
//! are in no message, log or table. Commits are conditional puts: of two writers of one version, the
//! store lets one win. All requests run on one runtime of their own, so that a connection outlives the
//! session that opened it.

use std::sync::Arc;

use deltalake_core::ObjectStore;
use url::Url;

use crate::error::StoreError;

/// Whether a location is in an object store that this build knows.
#[must_use]
pub fn is_remote(location: &str) -> bool {
    cfg!(feature = "s3") && location.starts_with("s3://")
}

/// The store of a URL's bucket, rooted at the bucket. The same one each time.
///
/// # Errors
/// When the scheme is not in this build, or the environment does not say enough.
pub fn bucket(url: &Url) -> Result<Arc<dyn ObjectStore>, StoreError> {
    #[cfg(feature = "s3")]
    if url.scheme() == "s3" {
        return Ok(s3::bucket(url)?);
    }
    Err(StoreError::Location {
        location: url.to_string(),
        reason: format!("scheme `{}` is not in this build", url.scheme()),
    })
}

/// The same store for uploads whose parts come in any order, from any process.
///
/// # Errors
/// As [`bucket`].
#[cfg(feature = "s3")]
pub fn uploads(url: &Url) -> Result<Arc<dyn object_store::multipart::MultipartStore>, StoreError> {
    Ok(s3::bucket(url)?)
}

/// Waits for requests to an object store, from any thread.
///
/// # Errors
/// When the thread that waits cannot start.
#[cfg(feature = "s3")]
pub fn wait<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, StoreError> {
    let (send, receive) = std::sync::mpsc::channel();
    s3::runtime()?.spawn(async move {
        // Nobody waits any more: nothing to tell.
        let _ = send.send(work.await);
    });
    receive.recv().map_err(|error| StoreError::Io {
        action: "wait for",
        path: "the object store".into(),
        source: std::io::Error::other(error),
    })
}

/// Lets tables be opened at `s3://` URLs.
pub(crate) fn register() {
    #[cfg(feature = "s3")]
    s3::register();
}

#[cfg(feature = "s3")]
mod s3 {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex, OnceLock};
    use std::time::Duration;

    use deltalake_core::logstore::{
        LogStore, LogStoreFactory, ObjectStoreFactory, ObjectStoreRef, StorageConfig,
        default_logstore, logstore_factories, object_store_factories,
    };
    use deltalake_core::{DeltaResult, DeltaTableError};
    use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
    use object_store::client::SpawnedReqwestConnector;
    use object_store::path::Path as ObjectPath;
    use object_store::{BackoffConfig, ClientOptions, RetryConfig};
    use tokio::runtime::{Handle, Runtime};
    use url::Url;

    use crate::error::StoreError;

    /// How long a request is tried again, unless `PMILL_RETRY_SECONDS` says otherwise.
    const RETRY_SECONDS: u64 = 120;

    pub(super) fn runtime() -> Result<&'static Handle, StoreError> {
        static RUNTIME: OnceLock<Runtime> = OnceLock::new();
        if let Some(runtime) = RUNTIME.get() {
            return Ok(runtime.handle());
        }
        let started = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("object-store")
            .enable_all()
            .build()
            .map_err(|source| StoreError::Io {
                action: "start",
                path: "thread pool".into(),
                source,
            })?;
        Ok(RUNTIME.get_or_init(|| started).handle())
    }

    pub(super) fn bucket(url: &Url) -> Result<Arc<AmazonS3>, StoreError> {
        static BUCKETS: OnceLock<Mutex<HashMap<String, Arc<AmazonS3>>>> = OnceLock::new();
        let refuse = |reason: String| StoreError::Location {
            location: url.to_string(),
            reason,
        };
        let name = url
            .host_str()
            .filter(|name| !name.is_empty())
            .ok_or_else(|| refuse("expected s3://BUCKET/KEY".into()))?;
        let mut buckets = BUCKETS
            .get_or_init(Mutex::default)
            .lock()
            .map_err(|_| refuse("a thread that used it panicked".into()))?;
        if let Some(store) = buckets.get(name) {
            return Ok(store.clone());
        }
        let seconds = std::env::var("PMILL_RETRY_SECONDS").ok();
        let seconds = match seconds.as_deref().map(str::parse::<u64>) {
            None => RETRY_SECONDS,
            Some(Ok(seconds)) => seconds,
            Some(Err(_)) => {
                return Err(refuse(
                    "PMILL_RETRY_SECONDS is not a number of seconds".into(),
                ));
            }
        };
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(10),
                base: 2.0,
            },
            // The time is the limit.
            max_retries: 1000,
            retry_timeout: Duration::from_secs(seconds),
        };
        let client = ClientOptions::new()
            .with_timeout(Duration::from_secs(30))
            .with_connect_timeout(Duration::from_secs(5))
            .with_allow_http(
                std::env::var("AWS_ALLOW_HTTP")
                    .is_ok_and(|allow| ["1", "true"].contains(&allow.to_lowercase().as_str())),
            );
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(name)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_retry(retry)
            .with_client_options(client)
            .with_http_connector(SpawnedReqwestConnector::new(runtime()?.clone()))
            .build()
            .map_err(|error| refuse(error.to_string()))?;
        let store = Arc::new(store);
        buckets.insert(name.to_owned(), store.clone());
        Ok(store)
    }

    pub(super) fn register() {
        static ONCE: OnceLock<()> = OnceLock::new();
        ONCE.get_or_init(|| {
            let scheme = Url::parse("s3://").expect("the URL is a constant");
            object_store_factories().insert(scheme.clone(), Arc::new(Buckets));
            logstore_factories().insert(scheme, Arc::new(Logs));
        });
    }

    struct Buckets;

    impl ObjectStoreFactory for Buckets {
        fn parse_url_opts(
            &self,
            url: &Url,
            _config: &StorageConfig,
        ) -> DeltaResult<(ObjectStoreRef, ObjectPath)> {
            let store = bucket(url).map_err(|error| DeltaTableError::Generic(error.to_string()))?;
            Ok((store, ObjectPath::from_url_path(url.path())?))
        }
    }

    /// The store's conditional put decides who commits; no lock table is needed.
    struct Logs;

    impl LogStoreFactory for Logs {
        fn with_options(
            &self,
            prefixed_store: ObjectStoreRef,
            root_store: ObjectStoreRef,
            location: &Url,
            options: &StorageConfig,
        ) -> DeltaResult<Arc<dyn LogStore>> {
            Ok(default_logstore(
                prefixed_store,
                root_store,
                location,
                options,
            ))
        }
    }
}
