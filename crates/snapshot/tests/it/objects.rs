//! Outputs in an object store: a store in memory that stops at any call.

use crate::support::*;
use pmill_snapshot::{
    MergePlan, MergeSettings, ObjectFolder, RangeSource, Snapshot, SnapshotError, SnapshotPath,
    SourceFile, Topology, begin_upload, merge, plan_mix, upload_group,
};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tempfile::tempdir;

#[derive(Debug, Default)]
struct Inner {
    objects: BTreeMap<String, (Vec<u8>, u64)>,
    uploads: BTreeMap<String, (String, BTreeMap<usize, Vec<u8>>)>,
    clock: u64,
    /// Calls until the store is away for good.
    left: Option<u64>,
    calls: u64,
    /// The answer to the next completion is lost.
    lose_completion: bool,
}

/// A store in memory; also what is read of it.
#[derive(Debug, Default, Clone)]
pub struct Memory(Arc<Mutex<Inner>>);

impl Memory {
    fn call<T>(&self, work: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.0.lock().unwrap();
        if inner.left == Some(0) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the store is away"));
        }
        inner.left = inner.left.map(|left| left - 1);
        inner.clock += 1;
        inner.calls += 1;
        work(&mut inner)
    }

    pub fn stop_after(&self, calls: Option<u64>) {
        self.0.lock().unwrap().left = calls;
    }

    pub fn content(&self) -> BTreeMap<String, Vec<u8>> {
        let inner = self.0.lock().unwrap();
        inner
            .objects
            .iter()
            .map(|(name, (bytes, _))| (name.clone(), bytes.clone()))
            .collect()
    }

    pub fn uploads(&self) -> usize {
        self.0.lock().unwrap().uploads.len()
    }

    /// Whether the model at `folder` loads, and the digest of its tensors.
    pub fn load(&self, folder: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        self.stop_after(None);
        let source = Below(self.clone(), folder.to_owned());
        let path = SnapshotPath::new(Arc::new(source), None);
        let snapshot = Snapshot::open(&path).ok()?;
        let content = self.content();
        Some(
            snapshot
                .shards
                .iter()
                .map(|shard| {
                    let name = shard.file.name.clone();
                    let bytes = content[&format!("{folder}/{name}")].clone();
                    (name, bytes)
                })
                .collect(),
        )
    }
}

fn no_upload() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "no such upload")
}

fn file(name: &str, (bytes, version): &(Vec<u8>, u64)) -> SourceFile {
    SourceFile {
        name: name.to_owned(),
        size: bytes.len() as u64,
        version: version.to_string(),
    }
}

impl ObjectFolder for Memory {
    fn location(&self) -> String {
        "memory://models".into()
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<SourceFile>> {
        self.call(|inner| {
            let found = inner
                .objects
                .iter()
                .filter(|(name, _)| name.starts_with(prefix));
            Ok(found.map(|(name, object)| file(name, object)).collect())
        })
    }

    fn stat(&self, name: &str) -> io::Result<Option<SourceFile>> {
        self.call(|inner| Ok(inner.objects.get(name).map(|object| file(name, object))))
    }

    fn get(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.call(|inner| Ok(inner.objects.get(name).map(|(bytes, _)| bytes.clone())))
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        self.call(|inner| {
            inner.objects.insert(name.into(), (bytes, inner.clock));
            Ok(())
        })
    }

    fn put_new(&self, name: &str, bytes: Vec<u8>) -> io::Result<bool> {
        self.call(|inner| {
            if inner.objects.contains_key(name) {
                return Ok(false);
            }
            inner.objects.insert(name.into(), (bytes, inner.clock));
            Ok(true)
        })
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        self.call(|inner| {
            inner.objects.remove(name);
            Ok(())
        })
    }

    fn begin(&self, name: &str) -> io::Result<String> {
        self.call(|inner| {
            let upload = format!("upload-{}", inner.clock);
            inner
                .uploads
                .insert(upload.clone(), (name.into(), BTreeMap::new()));
            Ok(upload)
        })
    }

    fn put_part(
        &self,
        name: &str,
        upload: &str,
        part: usize,
        bytes: Vec<u8>,
    ) -> io::Result<String> {
        self.call(|inner| {
            let (of, parts) = inner.uploads.get_mut(upload).ok_or_else(no_upload)?;
            assert_eq!(of, name);
            let id = format!("{part}:{}", bytes.len());
            parts.insert(part, bytes);
            Ok(id)
        })
    }

    fn complete(&self, name: &str, upload: &str, parts: &[String]) -> io::Result<()> {
        self.call(|inner| {
            let (of, found) = inner.uploads.get(upload).ok_or_else(no_upload)?;
            assert_eq!(of, name);
            let ids: Vec<String> = found
                .iter()
                .map(|(part, bytes)| format!("{part}:{}", bytes.len()))
                .collect();
            assert_eq!(ids, parts);
            let least = found
                .values()
                .rev()
                .skip(1)
                .map(Vec::len)
                .min()
                .unwrap_or(100_000);
            assert!(least >= 100_000, "a part of {least} bytes is too small");
            let bytes: Vec<u8> = found.values().flatten().copied().collect();
            inner.uploads.remove(upload);
            inner.objects.insert(name.into(), (bytes, inner.clock));
            if std::mem::take(&mut inner.lose_completion) {
                // As a client sees it that tries again after the answer was lost.
                return Err(no_upload());
            }
            Ok(())
        })
    }

    fn abort(&self, _: &str, upload: &str) -> io::Result<()> {
        self.call(|inner| {
            inner.uploads.remove(upload);
            Ok(())
        })
    }

    fn part_bytes(&self) -> u64 {
        100_000
    }
}

/// A folder of the store, to read.
#[derive(Debug)]
pub struct Below(pub Memory, pub String);

impl RangeSource for Below {
    fn location(&self) -> String {
        format!("memory://models/{}", self.1)
    }

