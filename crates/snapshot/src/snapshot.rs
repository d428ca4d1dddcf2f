//! Opens a snapshot: finds its shards, reads and checks every header, and notes the files beside them.
//!
//! No tensor data is read. Held in memory: the headers.

use crate::error::SnapshotError;
use crate::header::{Header, MAX_HEADER_BYTES, TensorInfo, read_header};
use crate::source::{RangeSource, SnapshotPath, SourceFile, join, read_small};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// The most a config or tokenizer file may have when its content is needed.
pub(crate) const SMALL_FILE_BYTES: u64 = 256 << 20;

/// One safetensors file of a snapshot.
#[derive(Debug, Clone)]
pub struct Shard {
    /// The file.
    pub file: SourceFile,
    /// Its checked header.
    pub header: Header,
}

/// A snapshot whose headers have been read and checked.
#[derive(Debug, Clone)]
pub struct Snapshot {
    path: SnapshotPath,
    /// The weight files, in the order of their names.
    pub shards: Vec<Shard>,
    by_name: HashMap<String, (usize, usize)>,
    /// `total_size` of the index, when there is an index that says one.
    pub index_total_bytes: Option<u64>,
    /// The index file, when there is one.
    pub index_file: Option<String>,
    /// Files of the folder that are not weights of this snapshot: config, tokenizer and the like.
    /// Empty when the snapshot was named as one file.
    pub side_files: Vec<SourceFile>,
    /// Weight files in the folder that the index does not name, and which are therefore not read.
    pub stray_files: Vec<String>,
    /// `config.json`, when there is one beside the weights.
    pub config: Option<serde_json::Map<String, serde_json::Value>>,
}

struct RawIndex {
    weight_map: BTreeMap<String, String>,
    total_bytes: Option<u64>,
}

/// `weight_map` with every name once; serde's own maps would keep the last of two silently.
struct UniqueMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = UniqueMap;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensor names and file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((name, file)) = map.next_entry::<String, String>()? {
                    if entries.insert(name.clone(), file).is_some() {
                        return Err(A::Error::custom(format!("tensor `{name}` is named twice")));
                    }
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn parse_index(bytes: &[u8]) -> Result<RawIndex, String> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        metadata: Option<serde_json::Map<String, serde_json::Value>>,
        weight_map: UniqueMap,
    }
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    for (tensor, shard) in &file.weight_map.0 {
        // A name with a slash could lead out of the folder.
        if shard.is_empty()
            || shard.contains(['/', '\\'])
            || shard == ".."
            || !shard.ends_with(".safetensors")
        {
            return Err(format!(
                "tensor `{tensor}` is in `{shard}`, which is not the name of a safetensors file in the same folder"
            ));
        }
    }
    let total_bytes = file
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.get("total_size")?.as_u64());
    Ok(RawIndex {
        weight_map: file.weight_map.0,
        total_bytes,
    })
}

const INDEX_SUFFIX: &str = ".safetensors.index.json";

impl Snapshot {
    /// Finds and checks the snapshot at a path.
    ///
    /// One named file is the snapshot itself. In a folder an index file decides; without one,
    /// `model.safetensors`, or else the only safetensors file there.
    ///
    /// # Errors
    /// Unreadable files, invalid headers or index, an index that names a missing shard or tensor, a shard
    /// that holds a tensor the index does not name, a folder without one clear snapshot.
    pub fn open(path: &SnapshotPath) -> Result<Self, SnapshotError> {
        let source = path.source.as_ref();
        match &path.file {
            Some(name) if name.ends_with(INDEX_SUFFIX) => {
                let files = Self::list(source)?;
                Self::open_index(path, name, files)
            }
            Some(name) => Self::open_files(path, std::slice::from_ref(name), Vec::new()),
            None => {
                let files = Self::list(source)?;
                Self::open_folder(path, files)
            }
        }
    }

