//! The state of a merge in its store: uploads, what groups left, and the end.

use super::groups::{Group, groups};
use super::standing::{Standing, manifest_key, remove, standing};
use crate::digest::Digest;
use crate::error::SnapshotError;
use crate::layout;
use crate::objects::ObjectFolder;
use crate::plan::MergePlan;
use crate::source::{SourceFile, join};
use crate::staging::Record;
use crate::worker::Worker;
use serde::{Deserialize, Serialize};
use std::io;

/// What a finished group left.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Done {
    fingerprint: Digest,
    pub records: Vec<Record>,
    /// The part's name for each output.
    pub parts: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PlanObject {
    format: u32,
    fingerprint: Digest,
    part_bytes: u64,
    /// Names of the objects and of their uploads, by output, then weight file.
    objects: Vec<Vec<(String, String)>>,
}

/// The state of a merge in its store.
pub(super) struct Stage<'a> {
    pub plan: &'a MergePlan,
    store: &'a dyn ObjectFolder,
    /// The target's name in the store's prefix.
    name: String,
    pub prefix: String,
    pub begun: PlanObject,
    pub groups: Vec<Group>,
}

pub(super) fn name_of(plan: &MergePlan) -> Result<String, SnapshotError> {
    let name = plan.target.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| SnapshotError::Settings {
            what: format!("`{}` has no name at its end", plan.target.display()),
        })
}

fn text(value: &impl Serialize) -> Result<Vec<u8>, SnapshotError> {
    serde_json::to_vec(value).map_err(|error| SnapshotError::Internal {
        what: error.to_string(),
    })
}

impl<'a> Stage<'a> {
    fn failed(&self, name: &str) -> impl FnOnce(io::Error) -> SnapshotError + use<> {
        failed(self.store, name)
    }

    /// The objects of the output: for each output its folder, and the names of its weight files.
    pub fn objects(plan: &MergePlan, name: &str) -> Vec<Vec<String>> {
        let object = |folder: &str, file: &str| match (plan.is_file(), folder) {
            (true, _) => name.to_owned(),
            (false, "") => format!("{name}/{file}"),
            (false, folder) => format!("{name}/{folder}/{file}"),
        };
        plan.outputs
            .iter()
            .map(|output| {
                plan.shards
                    .iter()
                    .map(|shard| object(&output.folder, &shard.file))
                    .collect()
            })
            .collect()
    }

    /// Goes on with what is there of this plan, or begins; `begin` is false for one who only helps.
    pub fn open(
        plan: &'a MergePlan,
        store: &'a dyn ObjectFolder,
        begin: bool,
    ) -> Result<Self, SnapshotError> {
        let name = name_of(plan)?;
        let prefix = staging_prefix(&name);
        let key = plan_key(&prefix);
        loop {
            match plan_object(store, &prefix)? {
                Some(begun) if begun.format == 1 && begun.fingerprint == plan.fingerprint => {
                    return Ok(Self {
                        groups: groups(plan, begun.part_bytes),
                        plan,
                        store,
                        name,
                        prefix,
                        begun,
                    });
                }
                _ if !begin => {
                    return Err(SnapshotError::Busy {
                        path: join(&store.location(), &prefix),
                    });
                }
                // Of another plan: it is given up, as the newest merge into a target counts.
                found => clear(store, &prefix, found.as_ref())?,
            }
            let mut objects = Vec::new();
            for names in Self::objects(plan, &name) {
                let mut output = Vec::new();
                for name in names {
                    let upload = store.begin(&name).map_err(failed(store, &name))?;
                    output.push((name, upload));
                }
                objects.push(output);
            }
            let begun = PlanObject {
                format: 1,
                fingerprint: plan.fingerprint,
                part_bytes: store.part_bytes(),
                objects,
            };
            let put = store.put_new(&key, text(&begun)?);
            if !put.map_err(failed(store, &key))? {
                // Somebody was first, perhaps with the same plan: its uploads count.
                abort(store, &begun)?;
            }
        }
    }

    fn group_key(&self, group: usize) -> String {
        format!("{}group-{group:08}", self.prefix)
    }

    pub fn finished(&self, group: usize) -> Result<Option<Done>, SnapshotError> {
        let key = self.group_key(group);
        let found = self.store.get(&key).map_err(self.failed(&key))?;
        let done = found.and_then(|bytes| serde_json::from_slice::<Done>(&bytes).ok());
        Ok(done.filter(|done| {
            done.fingerprint == self.plan.fingerprint
                && done.parts.len() == self.plan.outputs.len()
                && done.records.len() == self.groups[group].slices.len()
        }))
    }

