//! Killed and restarted, and the same bytes whatever threads and memory there are.

use crate::support::*;
use pmill_snapshot::{
    Algorithm, Digests, MergeSettings, Snapshot, SnapshotError, SnapshotPath, assemble,
    average_slice, merge, part_file,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::tempdir;

/// Three agents of about 3.3 million values in several slices and two files.
fn agents(root: &Path) -> Vec<PathBuf> {
    (0..3)
        .map(|agent| {
            let mut random = Random(agent);
            let first = vec![
                f32s("big", &[1_500_001], &random.weights(1_500_001)),
                i64s("ids", &[1, 2, 3]),
            ];
            let second = vec![
                bf16s("half", &[1_100_003], &random.weights(1_100_003)),
                f32s("small", &[7], &random.weights(7)),
            ];
            sharded(root, &format!("agent{agent}"), &[first, second], 0)
        })
        .collect()
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (
                entry.file_name().into_string().unwrap(),
                std::fs::read(entry.path()).unwrap(),
            )
        })
        .collect()
}

#[test]
fn threads_memory_and_order_of_work_change_no_byte() {
    let root = tempdir().unwrap();
    let inputs = agents(root.path());
    let mut first: Option<BTreeMap<String, Vec<u8>>> = None;
    for (run_number, (threads, memory)) in
        [(1, 128 << 20), (2, 128 << 20), (5, 1 << 10), (3, 1 << 20)]
            .into_iter()
            .enumerate()
    {
        let out = root.path().join(format!("out{run_number}"));
        let settings = MergeSettings {
            threads: Some(threads),
            memory_limit_bytes: memory,
            ..settings()
        };
        run(&inputs, &out, &settings).unwrap();
        let found = files(&out);
        assert_eq!(found.len(), 4);
        match &first {
            None => first = Some(found),
            Some(first) => assert!(*first == found, "{threads} threads with {memory} bytes"),
        }
    }
}

#[test]
fn a_stopped_merge_goes_on_where_it_was() {
    let root = tempdir().unwrap();
    let inputs = agents(root.path());
    let (out, whole) = (root.path().join("out"), root.path().join("whole"));
    run(&inputs, &whole, &settings()).unwrap();
    let single = MergeSettings {
        threads: Some(1),
        ..settings()
    };
    let plan = plan(&inputs, &out, &single).unwrap();
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let stopped = merge(&plan, &|_| {
        calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2
    });
    assert!(matches!(stopped, Err(SnapshotError::Stopped)));
    assert!(!out.exists());
    // A byte that the disk lost is found and done again.
    let part = root
        .path()
        .join(".out.pmill-staging/out/model-00001-of-00002.safetensors.part");
    let mut bytes = std::fs::read(&part).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let report = merge(&plan, &|_| true).unwrap();
    assert_eq!(report.resumed_slices, 2);
    assert!(files(&out) == files(&whole));
    assert!(!root.path().join(".out.pmill-staging").exists());
}

#[test]
fn a_merge_that_began_before_digests_had_names_goes_on() {
    let root = tempdir().unwrap();
    let inputs = agents(root.path());
    let out = root.path().join("out");
    let blake3 = MergeSettings {
        threads: Some(1),
        digests: Digests::All(Algorithm::Blake3),
        ..settings()
    };
    let plan_with = |settings: &MergeSettings| plan(&inputs, &out, settings).unwrap();
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let two = |_| calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
    assert!(merge(&plan_with(&blake3), &two).is_err());
    for name in ["plan.json", "slices.jsonl"] {
        let path = root.path().join(".out.pmill-staging").join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("blake3:"), "{text}");
        std::fs::write(&path, text.replace("blake3:", "")).unwrap();
    }
    let report = merge(&plan_with(&blake3), &|_| true).unwrap();
    assert!(report.resumed_slices >= 2);
    // With other digests it is another plan.
    std::fs::remove_dir_all(&out).unwrap();
    calls.store(0, std::sync::atomic::Ordering::Relaxed);
    assert!(merge(&plan_with(&blake3), &two).is_err());
    let other = MergeSettings {
        digests: Digests::default(),
        ..blake3
    };
    let report = merge(&plan_with(&other), &|_| true).unwrap();
    assert_eq!(report.resumed_slices, 0);
}

