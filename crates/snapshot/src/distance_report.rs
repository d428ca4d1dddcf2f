//! What a comparison of snapshots says: numbers for programs, a text for terminals, a page with heat maps.

use crate::distance::Sums;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// Whether the mean of the snapshots may be expected to be a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All pairs point the same way (cosine of 0.9 or more), as snapshots of one run or of one start do.
    Likely,
    /// Between the two; the loss of the merged model decides.
    Uncertain,
    /// Some pair is as good as unrelated (cosine below 0.5), as independent trainings are.
    Unlikely,
}

/// Cosine from which a merge is called likely to work.
pub const LIKELY_COSINE: f64 = 0.9;
/// Cosine below which a merge is called unlikely to work.
pub const UNLIKELY_COSINE: f64 = 0.5;

/// The distances of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorDistance {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Mean squared distance of the snapshots to their mean.
    pub consensus: f64,
    /// The same divided by the squared length of the mean; `None` when the mean is zero.
    pub relative_consensus: Option<f64>,
    /// Share of the whole consensus distance, 0 to 1; 0 when the whole is 0.
    pub share: f64,
    /// Mean of the squared lengths of the snapshots' tensors.
    pub mean_square_norm: f64,
    /// Smallest cosine of a pair; `None` when some snapshot's tensor is zero.
    pub min_cosine: Option<f64>,
    /// Mean cosine of the pairs; `None` as for `min_cosine`.
    pub mean_cosine: Option<f64>,
    /// Share of elements in which all snapshots have the same sign.
    pub unanimous_sign: f64,
}

/// The distances of some snapshots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DistanceReport {
    /// Where the snapshots are.
    pub snapshots: Vec<String>,
    /// Floats compared in each.
    pub elements: u64,
    /// Consensus distance: the mean over the snapshots of the squared distance to their mean.
    pub consensus: f64,
    /// The same divided by the squared length of the mean; `None` when the mean is zero.
    pub relative_consensus: Option<f64>,
    /// Length of the mean.
    pub mean_norm: f64,
    /// Length of each snapshot.
    pub norms: Vec<f64>,
    /// Distance of each snapshot to the mean.
    pub to_mean: Vec<f64>,
    /// Pairwise distances.
    pub l2: Vec<Vec<f64>>,
    /// Pairwise cosines; `None` (null) where a snapshot is zero.
    pub cosine: Vec<Vec<Option<f64>>>,
    /// Share of elements in which a pair has the same sign; zero is a sign of its own.
    pub sign_agreement: Vec<Vec<f64>>,
    /// Share of elements in which all have the same sign.
    pub unanimous_sign: f64,
    /// The tensors in the order of the first snapshot.
    pub tensors: Vec<TensorDistance>,
    /// Tensors that are of no float type, which have no distance.
    pub skipped: Vec<String>,
    /// Smallest pairwise cosine over all tensors with two dimensions or more (over all tensors when there are
    /// none): what the verdict looks at, since biases and norms look alike in any two models.
    pub min_matrix_cosine: Option<f64>,
    /// Whether a merge may be expected to work.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
}

/// Place of the pair `i <= j` in a list of pairs with the diagonal, row by row.
fn pair(inputs: usize, i: usize, j: usize) -> usize {
    i * inputs - i * (i + 1) / 2 + j
}

struct Geometry<'a> {
    inputs: usize,
    sums: &'a Sums,
}

