//! PMI with its interval against the count, as SVG.

use std::fmt::Write;

use super::{Neighbour, escape, grouped};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 48.0;
/// Size of letters, and about how wide one is.
const LETTER: (f64, f64) = (13.0, 7.2);
/// Words beside points, at most.
const NAMED: usize = 24;

/// Draws nothing when no neighbour has a finite PMI.
pub(super) fn plot(out: &mut String, rows: &[Neighbour]) -> std::fmt::Result {
    let points: Vec<&Neighbour> = rows
        .iter()
        .filter(|row| row.count > 0.0 && row.pmi.is_finite())
        .collect();
    let ends = points.iter().flat_map(|row| [row.low, row.high, row.pmi]);
    let Some((low, high)) = range(ends) else {
        return Ok(());
    };
    let Some((least, most)) = range(points.iter().map(|row| row.count)) else {
        return Ok(());
    };
    let step = level_step(high - low);
    let (first, last) = ((low / step).floor(), (high / step).ceil());
    let last = last.max(first + 1.0);
    let (low, high) = (first * step, last * step);
    let (from, to) = ((least / 1.25).log10(), (most * 1.25).log10());
    let x = |count: f64| LEFT + (count.log10() - from) / (to - from) * (WIDTH - LEFT - RIGHT);
    let y = |pmi: f64| HEIGHT - BOTTOM - (pmi - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
    write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"PMI with its 95 % interval against the \
         number of times together, one point for each word of the table below\" \
         font-size=\"{size}\" font-family=\"system-ui,sans-serif\" fill=\"#555c66\">",
        size = LETTER.0
    )?;
    // Counted in steps, so that zero is zero.
    for level in (first as i64..=last as i64).map(|number| number as f64 * step) {
        // Zero is chance.
        let stroke = if level == 0.0 { "#7b8490" } else { "#d5dae0" };
        write!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{end}\" stroke=\"{stroke}\"/>\
             <text x=\"{label}\" y=\"{text:.1}\" text-anchor=\"end\">{level}</text>",
            level = grouped(level).replace('-', "\u{2212}"),
            at = y(level),
            end = WIDTH - RIGHT,
            label = LEFT - 8.0,
            text = y(level) + 4.0
        )?;
    }
    let mut marks = ticks(10_f64.powf(from), 10_f64.powf(to));
    if marks.is_empty() {
        marks.extend([least, most]);
        marks.dedup();
    }
    for count in marks {
        write!(
            out,
            "<path d=\"M{at:.1} {bottom}v5\" stroke=\"#7b8490\"/>\
             <text x=\"{at:.1}\" y=\"{text}\" text-anchor=\"middle\">{count}</text>",
            at = x(count),
            bottom = HEIGHT - BOTTOM,
            text = HEIGHT - BOTTOM + 20.0,
            count = grouped(count)
        )?;
    }
    write!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">times together</text><text x=\"8\" y=\"14\">PMI</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 6.0
    )?;
    for row in &points {
        if row.low.is_finite() && row.high.is_finite() {
            write!(
                out,
                "<path d=\"M{:.1} {:.1}V{:.1}\" stroke=\"#a9c7e8\" stroke-width=\"1.5\"/>",
                x(row.count),
                y(row.low),
                y(row.high)
            )?;
        }
    }
    for row in &points {
        write!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"#0b57a4\"><title>{}: {} together, PMI {:.3}</title></circle>",
            x(row.count),
            y(row.pmi),
            escape(&row.word),
            grouped(row.count),
            row.pmi
        )?;
    }
    let places: Vec<(f64, f64)> = points
        .iter()
        .map(|row| (x(row.count), y(row.pmi)))
        .collect();
    let mut taken: Vec<Place> = places.iter().map(|(x, y)| Place::around(*x, *y)).collect();
    let mut named = 0;
    for (row, (x, y)) in points.iter().zip(&places) {
        if named == NAMED {
            break;
        }
        let Some((place, at, anchor)) = free(&row.word, *x, *y, &taken) else {
            continue;
        };
        taken.push(place);
        named += 1;
        write!(
            out,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#1b1f24\">{}</text>",
            y + 4.0,
            escape(&row.word)
        )?;
    }
    out.push_str("</svg>");
    Ok(())
}