#[test]
fn slices_as_part_files_make_the_same_output() {
    let root = tempdir().unwrap();
    let inputs = agents(root.path());
    let (out, whole) = (root.path().join("out"), root.path().join("whole"));
    run(&inputs, &whole, &settings()).unwrap();
    let parts = root.path().join("parts");
    std::fs::create_dir(&parts).unwrap();
    let slices = plan(&inputs, &out, &settings()).unwrap().slices().len();
    assert!(slices > 4);
    // In another order, each by a plan of its own, the first one twice, as tasks of a cluster would.
    for slice in (0..slices).rev().chain([0]) {
        let plan = plan(&inputs, &out, &settings()).unwrap();
        average_slice(&plan, slice, &parts).unwrap();
    }
    let plan = plan(&inputs, &out, &settings()).unwrap();
    assert!(average_slice(&plan, slices, &parts).is_err());
    // A damaged part is named, and made again.
    let damaged = part_file(&parts, 2);
    let mut bytes = std::fs::read(&damaged).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let message = assemble(&plan, &parts, &|_| true).unwrap_err().to_string();
    assert!(
        message.contains("slice-00000002.part") && message.contains("digest differs"),
        "{message}"
    );
    assert!(!out.exists());
    average_slice(&plan, 2, &parts).unwrap();
    // Parts of another merge are not taken.
    let fewer = crate::support::plan(&inputs[..2], &root.path().join("two"), &settings()).unwrap();
    let message = assemble(&fewer, &parts, &|_| true).unwrap_err().to_string();
    assert!(message.contains("other inputs or settings"), "{message}");
    assemble(&plan, &parts, &|_| true).unwrap();
    assert!(files(&out) == files(&whole));
}

#[test]
fn another_plan_does_not_take_over_what_is_staged() {
    let root = tempdir().unwrap();
    let inputs = agents(root.path());
    let out = root.path().join("out");
    let single = MergeSettings {
        threads: Some(1),
        ..settings()
    };
    assert!(merge(&plan(&inputs, &out, &single).unwrap(), &|_| false).is_err());
    let report = run(&inputs[..2], &out, &single).unwrap();
    assert_eq!(report.resumed_slices, 0);
}

#[test]
fn two_merges_into_one_place_do_not_meet() {
    let root = tempdir().unwrap();
    let inputs = agents(root.path());
    let out = root.path().join("out");
    let plan = plan(
        &inputs,
        &out,
        &MergeSettings {
            threads: Some(1),
            ..settings()
        },
    )
    .unwrap();
    let second = std::sync::Mutex::new(None);
    merge(&plan, &|_| {
        let mut second = second.lock().unwrap();
        if second.is_none() {
            *second = Some(merge(&plan, &|_| true).unwrap_err().to_string());
        }
        true
    })
    .unwrap();
    let message = second.into_inner().unwrap().unwrap();
    assert!(message.contains("another merge is writing"), "{message}");
}

const ROLE: &str = "PMILL_SNAPSHOT_TEST_ROLE";

/// What the tests below run in a process of its own; does nothing in an ordinary run.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let role: Vec<&str> = role.split('|').collect();
    let (out, inputs) = (
        PathBuf::from(role[1]),
        role[2..].iter().map(PathBuf::from).collect::<Vec<_>>(),
    );
    let settings = MergeSettings {
        threads: Some(2),
        allow_same: true,
        memory_limit_bytes: 16 << 20,
        ..settings()
    };
    let pause = Duration::from_millis(if role[0] == "slow" { 20 } else { 0 });
    let plan = plan(&inputs, &out, &settings).unwrap();
    merge(&plan, &|_| {
        std::thread::sleep(pause);
        true
    })
    .unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    eprintln!(
        "{}",
        status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap_or_default()
    );
}