impl Geometry<'_> {
    fn deviation(&self, i: usize, j: usize) -> f64 {
        self.sums.deviations[pair(self.inputs, i.min(j), i.max(j))]
    }

    fn product(&self, i: usize, j: usize) -> f64 {
        let sums = self.sums;
        sums.mean_square + sums.mean_deviation[i] + sums.mean_deviation[j] + self.deviation(i, j)
    }

    fn square(&self, i: usize) -> f64 {
        self.product(i, i).max(0.0)
    }

    fn l2(&self, i: usize, j: usize) -> f64 {
        (self.deviation(i, i) + self.deviation(j, j) - 2.0 * self.deviation(i, j))
            .max(0.0)
            .sqrt()
    }

    fn cosine(&self, i: usize, j: usize) -> Option<f64> {
        let length = (self.square(i) * self.square(j)).sqrt();
        if i == j && length > 0.0 {
            return Some(1.0);
        }
        (length > 0.0).then(|| (self.product(i, j) / length).clamp(-1.0, 1.0))
    }

    fn cosines(&self) -> Option<Vec<f64>> {
        (0..self.inputs)
            .flat_map(|i| (i + 1..self.inputs).map(move |j| (i, j)))
            .map(|(i, j)| self.cosine(i, j))
            .collect()
    }

    fn consensus(&self) -> f64 {
        (0..self.inputs).map(|i| self.deviation(i, i)).sum::<f64>() / self.inputs as f64
    }

    fn relative(&self) -> Option<f64> {
        (self.sums.mean_square > 0.0).then(|| self.consensus() / self.sums.mean_square)
    }

    fn same_sign(&self, i: usize, j: usize) -> f64 {
        if i == j {
            return 1.0;
        }
        let (i, j) = (i.min(j), i.max(j));
        let place = pair(self.inputs, i, j) - i - 1;
        ratio(self.sums.same_sign[place], self.sums.elements)
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        1.0
    } else {
        part as f64 / whole as f64
    }
}

fn smallest(values: &[f64]) -> Option<f64> {
    values.iter().copied().reduce(f64::min)
}

pub(crate) fn build(
    snapshots: Vec<String>,
    tensors: Vec<((String, Vec<u64>), Sums)>,
    skipped: Vec<String>,
) -> DistanceReport {
    let inputs = snapshots.len();
    let (mut all, mut matrices) = (Sums::new(inputs), Sums::new(inputs));
    for ((_, shape), sums) in &tensors {
        all.add(sums);
        if shape.len() > 1 {
            matrices.add(sums);
        }
    }
    let whole = Geometry { inputs, sums: &all };
    let consensus = whole.consensus();
    let entries = tensors
        .iter()
        .map(|((name, shape), sums)| {
            let tensor = Geometry { inputs, sums };
            let cosines = tensor.cosines();
            TensorDistance {
                name: name.clone(),
                shape: shape.clone(),
                consensus: tensor.consensus(),
                relative_consensus: tensor.relative(),
                share: if consensus > 0.0 {
                    tensor.consensus() / consensus
                } else {
                    0.0
                },
                mean_square_norm: (0..inputs).map(|i| tensor.square(i)).sum::<f64>()
                    / inputs as f64,
                min_cosine: cosines.as_deref().and_then(smallest),
                mean_cosine: cosines
                    .map(|cosines| cosines.iter().sum::<f64>() / cosines.len() as f64),
                unanimous_sign: ratio(sums.unanimous, sums.elements),
            }
        })
        .collect();
    let judged = Geometry {
        inputs,
        sums: if matrices.elements > 0 {
            &matrices
        } else {
            &all
        },
    };
    let min_matrix_cosine = judged.cosines().as_deref().and_then(smallest);
    let (verdict, reason) = judge(min_matrix_cosine);
    let matrix = |f: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
        (0..inputs)
            .map(|i| (0..inputs).map(|j| f(i, j)).collect())
            .collect()
    };
    DistanceReport {
        elements: all.elements,
        consensus,
        relative_consensus: whole.relative(),
        mean_norm: all.mean_square.sqrt(),
        norms: (0..inputs).map(|i| whole.square(i).sqrt()).collect(),
        to_mean: (0..inputs)
            .map(|i| whole.deviation(i, i).max(0.0).sqrt())
            .collect(),
        l2: matrix(&|i, j| whole.l2(i, j)),
        cosine: (0..inputs)
            .map(|i| (0..inputs).map(|j| whole.cosine(i, j)).collect())
            .collect(),
        sign_agreement: matrix(&|i, j| whole.same_sign(i, j)),
        unanimous_sign: ratio(all.unanimous, all.elements),
        tensors: entries,
        skipped,
        min_matrix_cosine,
        verdict,
        reason,
        snapshots,
    }
}

