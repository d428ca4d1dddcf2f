//! What other merge scripts get wrong, each with the behaviour that is right.

use crate::support::*;
use pmill_snapshot::{Action, DType, LowRank, MergeSettings, TensorRule, Weights};
use safetensors::tensor::Dtype;
use tempfile::tempdir;

fn rule(pattern: &str, action: Action) -> TensorRule {
    TensorRule {
        pattern: pattern.into(),
        action,
    }
}

#[test]
fn the_output_keeps_the_inputs_type() {
    let root = tempdir().unwrap();
    let a = folder(
        root.path(),
        "a",
        &[bf16s("w", &[2], &[1.0, 2.0]), f16s("h", &[1], &[1.0])],
        &[],
    );
    let b = folder(
        root.path(),
        "b",
        &[bf16s("w", &[2], &[2.0, 4.0]), f16s("h", &[1], &[2.0])],
        &[],
    );
    let out = root.path().join("out");
    run(&[a, b], &out, &settings()).unwrap();
    let tensors = read_all(&out);
    assert_eq!(
        tensors["w"],
        (Dtype::BF16, vec![2], bf16s("w", &[2], &[1.5, 3.0]).bytes)
    );
    assert_eq!(
        tensors["h"],
        (Dtype::F16, vec![1], f16s("h", &[1], &[1.5]).bytes)
    );
}

#[test]
fn another_output_type_is_written_and_said_in_the_config() {
    let root = tempdir().unwrap();
    let config = r#"{"torch_dtype": "float32", "model_type": "toy"}"#;
    let a = folder(
        root.path(),
        "a",
        &[f32s("w", &[1], &[1.0])],
        &[("config.json", config)],
    );
    let b = folder(
        root.path(),
        "b",
        &[f32s("w", &[1], &[1.01])],
        &[("config.json", config)],
    );
    let out = root.path().join("out");
    run(
        &[a, b],
        &out,
        &MergeSettings {
            output_dtype: Some(DType::BF16),
            ..settings()
        },
    )
    .unwrap();
    assert_eq!(read_all(&out)["w"].0, Dtype::BF16);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "bfloat16");
    assert_eq!(config["model_type"], "toy");
}

#[test]
fn mixed_half_types_are_refused_unless_the_output_type_is_named() {
    let root = tempdir().unwrap();
    let a = folder(root.path(), "a", &[f16s("w", &[1], &[1.0])], &[]);
    let b = folder(root.path(), "b", &[bf16s("w", &[1], &[2.0])], &[]);
    let out = root.path().join("out");
    let inputs = [a, b];
    let message = refusal(&inputs, &out, &settings());
    assert!(
        message.contains("`w` is BF16 in") && message.contains("but F16"),
        "{message}"
    );
    run(
        &inputs,
        &out,
        &MergeSettings {
            output_dtype: Some(DType::F32),
            ..settings()
        },
    )
    .unwrap();
    assert_eq!(read_f32(&out, "w"), [1.5]);
}

#[test]
fn an_extra_or_missing_tensor_is_refused_by_name() {
    let root = tempdir().unwrap();
    let a = folder(root.path(), "a", &[f32s("w", &[1], &[1.0])], &[]);
    let b = folder(
        root.path(),
        "b",
        &[f32s("w", &[1], &[2.0]), f32s("extra", &[1], &[2.0])],
        &[],
    );
    let out = root.path().join("out");
    for inputs in [[a.clone(), b.clone()], [b.clone(), a.clone()]] {
        let message = refusal(&inputs, &out, &settings());
        assert!(
            message.contains("`extra` is missing in") && message.contains("/a"),
            "{message}"
        );
    }
    let skip = MergeSettings {
        rules: vec![rule("extra", Action::Skip)],
        ..settings()
    };
    let report = run(&[a.clone(), b.clone()], &out, &skip).unwrap();
    assert_eq!(report.skipped, ["extra"]);
    assert_eq!(read_all(&out).len(), 1);
    let copy = MergeSettings {
        rules: vec![rule("ex*", Action::Copy(1))],
        overwrite: true,
        ..settings()
    };
    run(&[a, b], &out, &copy).unwrap();
    assert_eq!(read_f32(&out, "extra"), [2.0]);
    assert_eq!(read_f32(&out, "w"), [1.5]);
}

