//! Parameters of a pipeline file, laid into its SQL: `{name}` becomes the value as an SQL literal, `{"name"}` as the
//! name of a column or a schema.

use pmill_engine::error::nearest_name;
use pmill_engine::sql::{literal as literal_text, name as identifier};

/// Replaces every `{name}` and `{"name"}` in `sql` by its value, quoted as SQL wants it. A doubled brace
/// (`{{`, `}}`) is one brace.
pub fn fill(sql: &str, parameters: &toml::Table) -> Result<String, String> {
    let mut filled = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some(at) = rest.find(['{', '}']) {
        filled.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix(brace) {
            filled.push_str(brace);
            rest = after;
            continue;
        }
        let (name, after) = match (brace, after.split_once('}')) {
            ("{", Some(found)) => found,
            _ => {
                return Err(format!(
                    "a single `{brace}` in SQL: a parameter stands as {{name}}, a brace is doubled"
                ));
            }
        };
        let as_name = name
            .strip_prefix('"')
            .and_then(|name| name.strip_suffix('"'));
        let name = as_name.unwrap_or(name);
        let value = parameters.get(name).ok_or_else(|| {
            let nearest = nearest_name(name, parameters.keys().map(String::as_str))
                .map(|name| format!(" (did you mean `{name}`?)"))
                .unwrap_or_default();
            format!("`{{{name}}}` in SQL is not in [parameters]{nearest}; set it by --set parameters.{name}=…")
        })?;
        match (as_name, value) {
            (None, value) => filled.push_str(&literal(name, value)?),
            (Some(_), toml::Value::String(text)) => filled.push_str(&identifier(text)),
            (Some(_), other) => {
                return Err(format!(
                    "parameter `{name}` is {}; `{{\"{name}\"}}` takes the text of a name",
                    other.type_str()
                ));
            }
        }
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn literal(name: &str, value: &toml::Value) -> Result<String, String> {
    Ok(match value {
        toml::Value::String(text) => literal_text(text),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) if number.is_finite() => format!("{number:?}"),
        toml::Value::Boolean(value) => value.to_string(),
        toml::Value::Array(items) if items.is_empty() => {
            // An empty list of text has a type too.
            "array_remove(make_array(''), '')".to_owned()
        }
        toml::Value::Array(items) => {
            let items = items
                .iter()
                .map(|item| literal(name, item))
                .collect::<Result<Vec<_>, _>>()?;
            format!("make_array({})", items.join(", "))
        }
        toml::Value::Table(table) if table.len() == 1 && table.contains_key("lines") => {
            literal(name, &lines(name, &table["lines"])?)?
        }
        other => {
            return Err(format!(
                "parameter `{name}` is {}; text, a number, true, false, a list of these or {{ lines = \"FILE\" }} can be laid into SQL",
                other.type_str()
            ));
        }
    })
}

/// The lines of a file as a list, empty ones left out.
fn lines(name: &str, path: &toml::Value) -> Result<toml::Value, String> {
    let path = path.as_str().ok_or_else(|| {
        format!(
            "parameter `{name}`: `lines` is {}, expected a file",
            path.type_str()
        )
    })?;
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("parameter `{name}`: cannot read `{path}`: {error}"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let list = lines.map(|line| toml::Value::String(line.to_owned()));
    Ok(toml::Value::Array(list.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(sql: &str) -> Result<String, String> {
        let parameters = "n = 2\nx = 0.5\ny = 1e300\ntext = \"it's\"\nyes = true\nlist = ['a', \"b'c\"]\nnone = []\nday = 1979-05-27"
            .parse()
            .unwrap();
        fill(sql, &parameters)
    }

    #[test]
    fn values_become_literals() {
        assert_eq!(filled("LIMIT {n}").unwrap(), "LIMIT 2");
        assert_eq!(
            filled(r#"FROM {"text"}.pmi"#).unwrap(),
            r#"FROM "it's".pmi"#
        );
        assert!(
            filled(r#"FROM {"n"}"#)
                .unwrap_err()
                .contains("`n` is integer")
        );
        assert_eq!(filled("{x} {y} {yes}").unwrap(), "0.5 1e300 true");
        assert_eq!(filled("= {text}").unwrap(), "= 'it''s'");
        assert_eq!(filled("IN {list}").unwrap(), "IN make_array('a', 'b''c')");
        assert_eq!(filled("a {{n}} b").unwrap(), "a {n} b");
        assert_eq!(
            filled("{none}").unwrap(),
            "array_remove(make_array(''), '')"
        );
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert!(filled("{lst}").unwrap_err().contains("did you mean `list`"));
        assert!(filled("a { b").unwrap_err().contains("doubled"));
        assert!(filled("a } b").unwrap_err().contains("doubled"));
        assert!(filled("{day}").unwrap_err().contains("datetime"));
    }
}
