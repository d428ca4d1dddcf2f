//! The real files shared between the projects, when they are there.

use crate::support::*;
use pmill_snapshot::{
    DistanceSettings, InspectSettings, LowRank, MergeSettings, SnapshotPath, Verdict, distance,
    inspect_with,
};
use std::path::PathBuf;
use tempfile::tempdir;

fn shared() -> Option<PathBuf> {
    let root = std::env::var_os("PMILL_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let folder = root.join("data/safetensors");
    if !folder.is_dir() {
        eprintln!("skipped: no shared data at {}", folder.display());
        return None;
    }
    Some(folder)
}

fn steps(shared: &std::path::Path) -> Vec<PathBuf> {
    ["0000100", "0000200", "0000300", "0000600"]
        .map(|step| shared.join(format!("lora-training-run/{step}_adapters.safetensors")))
        .to_vec()
}

#[test]
fn the_steps_of_one_run_merge_and_come_closer() {
    let Some(shared) = shared() else { return };
    let inputs = steps(&shared);
    let report = distance(&paths(&inputs), &DistanceSettings::default(), &|_| true).unwrap();
    assert!(
        report.l2[0][3] > report.l2[1][3] && report.l2[1][3] > report.l2[2][3],
        "{:?}",
        report.l2
    );
    let cosine = |i: usize| report.cosine[0][i].unwrap();
    assert!(cosine(1) > cosine(2) && cosine(2) > cosine(3));
    assert_ne!(report.verdict, Verdict::Unlikely, "{}", report.reason);
    let root = tempdir().unwrap();
    let out = root.path().join("merged.safetensors");
    let message = refusal(&inputs, &out, &settings());
    assert!(message.contains("low-rank"), "{message}");
    run(
        &inputs,
        &out,
        &MergeSettings {
            low_rank: LowRank::Factors,
            ..settings()
        },
    )
    .unwrap();
    for (name, (_, _, merged)) in read_all(&out) {
        let tensors: Vec<Vec<u8>> = inputs
            .iter()
            .map(|input| read_all(input).remove(&name).unwrap().2)
            .collect();
        let value = |bytes: &[u8]| f64::from(f32::from_le_bytes(bytes.try_into().unwrap()));
        for (element, found) in merged.chunks_exact(4).enumerate() {
            let sum: f64 = tensors
                .iter()
                .map(|bytes| value(&bytes[element * 4..][..4]))
                .sum();
            assert_eq!(
                value(found),
                f64::from((sum / 4.0) as f32),
                "{name} {element}"
            );
        }
    }
    let products = root.path().join("products.safetensors");
    run(
        &inputs,
        &products,
        &MergeSettings {
            low_rank: LowRank::Products,
            ..settings()
        },
    )
    .unwrap();
    for (name, (_, shape, _)) in read_all(&products) {
        let rank = if name.ends_with("lora_a") {
            shape[1]
        } else {
            shape[0]
        };
        assert_eq!(rank, 32, "{name} {shape:?}");
    }
}

#[test]
fn independent_trainings_are_flagged() {
    let Some(shared) = shared() else { return };
    let inputs = ["0-4bc2046", "1-4fe0665", "2-6682ba5"]
        .map(|name| shared.join(format!("mnist-mlp/checkpoint-{name}.safetensors")));
    let report = distance(&paths(&inputs), &DistanceSettings::default(), &|_| true).unwrap();
    assert_eq!(report.verdict, Verdict::Unlikely, "{}", report.reason);
    // Different models are refused by the names of what differs.
    let root = tempdir().unwrap();
    let message = refusal(
        &[
            inputs[0].clone(),
            shared.join("tokenlearn-static-10k-64d-int8"),
        ],
        &root.path().join("out"),
        &settings(),
    );
    assert!(message.contains("is missing in"), "{message}");
}

#[test]
fn snapshots_of_different_shapes_are_refused_by_name() {
    let Some(shared) = shared() else { return };
    let original = shared.join("mnist-mlp/checkpoint-0-4bc2046.safetensors");
    let root = tempdir().unwrap();
    let tensors: Vec<Tensor> = read_all(&original)
        .into_iter()
        .map(|(name, (dtype, mut shape, bytes))| {
            shape.reverse();
            Tensor {
                name,
                dtype,
                shape,
                bytes,
            }
        })
        .collect();
    let turned = folder(root.path(), "turned", &tensors, &[]);
    let message = refusal(&[original, turned], &root.path().join("out"), &settings());
    for tensor in tensors
        .iter()
        .filter(|tensor| tensor.shape.first() != tensor.shape.last())
    {
        assert!(
            message.contains(&format!("`{}` has shape {:?}", tensor.name, tensor.shape)),
            "{message}"
        );
    }
}

#[test]
fn samples_of_every_type_read() {
    let Some(shared) = shared() else { return };
    let mut count = 0;
    for entry in std::fs::read_dir(shared.join("hf-dtype-samples")).unwrap() {
        let path = entry.unwrap().path();
        let inventory = inspect_with(
            &SnapshotPath::local(&path).unwrap(),
            InspectSettings {
                read_data: true,
                threads: Some(1),
                ..InspectSettings::default()
            },
        )
        .unwrap();
        assert_eq!(
            inventory.tensors.len(),
            read_all(&path).len(),
            "{}",
            path.display()
        );
        count += 1;
    }
    assert_eq!(count, 10);
}

#[test]
fn a_sharded_model_merged_with_itself_is_itself() {
    let Some(shared) = shared() else { return };
    let model = shared.join("minilm-layer0-sharded");
    let root = tempdir().unwrap();
    let out = root.path().join("out");
    let report = run(
        &[model.clone(), model.clone()],
        &out,
        &MergeSettings {
            allow_same: true,
            ..settings()
        },
    )
    .unwrap();
    assert_eq!(report.inputs[0].digest, Some(report.outputs[0].digest));
    for entry in std::fs::read_dir(&model).unwrap() {
        let name = entry.unwrap().file_name();
        if name.to_str().unwrap().ends_with(".safetensors") {
            assert!(
                std::fs::read(out.join(&name)).unwrap()
                    == std::fs::read(model.join(&name)).unwrap(),
                "{name:?}"
            );
        }
    }
}
