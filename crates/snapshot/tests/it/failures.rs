//! What other merge scripts get wrong, each with the behaviour that is right.

use crate::support::*;
use pmill_snapshot::{Action, DType, MergeSettings, TensorRule};
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