    fn list(source: &dyn RangeSource) -> Result<Vec<SourceFile>, SnapshotError> {
        let mut files = source
            .list()
            .map_err(|error| SnapshotError::read(source.location(), error))?;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    fn open_folder(path: &SnapshotPath, files: Vec<SourceFile>) -> Result<Self, SnapshotError> {
        let place = path.source.location();
        let no_snapshot = |what: String| SnapshotError::NoSnapshot {
            path: place.clone(),
            what,
        };
        let indexes: Vec<_> = files
            .iter()
            .filter(|file| file.name.ends_with(INDEX_SUFFIX))
            .collect();
        let weights: Vec<_> = files
            .iter()
            .filter(|file| file.name.ends_with(".safetensors"))
            .map(|file| file.name.clone())
            .collect();
        match (indexes.as_slice(), weights.as_slice()) {
            ([index], _) => {
                let name = index.name.clone();
                Self::open_index(path, &name, files)
            }
            ([], [one]) => Self::open_files(path, std::slice::from_ref(one), files),
            ([], []) => Err(no_snapshot("there is no `.safetensors` file".to_owned())),
            ([], many) => {
                let default = "model.safetensors".to_owned();
                if many.contains(&default) {
                    return Self::open_files(path, &[default], files);
                }
                Err(no_snapshot(format!(
                    "there are {} weight files ({}, ...) but no index; name the one file to read, or add `model{INDEX_SUFFIX}`",
                    many.len(),
                    many[0]
                )))
            }
            (many, _) => Err(no_snapshot(format!(
                "there are {} index files ({}, {}, ...); name the one to read",
                many.len(),
                many[0].name,
                many[1].name
            ))),
        }
    }

    fn open_index(
        path: &SnapshotPath,
        index: &str,
        files: Vec<SourceFile>,
    ) -> Result<Self, SnapshotError> {
        let source = path.source.as_ref();
        let invalid = |what: String| SnapshotError::Index {
            path: join(&source.location(), index),
            what,
        };
        let raw = parse_index(&read_small(source, index, MAX_HEADER_BYTES)?).map_err(invalid)?;
        let names: HashSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
        let mut shards: Vec<String> = Vec::new();
        for (tensor, shard) in &raw.weight_map {
            if !names.contains(shard.as_str()) {
                return Err(invalid(format!(
                    "tensor `{tensor}` is in `{shard}`, which does not exist"
                )));
            }
            shards.push(shard.clone());
        }
        shards.sort();
        shards.dedup();
        if shards.is_empty() {
            return Err(invalid("the weight map is empty".to_owned()));
        }
        let mut snapshot = Self::open_files(path, &shards, files)?;
        for (tensor, shard) in &raw.weight_map {
            let found = snapshot
                .by_name
                .get(tensor)
                .map(|&(position, _)| &snapshot.shards[position].file.name);
            if found != Some(shard) {
                return Err(invalid(format!(
                    "tensor `{tensor}` should be in `{shard}`, but is not there"
                )));
            }
        }
        for shard in &snapshot.shards {
            for tensor in &shard.header.tensors {
                if !raw.weight_map.contains_key(&tensor.name) {
                    return Err(invalid(format!(
                        "`{}` holds tensor `{}`, which the weight map does not name",
                        shard.file.name, tensor.name
                    )));
                }
            }
        }
        snapshot.index_total_bytes = raw.total_bytes;
        snapshot.index_file = Some(index.to_owned());
        Ok(snapshot)
    }

    fn open_files(
        path: &SnapshotPath,
        names: &[String],
        listed: Vec<SourceFile>,
    ) -> Result<Self, SnapshotError> {
        let source = path.source.as_ref();
        let mut shards = Vec::with_capacity(names.len());
        let mut by_name = HashMap::new();
        for name in names {
            let file = source
                .stat(name)
                .map_err(|error| SnapshotError::read(join(&source.location(), name), error))?;
            let header = read_header(source, name)?;
            for (position, tensor) in header.tensors.iter().enumerate() {
                if let Some((other, _)) =
                    by_name.insert(tensor.name.clone(), (shards.len(), position))
                {
                    let other: &Shard = &shards[other];
                    return Err(SnapshotError::Index {
                        path: path.location(),
                        what: format!(
                            "tensor `{}` is both in `{}` and in `{name}`",
                            tensor.name, other.file.name
                        ),
                    });
                }
            }
            shards.push(Shard { file, header });
        }
        let config = match listed.iter().find(|file| file.name == "config.json") {
            Some(file) => {
                let bytes = read_small(source, &file.name, 16 << 20)?;
                let parsed = serde_json::from_slice(&bytes);
                let place = join(&source.location(), &file.name);
                Some(parsed.map_err(|source| SnapshotError::Json {
                    path: place,
                    source,
                })?)
            }
            None => None,
        };
        let (weights, side_files): (Vec<_>, Vec<_>) = listed
            .into_iter()
            .partition(|file| file.name.ends_with(".safetensors"));
        let stray_files = weights
            .into_iter()
            .map(|file| file.name)
            .filter(|name| !names.contains(name))
            .collect();
        Ok(Self {
            path: path.clone(),
            shards,
            by_name,
            index_total_bytes: None,
            index_file: None,
            side_files,
            stray_files,
            config,
        })
    }

    /// The place as people write it.
    #[must_use]
    pub fn location(&self) -> String {
        self.path.location()
    }

    /// The place as it was opened.
    pub(crate) fn path(&self) -> &SnapshotPath {
        &self.path
    }

    /// The tensor of this name and the shard that holds it.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<(&Shard, &TensorInfo)> {
        let &(shard, position) = self.by_name.get(name)?;
        let shard = &self.shards[shard];
        Some((shard, &shard.header.tensors[position]))
    }