/// The smallest and the largest finite value.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .filter(|value| value.is_finite())
        .fold(None, |range, value| match range {
            None => Some((value, value)),
            Some((low, high)) => Some((value.min(low), value.max(high))),
        })
}

/// The distance of lines that cut a range into eight parts at most: 0.1, 0.2, 0.5, 1, 2, 5, …
fn level_step(range: f64) -> f64 {
    let least = (range / 8.0).max(0.1);
    let decade = 10_f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
    steps
        .into_iter()
        .find(|step| *step >= least * (1.0 - 1e-9))
        .unwrap_or(10.0 * decade)
}

/// 1, 2, 5, 10, … between the two; only powers of ten when that would be too many.
fn ticks(from: f64, to: f64) -> Vec<f64> {
    let wide = to / from > 3_000.0;
    let first = from.log10().floor() as i32;
    let last = to.log10().ceil() as i32;
    (first..=last)
        .flat_map(|decade| {
            let one = 10_f64.powi(decade);
            let steps: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
            steps.iter().map(move |step| one * step)
        })
        .filter(|count| (from..=to).contains(count))
        .collect()
}

/// A rectangle of the picture.
struct Place {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Place {
    /// That of a point.
    fn around(x: f64, y: f64) -> Self {
        Self {
            left: x - 4.0,
            right: x + 4.0,
            top: y - 4.0,
            bottom: y + 4.0,
        }
    }

    fn meets(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }
}

/// Where a word fits beside its point: on the right, else on the left, else nowhere.
fn free(word: &str, x: f64, y: f64, taken: &[Place]) -> Option<(Place, f64, &'static str)> {
    let length = word.chars().count() as f64 * LETTER.1;
    let (top, bottom) = (y - LETTER.0 / 2.0, y + LETTER.0 / 2.0);
    let beside = |left: f64| Place {
        left,
        right: left + length,
        top,
        bottom,
    };
    [
        (beside(x + 7.0), x + 7.0, "start"),
        (beside(x - 7.0 - length), x - 7.0, "end"),
    ]
    .into_iter()
    .find(|(place, ..)| {
        place.left > LEFT && place.right < WIDTH && !taken.iter().any(|other| other.meets(place))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(word: &str, count: f64, pmi: f64) -> Neighbour {
        Neighbour {
            word: word.to_owned(),
            count,
            npmi: 0.0,
            pmi,
            low: pmi,
            high: pmi,
        }
    }

    #[test]
    fn one_point_and_counts_below_one_are_drawn_inside() {
        let mut out = String::new();
        plot(&mut out, &[row("w", 1.0, 0.0), row("w", 0.25, -3.0)]).unwrap();
        assert!(!out.contains("NaN") && !out.contains("inf"), "{out}");
        assert_eq!(out.matches("<circle").count(), 2);
        let mut one = String::new();
        plot(&mut one, &[row("w", 7.0, 2.0)]).unwrap();
        assert!(!one.contains("NaN") && one.contains(">7<"), "{one}");
        let mut none = String::new();
        plot(&mut none, &[row("w", 1.0, f64::NAN)]).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn words_that_would_lie_on_each_other_are_left_out() {
        let mut out = String::new();
        let rows = ["first", "second", "third"].map(|word| row(word, 10.0, 1.0));
        plot(&mut out, &rows).unwrap();
        // One on each side of the point, and no place for another.
        assert!(out.contains(">first<") && out.contains(">second<"), "{out}");
        assert!(
            !out.contains(">third<") && out.contains("third: 10 together"),
            "{out}"
        );
    }

    #[test]
    fn ticks_lie_between_the_ends() {
        for (range, step) in [
            (0.0, 0.1),
            (0.9, 0.2),
            (2.0, 0.5),
            (8.0, 1.0),
            (9.0, 2.0),
            (40.0, 5.0),
        ] {
            assert!((level_step(range) - step).abs() < 1e-9, "{range}");
        }
        assert_eq!(ticks(3.0, 60.0), [5.0, 10.0, 20.0, 50.0]);
        assert_eq!(ticks(0.8, 90_000.0), [1.0, 10.0, 100.0, 1e3, 1e4]);
    }
}
