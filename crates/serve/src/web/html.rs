//! The page as text. Everything that comes from data or from the client is escaped.

mod plot;

use std::fmt::Write;

use pmill_engine::slices::SliceKey;

use self::plot::plot;

/// What a page shows.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) job: String,
    pub(super) jobs: Vec<String>,
    pub(super) word: String,
    pub(super) least: f64,
    pub(super) order: Order,
    /// The slices of a job that is counted by slice, and the one that is shown.
    pub(super) slices: Vec<SliceKey>,
    pub(super) slice: Option<SliceKey>,
    /// How often the word was counted, and in how many rows; empty when the vocabulary has no such word.
    pub(super) known: Vec<Known>,
    /// Words of the vocabulary that resemble an unknown one.
    pub(super) near: Vec<String>,
    pub(super) neighbours: Vec<Neighbour>,
    pub(super) settings: String,
    pub(super) facts: String,
    pub(super) scores: String,
    pub(super) sources: Vec<(String, String, f64)>,
    /// How many there are, of which `sources` may be the first only.
    pub(super) all_sources: f64,
    pub(super) message: String,
    /// What a reader of this job's neighbours must know.
    pub(super) note: String,
}

/// A slice as it stands in an address: text after `is:`, or `null`.
pub(super) fn slice_address(slice: &SliceKey) -> String {
    match slice {
        Some(text) => format!("is:{text}"),
        None => "null".to_owned(),
    }
}

/// A word of the vocabulary.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) count: f64,
    pub(super) documents: f64,
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

/// Which neighbours come first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    #[default]
    Npmi,
    Low,
    Count,
}

impl Order {
    const ALL: [Self; 3] = [Self::Npmi, Self::Low, Self::Count];

    /// As it stands in an address; an unknown one is the default.
    pub(super) fn parse(text: &str) -> Self {
        let found = Self::ALL.into_iter().find(|order| order.key() == text);
        found.unwrap_or_default()
    }

    fn key(self) -> &'static str {
        match self {
            Self::Npmi => "npmi",
            Self::Low => "low",
            Self::Count => "count",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Npmi => "NPMI",
            Self::Low => "lower end of the interval",
            Self::Count => "times together",
        }
    }

    /// The column of the page's query.
    pub(super) fn column(self) -> &'static str {
        match self {
            Self::Npmi => "npmi",
            Self::Low => "low",
            Self::Count => "n_xy",
        }
    }
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

/// A count with its thousands apart, and with at most three places after the point: `12,345.5`.
fn grouped(count: f64) -> String {
    let text = format!("{count:.3}");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let mut out = String::new();
    for (place, digit) in whole.chars().enumerate() {
        let after = whole.len() - place;
        if place > 0 && after % 3 == 0 && digit.is_ascii_digit() && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    let part = part.trim_end_matches('0');
    if !part.is_empty() {
        out.push('.');
        out.push_str(part);
    }
    out
}

/// Three places, or a dash for what is not there.
fn shown(value: f64) -> String {
    match value.is_finite() {
        true => format!("{value:.3}").replace('-', "\u{2212}"),
        false => "–".to_owned(),
    }
}

const STYLE: &str = include_str!("style.css");

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
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><link rel=\"icon\" href=\"data:,\">\
         <title>{title}</title><style>{STYLE}</style></head><body><main><h1>Which words stand together</h1>"
    )?;
    form(out, page)?;
    if page.jobs.is_empty() {
        out.push_str("<p class=\"message\" role=\"status\">The warehouse holds no job yet: pmill count makes one.</p>");
    }
    if !page.note.is_empty() {
        write!(
            out,
            "<p class=\"message\" role=\"status\">{}</p>",
            escape(&page.note)
        )?;
    }
    if !page.message.is_empty() {
        write!(
            out,
            "<p class=\"message\" role=\"alert\">{}</p>",
            escape(&page.message)
        )?;
    } else if !page.word.is_empty() {
        answer(out, page)?;
    } else if !page.jobs.is_empty() {
        out.push_str("<p class=\"soft\">Ask for a word, written as the job counts it: mostly in lower case.</p>");
    }
    if !page.settings.is_empty() {
        origin(out, page)?;
    }
    out.push_str("</main></body></html>\n");
    Ok(())
}

fn form(out: &mut String, page: &Page) -> std::fmt::Result {
    out.push_str("<form action=\"/\"><label>Job<select name=\"job\">");
    for job in &page.jobs {
        let selected = if *job == page.job { " selected" } else { "" };
        write!(out, "<option{selected}>{}</option>", escape(job))?;
    }
    write!(
        out,
        "</select></label><label class=\"word\">Word<input name=\"word\" value=\"{}\" autofocus \
         autocapitalize=\"none\" autocomplete=\"off\" spellcheck=\"false\"></label>\
         <label>Together at least<input name=\"least\" type=\"number\" min=\"0\" step=\"any\" value=\"{}\"></label>\
         <label>First by<select name=\"order\">",
        escape(&page.word),
        page.least
    )?;
    for order in Order::ALL {
        let selected = if order == page.order { " selected" } else { "" };
        write!(
            out,
            "<option value=\"{}\"{selected}>{}</option>",
            order.key(),
            order.label()
        )?;
    }
    out.push_str("</select></label>");
    if !page.slices.is_empty() {
        out.push_str("<label>Slice<select name=\"slice\">");
        for slice in &page.slices {
            let selected = if page.slice.as_ref() == Some(slice) {
                " selected"
            } else {
                ""
            };
            write!(
                out,
                "<option value=\"{}\"{selected}>{}</option>",
                escape(&slice_address(slice)),
                escape(slice.as_deref().unwrap_or("NULL"))
            )?;
        }
        out.push_str("</select></label>");
    }
    out.push_str("<button>Look up</button></form>");
    Ok(())
}