    fn list(&self) -> io::Result<Vec<SourceFile>> {
        let prefix = format!("{}/", self.1);
        let mut files = ObjectFolder::list(&self.0, &prefix)?;
        for file in &mut files {
            file.name = file.name[prefix.len()..].to_owned();
        }
        files.retain(|file| !file.name.contains('/'));
        Ok(files)
    }

    fn stat(&self, name: &str) -> io::Result<SourceFile> {
        ObjectFolder::stat(&self.0, &format!("{}/{name}", self.1))?
            .map(|found| SourceFile {
                name: name.into(),
                ..found
            })
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.get(&format!("{}/{name}", self.1))?;
        let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let from = offset as usize;
        let part = bytes.get(from..from + buffer.len());
        buffer.copy_from_slice(part.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }
}

/// Three agents of two weight files, in slices and parts.
pub fn agents(root: &Path, seed: u64) -> Vec<PathBuf> {
    (0..3)
        .map(|agent| {
            let mut random = Random(seed + agent);
            let first = vec![
                f32s("a", &[60_000], &random.weights(60_000)),
                i64s("ids", &[1, 2, 3]),
                f32s("b", &[20_001], &random.weights(20_001)),
                f32s("c", &[21_000], &random.weights(21_000)),
            ];
            let second = vec![
                bf16s("d", &[70_003], &random.weights(70_003)),
                f32s("e", &[7], &random.weights(7)),
            ];
            let name = format!("agent{seed}-{agent}");
            let place = sharded(root, &name, &[first, second], 0);
            std::fs::write(place.join("config.json"), "{\"model_type\": \"x\"}").unwrap();
            place
        })
        .collect()
}

pub fn one_thread() -> MergeSettings {
    MergeSettings {
        threads: Some(1),
        ..settings()
    }
}

pub fn planned(places: &[PathBuf], store: &Memory, settings: &MergeSettings) -> MergePlan {
    plan(places, Path::new("memory://models/merged"), settings)
        .unwrap()
        .onto(Arc::new(store.clone()))
}

/// The files of a folder as the store names them.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(place) = waiting.pop() {
        for entry in std::fs::read_dir(place).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            found.insert(format!("merged/{name}"), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn an_output_in_a_store_has_the_bytes_of_one_on_disk() {
    let root = tempdir().unwrap();
    let places = agents(root.path(), 0);
    let expected = root.path().join("merged");
    run(&places, &expected, &settings()).unwrap();
    let store = Memory::default();
    let report = merge(&planned(&places, &store, &settings()), &|_| true).unwrap();
    assert!(store.content() == files(&expected));
    assert_eq!(store.uploads(), 0);
    assert_eq!(report.target, "memory://models/merged");
    // Again it is there already; another merge is refused, and replaces it when asked to.
    let again = merge(&planned(&places, &store, &settings()), &|_| true).unwrap();
    assert_eq!(again.outputs, report.outputs);
    let error = merge(&planned(&places[..2], &store, &settings()), &|_| true).unwrap_err();
    assert!(matches!(error, SnapshotError::Exists { .. }), "{error}");
    let overwrite = MergeSettings {
        overwrite: true,
        ..settings()
    };
    // What lies deeper than the model is not its own.
    store.put("merged/notes/a.txt", vec![1]).unwrap();
    merge(&planned(&places[..2], &store, &overwrite), &|_| true).unwrap();
    assert_eq!(store.get("merged/notes/a.txt").unwrap(), Some(vec![1]));
    store.delete("merged/notes/a.txt").unwrap();
    let other = root.path().join("other");
    run(&places[..2], &other, &settings()).unwrap();
    assert!(store.content() == files(&other));
}

#[test]
fn one_file_and_a_round_of_mixing_go_to_a_store() {
    let root = tempdir().unwrap();
    let places = agents(root.path(), 0);
    let store = Memory::default();
    let one = plan(
        &places,
        Path::new("memory://models/one.safetensors"),
        &settings(),
    );
    merge(&one.unwrap().onto(Arc::new(store.clone())), &|_| true).unwrap();
    let expected = root.path().join("one.safetensors");
    run(&places, &expected, &settings()).unwrap();
    let content = store.content();
    assert_eq!(
        content["one.safetensors"],
        std::fs::read(&expected).unwrap()
    );
    assert_eq!(
        content.keys().collect::<Vec<_>>(),
        ["one.safetensors", "one.safetensors.pmill-merge.json"]
    );

    let store = Memory::default();
    let matrix = Topology::Ring.matrix(3, 0).unwrap();
    let plan_at = |place: &Path| plan_mix(&paths(&places), &matrix, place, &settings()).unwrap();
    let local = root.path().join("mixed");
    merge(&plan_at(&local), &|_| true).unwrap();
    let remote = plan_at(Path::new("memory://models/merged")).onto(Arc::new(store.clone()));
    merge(&remote, &|_| true).unwrap();
    assert!(store.content() == files(&local));
}

/// Stops the store at every call there is, and goes on: never a model that is not whole, and in the end the same.
#[test]
fn a_store_that_goes_away_at_any_moment_leaves_no_half_model() {
    let root = tempdir().unwrap();
    let (old, new) = (agents(root.path(), 10), agents(root.path(), 0));
    let local = root.path().join("merged");
    run(&new, &local, &settings()).unwrap();
    let expected = files(&local);
    let overwrite = MergeSettings {
        overwrite: true,
        ..one_thread()
    };
    let before = Memory::default();
    merge(&planned(&old, &before, &one_thread()), &|_| true).unwrap();
    let old_model = before.load("merged").unwrap();
    let whole = Memory::default();
    merge(&planned(&new, &whole, &one_thread()), &|_| true).unwrap();
    let new_model = whole.load("merged").unwrap();
    let settings = [one_thread(), overwrite];
    for (case, settings) in settings.iter().enumerate() {
        let mut after = 0;
        loop {
            let store = Memory::default();
            if case == 1 {
                merge(&planned(&old, &store, settings), &|_| true).unwrap();
            }
            store.stop_after(Some(after));
            let ended = merge(&planned(&new, &store, settings), &|_| true);
            match store.load("merged") {
                None => {}
                Some(model) if model == new_model => {}
                Some(model) => assert!(case == 1 && model == old_model, "a mixture at {after}"),
            }
            let over = ended.is_ok();
            let report = merge(&planned(&new, &store, settings), &|_| true).unwrap();
            assert!(store.content() == expected, "another output at {after}");
            // Uploads that were begun and never written down are the store's to expire.
            assert!(store.uploads() <= 2, "{after}: {}", store.uploads());
            if over {
                break;
            }
            assert_eq!(report.outputs.len(), 1);
            after += 1;
        }
        assert!(after > 15, "only {after} calls");
    }
}

#[test]
fn finished_groups_are_not_done_again() {
    let root = tempdir().unwrap();
    let places = agents(root.path(), 0);
    let store = Memory::default();
    merge(&planned(&places, &store, &one_thread()), &|_| true).unwrap();
    let calls = store.0.lock().unwrap().calls;
    let store = Memory::default();
    store.stop_after(Some(calls / 2));
    let error = merge(&planned(&places, &store, &one_thread()), &|_| true).unwrap_err();
    assert_eq!(error.kind(), pmill_snapshot::ErrorKind::NotNow);
    store.stop_after(None);
    let report = merge(&planned(&places, &store, &one_thread()), &|_| true).unwrap();
    assert!(report.resumed_slices > 0);
}

#[test]
fn processes_share_an_upload_and_a_repeated_group_changes_nothing() {
    let root = tempdir().unwrap();
    let places = agents(root.path(), 0);
    let local = root.path().join("merged");
    run(&places, &local, &settings()).unwrap();
    let store = Memory::default();
    let all = planned(&places, &store, &settings());
    // A helper does not begin.
    assert!(matches!(
        upload_group(&all, 0),
        Err(SnapshotError::Busy { .. })
    ));
    let groups = begin_upload(&all).unwrap().unwrap();
    assert!(groups >= 3, "{groups}");
    assert_eq!(
        begin_upload(&planned(&places, &store, &settings())).unwrap(),
        Some(groups)
    );
    std::thread::scope(|scope| {
        for order in [0, 1] {
            let (places, store) = (&places, &store);
            scope.spawn(move || {
                let mine = planned(places, store, &settings());
                for step in 0..groups {
                    let group = if order == 0 { step } else { groups - 1 - step };
                    upload_group(&mine, group).unwrap();
                }
            });
        }
    });
    assert!(!upload_group(&all, 0).unwrap());
    let refused = upload_group(&all, groups).unwrap_err().to_string();
    assert!(refused.contains("was asked for"), "{refused}");
    let report = merge(&all, &|_| true).unwrap();
    assert_eq!(report.resumed_slices, all.slices().len());
    assert!(store.content() == files(&local));
    assert_eq!(begin_upload(&all).unwrap(), None);
}

#[test]
fn of_two_merges_into_one_target_the_later_counts() {
    let root = tempdir().unwrap();
    let places = agents(root.path(), 0);
    let store = Memory::default();
    let (first, second) = (
        planned(&places, &store, &settings()),
        planned(&places[..2], &store, &settings()),
    );
    begin_upload(&first).unwrap();
    upload_group(&first, 0).unwrap();
    begin_upload(&second).unwrap();
    assert!(matches!(
        upload_group(&first, 1),
        Err(SnapshotError::Busy { .. })
    ));
    merge(&second, &|_| true).unwrap();
    let local = root.path().join("merged");
    run(&places[..2], &local, &settings()).unwrap();
    assert!(store.content() == files(&local));
    assert_eq!(store.uploads(), 0);
}

#[test]
fn an_upload_that_the_store_dropped_is_begun_anew_by_the_next_run() {
    let root = tempdir().unwrap();
    let places = agents(root.path(), 0);
    let store = Memory::default();
    let all = planned(&places, &store, &settings());
    begin_upload(&all).unwrap();
    upload_group(&all, 0).unwrap();
    store.0.lock().unwrap().uploads.clear();
    let error = merge(&all, &|_| true).unwrap_err();
    assert_eq!(error.kind(), pmill_snapshot::ErrorKind::NotNow, "{error}");
    assert!(store.load("merged").is_none());
    merge(&all, &|_| true).unwrap();
    assert!(store.load("merged").is_some());
}

#[test]
fn a_completion_whose_answer_was_lost_is_seen_to_have_been() {
    let root = tempdir().unwrap();
    let places = agents(root.path(), 0);
    let store = Memory::default();
    store.0.lock().unwrap().lose_completion = true;
    merge(&planned(&places, &store, &settings()), &|_| true).unwrap();
    assert!(store.load("merged").is_some());
    assert_eq!(store.uploads(), 0);
}

#[test]
fn nothing_stays_of_inputs_that_cannot_be_merged() {
    let root = tempdir().unwrap();
    let mut values = vec![0.5; 90_000];
    let good = folder(root.path(), "a", &[f32s("w", &[90_000], &values)], &[]);
    values[80_000] = f32::NAN;
    let bad = folder(root.path(), "b", &[f32s("w", &[90_000], &values)], &[]);
    let store = Memory::default();
    let error = merge(&planned(&[good, bad], &store, &settings()), &|_| true).unwrap_err();
    assert!(error.to_string().contains("at index 80000"), "{error}");
    assert!(store.content().is_empty());
    assert_eq!(store.uploads(), 0);
}

#[test]
fn a_memory_limit_that_one_part_does_not_fit_is_told() {
    let root = tempdir().unwrap();
    let places = agents(root.path(), 0);
    let small = MergeSettings {
        memory_limit_bytes: 50_000,
        ..settings()
    };
    let store = Memory::default();
    let error = merge(&planned(&places, &store, &small), &|_| true).unwrap_err();
    assert!(
        error.to_string().contains("memory limit of 1 MiB"),
        "{error}"
    );
}
