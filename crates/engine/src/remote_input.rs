//! Inputs in an object store: an object, everything under a prefix, or a glob over keys.

use std::sync::Arc;

use futures::TryStreamExt;
use glob::{MatchOptions, Pattern};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use pmill_store::{StoreError, remote};
use url::Url;

use crate::error::EngineError;
use crate::input::InputFile;

/// Finds the objects that `input` (`s3://BUCKET/KEY`) names; only `endings` are looked for under a
/// prefix, and nothing in folders or of names that start with `_` or `.`.
///
/// # Errors
/// When there is nothing, or the store cannot be asked.
pub(crate) fn expand(input: &str, endings: &[&str]) -> Result<Vec<InputFile>, EngineError> {
    let refuse = |reason: &str| EngineError::Input {
        input: input.to_owned(),
        reason: reason.to_owned(),
    };
    let (bucket, key) = split(input).ok_or_else(|| refuse("expected s3://BUCKET/KEY"))?;
    let root = Url::parse(&format!("s3://{bucket}/")).map_err(|_| refuse("not a bucket's name"))?;
    let store = remote::bucket(&root)?;
    let Some(glob) = key.find(['*', '?', '[']) else {
        if !key.is_empty()
            && !key.ends_with('/')
            && let Some(meta) = head(&store, key)?
        {
            return Ok(vec![file(&root, meta)]);
        }
        let prefix = ObjectPath::from(key);
        let depth = prefix.parts().count();
        let mut found = list(&store, prefix)?;
        found.retain(|meta| {
            let mut parts = meta.location.parts().skip(depth);
            let plain = parts.all(|part| !part.as_ref().starts_with(['_', '.']));
            plain
                && endings
                    .iter()
                    .any(|end| meta.location.as_ref().ends_with(end))
        });
        if found.is_empty() {
            return Err(refuse("no such object, and no Parquet file below it"));
        }
        return identified(&store, &root, found);
    };
    let pattern = Pattern::new(key).map_err(|error| refuse(&format!("not a glob: {error}")))?;
    let options = MatchOptions {
        require_literal_separator: true,
        ..MatchOptions::default()
    };
    let folder = key[..glob].rfind('/').map_or("", |end| &key[..end]);
    let mut found = list(&store, ObjectPath::from(folder))?;
    found.retain(|meta| {
        let name = meta.location.filename().unwrap_or_default();
        !name.starts_with(['_', '.']) && pattern.matches_with(meta.location.as_ref(), options)
    });
    if found.is_empty() {
        return Err(refuse("the glob matches no file"));
    }
    identified(&store, &root, found)
}

/// Listed objects with their entity tags. Some stores list objects without, and tell the tag of one that is
/// asked for: it would then seem to have changed when it is read.
fn identified(
    store: &Arc<dyn ObjectStore>,
    root: &Url,
    listed: Vec<ObjectMeta>,
) -> Result<Vec<InputFile>, EngineError> {
    let mut files = Vec::with_capacity(listed.len());
    for meta in listed {
        let asked = match &meta.e_tag {
            Some(_) => None,
            None => head_at(store, meta.location.clone())?,
        };
        files.push(file(root, asked.unwrap_or(meta)));
    }
    Ok(files)
}

/// Looks at an object again.
///
/// # Errors
/// When it is gone, or the store cannot be asked.
pub(crate) fn refresh(input: &InputFile) -> Result<InputFile, EngineError> {
    let gone = || EngineError::Input {
        input: input.uri.clone(),
        reason: "no such object".into(),
    };
    let root = Url::parse(&input.uri).map_err(|_| gone())?;
    let path = ObjectPath::from_url_path(root.path()).map_err(|_| gone())?;
    let store = remote::bucket(&root)?;
    let meta = head(&store, path.as_ref())?.ok_or_else(gone)?;
    Ok(InputFile {
        uri: input.uri.clone(),
        ..file(&root, meta)
    })
}

fn split(input: &str) -> Option<(&str, &str)> {
    let rest = input.strip_prefix("s3://")?;
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    (!bucket.is_empty()).then_some((bucket, key))
}

fn head(store: &Arc<dyn ObjectStore>, key: &str) -> Result<Option<ObjectMeta>, EngineError> {
    head_at(store, ObjectPath::from(key))
}

fn head_at(
    store: &Arc<dyn ObjectStore>,
    path: ObjectPath,
) -> Result<Option<ObjectMeta>, EngineError> {
    let store = store.clone();
    let asked = path.clone();
    match wait(async move { store.head(&asked).await })? {
        Ok(meta) => Ok(Some(meta)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(source) => Err(failed("look at", &path, source)),
    }
}

fn list(store: &Arc<dyn ObjectStore>, prefix: ObjectPath) -> Result<Vec<ObjectMeta>, EngineError> {
    let (store, asked) = (store.clone(), prefix.clone());
    let listed = wait(async move {
        let prefix = (!asked.as_ref().is_empty()).then_some(&asked);
        store.list(prefix).try_collect::<Vec<_>>().await
    })?;
    listed.map_err(|source| failed("list", &prefix, source))
}

fn failed(action: &'static str, path: &ObjectPath, source: object_store::Error) -> EngineError {
    StoreError::Object {
        action,
        path: path.to_string(),
        source,
    }
    .into()
}

fn file(root: &Url, meta: ObjectMeta) -> InputFile {
    let mut uri = root.clone();
    uri.set_path("");
    if let Ok(mut segments) = uri.path_segments_mut() {
        segments.clear();
        segments.extend(meta.location.parts().map(|part| part.as_ref().to_owned()));
    }
    InputFile {
        uri: uri.to_string(),
        size: meta.size,
        etag: meta
            .e_tag
            .unwrap_or_else(|| format!("mtime:{}", meta.last_modified.timestamp_millis())),
    }
}

/// Waits for requests to an object store, from any thread.
#[cfg(feature = "s3")]
pub(crate) fn wait<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, EngineError> {
    Ok(remote::wait(work)?)
}

#[cfg(not(feature = "s3"))]
pub(crate) fn wait<T>(_work: impl Future<Output = T>) -> Result<T, EngineError> {
    Err(EngineError::Setting(
        "object stores are not in this build".into(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_a_bucket_and_a_key() {
        assert_eq!(split("s3://b/k/x.parquet"), Some(("b", "k/x.parquet")));
        assert_eq!(split("s3://b"), Some(("b", "")));
        assert_eq!(split("s3:///k"), None);
        assert_eq!(split("/b/k"), None);
    }

    #[test]
    fn keys_are_escaped_in_uris() {
        let meta = |key: &str| ObjectMeta {
            location: ObjectPath::from(key),
            last_modified: std::time::SystemTime::UNIX_EPOCH.into(),
            size: 3,
            e_tag: Some("\"x\"".into()),
            version: None,
        };
        let root = Url::parse("s3://b/").unwrap();
        let found = file(&root, meta("year=1/a b.parquet"));
        assert_eq!(found.uri, "s3://b/year=1/a%20b.parquet");
        let back = Url::parse(&found.uri).unwrap();
        assert_eq!(
            ObjectPath::from_url_path(back.path()).unwrap().as_ref(),
            "year=1/a b.parquet"
        );
    }
}