    /// All tensors, in the order of shards and of their data.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.shards.iter().flat_map(|shard| &shard.header.tensors)
    }

    /// Bytes of tensor data.
    #[must_use]
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors().map(TensorInfo::bytes).sum()
    }

    pub(crate) fn source(&self) -> &Arc<dyn RangeSource> {
        &self.path.source
    }

    /// Reads bytes of a tensor, from `offset` inside it.
    pub(crate) fn read_tensor(
        &self,
        name: &str,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), SnapshotError> {
        let (shard, tensor) = self.tensor(name).ok_or_else(|| SnapshotError::Internal {
            what: format!("tensor `{name}` was planned but is not there"),
        })?;
        self.read_shard(
            shard,
            shard.header.data_start + tensor.start + offset,
            buffer,
        )
    }

    /// Reads bytes of a shard; a file that has become shorter is a changed one.
    pub(crate) fn read_shard(
        &self,
        shard: &Shard,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), SnapshotError> {
        let path = || join(&self.source().location(), &shard.file.name);
        self.source()
            .read_at(&shard.file.name, offset, buffer)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => SnapshotError::Changed { path: path() },
                _ => SnapshotError::read(path(), error),
            })
    }

    /// That no shard changed since it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<(), SnapshotError> {
        for shard in &self.shards {
            let path = || join(&self.source().location(), &shard.file.name);
            let now = self
                .source()
                .stat(&shard.file.name)
                .map_err(|error| SnapshotError::read(path(), error))?;
            if now != shard.file {
                return Err(SnapshotError::Changed { path: path() });
            }
        }
        Ok(())
    }

    /// Content of a file beside the weights, `None` when it is not there.
    pub(crate) fn side_file(&self, name: &str) -> Result<Option<Vec<u8>>, SnapshotError> {
        if !self.side_files.iter().any(|file| file.name == name) {
            return Ok(None);
        }
        read_small(self.source().as_ref(), name, SMALL_FILE_BYTES).map(Some)
    }
}
