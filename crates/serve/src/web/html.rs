//! The page as text. Everything that comes from data or from the client is escaped.

use std::fmt::Write;

/// What a page shows.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) job: String,
    pub(super) jobs: Vec<String>,
    pub(super) word: String,
    pub(super) least: f64,
    pub(super) neighbours: Vec<Neighbour>,
    pub(super) settings: String,
    pub(super) facts: String,
    pub(super) scores: String,
    pub(super) sources: Vec<(String, String, f64)>,
    pub(super) message: String,
}

/// One neighbour of the word.
#[derive(Debug, Clone)]
pub(super) struct Neighbour {
    pub(super) word: String,
    pub(super) count: f64,
    pub(super) npmi: f64,
    pub(super) pmi: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            letter => out.push(letter),
        }
    }
    out
}

/// For a query string: everything but letters and digits as its bytes.
fn quote(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

const STYLE: &str = "\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}\
form{display:flex;gap:.6rem;flex-wrap:wrap;align-items:end}label{display:grid;font-size:.8rem;color:#555}\
input,select,button{font:inherit;padding:.3rem .5rem}\
table{border-collapse:collapse;width:100%}td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #e3e6ea}\
td:first-child,th:first-child{text-align:left}th{font-weight:600;font-size:.85rem}\
pre{background:#f5f6f8;padding:.8rem;overflow:auto;font-size:.85rem}\
.message{background:#fff3d6;padding:.6rem}svg{width:100%;height:auto}a{color:#0b57a4}small{color:#555}";

/// The page.
pub(super) fn render(page: &Page) -> String {
    let mut out = String::with_capacity(1 << 14);
    // Writing to a string cannot fail.
    let _ = write_page(&mut out, page);
    out
}

fn write_page(out: &mut String, page: &Page) -> std::fmt::Result {
    let title = match page.word.is_empty() {
        true => "pmill".to_owned(),
        false => format!("{} – pmill", escape(&page.word)),
    };
    write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style></head><body><h1>Which words stand together</h1><form>\
         <label>Job<select name=\"job\">"
    )?;
    for job in &page.jobs {
        let selected = if *job == page.job { " selected" } else { "" };
        write!(out, "<option{selected}>{}</option>", escape(job))?;
    }
    write!(
        out,
        "</select></label><label>Word<input name=\"word\" value=\"{}\" autofocus></label>\
         <label>Together at least<input name=\"least\" type=\"number\" min=\"0\" step=\"any\" \
         size=\"6\" value=\"{}\"></label><button>Look up</button></form>",
        escape(&page.word),
        page.least
    )?;
    if page.jobs.is_empty() {
        out.push_str(
            "<p class=\"message\">The warehouse holds no job yet: pmill count makes one.</p>",
        );
    }
    if !page.message.is_empty() {
        write!(out, "<p class=\"message\">{}</p>", escape(&page.message))?;
    } else if !page.word.is_empty() {
        neighbours(out, page)?;
    }
    if !page.settings.is_empty() {
        write!(
            out,
            "<h2>Where the numbers come from</h2><details><summary>Settings of the count</summary>\
             <pre>{}</pre></details><details><summary>What was counted</summary><pre>{}</pre></details>",
            escape(&page.settings),
            escape(&page.facts)
        )?;
        if !page.scores.is_empty() {
            let scores = escape(&page.scores);
            write!(
                out,
                "<details><summary>Settings of the scores</summary><pre>{scores}</pre></details>"
            )?;
        }
        write!(
            out,
            "<details><summary>Sources ({})</summary><table><tr><th>File<th>Status<th>Rows</tr>",
            page.sources.len()
        )?;
        for (uri, status, rows) in &page.sources {
            write!(
                out,
                "<tr><td>{}<td>{}<td>{rows}</tr>",
                escape(uri),
                escape(status)
            )?;
        }
        out.push_str("</table></details>");
    }
    out.push_str("</body></html>\n");
    Ok(())
}

fn neighbours(out: &mut String, page: &Page) -> std::fmt::Result {
    let word = escape(&page.word);
    if page.neighbours.is_empty() {
        return write!(
            out,
            "<p class=\"message\">No pair with <b>{word}</b> in <b>{}</b>. Words are written as the \
             job's tokenizer makes them, mostly in lower case.</p>",
            escape(&page.job)
        );
    }
    write!(out, "<h2>PMI against count</h2>")?;
    plot(out, &page.neighbours)?;
    write!(
        out,
        "<h2>Neighbours of {word}</h2><small>The {} with the highest NPMI. Logarithms are natural; \
         PMI is of the counts without smoothing, with its 95 % interval.</small>\
         <table id=\"neighbours\"><tr><th>Word<th>Together<th>NPMI<th>PMI<th>95 % interval</tr>",
        page.neighbours.len()
    )?;
    for row in &page.neighbours {
        write!(
            out,
            "<tr><td><a href=\"/?job={}&amp;word={}&amp;least={}\">{}</a><td>{}<td>{}<td>{}<td>{} to {}</tr>",
            quote(&page.job),
            quote(&row.word),
            page.least,
            escape(&row.word),
            row.count,
            shown(row.npmi),
            shown(row.pmi),
            shown(row.low),
            shown(row.high)
        )?;
    }
    out.push_str("</table>");
    Ok(())
}