/// The address of the same question about another word.
fn link(page: &Page, word: &str) -> String {
    let slice = match &page.slice {
        Some(slice) => format!("&amp;slice={}", quote(&slice_address(slice))),
        None => String::new(),
    };
    format!(
        "<a href=\"/?job={}&amp;word={}&amp;least={}&amp;order={}{slice}\">{}</a>",
        quote(&page.job),
        quote(word),
        page.least,
        page.order.key(),
        escape(word)
    )
}

fn answer(out: &mut String, page: &Page) -> std::fmt::Result {
    let (word, job) = (escape(&page.word), escape(&page.job));
    if page.neighbours.is_empty() {
        write!(out, "<div class=\"message\" role=\"status\">")?;
        if page.known.is_empty() {
            write!(
                out,
                "<p>The vocabulary of <b>{job}</b> has no <b>{word}</b>. Words are written as the job's tokenizer \
                 makes them, mostly in lower case; rare words may have been left out.</p>"
            )?;
        } else if page.least > 0.0 {
            write!(
                out,
                "<p><b>{word}</b> stands together with no word at least {} times.</p>",
                grouped(page.least)
            )?;
        } else {
            write!(
                out,
                "<p><b>{word}</b> has no scored pair in <b>{job}</b>.</p>"
            )?;
        }
        if !page.near.is_empty() {
            let links: Vec<String> = page.near.iter().map(|near| link(page, near)).collect();
            write!(out, "<p>Words that begin alike: {}.</p>", links.join(", "))?;
        }
        out.push_str("</div>");
        return Ok(());
    }
    write!(out, "<h2>Neighbours of {word}</h2><p class=\"soft\">")?;
    if let [known] = page.known.as_slice() {
        write!(
            out,
            "Counted {} times, in {} rows. ",
            grouped(known.count),
            grouped(known.documents)
        )?;
    }
    write!(
        out,
        "The {} neighbours that come first by {}. Logarithms are natural; PMI is of the counts without smoothing, \
         with its 95&nbsp;% interval.</p><div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Plot\">",
        page.neighbours.len(),
        page.order.label()
    )?;
    plot(out, &page.neighbours)?;
    out.push_str(
        "</div><div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Table\"><table id=\"neighbours\">\
         <thead><tr><th scope=\"col\">Word<th scope=\"col\">Together<th scope=\"col\">NPMI<th scope=\"col\">PMI\
         <th scope=\"col\">95&nbsp;% from<th scope=\"col\">to</tr></thead><tbody>",
    );
    for row in &page.neighbours {
        write!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            link(page, &row.word),
            grouped(row.count),
            shown(row.npmi),
            shown(row.pmi),
            shown(row.low),
            shown(row.high)
        )?;
    }
    out.push_str("</tbody></table></div>");
    Ok(())
}

/// The job's settings and sources.
fn origin(out: &mut String, page: &Page) -> std::fmt::Result {
    write!(
        out,
        "<h2>Where the numbers of {} come from</h2>",
        escape(&page.job)
    )?;
    for (name, text) in [
        ("What was counted", &page.facts),
        ("Settings of the count", &page.settings),
        ("Settings of the scores", &page.scores),
    ] {
        if !text.is_empty() {
            write!(
                out,
                "<details><summary>{name}</summary><pre tabindex=\"0\">{}</pre></details>",
                escape(text)
            )?;
        }
    }
    write!(
        out,
        "<details><summary>Sources: {}</summary>",
        grouped(page.all_sources)
    )?;
    if page.all_sources > page.sources.len() as f64 {
        write!(
            out,
            "<p class=\"soft\">The first {}; the table {}.sources has all.</p>",
            page.sources.len(),
            escape(&page.job)
        )?;
    }
    out.push_str(
        "<div class=\"wide\"><table><thead><tr><th scope=\"col\">File<th scope=\"col\">Status\
         <th scope=\"col\">Rows</tr></thead><tbody>",
    );
    for (uri, status, rows) in &page.sources {
        write!(
            out,
            "<tr><td class=\"file\">{}<td>{}<td>{}</tr>",
            escape(uri),
            escape(status),
            if rows.is_finite() {
                grouped(*rows)
            } else {
                shown(*rows)
            }
        )?;
    }
    out.push_str("</tbody></table></div></details>");
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
            slice: Some(Some(evil.clone())),
            slices: vec![None, Some(evil.clone())],
            settings: evil.clone(),
            facts: evil.clone(),
            scores: evil.clone(),
            sources: vec![(evil.clone(), evil.clone(), 1.0)],
            ..Page::default()
        };
        let html = render(&page);
        assert!(!html.contains("<script"), "{html}");
        assert!(html.contains("&lt;script&gt;&quot;&#39;&amp;"));
        let unknown = render(&Page {
            neighbours: Vec::new(),
            near: vec![evil.clone()],
            ..page
        });
        assert!(!unknown.contains("<script"), "{unknown}");
        let failed = render(&Page {
            message: evil,
            ..Page::default()
        });
        assert!(!failed.contains("<script"));
    }

    #[test]
    fn counts_have_their_thousands_apart() {
        assert_eq!(grouped(0.0), "0");
        assert_eq!(grouped(999.0), "999");
        assert_eq!(grouped(1_000.0), "1,000");
        assert_eq!(grouped(12_345_678.25), "12,345,678.25");
        assert_eq!(grouped(1.0 / 3.0), "0.333");
        assert_eq!(grouped(-1_000.0), "-1,000");
        assert_eq!(grouped(-100.0), "-100");
    }
}
