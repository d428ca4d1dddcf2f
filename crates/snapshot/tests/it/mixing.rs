//! Gossip rounds and interpolation against the plain definition.

use crate::support::*;
use pmill_snapshot::{
    InspectSettings, MergeSettings, MixingMatrix, Points, SnapshotPath, Topology, inspect_with,
    interpolate, mix,
};
use std::path::PathBuf;
use tempfile::tempdir;

fn agents(root: &std::path::Path, values: &[f32]) -> Vec<PathBuf> {
    values
        .iter()
        .enumerate()
        .map(|(agent, value)| {
            let own = format!("{{\"agent\": {agent}}}");
            folder(
                root,
                &format!("agent{agent}"),
                &[f32s("w", &[2], &[*value, 1.0]), i64s("ids", &[3])],
                &[("config.json", &own)],
            )
        })
        .collect()
}

#[test]
fn a_ring_round_gives_each_agent_its_own_mean() {
    let root = tempdir().unwrap();
    let inputs = agents(root.path(), &[3.0, 6.0, 12.0, 30.0]);
    let out = root.path().join("round");
    let matrix = Topology::Ring.matrix(4, 0).unwrap();
    let report = mix(&paths(&inputs), &matrix, &out, &settings(), &|_| true).unwrap();
    assert_eq!(report.outputs.len(), 4);
    assert_eq!(report.outputs[1].weights, ["1/3", "1/3", "1/3", "0/3"]);
    for (agent, expected) in [13.0, 7.0, 16.0, 15.0].into_iter().enumerate() {
        let folder = out.join(format!("agent-{agent:03}"));
        assert_eq!(read_f32(&folder, "w"), [expected, 1.0]);
        assert_eq!(
            std::fs::read_to_string(folder.join("config.json")).unwrap(),
            format!("{{\"agent\": {agent}}}")
        );
    }
}

#[test]
fn an_agent_that_mixes_with_nobody_keeps_its_bytes() {
    let root = tempdir().unwrap();
    let inputs = agents(root.path(), &[3.0, 6.0, 12.0]);
    let out = root.path().join("round");
    let matrix = MixingMatrix::parse("1 0 0\n0 1/2 1/2\n0 1/2 1/2").unwrap();
    mix(&paths(&inputs), &matrix, &out, &settings(), &|_| true).unwrap();
    let file = "model.safetensors";
    assert_eq!(
        std::fs::read(out.join("agent-000").join(file)).unwrap(),
        std::fs::read(inputs[0].join(file)).unwrap()
    );
    assert_eq!(read_f32(&out.join("agent-001"), "w"), [9.0, 1.0]);
    let error = mix(
        &paths(&inputs[..2]),
        &matrix,
        &root.path().join("x"),
        &settings(),
        &|_| true,
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("3 rows, but there are 2"),
        "{error}"
    );
}

#[test]
fn many_agents_mix_within_their_memory_as_one_by_one() {
    let root = tempdir().unwrap();
    let mut random = Random(2);
    let count = 40_000;
    let inputs: Vec<_> = (0..9)
        .map(|agent| {
            folder(
                root.path(),
                &format!("a{agent}"),
                &[f32s("w", &[count], &random.weights(count))],
                &[],
            )
        })
        .collect();
    let matrix = Topology::Random {
        peers: 2.5,
        seed: 9,
    }
    .matrix(9, 3)
    .unwrap();
    let out = root.path().join("round");
    mix(
        &paths(&inputs),
        &matrix,
        &out,
        &MergeSettings {
            memory_limit_bytes: 1 << 18,
            ..settings()
        },
        &|_| true,
    )
    .unwrap();
    let values: Vec<Vec<f32>> = inputs.iter().map(|input| read_f32(input, "w")).collect();
    for agent in 0..9 {
        let found = read_f32(&out.join(format!("agent-{agent:03}")), "w");
        let row = matrix.row(agent);
        for element in (0..count).step_by(17) {
            // Few inputs of like size: sums of doubles are exact, and the quotient is rounded once.
            let sum: f64 = (0..9)
                .map(|peer| row.numbers()[peer] as f64 * f64::from(values[peer][element]))
                .sum();
            assert_eq!(found[element], (sum / row.total() as f64) as f32);
        }
    }
}

#[test]
fn points_of_a_segment_and_of_a_simplex() {
    let root = tempdir().unwrap();
    let inputs = agents(root.path(), &[0.0, 4.0, 8.0]);
    let out = root.path().join("segment");
    let report = interpolate(
        &paths(&inputs[..2]),
        &Points::Grid { steps: 4 },
        &out,
        &settings(),
        &|_| true,
    )
    .unwrap();
    assert_eq!(report.outputs.len(), 5);
    for point in 0..5_u8 {
        assert_eq!(
            read_f32(&out.join(format!("point-{point:03}")), "w"),
            [f32::from(point), 1.0]
        );
    }
    assert_eq!(report.outputs[1].weights, ["3/4", "1/4"]);
    let simplex = root.path().join("simplex");
    let report = interpolate(
        &paths(&inputs),
        &Points::Grid { steps: 2 },
        &simplex,
        &settings(),
        &|_| true,
    )
    .unwrap();
    assert_eq!(report.outputs.len(), 6);
    assert!(
        interpolate(
            &paths(&inputs),
            &Points::Grid { steps: 0 },
            &simplex,
            &settings(),
            &|_| true
        )
        .is_err()
    );
}

#[test]
fn digests_of_manifest_and_inspection_agree_whatever_the_files() {
    let root = tempdir().unwrap();
    let mut random = Random(4);
    let tensors = |random: &mut Random| {
        vec![
            f32s("a", &[1_300_000], &random.weights(1_300_000)),
            bf16s("b", &[5], &random.weights(5)),
            i64s("ids", &[1, 2]),
        ]
    };
    let (first, second) = (tensors(&mut random), tensors(&mut random));
    let a = folder(root.path(), "a", &first, &[]);
    let b = sharded(
        root.path(),
        "b",
        &[second[..1].to_vec(), second[1..].to_vec()],
        0,
    );
    let b_single = folder(root.path(), "b-single", &second, &[]);
    let out = root.path().join("out");
    let report = run(&[a.clone(), b.clone()], &out, &settings()).unwrap();
    let inspected = |path: &PathBuf| {
        inspect_with(
            &SnapshotPath::local(path).unwrap(),
            InspectSettings {
                read_data: true,
                ..InspectSettings::default()
            },
        )
        .unwrap()
    };
    assert_eq!(report.inputs[0].digest, inspected(&a).digest);
    assert_eq!(report.inputs[1].digest, inspected(&b).digest);
    assert_eq!(inspected(&b_single).digest, inspected(&b).digest);
    assert_eq!(inspected(&out).digest, Some(report.outputs[0].digest));
    assert_ne!(inspected(&a).digest, inspected(&b).digest);
    let inventory = inspected(&b);
    assert_eq!(
        (
            inventory.tensors.len(),
            inventory.elements,
            inventory.files.len()
        ),
        (3, 1_300_007, 2)
    );
}