#[test]
fn integers_are_copied_and_must_agree() {
    let root = tempdir().unwrap();
    let a = folder(
        root.path(),
        "a",
        &[f32s("w", &[1], &[1.0]), i64s("ids", &[1, 2, 3])],
        &[],
    );
    let b = folder(
        root.path(),
        "b",
        &[f32s("w", &[1], &[2.0]), i64s("ids", &[1, 2, 3])],
        &[],
    );
    let c = folder(
        root.path(),
        "c",
        &[f32s("w", &[1], &[3.0]), i64s("ids", &[1, 9, 3])],
        &[],
    );
    let out = root.path().join("out");
    run(&[a.clone(), b.clone()], &out, &settings()).unwrap();
    assert_eq!(
        read_all(&out)["ids"],
        (Dtype::I64, vec![3], i64s("ids", &[1, 2, 3]).bytes)
    );
    let other = root.path().join("other");
    let message = refusal(&[a.clone(), b.clone(), c.clone()], &other, &settings());
    assert!(
        message.contains("`ids` (I64)") && message.contains("/c") && message.contains("byte 8"),
        "{message}"
    );
    run(
        &[a, b, c],
        &other,
        &MergeSettings {
            rules: vec![rule("ids", Action::Copy(2))],
            ..settings()
        },
    )
    .unwrap();
    assert_eq!(read_all(&other)["ids"].2, i64s("ids", &[1, 9, 3]).bytes);
}

#[test]
fn not_a_number_is_refused_with_tensor_and_index() {
    let root = tempdir().unwrap();
    let mut values = vec![0.5; 3000];
    let a = folder(root.path(), "a", &[f32s("w", &[3000], &values)], &[]);
    values[2100] = f32::NAN;
    values[2200] = f32::INFINITY;
    let b = folder(root.path(), "b", &[f32s("w", &[3000], &values)], &[]);
    let out = root.path().join("out");
    let inputs = [a, b];
    let message = refusal(&inputs, &out, &settings());
    assert!(
        message.contains("`w`") && message.contains("/b") && message.contains("NaN at index 2100"),
        "{message}"
    );
    let leftovers: Vec<_> = std::fs::read_dir(root.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(leftovers.len(), 2, "{leftovers:?}");
    let report = run(
        &inputs,
        &out,
        &MergeSettings {
            allow_nonfinite: true,
            ..settings()
        },
    )
    .unwrap();
    assert_eq!(report.nonfinite_values, 2);
    let merged = read_f32(&out, "w");
    assert!(merged[2100].is_nan() && merged[2200] == f32::INFINITY && merged[2101] == 0.5);
}

#[test]
fn a_mean_too_large_for_the_output_is_refused() {
    let root = tempdir().unwrap();
    let a = folder(root.path(), "a", &[f32s("w", &[2], &[1.0, 70000.0])], &[]);
    let b = folder(root.path(), "b", &[f32s("w", &[2], &[1.5, 70000.0])], &[]);
    let out = root.path().join("out");
    let message = refusal(
        &[a, b],
        &out,
        &MergeSettings {
            output_dtype: Some(DType::F16),
            ..settings()
        },
    );
    assert!(
        message.contains("`w` at index 1") && message.contains("F16"),
        "{message}"
    );
}

const TIED: &str = r#"{"model_type": "toy", "tie_word_embeddings": true}"#;

#[test]
fn a_spurious_tied_head_is_left_out_and_an_untied_one_refused() {
    let root = tempdir().unwrap();
    let embedding = |value: f32| f32s("model.embed_tokens.weight", &[2], &[value, 1.0]);
    let head = |value: f32| f32s("lm_head.weight", &[2], &[value, 1.0]);
    let a = folder(
        root.path(),
        "a",
        &[embedding(1.0)],
        &[("config.json", TIED)],
    );
    let b = folder(
        root.path(),
        "b",
        &[embedding(3.0), head(3.0)],
        &[("config.json", TIED)],
    );
    let c = folder(
        root.path(),
        "c",
        &[embedding(3.0), head(4.0)],
        &[("config.json", TIED)],
    );
    let out = root.path().join("out");
    let report = run(&[a.clone(), b.clone()], &out, &settings()).unwrap();
    assert_eq!(report.skipped, ["lm_head.weight"]);
    assert_eq!(
        read_all(&out).keys().collect::<Vec<_>>(),
        ["model.embed_tokens.weight"]
    );
    let message = refusal(&[b.clone(), c], &root.path().join("other"), &settings());
    assert!(
        message.contains("ties `lm_head.weight`") && message.contains("/c"),
        "{message}"
    );
    // Stored twice by all: both stay, and stay equal.
    let d = folder(
        root.path(),
        "d",
        &[embedding(6.0), head(6.0)],
        &[("config.json", TIED)],
    );
    let both = root.path().join("both");
    run(&[b, d], &both, &settings()).unwrap();
    assert_eq!(read_f32(&both, "lm_head.weight"), [4.5, 1.0]);
    assert_eq!(
        read_f32(&both, "lm_head.weight"),
        read_f32(&both, "model.embed_tokens.weight")
    );
}

#[test]
fn tokenizer_config_and_generation_files_come_along() {
    let root = tempdir().unwrap();
    let files = [
        ("config.json", "{}"),
        ("generation_config.json", "{\"a\": 1}"),
        ("tokenizer.json", "{\"t\": 1}"),
        ("tokenizer_config.json", "{}"),
        ("special_tokens_map.json", "{}"),
        ("merges.txt", "a b"),
        ("chat_template.jinja", "x"),
        ("optimizer.pt", "state"),
    ];
    let a = folder(root.path(), "a", &[f32s("w", &[1], &[1.0])], &files);
    let b = folder(root.path(), "b", &[f32s("w", &[1], &[2.0])], &files);
    let out = root.path().join("out");
    let report = run(&[a.clone(), b], &out, &settings()).unwrap();
    for (name, text) in &files[..7] {
        assert_eq!(
            std::fs::read_to_string(out.join(name)).unwrap(),
            *text,
            "{name}"
        );
    }
    assert!(!out.join("optimizer.pt").exists());
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.contains("left behind") && warning.contains("optimizer.pt"))
    );
    let c = folder(
        root.path(),
        "c",
        &[f32s("w", &[1], &[3.0])],
        &[("tokenizer.json", "{\"t\": 2}"), ("config.json", "{}")],
    );
    let other = root.path().join("other");
    let inputs = [a, c];
    let message = refusal(&inputs, &other, &settings());
    assert!(message.contains("`tokenizer.json` differs"), "{message}");
    run(
        &inputs,
        &other,
        &MergeSettings {
            side_files_from: Some(1),
            ..settings()
        },
    )
    .unwrap();
    assert_eq!(
        std::fs::read_to_string(other.join("tokenizer.json")).unwrap(),
        "{\"t\": 2}"
    );
}