fn judge(cosine: Option<f64>) -> (Verdict, String) {
    match cosine {
        None => (
            Verdict::Uncertain,
            "some snapshot is zero everywhere, so no cosine exists".to_owned(),
        ),
        Some(cosine) if cosine >= LIKELY_COSINE => (
            Verdict::Likely,
            format!("the least similar pair has cosine {cosine:.3} (likely from {LIKELY_COSINE})"),
        ),
        Some(cosine) if cosine < UNLIKELY_COSINE => (
            Verdict::Unlikely,
            format!(
                "the least similar pair has cosine {cosine:.3}, as independent trainings have (unlikely below {UNLIKELY_COSINE})"
            ),
        ),
        Some(cosine) => (
            Verdict::Uncertain,
            format!(
                "the least similar pair has cosine {cosine:.3}; compare the loss of the merged model with the mean loss of the snapshots"
            ),
        ),
    }
}

/// A short name for a column: `#0`, `#1`, ...
fn short(position: usize) -> String {
    format!("#{position}")
}

fn verdict_words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Likely => "a merge is likely to work",
        Verdict::Uncertain => "a merge may work",
        Verdict::Unlikely => "a merge is unlikely to work",
    }
}

impl DistanceReport {
    /// Tensors with the largest share of the consensus distance first, at most `count`.
    #[must_use]
    pub fn farthest(&self, count: usize) -> Vec<&TensorDistance> {
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by(|a, b| {
            b.consensus
                .total_cmp(&a.consensus)
                .then_with(|| a.name.cmp(&b.name))
        });
        tensors.truncate(count);
        tensors
    }

