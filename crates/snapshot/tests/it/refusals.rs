//! More of what other merge scripts get wrong: adapters, weights, order, copies, architectures, damage.

use crate::support::*;
use pmill_snapshot::{Action, LowRank, MergeSettings, TensorRule, Weights};
use tempfile::tempdir;

fn rule(pattern: &str, action: Action) -> TensorRule {
    TensorRule {
        pattern: pattern.into(),
        action,
    }
}

#[test]
fn low_rank_factors_are_refused_or_merged_by_their_products() {
    let root = tempdir().unwrap();
    let config = r#"{"r": 2, "lora_alpha": 4, "peft_type": "LORA"}"#;
    let adapter = |name: &str, a: &[f32], b: &[f32]| {
        let folder = root.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let tensors = [
            f32s("m.q.lora_A.weight", &[2, 3], a),
            f32s("m.q.lora_B.weight", &[4, 2], b),
        ];
        write_file(&folder.join("adapter_model.safetensors"), &tensors);
        std::fs::write(folder.join("adapter_config.json"), config).unwrap();
        folder
    };
    let mut random = Random(5);
    let (a1, b1, a2, b2) = (
        random.weights(6),
        random.weights(8),
        random.weights(6),
        random.weights(8),
    );
    let inputs = [adapter("one", &a1, &b1), adapter("two", &a2, &b2)];
    let out = root.path().join("out");
    let message = refusal(&inputs, &out, &settings());
    assert!(
        message.contains("`m.q.lora_A.weight`") && message.contains("low-rank"),
        "{message}"
    );
    run(
        &inputs,
        &out,
        &MergeSettings {
            low_rank: LowRank::Products,
            ..settings()
        },
    )
    .unwrap();
    let (a, b) = (
        read_f32(&out, "m.q.lora_A.weight"),
        read_f32(&out, "m.q.lora_B.weight"),
    );
    assert_eq!(read_all(&out)["m.q.lora_A.weight"].1, [4, 3]);
    assert_eq!(read_all(&out)["m.q.lora_B.weight"].1, [4, 4]);
    let product = |b: &[f32], a: &[f32], rank: usize, row: usize, column: usize| -> f64 {
        (0..rank)
            .map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * 3 + column]))
            .sum()
    };
    for (row, column) in (0..4).flat_map(|row| (0..3).map(move |column| (row, column))) {
        let mean = (product(&b1, &a1, 2, row, column) + product(&b2, &a2, 2, row, column)) / 2.0;
        // Halving is exact, so only the order of four additions of doubles differs.
        assert!((product(&b, &a, 4, row, column) - mean).abs() <= 1e-16);
    }
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(
        (config["r"].as_i64(), config["lora_alpha"].as_i64()),
        (Some(4), Some(8))
    );
    let factors = root.path().join("factors");
    run(
        &inputs,
        &factors,
        &MergeSettings {
            low_rank: LowRank::Factors,
            ..settings()
        },
    )
    .unwrap();
    assert_eq!(read_all(&factors)["m.q.lora_A.weight"].1, [2, 3]);
}

#[test]
fn one_agent_at_weight_one_comes_out_byte_for_byte() {
    let root = tempdir().unwrap();
    let mut odd = f32s("w", &[5], &[1.0, -0.0, 1e-45, f32::INFINITY, 0.0]);
    odd.bytes[16..].copy_from_slice(&0x7fa1_2345_u32.to_le_bytes()); // a signalling NaN with a payload
    let tensors = [odd, bf16s("v", &[3], &[1.0, 2.0, 3.0]), i64s("ids", &[4])];
    let a = folder(root.path(), "a", &tensors, &[]);
    let b = folder(
        root.path(),
        "b",
        &[
            f32s("w", &[5], &[9.0; 5]),
            bf16s("v", &[3], &[9.0; 3]),
            i64s("ids", &[4]),
        ],
        &[],
    );
    let out = root.path().join("out");
    let weights = Weights::Fractions(vec!["1.0".parse().unwrap(), "0".parse().unwrap()]);
    run(
        &[a.clone(), b],
        &out,
        &MergeSettings {
            weights,
            allow_nonfinite: true,
            ..settings()
        },
    )
    .unwrap();
    let file = "model.safetensors";
    assert_eq!(
        std::fs::read(out.join(file)).unwrap(),
        std::fs::read(a.join(file)).unwrap()
    );
}

