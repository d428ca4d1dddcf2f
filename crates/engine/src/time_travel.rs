//! `AS OF` in SQL: a table of a job as an older version shows it.
//!
//! The parser of the engine does not know the clause, so it is taken out here before: `j.pairs VERSION
//! AS OF 3` becomes `"j@3".pairs`, a schema that the catalog opens at that version. The text is cut
//! into tokens by the engine's own lexer; strings and comments are left alone.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Whitespace, Word};

/// The name of a job's schema at a version.
#[must_use]
pub fn schema_name(job: &str, version: u64) -> String {
    format!("{job}@{version}")
}

/// The job and version that a schema's name says; `None` for a name without a version.
#[must_use]
pub fn parse_schema_name(schema: &str) -> Option<(&str, u64)> {
    let (job, version) = schema.split_once('@')?;
    Some((job, version.parse().ok()?))
}

/// Replaces every `JOB.TABLE VERSION AS OF N`. Text that is no SQL comes back as it is: the parser
/// says what is wrong with it.
///
/// # Errors
/// When a version is not a number, or the table is not named as `job.table`.
pub fn rewrite(sql: &str) -> Result<String, String> {
    let upper = sql.to_ascii_uppercase();
    if !upper.contains("AS") || !upper.contains("OF") {
        return Ok(sql.to_owned());
    }
    let Ok(mut tokens) = Tokenizer::new(&GenericDialect {}, sql)
        .with_unescape(false)
        .tokenize()
    else {
        return Ok(sql.to_owned());
    };
    let mut changed = false;
    while let Some((from, of)) = clause(&tokens) {
        let after = next(&tokens, of + 1);
        let version = after.and_then(|at| match &tokens[at] {
            Token::Number(digits, false) => digits.parse::<u64>().ok().map(|version| (at, version)),
            _ => None,
        });
        let Some((end, version)) = version else {
            return Err("expected a number after VERSION AS OF, as in `FROM j.pairs VERSION AS OF 3` (`pmill inspect` lists versions and their times)".into());
        };
        let table = previous(&tokens, from);
        let period = table.and_then(|at| previous(&tokens, at));
        let schema = period.and_then(|at| previous(&tokens, at));
        let (Some(table), Some(period), Some(schema)) = (table, period, schema) else {
            return Err(UNNAMED.into());
        };
        let (Token::Word(_), Token::Period, Token::Word(job)) =
            (&tokens[table], &tokens[period], &tokens[schema])
        else {
            return Err(UNNAMED.into());
        };
        let name = schema_name(&job.value, version);
        tokens[schema] = Token::Word(Word {
            value: name,
            quote_style: Some('"'),
            ..job.clone()
        });
        tokens.drain(table + 1..=end);
        changed = true;
    }
    if !changed {
        return Ok(sql.to_owned());
    }
    Ok(tokens.iter().map(ToString::to_string).collect())
}

const UNNAMED: &str =
    "VERSION AS OF stands behind a table named as job.table, as in `FROM j.pairs VERSION AS OF 3`";

/// Where `VERSION` and `OF` of the first clause are.
fn clause(tokens: &[Token]) -> Option<(usize, usize)> {
    (0..tokens.len()).find_map(|at| {
        let is = |at: usize, word: &str| {
            matches!(&tokens[at], Token::Word(found)
                if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
        };
        if !is(at, "VERSION") {
            return None;
        }
        let second = next(tokens, at + 1).filter(|at| is(*at, "AS"))?;
        let third = next(tokens, second + 1).filter(|at| is(*at, "OF"))?;
        Some((at, third))
    })
}

fn blank(token: &Token) -> bool {
    matches!(
        token,
        Token::Whitespace(
            Whitespace::Space
                | Whitespace::Newline
                | Whitespace::Tab
                | Whitespace::SingleLineComment { .. }
                | Whitespace::MultiLineComment(_)
        )
    )
}

fn next(tokens: &[Token], from: usize) -> Option<usize> {
    (from..tokens.len()).find(|at| !blank(&tokens[*at]))
}

fn previous(tokens: &[Token], before: usize) -> Option<usize> {
    (0..before).rev().find(|at| !blank(&tokens[*at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clause_becomes_a_schema() {
        let same = |from: &str, to: &str| assert_eq!(rewrite(from).unwrap(), to);
        same(
            "SELECT * FROM j.pairs VERSION AS OF 3",
            "SELECT * FROM \"j@3\".pairs",
        );
        same(
            "select a.count from J.pairs version  as\nof 0 AS a, j.pairs AS b -- version as of\nwhere x = 'VERSION AS OF 2'",
            "select a.count from \"J@0\".pairs AS a, j.pairs AS b -- version as of\nwhere x = 'VERSION AS OF 2'",
        );
        same(
            "SELECT 1 FROM j.vocab VERSION AS OF 1 JOIN k.vocab VERSION AS OF 22 USING (id)",
            "SELECT 1 FROM \"j@1\".vocab JOIN \"k@22\".vocab USING (id)",
        );
        for text in [
            "SELECT version AS of_it FROM j.pairs",
            "SELECT \"version\" as of",
            "SELECT 'as of",
            "",
            "SELECT '\\n', 'it''s as of'",
        ] {
            same(text, text);
        }
        assert_eq!(parse_schema_name("j@3"), Some(("j", 3)));
        assert_eq!(parse_schema_name("j"), None);
        assert_eq!(parse_schema_name("j@x"), None);
    }

    #[test]
    fn a_clause_that_says_no_version_is_told() {
        assert!(
            rewrite("SELECT * FROM j.pairs VERSION AS OF 'x'")
                .unwrap_err()
                .contains("expected a number")
        );
        assert!(
            rewrite("SELECT * FROM pairs VERSION AS OF 1")
                .unwrap_err()
                .contains("job.table")
        );
    }
}
