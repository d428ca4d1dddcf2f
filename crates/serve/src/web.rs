//! The web page: a word's neighbours with intervals, a plot of PMI against count, and where the
//! numbers come from. Plain HTML made here; no script, nothing from elsewhere.

mod html;

use std::collections::HashMap;

use axum::Router;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::{cast, concat_batches};
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::{ParamValues, ScalarValue};

use pmill_engine::job::Facts;
use pmill_engine::settings::RecordedSettings;

use crate::auth::Credentials;
use crate::error::ServeError;
use crate::health::{Client, Shown};
use crate::library::Dialect;
use crate::service::Asker;
use crate::traces::Parent;

use html::{Known, Neighbour, Order, Page};

/// Neighbours that a page shows.
const SHOWN: usize = 50;
/// Sources that a page lists.
const SOURCES: usize = 50;
/// Words that are named when one is unknown.
const NEAR: usize = 8;

/// The pages.
pub fn pages() -> Router<Shown> {
    Router::new().route("/", get(page))
}

async fn page(
    State(shown): State<Shown>,
    ConnectInfo(client): ConnectInfo<Client>,
    headers: HeaderMap,
    Query(given): Query<HashMap<String, String>>,
) -> Response {
    let credentials = match headers.get(header::AUTHORIZATION) {
        None => None,
        Some(header) => match Credentials::parse(header.as_bytes()) {
            Ok(credentials) => Some(credentials),
            Err(error) => return plain(StatusCode::BAD_REQUEST, &error.chain()),
        },
    };
    let user = match shown.gate.check(client.0.ip(), credentials.as_ref()).await {
        Ok(user) => user,
        Err(error) => {
            if credentials.is_some() {
                shown.service.metrics().denied.inc();
            }
            let mut answer = plain(StatusCode::UNAUTHORIZED, &error.chain());
            let ask = header::HeaderValue::from_static("Basic realm=\"pmill\", charset=\"UTF-8\"");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
            return answer;
        }
    };
    let asker = Asker {
        user,
        protocol: "web",
        parent: Parent::read(|name| headers.get(name)?.to_str().ok()),
    };
    let mut page = Page {
        job: given.get("job").cloned().unwrap_or_default(),
        word: given
            .get("word")
            .map(|word| word.trim().to_owned())
            .unwrap_or_default(),
        least: given
            .get("least")
            .and_then(|text| text.parse().ok())
            .filter(|least: &f64| least.is_finite() && *least >= 0.0)
            .unwrap_or(0.0),
        order: Order::parse(given.get("order").map_or("", String::as_str)),
        ..Page::default()
    };
    let slice = given.get("slice").map_or("", String::as_str);
    let status = match fill(&shown, &asker, &mut page, slice).await {
        Ok(()) => StatusCode::OK,
        Err(error) => {
            page.message = error.chain();
            match error.kind() {
                pmill_engine::Kind::User => StatusCode::BAD_REQUEST,
                pmill_engine::Kind::NotNow => StatusCode::SERVICE_UNAVAILABLE,
                pmill_engine::Kind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
            }
        }
    };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'",
        ),
    ];
    (status, headers, html::render(&page)).into_response()
}

fn plain(status: StatusCode, text: &str) -> Response {
    (status, format!("{text}\n")).into_response()
}

