//! `pmill functions`.

use std::fmt::Write;

use clap::Args;
use pmill_engine::error::nearest_name;
use pmill_engine::stats::catalogue::{Entry, entries};

use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output};

/// The reference of pmill's SQL functions.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pmill functions                 every function in one line
  pmill functions npmi            formula, range, limits, source, arguments
  pmill functions --json          everything, for programs")]
pub struct FunctionsArgs {
    /// Functions to tell all about; without any, the list
    names: Vec<String>,
}

impl FunctionsArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let all = entries();
        let mut chosen = Vec::new();
        for name in &self.names {
            let lower = name.to_ascii_lowercase();
            let Some(found) = all.iter().find(|entry| entry.name == lower) else {
                let nearest = nearest_name(&lower, all.iter().map(|entry| entry.name))
                    .map(|name| format!(" (did you mean `{name}`?)"))
                    .unwrap_or_default();
                return Err(Failure::user(format!(
                    "no function `{name}`{nearest}; `pmill functions` lists all, and DataFusion's own are in its manual"
                )));
            };
            chosen.push(found);
        }
        let text = if chosen.is_empty() {
            list(&all)
        } else {
            let texts: Vec<String> = chosen.iter().map(|entry| describe(entry)).collect();
            texts.join("\n")
        };
        if !global.json {
            return Ok(Output::Bytes(text.into_bytes()));
        }
        let shown = if chosen.is_empty() {
            all.iter().collect()
        } else {
            chosen
        };
        let functions: Vec<serde_json::Value> = shown.into_iter().map(json).collect();
        Ok(Output::Summary {
            json: serde_json::json!({ "functions": functions }),
            text: String::new(),
        })
    }
}

fn list(all: &[Entry]) -> String {
    let width = all.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut kind = None;
    for entry in all {
        if kind != Some(entry.kind) {
            let gap = if kind.is_some() { "\n" } else { "" };
            kind = Some(entry.kind);
            let _ = writeln!(text, "{gap}{}", entry.kind.heading());
        }
        let _ = writeln!(text, "  {:width$}  {}", entry.name, entry.title);
    }
    text
}

fn describe(entry: &Entry) -> String {
    let mut text = format!("{}\n  {}\n", entry.signature, entry.title);
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {name:<9} {}", value.replace('*', ""));
        }
    };
    line("kind", entry.kind.word());
    line("formula", entry.formula);
    line("range", entry.range);
    line("limits", entry.limits);
    line(
        "counts",
        if entry.counts.is_empty() {
            ""
        } else {
            "n_x + n_y - n_xy must be at most n"
        },
    );
    line("contexts", entry.contexts);
    line("source", entry.source);
    for (heading, rows) in [
        ("arguments", entry.arguments.clone()),
        (
            "columns",
            entry
                .columns
                .iter()
                .map(|(name, what)| (*name, (*what).to_owned()))
                .collect(),
        ),
    ] {
        if !rows.is_empty() {
            let _ = writeln!(text, "  {heading}");
        }
        for (name, what) in rows {
            let _ = writeln!(text, "    {name}: {what}");
        }
    }
    if !entry.example.is_empty() {
        let _ = writeln!(text, "  example\n    {}", entry.example);
    }
    text
}

fn json(entry: &Entry) -> serde_json::Value {
    let rows = |rows: Vec<(&str, &str)>| -> Vec<serde_json::Value> {
        rows.into_iter()
            .map(|(name, text)| serde_json::json!({ "name": name, "text": text }))
            .collect()
    };
    serde_json::json!({
        "name": entry.name,
        "kind": entry.kind.word(),
        "title": entry.title,
        "signature": entry.signature,
        "formula": entry.formula,
        "range": entry.range,
        "limits": entry.limits,
        "needs_table": !entry.counts.is_empty(),
        "contexts": entry.contexts,
        "source": entry.source,
        "arguments": rows(entry.arguments.iter().map(|(name, text)| (*name, text.as_str())).collect()),
        "columns": rows(entry.columns.to_vec()),
        "example": entry.example,
    })
}