fn spawn(role: &str, out: &Path, inputs: &[PathBuf]) -> Child {
    let role = [role.to_owned(), out.display().to_string()]
        .into_iter()
        .chain(inputs.iter().map(|input| input.display().to_string()));
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "restart::child",
            "--nocapture",
            "--test-threads",
            "1",
        ])
        .env(ROLE, role.collect::<Vec<_>>().join("|"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn lines(log: &Path) -> usize {
    std::fs::read_to_string(log).map_or(0, |text| {
        text.lines().filter(|line| line.starts_with('{')).count()
    })
}

#[test]
fn a_killed_merge_never_loads_and_ends_as_if_never_killed() {
    let root = tempdir().unwrap();
    let inputs = agents(root.path());
    let whole = root.path().join("whole");
    run(
        &inputs,
        &whole,
        &MergeSettings {
            threads: Some(2),
            allow_same: true,
            memory_limit_bytes: 16 << 20,
            ..settings()
        },
    )
    .unwrap();
    let staging = |out: &Path| {
        out.with_file_name(format!(
            ".{}.pmill-staging",
            out.file_name().unwrap().to_str().unwrap()
        ))
    };
    let mut resumed = 0;
    for slices in [1, 2, 3, 4] {
        let out = root.path().join(format!("out{slices}"));
        let mut child = spawn("slow", &out, &inputs);
        let deadline = Instant::now() + Duration::from_secs(60);
        let log = staging(&out).join("slices.jsonl");
        while lines(&log) < slices && !out.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        if out.exists() {
            // It was quicker than the kill: then it is whole.
            assert!(files(&out) == files(&whole));
            continue;
        }
        for folder in [staging(&out), staging(&out).join("out")] {
            let opened = SnapshotPath::local(&folder).and_then(|path| Snapshot::open(&path));
            assert!(
                opened.is_err(),
                "half a merge loads from {}",
                folder.display()
            );
        }
        let report = run(
            &inputs,
            &out,
            &MergeSettings {
                threads: Some(2),
                allow_same: true,
                memory_limit_bytes: 16 << 20,
                ..settings()
            },
        )
        .unwrap();
        resumed += report.resumed_slices;
        assert!(
            files(&out) == files(&whole),
            "after a kill at {slices} slices"
        );
        assert!(!staging(&out).exists());
    }
    assert!(resumed > 0, "no kill came in the middle");
}

#[test]
fn memory_does_not_grow_with_the_model() {
    if !Path::new("/proc/self/status").exists() {
        eprintln!("skipped: no /proc here");
        return;
    }
    let root = tempdir().unwrap();
    let peak = |elements: usize| -> u64 {
        // Zeros in files with holes, so that the test writes little.
        let inputs: Vec<PathBuf> = (0..6)
            .map(|agent| {
                let folder = folder(
                    root.path(),
                    &format!("agent{agent}-{elements}"),
                    &[f32s("w", &[1], &[0.0])],
                    &[],
                );
                let info = pmill_snapshot::TensorInfo {
                    name: "w".into(),
                    dtype: pmill_snapshot::DType::F32,
                    shape: vec![elements as u64],
                    start: 0,
                    end: elements as u64 * 4,
                };
                let header = pmill_snapshot::write_header(&[info], &BTreeMap::new());
                let file = std::fs::File::create(folder.join("model.safetensors")).unwrap();
                std::io::Write::write_all(&mut &file, &header).unwrap();
                file.set_len(header.len() as u64 + elements as u64 * 4)
                    .unwrap();
                folder
            })
            .collect();
        let child = spawn(
            "quick",
            &root.path().join(format!("out{elements}")),
            &inputs,
        );
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        let line = text.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // 25 MB and 150 MB of inputs: the same few megabytes of buffers, and nowhere near 200 MB.
    let (small, large) = (peak(1 << 20), peak(6 << 20));
    assert!(large < 100 << 10, "{large} kB");
    assert!(large < small + (8 << 10), "{small} kB, then {large} kB");
}
