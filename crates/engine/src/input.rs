//! Inputs: paths, globs, folders and `file://` URIs become a list of files, each with an identity.
//!
//! The list is sorted by URI and holds each file once, so that the same files give the same plan
//! in whatever order and form they were named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::EngineError;

/// File name endings that a folder is searched for.
const ENDINGS: [&str; 3] = [".parquet", ".parq", ".pq"];

/// An input file and its identity: a file whose size or etag changed is another file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Where it is.
    pub uri: String,
    /// Bytes.
    pub size: u64,
    /// The store's entity tag; `mtime:NANOSECONDS` for files on disk.
    pub etag: String,
}

impl InputFile {
    /// The file as people read it: a path when it is one.
    #[must_use]
    pub fn display(&self) -> String {
        self.path()
            .map_or_else(|| self.uri.clone(), |path| path.display().to_string())
    }

    /// The path on this machine, when it is one.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        Url::parse(&self.uri).ok()?.to_file_path().ok()
    }

    /// The identity as one string.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{} bytes, {}", self.size, self.etag)
    }

    /// Looks at the file again.
    ///
    /// # Errors
    /// When it is gone.
    pub fn refresh(&self) -> Result<Self, EngineError> {
        match self.path() {
            Some(path) => local_file(&path, &self.display()),
            None => Ok(self.clone()),
        }
    }
}

/// Finds the files that `inputs` name. A folder is searched with its subfolders (Hive layouts
/// too); in it, names that start with `_` or `.` are left out. An empty folder is an empty input.
///
/// # Errors
/// When a path does not exist, a glob matches nothing, or a scheme is not in this build.
pub fn expand(inputs: &[String]) -> Result<Vec<InputFile>, EngineError> {
    let mut files = BTreeMap::new();
    for input in inputs {
        for path in paths(input)? {
            let file = local_file(&path, input)?;
            files.insert(file.uri.clone(), file);
        }
    }
    Ok(files.into_values().collect())
}

/// The URI of one file, which need not be there (any more).
///
/// # Errors
/// When it is not a path or `file://` URI.
pub fn uri(file: &str) -> Result<String, EngineError> {
    let wrong = || refuse(file, "expected a path, or file:///absolute/path");
    let path = if file.contains("://") {
        let url = Url::parse(file).map_err(|_| wrong())?;
        url.to_file_path().map_err(|()| wrong())?
    } else {
        std::path::absolute(file).map_err(|error| refuse(file, error.to_string()))?
    };
    Ok(Url::from_file_path(path).map_err(|()| wrong())?.to_string())
}

/// Just one file.
///
/// # Errors
/// When it does not exist, or `input` names a folder or several files.
pub fn one(input: &str) -> Result<InputFile, EngineError> {
    let files = expand(&[input.to_owned()])?;
    match <[InputFile; 1]>::try_from(files) {
        Ok([file]) => Ok(file),
        Err(files) => Err(refuse(
            input,
            format!("it names {} files, expected one", files.len()),
        )),
    }
}

fn refuse(input: &str, reason: impl Into<String>) -> EngineError {
    EngineError::Input {
        input: input.to_owned(),
        reason: reason.into(),
    }
}

fn paths(input: &str) -> Result<Vec<PathBuf>, EngineError> {
    let path = match input.split_once("://") {
        None => PathBuf::from(input),
        Some(("file", _)) => Url::parse(input)
            .ok()
            .and_then(|url| url.to_file_path().ok())
            .ok_or_else(|| refuse(input, "expected file:///absolute/path"))?,
        Some((scheme, _)) => {
            return Err(refuse(
                input,
                format!("scheme `{scheme}` is not in this build (paths and file:// are)"),
            ));
        }
    };
    if path.is_dir() {
        return folder(input, &path);
    }
    if path.exists() {
        return Ok(vec![path]);
    }
    let pattern = path.to_string_lossy();
    if !pattern.contains(['*', '?', '[']) {
        return Err(refuse(input, "no such file or folder"));
    }
    let matches =
        glob::glob(&pattern).map_err(|error| refuse(input, format!("not a glob: {error}")))?;
    let mut found = Vec::new();
    for entry in matches {
        let entry = entry.map_err(|error| refuse(input, error.to_string()))?;
        if entry.is_dir() {
            found.extend(folder(input, &entry)?);
        } else if !hidden(&entry) {
            found.push(entry);
        }
    }
    if found.is_empty() {
        return Err(refuse(input, "the glob matches no file"));
    }
    Ok(found)
}

fn folder(input: &str, root: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let mut found = Vec::new();
    let walk = walkdir::WalkDir::new(root)
        .follow_links(true)
        .sort_by_file_name();
    for entry in walk
        .into_iter()
        .filter_entry(|entry| entry.depth() == 0 || !hidden(entry.path()))
    {
        let entry = entry.map_err(|error| refuse(input, error.to_string()))?;
        let name = entry.file_name().to_string_lossy();
        if entry.file_type().is_file() && ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            found.push(entry.into_path());
        }
    }
    Ok(found)
}

fn hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(['_', '.']))
}

fn local_file(path: &Path, input: &str) -> Result<InputFile, EngineError> {
    let io = |error: std::io::Error| refuse(input, format!("{}: {error}", path.display()));
    let path = std::path::absolute(path).map_err(io)?;
    let metadata = std::fs::metadata(&path).map_err(io)?;
    let modified = metadata
        .modified()
        .map_err(io)?
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_nanos());
    let uri = Url::from_file_path(&path)
        .map_err(|()| refuse(input, "it is not an absolute path"))?
        .to_string();
    Ok(InputFile {
        uri,
        size: metadata.len(),
        etag: format!("mtime:{modified}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[InputFile]) -> Vec<String> {
        files
            .iter()
            .map(|file| file.uri.rsplit('/').next().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_folder_is_searched_without_hidden_and_side_files() {
        let root = tempfile::tempdir().unwrap();
        for name in [
            "b.parquet",
            "a.parquet",
            "_metadata.parquet",
            ".x.parquet",
            "year=1/c.pq",
            "_temporary/d.parquet",
            "notes.txt",
        ] {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let folder = root.path().to_str().unwrap().to_owned();
        let files = expand(&[
            folder.clone(),
            format!("{folder}/a.parquet"),
            format!("file://{folder}/b.parquet"),
        ])
        .unwrap();
        assert_eq!(names(&files), ["a.parquet", "b.parquet", "c.pq"]);
        let globbed = expand(&[format!("{folder}/*.parquet")]).unwrap();
        assert_eq!(names(&globbed), ["a.parquet", "b.parquet"]);
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let error = expand(&["/nonexistent/x.parquet".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "input `/nonexistent/x.parquet`: no such file or folder"
        );
        let error = expand(&["/nonexistent/*.parquet".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "input `/nonexistent/*.parquet`: the glob matches no file"
        );
        let error = expand(&["ftp://host/x".into()]).unwrap_err();
        assert!(error.to_string().contains("scheme `ftp`"), "{error}");
    }
}
