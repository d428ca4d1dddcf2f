//! One shape for every function of the catalogue: the reference page, `pmill functions` and its JSON are written from it.

use std::fmt::Write;

use super::others::Kind as OtherKind;
use super::{AGGREGATES, ColumnKind, Default, MEASURES, OTHERS, Parameter, TABLE_FUNCTIONS};

/// What a function is in SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FunctionKind {
    /// A function of `(n_xy, n_x, n_y, n)`.
    Measure,
    /// One value a group.
    Aggregate,
    /// One value a row from its partition.
    Window,
    /// One value a row.
    Scalar,
    /// A table, for `FROM`.
    Table,
}

impl FunctionKind {
    /// The kind in one word.
    pub fn word(self) -> &'static str {
        match self {
            FunctionKind::Measure => "measure",
            FunctionKind::Aggregate => "aggregate",
            FunctionKind::Window => "window",
            FunctionKind::Scalar => "scalar",
            FunctionKind::Table => "table",
        }
    }

    /// The heading of its functions.
    pub fn heading(self) -> &'static str {
        match self {
            FunctionKind::Measure => "Measures of a pair",
            FunctionKind::Aggregate => "Aggregates",
            FunctionKind::Window => "Window functions",
            FunctionKind::Scalar => "Other functions",
            FunctionKind::Table => "Table functions",
        }
    }
}