#[test]
fn the_index_decides_and_its_total_is_put_right() {
    let root = tempdir().unwrap();
    let group = |value: f32| {
        vec![
            vec![f32s("a", &[2], &[value, 1.0])],
            vec![f32s("b", &[1], &[value])],
        ]
    };
    let a = sharded(root.path(), "a", &group(1.0), 999);
    let b = sharded(root.path(), "b", &group(2.0), 12);
    write_file(
        &a.join("model.safetensors"),
        &[
            f32s("a", &[2], &[100.0, 100.0]),
            f32s("stray", &[1], &[1.0]),
        ],
    );
    let out = root.path().join("out");
    let report = run(&[a, b], &out, &settings()).unwrap();
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.contains("999") && warning.contains("12")),
        "{:?}",
        report.warnings
    );
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.contains("model.safetensors") && warning.contains("not read"))
    );
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("model.safetensors.index.json")).unwrap())
            .unwrap();
    assert_eq!(index["metadata"]["total_size"], 12);
    assert_eq!(index["weight_map"]["b"], "model-00002-of-00002.safetensors");
    assert!(!out.join("model.safetensors").exists());
    assert_eq!(read_f32(&out, "a"), [1.5, 1.0]);
    assert_eq!(read_all(&out).len(), 2);
}

#[test]
fn a_sharded_and_a_single_snapshot_merge_and_may_be_cut_anew() {
    let root = tempdir().unwrap();
    let a = folder(
        root.path(),
        "a",
        &[f32s("a", &[2], &[1.0, 1.0]), f32s("b", &[1], &[1.0])],
        &[],
    );
    let b = sharded(
        root.path(),
        "b",
        &[
            vec![f32s("b", &[1], &[3.0])],
            vec![f32s("a", &[2], &[2.0, 2.0])],
        ],
        12,
    );
    let (one, cut) = (root.path().join("one"), root.path().join("cut"));
    let inputs = [a, b];
    run(&inputs, &one, &settings()).unwrap();
    assert!(
        one.join("model.safetensors").exists()
            && !one.join("model.safetensors.index.json").exists()
    );
    run(
        &inputs,
        &cut,
        &MergeSettings {
            max_shard_bytes: Some(8),
            ..settings()
        },
    )
    .unwrap();
    assert!(
        cut.join("model-00002-of-00002.safetensors").exists()
            && cut.join("model.safetensors.index.json").exists()
    );
    assert_eq!(read_all(&one), read_all(&cut));
    assert_eq!(read_f32(&one, "b"), [2.0]);
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