    /// Groups that have left their object.
    pub fn there(&self) -> Result<Vec<bool>, SnapshotError> {
        let listed = self.store.list(&self.prefix);
        let listed = listed.map_err(self.failed(&self.prefix))?;
        let mut there = vec![false; self.groups.len()];
        for file in listed {
            let number = file
                .name
                .strip_prefix(&self.prefix)
                .and_then(|name| name.strip_prefix("group-")?.parse::<usize>().ok());
            if let Some(found) = number.and_then(|number| there.get_mut(number)) {
                *found = true;
            }
        }
        Ok(there)
    }

    /// Computes a group and uploads its parts; `check` says that a helper does it, after whom no one looks
    /// for changed inputs.
    pub fn upload(
        &self,
        worker: &mut Worker<'_>,
        group: &Group,
        check: bool,
    ) -> Result<Done, SnapshotError> {
        let plan = self.plan;
        let length = usize::try_from(group.bytes).unwrap_or(usize::MAX);
        let mut parts: Vec<Vec<u8>> = Vec::with_capacity(plan.outputs.len());
        for _ in &plan.outputs {
            let mut part = Vec::with_capacity(length);
            if group.part == 0 {
                part.extend_from_slice(&plan.shards[group.shard].header);
            }
            part.resize(length, 0);
            parts.push(part);
        }
        let first = if group.part == 0 {
            plan.shards[group.shard].header.len()
        } else {
            0
        };
        let mut records = Vec::with_capacity(group.slices.len());
        let mut start = first;
        for slice in &plan.slices[group.slices.clone()] {
            let mut sink = |output: usize, at: u64, bytes: &[u8]| {
                let at = start + usize::try_from(at).unwrap_or(usize::MAX);
                parts[output][at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            };
            records.push(worker.slice(slice, &mut sink)?);
            start += usize::try_from(slice.bytes).unwrap_or(usize::MAX);
        }
        if check {
            for input in &plan.inputs {
                input.check_unchanged()?;
            }
        }
        let mut names = Vec::with_capacity(parts.len());
        for (output, bytes) in parts.into_iter().enumerate() {
            names.push(self.put_part(output, group, bytes)?);
        }
        let done = Done {
            fingerprint: plan.fingerprint,
            records,
            parts: names,
        };
        let key = self.group_key(group.index);
        let put = self.store.put(&key, text(&done)?);
        put.map_err(self.failed(&key))?;
        if check && plan_object(self.store, &self.prefix)?.is_none() {
            // The merge has ended meanwhile, and nobody else would remove this.
            self.store.delete(&key).map_err(self.failed(&key))?;
        }
        Ok(done)
    }

    /// Uploads a group's part of one output, and gives the part's name.
    pub fn put_part(
        &self,
        output: usize,
        group: &Group,
        bytes: Vec<u8>,
    ) -> Result<String, SnapshotError> {
        let (name, upload) = &self.begun.objects[output][group.shard];
        let put = self.store.put_part(name, upload, group.part, bytes);
        put.map_err(|error| self.lost(name, error))
    }

    /// The objects, by output and weight file, that an earlier run of this plan has completed.
    pub fn completed(&self) -> Result<Vec<Vec<bool>>, SnapshotError> {
        let ours = standing(self.plan, self.store, &self.name)? == Standing::Ours;
        let completed = |name: &str, bytes: u64| {
            let found = self.store.stat(name).map_err(self.failed(name))?;
            Ok(ours && found.is_some_and(|found| found.size == bytes))
        };
        let of_output = |names: &Vec<(String, String)>| {
            let files = names.iter().zip(&self.plan.shards);
            files
                .map(|((name, _), shard)| completed(name, shard.bytes))
                .collect()
        };
        self.begun.objects.iter().map(of_output).collect()
    }

    /// What a failed call of an upload means. One that is gone was given up by another merge into the target
    /// or by the store's own rules: the next run begins anew.
    fn lost(&self, name: &str, error: io::Error) -> SnapshotError {
        if error.kind() != io::ErrorKind::NotFound {
            return self.failed(name)(error);
        }
        let found = plan_object(self.store, &self.prefix);
        let ours = matches!(found, Ok(Some(found)) if found == self.begun);
        if ours && let Err(error) = clear(self.store, &self.prefix, Some(&self.begun)) {
            return error;
        }
        SnapshotError::Busy {
            path: join(&self.store.location(), name),
        }
    }

    /// Puts what stands beside the weights, and completes the uploads.
    pub fn publish(&self, manifest: Vec<u8>, parts: &[Vec<String>]) -> Result<(), SnapshotError> {
        let (plan, store) = (self.plan, self.store);
        if standing(plan, store, &self.name)? == Standing::Other {
            if !plan.settings.overwrite {
                return Err(SnapshotError::Exists {
                    path: plan.target.display().to_string(),
                });
            }
            remove(plan, store, &self.name)?;
        }
        let put = |name: String, bytes: Vec<u8>| {
            store
                .put(&name, bytes)
                .map_err(|error| failed(store, &name)(error))
        };
        put(manifest_key(plan, &self.name), manifest)?;
        if !plan.is_file() {
            let index = layout::index(&plan.tensors, &plan.shards);
            for output in &plan.outputs {
                let folder = match output.folder.as_str() {
                    "" => self.name.clone(),
                    folder => format!("{}/{folder}", self.name),
                };
                for (name, bytes) in output.side_files.iter().chain(&index) {
                    put(format!("{folder}/{name}"), bytes.clone())?;
                }
            }
        }
        for (output, objects) in self.begun.objects.iter().enumerate() {
            for (position, (name, upload)) in objects.iter().enumerate() {
                let parts: Vec<String> = self
                    .groups
                    .iter()
                    .filter(|group| group.shard == position)
                    .map(|group| parts[group.index][output].clone())
                    .collect();
                self.complete(name, upload, &parts, plan.shards[position].bytes)?;
            }
        }
        clear(store, &self.prefix, None)
    }

    fn complete(
        &self,
        name: &str,
        upload: &str,
        parts: &[String],
        bytes: u64,
    ) -> Result<(), SnapshotError> {
        let stat = || self.store.stat(name).map_err(self.failed(name));
        let whole = |found: Option<SourceFile>| found.is_some_and(|found| found.size == bytes);
        // Completed before the process died: what stood there before this plan has been removed.
        if whole(stat()?) {
            return Ok(());
        }
        match self.store.complete(name, upload, parts) {
            // Completed, and the answer was lost; or by another process at the same merge.
            Err(error) if error.kind() == io::ErrorKind::NotFound && whole(stat()?) => Ok(()),
            other => other.map_err(|error| self.lost(name, error)),
        }
    }
}

pub(super) fn failed(
    store: &dyn ObjectFolder,
    name: &str,
) -> impl FnOnce(io::Error) -> SnapshotError + use<> {
    let path = join(&store.location(), name);
    move |source| SnapshotError::Write { path, source }
}

fn abort(store: &dyn ObjectFolder, begun: &PlanObject) -> Result<(), SnapshotError> {
    for (name, upload) in begun.objects.iter().flatten() {
        store.abort(name, upload).map_err(failed(store, name))?;
    }
    Ok(())
}

/// Removes a staging prefix, and gives its uploads up. The plan goes after the rest, as it names the uploads;
/// what helpers put before they saw that it is gone goes last.
pub(super) fn clear(
    store: &dyn ObjectFolder,
    prefix: &str,
    begun: Option<&PlanObject>,
) -> Result<(), SnapshotError> {
    if let Some(begun) = begun {
        abort(store, begun)?;
    }
    let plan = plan_key(prefix);
    let remove_all = |but: &str| {
        for file in store.list(prefix).map_err(failed(store, prefix))? {
            if file.name != but {
                let deleted = store.delete(&file.name);
                deleted.map_err(failed(store, &file.name))?;
            }
        }
        Ok(())
    };
    remove_all(&plan)?;
    store.delete(&plan).map_err(failed(store, &plan))?;
    remove_all("")
}

/// Removes the staging of a plan whose output is whole: its process died between the two.
pub(super) fn sweep(plan: &MergePlan, store: &dyn ObjectFolder) -> Result<(), SnapshotError> {
    let prefix = staging_prefix(&name_of(plan)?);
    match plan_object(store, &prefix)? {
        Some(begun) if begun.fingerprint == plan.fingerprint => clear(store, &prefix, Some(&begun)),
        _ => Ok(()),
    }
}

fn staging_prefix(name: &str) -> String {
    format!(".{name}.pmill-staging/")
}

fn plan_key(prefix: &str) -> String {
    format!("{prefix}plan.json")
}

fn plan_object(
    store: &dyn ObjectFolder,
    prefix: &str,
) -> Result<Option<PlanObject>, SnapshotError> {
    let key = plan_key(prefix);
    let found = store.get(&key).map_err(failed(store, &key))?;
    Ok(found.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}