#[test]
fn tensors_are_matched_by_name_and_not_by_position() {
    let root = tempdir().unwrap();
    // The file's order is by type first, so a wider "a" comes before or after "b".
    let a = sharded(
        root.path(),
        "a",
        &[
            vec![f32s("a", &[1], &[1.0])],
            vec![f32s("b", &[1], &[10.0])],
        ],
        8,
    );
    let b = sharded(
        root.path(),
        "b",
        &[
            vec![f32s("b", &[1], &[30.0])],
            vec![f32s("a", &[1], &[3.0])],
        ],
        8,
    );
    let out = root.path().join("out");
    run(&[a.clone(), b], &out, &settings()).unwrap();
    assert_eq!(
        (read_f32(&out, "a"), read_f32(&out, "b")),
        (vec![2.0], vec![20.0])
    );
    let short = folder(root.path(), "short", &[f32s("b", &[1], &[30.0])], &[]);
    let message = refusal(&[a, short], &root.path().join("other"), &settings());
    assert!(
        message.contains("`a` is missing in") && message.contains("/short"),
        "{message}"
    );
}

#[test]
fn the_same_snapshot_twice_is_refused() {
    let root = tempdir().unwrap();
    let a = folder(root.path(), "a", &[f32s("w", &[2], &[1.0, 2.0])], &[]);
    let b = sharded(root.path(), "b", &[vec![f32s("w", &[2], &[1.0, 2.0])]], 8);
    let c = folder(root.path(), "c", &[f32s("w", &[2], &[1.0, 3.0])], &[]);
    let out = root.path().join("out");
    for inputs in [[a.clone(), c.clone(), a.clone()], [a.clone(), c, b]] {
        let message = refusal(&inputs, &out, &settings());
        assert!(
            message.contains("1 problem ") && message.contains("is the same snapshot as"),
            "{message}"
        );
    }
    run(
        &[a.clone(), a],
        &out,
        &MergeSettings {
            allow_same: true,
            ..settings()
        },
    )
    .unwrap();
}