async fn fill(
    shown: &Shown,
    asker: &Asker,
    page: &mut Page,
    asked_slice: &str,
) -> Result<(), ServeError> {
    let snapshot = shown.service.snapshot().await?;
    page.jobs = snapshot.jobs().map(|(name, _)| name.to_string()).collect();
    if page.job.is_empty() {
        page.job = page.jobs.first().cloned().unwrap_or_default();
    }
    let Some(job) = snapshot.job(&page.job) else {
        if page.jobs.is_empty() {
            return Ok(());
        }
        return Err(ServeError::Query(format!("no job `{}`", page.job)));
    };
    let opened = job
        .job()
        .await
        .map_err(|error| ServeError::from_engine(error, ""))?;
    page.settings = pretty(&opened.settings()?);
    let facts = opened.facts()?;
    page.facts = pretty(&facts);
    let facts: Facts = serde_json::from_str(&facts).map_err(|error| {
        ServeError::Bug(format!("what job `{}` says of itself: {error}", page.job))
    })?;
    if let Some(sketched) = &facts.tail {
        let recorded: RecordedSettings =
            serde_json::from_str(&opened.settings()?).map_err(|error| {
                ServeError::Bug(format!("the settings of job `{}`: {error}", page.job))
            })?;
        if let Some(exact) = pmill_engine::tail::only_exact(&recorded) {
            page.note = format!(
                "About this job: {exact}. About {} pairs are.",
                sketched.distinct
            );
        }
    }
    page.slices = facts.slices.into_iter().map(|facts| facts.slice).collect();
    page.slice = match page
        .slices
        .iter()
        .find(|slice| html::slice_address(slice) == asked_slice)
    {
        Some(slice) => Some(slice.clone()),
        // Another job may have been chosen, which has other slices.
        None => page.slices.first().cloned(),
    };
    page.scores = match opened.pmi_settings()? {
        Some((settings, _)) => pretty(&settings),
        None => String::new(),
    };
    sources(shown, asker, page).await?;
    if page.word.is_empty() {
        return Ok(());
    }
    if !job.is_scored() {
        return Err(ServeError::Query(format!(
            "job `{}` is not scored yet: pmill score --name {}",
            page.job, page.job
        )));
    }
    word(shown, asker, page).await?;
    if page.known.is_empty() {
        return near(shown, asker, page).await;
    }
    neighbours(shown, asker, page).await
}

async fn sources(shown: &Shown, asker: &Asker, page: &mut Page) -> Result<(), ServeError> {
    let query = format!(
        "SELECT uri, status, CAST(rows AS DOUBLE), CAST(count(*) OVER () AS DOUBLE) FROM {}.sources \
         ORDER BY uri LIMIT {SOURCES}",
        page.job
    );
    let Some(rows) = ask(shown, asker, &query, None).await? else {
        return Ok(());
    };
    let (uris, statuses, counts) = (text(&rows, 0)?, text(&rows, 1)?, number(&rows, 2)?);
    page.all_sources = number(&rows, 3)?.first().copied().unwrap_or(0.0);
    page.sources = uris
        .into_iter()
        .zip(statuses)
        .zip(counts)
        .map(|((uri, status), rows)| (uri, status, rows))
        .collect();
    Ok(())
}

/// A condition for the rows of the page's slice, and the value it is given, which is `$place`.
fn in_slice(page: &Page, place: usize) -> (String, Option<ScalarValue>) {
    match &page.slice {
        None => (String::new(), None),
        Some(None) => (" AND slice IS NULL".to_owned(), None),
        Some(Some(slice)) => (
            format!(" AND slice = ${place}"),
            Some(ScalarValue::Utf8(Some(slice.clone()))),
        ),
    }
}

/// What the vocabulary says of the word. A job with two sides may know it twice.
async fn word(shown: &Shown, asker: &Asker, page: &mut Page) -> Result<(), ServeError> {
    let (in_slice, slice) = in_slice(page, 2);
    let query = format!(
        "SELECT CAST(count AS DOUBLE), CAST(documents AS DOUBLE) FROM {}.vocab WHERE token = $1{in_slice}",
        page.job
    );
    let mut values = vec![ScalarValue::Utf8(Some(page.word.clone()))];
    values.extend(slice);
    let Some(rows) = ask(shown, asker, &query, Some(values)).await? else {
        return Ok(());
    };
    page.known = number(&rows, 0)?
        .into_iter()
        .zip(number(&rows, 1)?)
        .map(|(count, documents)| Known { count, documents })
        .collect();
    Ok(())
}

