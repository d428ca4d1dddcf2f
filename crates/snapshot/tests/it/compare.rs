//! Distances against the plain definition, and what the report says.

use crate::support::*;
use pmill_snapshot::{DistanceSettings, Verdict, distance};
use tempfile::tempdir;

#[test]
fn distances_are_those_of_the_definition() {
    let root = tempdir().unwrap();
    let mut random = Random(11);
    let count = 5001;
    let base = random.weights(count);
    let values: Vec<Vec<f32>> = (0..6)
        .map(|_| {
            base.iter()
                .zip(random.weights(count))
                .map(|(base, step)| base + 0.1 * step)
                .collect()
        })
        .collect();
    let inputs: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(agent, values)| {
            let tensors = [
                f32s("m", &[3, 1000], &values[..3000]),
                f32s("v", &[2001], &values[3000..]),
                i64s("ids", &[1]),
            ];
            folder(root.path(), &format!("agent{agent}"), &tensors, &[])
        })
        .collect();
    let report = distance(&paths(&inputs), &DistanceSettings::default(), &|_| true).unwrap();
    assert_eq!(
        (report.elements, report.skipped.as_slice()),
        (5001, &["ids".to_owned()][..])
    );
    let wide: Vec<Vec<f64>> = values
        .iter()
        .map(|values| values.iter().map(|value| f64::from(*value)).collect())
        .collect();
    let mean: Vec<f64> = (0..count)
        .map(|i| wide.iter().map(|values| values[i]).sum::<f64>() / 6.0)
        .collect();
    let square =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let close = |found: f64, expected: f64| {
        assert!(
            (found - expected).abs() <= 1e-12 * expected.abs(),
            "{found} {expected}"
        )
    };
    close(
        report.consensus,
        wide.iter().map(|values| square(values, &mean)).sum::<f64>() / 6.0,
    );
    close(
        report.tensors.iter().map(|tensor| tensor.consensus).sum(),
        report.consensus,
    );
    for i in 0..6 {
        close(report.norms[i], dot(&wide[i], &wide[i]).sqrt());
        close(report.to_mean[i], square(&wide[i], &mean).sqrt());
        for j in 0..6 {
            close(report.l2[i][j], square(&wide[i], &wide[j]).sqrt());
            close(
                report.cosine[i][j].unwrap(),
                dot(&wide[i], &wide[j])
                    / (dot(&wide[i], &wide[i]) * dot(&wide[j], &wide[j])).sqrt(),
            );
            let same = wide[i]
                .iter()
                .zip(&wide[j])
                .filter(|(a, b)| a.partial_cmp(&&0.0) == b.partial_cmp(&&0.0))
                .count();
            close(report.sign_agreement[i][j], same as f64 / count as f64);
        }
    }
    assert_eq!(report.verdict, Verdict::Likely);
    for threads in [1, 3] {
        let again = distance(
            &paths(&inputs),
            &DistanceSettings {
                threads: Some(threads),
                ..Default::default()
            },
            &|_| true,
        )
        .unwrap();
        assert_eq!(again, report);
    }
}

#[test]
fn snapshots_that_nearly_agree_keep_their_digits() {
    let root = tempdir().unwrap();
    let base = Random(3).weights(4096);
    let mut moved = base.clone();
    moved[17] = f32::from_bits(moved[17].to_bits() + 1);
    let step = f64::from(moved[17]) - f64::from(base[17]);
    let inputs = [
        folder(root.path(), "a", &[f32s("w", &[4096], &base)], &[]),
        folder(root.path(), "b", &[f32s("w", &[4096], &moved)], &[]),
    ];
    let report = distance(&paths(&inputs), &DistanceSettings::default(), &|_| true).unwrap();
    assert!((report.l2[0][1] - step.abs()).abs() <= 1e-12 * step.abs());
}

#[test]
fn the_page_is_whole_and_escapes_names() {
    let root = tempdir().unwrap();
    let inputs = [
        folder(root.path(), "a", &[f32s("<b>&", &[2, 1], &[1.0, 0.0])], &[]),
        folder(root.path(), "b", &[f32s("<b>&", &[2, 1], &[0.0, 1.0])], &[]),
    ];
    let report = distance(&paths(&inputs), &DistanceSettings::default(), &|_| true).unwrap();
    assert_eq!(report.verdict, Verdict::Unlikely);
    let page = report.html();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    assert!(page.contains("&lt;b&gt;&amp;") && !page.contains("<b>&<"));
    assert!(!page.contains("http") && !page.contains("<script"));
    assert_eq!(page.matches("class=\"map\"").count(), 3);
    let text = report.text();
    assert!(
        text.contains("unlikely to work") && text.contains("1.4142"),
        "{text}"
    );
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(
        serde_json::from_str::<pmill_snapshot::DistanceReport>(&json).unwrap(),
        report
    );
}

#[test]
fn what_cannot_be_compared_is_named() {
    let root = tempdir().unwrap();
    let a = folder(root.path(), "a", &[f16s("w", &[2], &[1.0, 2.0])], &[]);
    let b = folder(root.path(), "b", &[f16s("w", &[2], &[1.0, f32::NAN])], &[]);
    let c = folder(root.path(), "c", &[f16s("w", &[3], &[1.0; 3])], &[]);
    let run = |inputs: &[_]| {
        distance(&paths(inputs), &DistanceSettings::default(), &|_| true)
            .unwrap_err()
            .to_string()
    };
    let message = run(&[a.clone(), b]);
    assert!(
        message.contains("`w`") && message.contains("NaN at index 1"),
        "{message}"
    );
    let message = run(&[a.clone(), c]);
    assert!(
        message.contains("shape [3]") && message.contains("/c"),
        "{message}"
    );
    assert!(run(&[a]).contains("two snapshots"));
}