#[test]
fn different_architectures_and_shapes_are_refused_by_name() {
    let root = tempdir().unwrap();
    let a = folder(
        root.path(),
        "a",
        &[f32s("w", &[2], &[1.0, 2.0])],
        &[("config.json", r#"{"model_type": "llama", "x": 1}"#)],
    );
    let b = folder(
        root.path(),
        "b",
        &[f32s("w", &[3], &[1.0, 2.0, 3.0])],
        &[("config.json", r#"{"model_type": "qwen2", "x": 2}"#)],
    );
    let c = folder(
        root.path(),
        "c",
        &[f32s("w", &[2], &[3.0, 2.0])],
        &[("config.json", r#"{"model_type": "llama", "x": 2}"#)],
    );
    let out = root.path().join("out");
    let message = refusal(&[a.clone(), b], &out, &settings());
    assert!(message.starts_with("2 problems"), "{message}");
    assert!(
        message.contains(r#"`model_type` in config.json is "qwen2""#),
        "{message}"
    );
    assert!(
        message.contains("shape [3]") && message.contains("[2]"),
        "{message}"
    );
    // Another value that says nothing of the architecture is only a warning.
    let report = run(&[a, c], &out, &settings()).unwrap();
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.contains("differs from the first in x")),
        "{:?}",
        report.warnings
    );
}

#[test]
fn running_statistics_are_never_averaged_silently() {
    let root = tempdir().unwrap();
    let snapshot = |name: &str, value: f32, steps: i64| {
        let tensors = [
            f32s("bn.weight", &[1], &[value]),
            f32s("bn.running_var", &[1], &[value]),
            i64s("bn.num_batches_tracked", &[steps]),
        ];
        folder(root.path(), name, &tensors, &[])
    };
    let inputs = [snapshot("a", 1.0, 10), snapshot("b", 2.0, 20)];
    let out = root.path().join("out");
    let message = refusal(&inputs, &out, &settings());
    assert!(
        message.contains("`bn.running_var`") && message.contains("`bn.num_batches_tracked`"),
        "{message}"
    );
    let rules = vec![
        rule("*.running_*", Action::Recalibrate),
        rule("*.num_batches_tracked", Action::Recalibrate),
    ];
    let report = run(
        &inputs,
        &out,
        &MergeSettings {
            rules,
            ..settings()
        },
    )
    .unwrap();
    assert_eq!(report.recalibrate.len(), 2);
    assert_eq!(read_f32(&out, "bn.running_var"), [1.0]);
    assert_eq!(read_f32(&out, "bn.weight"), [1.5]);
    let mean = MergeSettings {
        rules: vec![
            rule("*.running_var", Action::Mean),
            rule("*tracked", Action::Skip),
        ],
        overwrite: true,
        ..settings()
    };
    run(&inputs, &out, &mean).unwrap();
    assert_eq!(read_f32(&out, "bn.running_var"), [1.5]);
}

#[test]
fn weights_count_exactly_and_wrong_ones_are_refused() {
    let root = tempdir().unwrap();
    let inputs = [1.0_f32, 2.0, 4.0].map(|value| {
        folder(
            root.path(),
            &format!("{value}"),
            &[f32s("w", &[1], &[value])],
            &[],
        )
    });
    let out = root.path().join("out");
    let list = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| text.parse().unwrap())
            .collect::<Vec<_>>()
    };
    let message = refusal(
        &inputs,
        &out,
        &MergeSettings {
            weights: Weights::Fractions(list(&["0.5", "0.5", "0.5"])),
            ..settings()
        },
    );
    assert!(message.contains("sum to 1.5"), "{message}");
    let message = refusal(
        &inputs,
        &out,
        &MergeSettings {
            weights: Weights::Fractions(list(&["0.5", "0.5"])),
            ..settings()
        },
    );
    assert!(
        message.contains("2 weights were given for 3 snapshots"),
        "{message}"
    );
    run(
        &inputs,
        &out,
        &MergeSettings {
            weights: Weights::Examples(list(&["100", "100", "200"])),
            ..settings()
        },
    )
    .unwrap();
    assert_eq!(read_f32(&out, "w"), [2.75]);
    let message = refusal(
        &inputs,
        &root.path().join("o"),
        &MergeSettings {
            rules: vec![rule("nothing*", Action::Skip)],
            ..settings()
        },
    );
    assert!(
        message.contains("`nothing*` matches no tensor"),
        "{message}"
    );
}

#[test]
fn truncated_files_and_missing_shards_are_named() {
    let root = tempdir().unwrap();
    let a = folder(root.path(), "a", &[f32s("w", &[2], &[1.0, 2.0])], &[]);
    let file = a.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let out = root.path().join("out");
    let message = refusal(std::slice::from_ref(&a), &out, &settings());
    assert!(
        message.contains("model.safetensors") && message.contains("truncated"),
        "{message}"
    );
    let b = sharded(
        root.path(),
        "b",
        &[vec![f32s("a", &[1], &[1.0])], vec![f32s("b", &[1], &[1.0])]],
        8,
    );
    std::fs::remove_file(b.join("model-00002-of-00002.safetensors")).unwrap();
    let message = refusal(&[b], &out, &settings());
    assert!(
        message
            .contains("tensor `b` is in `model-00002-of-00002.safetensors`, which does not exist"),
        "{message}"
    );
}

#[test]
fn an_output_that_exists_is_left_alone() {
    let root = tempdir().unwrap();
    let a = folder(root.path(), "a", &[f32s("w", &[1], &[1.0])], &[]);
    let b = folder(root.path(), "b", &[f32s("w", &[1], &[2.0])], &[]);
    let inputs = [a, b];
    let out = root.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("precious"), "x").unwrap();
    let error = run(&inputs, &out, &settings()).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
    assert!(out.join("precious").exists());
    run(
        &inputs,
        &out,
        &MergeSettings {
            overwrite: true,
            ..settings()
        },
    )
    .unwrap();
    assert!(!out.join("precious").exists() && out.join("model.safetensors").exists());
    // The same merge again finds its own output and has nothing to do.
    let again = run(&inputs, &out, &settings()).unwrap();
    assert_eq!(again.seconds, 0.0);
    let single = root.path().join("single.safetensors");
    run(&inputs, &single, &settings()).unwrap();
    assert_eq!(read_f32(&single, "w"), [1.5]);
    assert!(
        root.path()
            .join("single.safetensors.pmill-merge.json")
            .exists()
    );
    let _ = run(&inputs[..1], &single, &settings()).unwrap_err();
}

#[test]
fn an_output_that_holds_an_input_is_not_replaced() {
    let root = tempdir().unwrap();
    let values = [1.0, 2.0, 3.0];
    let runs = root.path().join("runs");
    let inputs: Vec<_> = (0..2)
        .map(|agent| {
            let values = values.map(|value| value + agent as f32);
            folder(&runs, &format!("{agent}"), &[f32s("w", &[3], &values)], &[])
        })
        .collect();
    let overwrite = MergeSettings {
        overwrite: true,
        ..settings()
    };
    for output in [
        &runs,
        &inputs[0],
        &runs.join("../runs"),
        &inputs[1].join("model.safetensors"),
    ] {
        let message = plan(&inputs, output, &overwrite).unwrap_err().to_string();
        assert!(
            message.contains("is to be replaced, but the input"),
            "{message}"
        );
    }
    run(&inputs, &root.path().join("runs-merged"), &overwrite).unwrap();
    assert_eq!(read_f32(&inputs[0], "w"), values);
}