fn shown(value: f64) -> String {
    match value.is_finite() {
        true => format!("{value:.3}"),
        false => "–".to_owned(),
    }
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 360.0;
const MARGIN: f64 = 48.0;

/// PMI (with its interval) against the count on a logarithmic axis.
fn plot(out: &mut String, rows: &[Neighbour]) -> std::fmt::Result {
    let points: Vec<&Neighbour> = rows
        .iter()
        .filter(|row| row.count > 0.0 && row.pmi.is_finite())
        .collect();
    let ends = points.iter().flat_map(|row| [row.low, row.high, row.pmi]);
    let (mut low, mut high) = ends
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    if !low.is_finite() {
        return Ok(());
    }
    (low, high) = (low.floor(), high.ceil().max(low.floor() + 1.0));
    let decades = |row: &&Neighbour| row.count.log10();
    let left = points
        .iter()
        .map(decades)
        .fold(f64::INFINITY, f64::min)
        .floor();
    let right = points
        .iter()
        .map(decades)
        .fold(f64::NEG_INFINITY, f64::max)
        .ceil()
        .max(left + 1.0);
    let x = |count: f64| MARGIN + (count.log10() - left) / (right - left) * (WIDTH - 2.0 * MARGIN);
    let y = |pmi: f64| HEIGHT - MARGIN - (pmi - low) / (high - low) * (HEIGHT - 2.0 * MARGIN);
    write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"PMI against count\" \
         font-size=\"13\" font-family=\"sans-serif\" fill=\"#555\">"
    )?;
    let steps = ((high - low) / 6.0).ceil().max(1.0);
    let mut level = low;
    while level <= high {
        write!(
            out,
            "<path d=\"M{MARGIN} {at:.1}H{end}\" stroke=\"#e3e6ea\"/>\
             <text x=\"{label}\" y=\"{text:.1}\" text-anchor=\"end\">{level}</text>",
            at = y(level),
            end = WIDTH - MARGIN,
            label = MARGIN - 8.0,
            text = y(level) + 4.0
        )?;
        level += steps;
    }
    let mut decade = left;
    while decade <= right {
        let count = 10_f64.powf(decade);
        write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{count}</text>",
            x(count),
            HEIGHT - MARGIN + 20.0
        )?;
        decade += 1.0;
    }
    write!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">together (count)</text>\
         <text x=\"14\" y=\"{}\">PMI</text>",
        WIDTH / 2.0,
        HEIGHT - 8.0,
        MARGIN - 20.0
    )?;
    for (rank, row) in points.iter().enumerate() {
        let (at, value) = (x(row.count), y(row.pmi));
        if row.low.is_finite() && row.high.is_finite() {
            write!(
                out,
                "<path d=\"M{at:.1} {:.1}V{:.1}\" stroke=\"#9bbfe3\"/>",
                y(row.low),
                y(row.high)
            )?;
        }
        let word = escape(&row.word);
        write!(
            out,
            "<circle cx=\"{at:.1}\" cy=\"{value:.1}\" r=\"4\" fill=\"#0b57a4\"><title>{word}: \
             {} together, PMI {:.3}</title></circle>",
            row.count, row.pmi
        )?;
        if rank < 10 {
            write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\">{word}</text>",
                at + 7.0,
                value + 4.0
            )?;
        }
    }
    out.push_str("</svg>");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_escaped() {
        let evil = "<script>\"'&".to_owned();
        let page = Page {
            job: evil.clone(),
            jobs: vec![evil.clone()],
            word: evil.clone(),
            neighbours: vec![Neighbour {
                word: evil.clone(),
                count: 3.0,
                npmi: 0.5,
                pmi: 1.0,
                low: 0.2,
                high: f64::INFINITY,
            }],
            settings: evil.clone(),
            facts: evil.clone(),
            scores: evil.clone(),
            sources: vec![(evil.clone(), evil.clone(), 1.0)],
            ..Page::default()
        };
        let html = render(&page);
        assert!(!html.contains("<script"), "{html}");
        assert!(html.contains("&lt;script&gt;&quot;&#39;&amp;"));
        let failed = render(&Page {
            message: evil,
            ..Page::default()
        });
        assert!(!failed.contains("<script"));
    }

    #[test]
    fn one_point_and_counts_below_one_are_drawn_inside() {
        let row = |count, pmi| Neighbour {
            word: "w".to_owned(),
            count,
            npmi: 0.0,
            pmi,
            low: pmi,
            high: pmi,
        };
        let mut out = String::new();
        plot(&mut out, &[row(1.0, 0.0), row(0.25, -3.0)]).unwrap();
        assert!(!out.contains("NaN") && !out.contains("inf"), "{out}");
        assert_eq!(out.matches("<circle").count(), 2);
        let mut none = String::new();
        plot(&mut none, &[row(1.0, f64::NAN)]).unwrap();
        assert!(none.is_empty());
    }
}
