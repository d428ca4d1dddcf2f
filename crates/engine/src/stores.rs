//! The stores that DataFusion reads from: local disk, and object stores as they are named.

use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use object_store::ObjectStore;
use pmill_store::remote;
use url::Url;

/// DataFusion's own registry, which opens an object store when a URL first names it.
#[derive(Debug, Default)]
pub struct Stores {
    known: DefaultObjectStoreRegistry,
}

impl ObjectStoreRegistry for Stores {
    fn register_store(
        &self,
        url: &Url,
        store: Arc<dyn ObjectStore>,
    ) -> Option<Arc<dyn ObjectStore>> {
        self.known.register_store(url, store)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        if remote::is_remote(url.as_str()) {
            return remote::bucket(url).map_err(|error| DataFusionError::External(Box::new(error)));
        }
        self.known.get_store(url)
    }
}