/// One function, in words.
#[derive(Debug, Clone)]
pub struct Entry {
    /// SQL name.
    pub name: &'static str,
    /// What it is in SQL.
    pub kind: FunctionKind,
    /// What it is, in one line.
    pub title: &'static str,
    /// How it is called; what is in brackets may be left out.
    pub signature: String,
    /// Arguments with what they may be, in their order; the four counts of measures are not listed.
    pub arguments: Vec<(&'static str, String)>,
    /// Columns of a table function.
    pub columns: &'static [(&'static str, &'static str)],
    /// The formula, in plain text.
    pub formula: &'static str,
    /// The values it can take; empty for tables.
    pub range: &'static str,
    /// Empty groups, zero counts, bad rows.
    pub limits: &'static str,
    /// Which counts it takes beyond `n_xy ≤ n_x, n_y ≤ n`; else empty.
    pub counts: &'static str,
    /// What to know about contexts; mostly empty.
    pub contexts: &'static str,
    /// Author, year; empty for plain definitions.
    pub source: &'static str,
    /// A query that shows it; may be empty.
    pub example: &'static str,
}

fn described(parameters: &[Parameter]) -> Vec<(&'static str, String)> {
    parameters
        .iter()
        .map(|parameter| {
            let text = format!(
                "{}; {}; default {}",
                parameter.help,
                parameter.expected(),
                parameter.default_text()
            );
            (parameter.name, text)
        })
        .collect()
}

/// `(first, second [, third])`: names and whether they may be left out.
fn signature(name: &str, arguments: impl Iterator<Item = (&'static str, bool)>) -> String {
    let mut text = format!("{name}(");
    for (place, (argument, optional)) in arguments.enumerate() {
        let comma = if place == 0 { "" } else { ", " };
        match (optional, place) {
            (true, 0) => text.push_str(&format!("[{argument}]")),
            (true, _) => text.push_str(&format!(" [{comma}{argument}]")),
            (false, _) => text.push_str(&format!("{comma}{argument}")),
        }
    }
    text + ")"
}

fn parameter_names(parameters: &'static [Parameter]) -> impl Iterator<Item = (&'static str, bool)> {
    parameters
        .iter()
        .map(|parameter| (parameter.name, parameter.default != Default::Required))
}

/// Every function, in the order of the reference page.
pub fn entries() -> Vec<Entry> {
    let mut all = Vec::new();
    for measure in MEASURES {
        let counts = ["n_xy", "n_x", "n_y", "n"].map(|count| (count, false));
        all.push(Entry {
            name: measure.name,
            kind: FunctionKind::Measure,
            title: measure.title,
            signature: signature(
                measure.name,
                counts
                    .into_iter()
                    .chain(parameter_names(measure.parameters)),
            ),
            arguments: described(measure.parameters),
            columns: &[],
            formula: measure.formula,
            range: measure.range,
            limits: measure.limits,
            counts: if measure.needs_neither { "*table*" } else { "" },
            contexts: measure.event_space_note,
            source: measure.source,
            example: "",
        });
    }
    for spec in AGGREGATES {
        let columns = spec
            .columns
            .iter()
            .map(|column| (column.name, column.optional));
        let mut arguments: Vec<(&'static str, String)> = spec
            .columns
            .iter()
            .map(|column| {
                let kind = match column.kind {
                    ColumnKind::Count => "a count or weight, 0 or more",
                    ColumnKind::Key => "a category: integer, text, yes/no or date",
                    ColumnKind::Number => "a number",
                    ColumnKind::Vector => "a list of numbers",
                };
                let optional = if column.optional {
                    "; may be left out"
                } else {
                    ""
                };
                (column.name, format!("{kind}{optional}"))
            })
            .collect();
        arguments.extend(described(spec.parameters));
        all.push(Entry {
            name: spec.name,
            kind: FunctionKind::Aggregate,
            title: spec.title,
            signature: signature(spec.name, columns.chain(parameter_names(spec.parameters))),
            arguments,
            columns: &[],
            formula: spec.formula,
            range: spec.range,
            limits: spec.limits,
            counts: "",
            contexts: "",
            source: spec.source,
            example: "",
        });
    }
    for kind in [OtherKind::Window, OtherKind::Scalar] {
        for doc in OTHERS.iter().filter(|doc| doc.kind == kind) {
            let names = doc.arguments.iter().map(|(name, _)| (*name, false));
            let mut text = signature(doc.name, names.chain(parameter_names(doc.parameters)));
            if kind == OtherKind::Window {
                text.push_str(" OVER (PARTITION BY …)");
            }
            let mut arguments: Vec<(&'static str, String)> = doc
                .arguments
                .iter()
                .map(|(name, what)| (*name, (*what).to_owned()))
                .collect();
            arguments.extend(described(doc.parameters));
            all.push(Entry {
                name: doc.name,
                kind: match kind {
                    OtherKind::Window => FunctionKind::Window,
                    OtherKind::Scalar => FunctionKind::Scalar,
                },
                title: doc.title,
                signature: text,
                arguments,
                columns: &[],
                formula: doc.formula,
                range: doc.range,
                limits: doc.limits,
                counts: "",
                contexts: "",
                source: doc.source,
                example: doc.example,
            });
        }
    }
    for doc in TABLE_FUNCTIONS {
        let names = doc
            .arguments
            .iter()
            .map(|argument| (argument.name, argument.default.is_some()));
        all.push(Entry {
            name: doc.name,
            kind: FunctionKind::Table,
            title: doc.title,
            signature: signature(doc.name, names),
            arguments: doc
                .arguments
                .iter()
                .map(|argument| {
                    let default = argument.default.unwrap_or("required");
                    (
                        argument.name,
                        format!("{}; default {default}", argument.help),
                    )
                })
                .collect(),
            columns: doc.columns,
            formula: doc.formula,
            range: "",
            limits: doc.limits,
            counts: "",
            contexts: "",
            source: doc.source,
            example: doc.example,
        });
    }
    all
}

impl Entry {
    /// The entry as Markdown, from its heading on.
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "### {}\n\n{}.\n\n`{}`\n\n",
            self.name, self.title, self.signature
        );
        // Formulas of measures and aggregates are formulas; those of the others may be words.
        let code = matches!(self.kind, FunctionKind::Measure | FunctionKind::Aggregate);
        let mut arguments = String::new();
        for (name, what) in &self.arguments {
            let _ = writeln!(arguments, "- `{name}`: {what}");
        }
        let mut line = |name: &str, text: &str| {
            if !text.is_empty() {
                let _ = writeln!(out, "- {name}: {text}");
            }
        };
        let formula = if code {
            format!("`{}`", self.formula)
        } else {
            self.formula.to_owned()
        };
        line("formula", &formula);
        line("range", self.range);
        line("limits", self.limits);
        line("counts", self.counts);
        line("contexts", self.contexts);
        line("source", self.source);
        if !arguments.is_empty() {
            let _ = write!(out, "\nArguments:\n\n{arguments}");
        }
        if !self.columns.is_empty() {
            out.push_str("\nColumns:\n\n");
            for (name, what) in self.columns {
                let _ = writeln!(out, "- `{name}`: {what}");
            }
        }
        if !self.example.is_empty() {
            let _ = writeln!(out, "\n```sql\n{}\n```", self.example);
        }
        out
    }
}