    /// A readable report for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (position, snapshot) in self.snapshots.iter().enumerate() {
            let _ = writeln!(
                text,
                "{:>4} {snapshot}: length {:.6}, to the mean {:.6}",
                short(position),
                self.norms[position],
                self.to_mean[position]
            );
        }
        let _ = write!(
            text,
            "\nconsensus distance {:.6} over {} values",
            self.consensus, self.elements
        );
        if let Some(relative) = self.relative_consensus {
            let _ = write!(text, " ({relative:.3e} of the mean's squared length)");
        }
        let _ = writeln!(
            text,
            "\nsame sign in all: {:.2} %\n",
            100.0 * self.unanimous_sign
        );
        let mut table = |title: &str, cell: &dyn Fn(usize, usize) -> String| {
            let _ = write!(text, "{title:10}");
            (0..self.snapshots.len()).for_each(|j| {
                let _ = write!(text, " {:>10}", short(j));
            });
            text.push('\n');
            for i in 0..self.snapshots.len() {
                let _ = write!(text, "{:>10}", short(i));
                (0..self.snapshots.len()).for_each(|j| {
                    let _ = write!(text, " {:>10}", cell(i, j));
                });
                text.push('\n');
            }
            text.push('\n');
        };
        table("distance", &|i, j| format!("{:.4}", self.l2[i][j]));
        table("cosine", &|i, j| {
            self.cosine[i][j].map_or_else(|| "-".to_owned(), |cosine| format!("{cosine:.4}"))
        });
        table("same sign", &|i, j| {
            format!("{:.4}", self.sign_agreement[i][j])
        });
        let _ = writeln!(
            text,
            "tensors farthest apart (share of the consensus distance, smallest cosine)"
        );
        for tensor in self.farthest(10) {
            let cosine = tensor
                .min_cosine
                .map_or_else(|| "-".to_owned(), |cosine| format!("{cosine:.4}"));
            let _ = writeln!(
                text,
                "{:7.2} % {cosine:>8}  {}",
                100.0 * tensor.share,
                tensor.name
            );
        }
        let _ = writeln!(text, "\n{}: {}", verdict_words(self.verdict), self.reason);
        text
    }

    /// One page with heat maps that needs nothing else: no script, no style sheet, no network.
    #[must_use]
    pub fn html(&self) -> String {
        let mut page = String::from(concat!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Snapshot distances</title>\n<style>\n",
            "body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}\n",
            "table{border-collapse:collapse;margin:.5em 0 1.5em}td,th{padding:.25em .6em;text-align:right;font-weight:normal}\n",
            "th{color:#666}.name{text-align:left;font-family:ui-monospace,monospace}.map td{min-width:4.5em}\n",
            ".verdict{padding:.6em 1em;border-left:.4em solid #888;background:#f4f4f4}\n",
            ".likely{border-color:#2a7}.unlikely{border-color:#c33}.uncertain{border-color:#d90}\n",
            "</style></head><body>\n<h1>Snapshot distances</h1>\n",
        ));
        let class = match self.verdict {
            Verdict::Likely => "likely",
            Verdict::Uncertain => "uncertain",
            Verdict::Unlikely => "unlikely",
        };
        let _ = writeln!(
            page,
            "<p class=\"verdict {class}\"><b>{}</b>: {}</p>",
            verdict_words(self.verdict),
            escape(&self.reason)
        );
        let relative = self
            .relative_consensus
            .map(|r| format!(" ({r:.3e} of the mean's squared length)"))
            .unwrap_or_default();
        let _ = writeln!(
            page,
            "<p>Consensus distance {:.6}{relative}, over {} values; same sign in all: {:.2} %.</p>",
            self.consensus,
            self.elements,
            100.0 * self.unanimous_sign
        );
        page.push_str("<table><tr><th></th><th class=\"name\">snapshot</th><th>length</th><th>to the mean</th></tr>\n");
        for (position, snapshot) in self.snapshots.iter().enumerate() {
            let _ = writeln!(
                page,
                "<tr><th>{}</th><td class=\"name\">{}</td><td>{:.6}</td><td>{:.6}</td></tr>",
                short(position),
                escape(snapshot),
                self.norms[position],
                self.to_mean[position]
            );
        }
        page.push_str("</table>\n");
        let largest = self.l2.iter().flatten().copied().fold(0.0, f64::max);
        self.map(
            &mut page,
            "Distance",
            4,
            &|i, j| Some(self.l2[i][j]),
            &|value| if largest > 0.0 { value / largest } else { 0.0 },
        );
        self.map(
            &mut page,
            "Cosine",
            4,
            &|i, j| self.cosine[i][j],
            &|value| (1.0 - value).clamp(0.0, 1.0),
        );
        self.map(
            &mut page,
            "Same sign",
            4,
            &|i, j| Some(self.sign_agreement[i][j]),
            // Half of the signs agree by chance.
            &|value| 2.0 * (1.0 - value),
        );
        page.push_str("<h2>Tensors, farthest apart first</h2>\n<table><tr><th class=\"name\">tensor</th><th>shape</th><th>consensus</th><th>share</th><th>smallest cosine</th><th>same sign</th></tr>\n");
        for tensor in self.farthest(usize::MAX) {
            let heat = tensor
                .min_cosine
                .map_or_else(String::new, |cosine| colour((1.0 - cosine).clamp(0.0, 1.0)));
            let cosine = tensor
                .min_cosine
                .map_or_else(|| "–".to_owned(), |cosine| format!("{cosine:.4}"));
            let _ = writeln!(
                page,
                "<tr><td class=\"name\">{}</td><td>{:?}</td><td>{:.4e}</td><td>{:.2} %</td><td{heat}>{cosine}</td><td>{:.2} %</td></tr>",
                escape(&tensor.name),
                tensor.shape,
                tensor.consensus,
                100.0 * tensor.share,
                100.0 * tensor.unanimous_sign
            );
        }
        page.push_str("</table>\n</body></html>\n");
        page
    }

    fn map(
        &self,
        page: &mut String,
        title: &str,
        digits: usize,
        cell: &dyn Fn(usize, usize) -> Option<f64>,
        heat: &dyn Fn(f64) -> f64,
    ) {
        let count = self.snapshots.len();
        let _ = write!(page, "<h2>{title}</h2>\n<table class=\"map\"><tr><th></th>");
        (0..count).for_each(|j| {
            let _ = write!(page, "<th>{}</th>", short(j));
        });
        page.push_str("</tr>\n");
        for i in 0..count {
            let _ = write!(page, "<tr><th>{}</th>", short(i));
            for j in 0..count {
                let _ = match cell(i, j) {
                    Some(value) => write!(page, "<td{}>{value:.digits$}</td>", colour(heat(value))),
                    None => write!(page, "<td>–</td>"),
                };
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</table>\n");
    }
}

/// A style from pale (0, near) to dark (1, far), with text that stays readable.
fn colour(heat: f64) -> String {
    let heat = heat.clamp(0.0, 1.0);
    let text = if heat > 0.55 { "#fff" } else { "#222" };
    let mix = |near: f64, far: f64| near + (far - near) * heat;
    format!(
        " style=\"background:rgb({:.0} {:.0} {:.0});color:{text}\"",
        mix(230.0, 177.0),
        mix(241.0, 82.0),
        mix(250.0, 35.0)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