/// Words of the vocabulary that begin as an unknown one does.
async fn near(shown: &Shown, asker: &Asker, page: &mut Page) -> Result<(), ServeError> {
    let lower = page.word.to_lowercase();
    let letters = lower.chars().count();
    // Half of the word, but two letters at least: `dgo` finds nothing better than words with `dg`.
    let start: String = lower.chars().take(letters.div_ceil(2).max(2)).collect();
    let query = format!(
        "SELECT token, max(CAST(count AS DOUBLE)) AS n FROM {}.vocab \
         WHERE starts_with(token, $1) GROUP BY token \
         ORDER BY levenshtein(token, $2), n DESC, token LIMIT {NEAR}",
        page.job
    );
    let values = vec![
        ScalarValue::Utf8(Some(start)),
        ScalarValue::Utf8(Some(lower)),
    ];
    if let Some(rows) = ask(shown, asker, &query, Some(values)).await? {
        page.near = text(&rows, 0)?;
    }
    Ok(())
}

async fn neighbours(shown: &Shown, asker: &Asker, page: &mut Page) -> Result<(), ServeError> {
    // A symmetric job stores a pair once, so a word's neighbours stand on both sides.
    let (in_slice, slice) = in_slice(page, 3);
    let query = format!(
        "SELECT other, n_xy, npmi(n_xy, n_x, n_y, n) AS npmi, pmi(n_xy, n_x, n_y, n) AS pmi, \
         pmi_lower(n_xy, n_x, n_y, n) AS low, pmi_upper(n_xy, n_x, n_y, n) AS high FROM ( \
         SELECT \"right\" AS other, n_xy, n_x, n_y, n FROM {job}.pmi WHERE \"left\" = $1{in_slice} \
         UNION ALL \
         SELECT \"left\" AS other, n_xy, n_x, n_y, n FROM {job}.pmi \
         WHERE \"right\" = $1 AND \"left\" <> $1{in_slice}) WHERE n_xy >= $2 \
         ORDER BY {order} DESC NULLS LAST, n_xy DESC, other LIMIT {SHOWN}",
        job = page.job,
        order = page.order.column()
    );
    let mut values = vec![
        ScalarValue::Utf8(Some(page.word.clone())),
        ScalarValue::Float64(Some(page.least)),
    ];
    values.extend(slice);
    let Some(rows) = ask(shown, asker, &query, Some(values)).await? else {
        return Ok(());
    };
    let words = text(&rows, 0)?;
    let columns: Vec<Vec<f64>> = (1..6)
        .map(|column| number(&rows, column))
        .collect::<Result<_, _>>()?;
    page.neighbours = words
        .into_iter()
        .enumerate()
        .map(|(row, word)| Neighbour {
            word,
            count: columns[0][row],
            npmi: columns[1][row],
            pmi: columns[2][row],
            low: columns[3][row],
            high: columns[4][row],
        })
        .collect();
    Ok(())
}

fn pretty(json: &str) -> String {
    serde_json::from_str::<serde_json::Value>(json)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .unwrap_or_else(|_| json.to_owned())
}

/// All rows as one batch; `None` when there are none.
async fn ask(
    shown: &Shown,
    asker: &Asker,
    sql: &str,
    values: Option<Vec<ScalarValue>>,
) -> Result<Option<RecordBatch>, ServeError> {
    let service = &shown.service;
    let prepared = service
        .prepare(Dialect::Plain, sql, asker.parent.as_ref())
        .await?;
    let values = values.map(ParamValues::from);
    let rows = service.run(asker, &prepared, values).await?;
    let batches = rows.collect().await?;
    let Some(first) = batches.first() else {
        return Ok(None);
    };
    concat_batches(&first.schema(), &batches)
        .map(Some)
        .map_err(|error| ServeError::Bug(error.to_string()))
}

fn text(rows: &RecordBatch, column: usize) -> Result<Vec<String>, ServeError> {
    let array = cast(rows.column(column), &DataType::Utf8)
        .map_err(|error| ServeError::Bug(error.to_string()))?;
    Ok(array
        .as_string::<i32>()
        .iter()
        .map(|value| value.unwrap_or_default().to_owned())
        .collect())
}

/// Not-a-number stands for a null.
fn number(rows: &RecordBatch, column: usize) -> Result<Vec<f64>, ServeError> {
    let array = cast(rows.column(column), &DataType::Float64)
        .map_err(|error| ServeError::Bug(error.to_string()))?;
    Ok(array
        .as_primitive::<Float64Type>()
        .iter()
        .map(|value| value.unwrap_or(f64::NAN))
        .collect())
}
