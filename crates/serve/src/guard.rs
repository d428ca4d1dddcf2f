//! What a statement may be: a query, EXPLAIN or SHOW, of bounded length and depth.

use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::{DdlStatement, LogicalPlan, Statement, WriteOp};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::error::ServeError;

/// Operators in one statement. Each can make the syntax tree one level deeper, and trees are walked
/// (and thrown away) by recursion, so that an endless `1+1+1+…` would overflow a stack.
pub const MAX_OPERATORS: usize = 5_000;

/// Checks the text of a statement before it is parsed.
///
/// # Errors
/// [`ServeError::TooComplex`] with what to do.
pub fn check_text(sql: &str, limit_bytes: usize) -> Result<(), ServeError> {
    if sql.len() > limit_bytes {
        return Err(ServeError::TooComplex(format!(
            "the statement has {} bytes, more than the limit of {limit_bytes}",
            sql.len()
        )));
    }
    if sql.len() <= MAX_OPERATORS {
        return Ok(());
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize()
        .map_err(|error| ServeError::Query(error.to_string()))?;
    let operators = tokens.iter().filter(|token| deepens(token)).count();
    if operators > MAX_OPERATORS {
        return Err(ServeError::TooComplex(format!(
            "the statement has {operators} operators, more than the limit of {MAX_OPERATORS}; \
             join with a VALUES list instead of a long chain of AND and OR"
        )));
    }
    Ok(())
}

fn deepens(token: &Token) -> bool {
    match token {
        Token::Word(word) => !matches!(
            word.keyword,
            Keyword::NoKeyword | Keyword::NULL | Keyword::TRUE | Keyword::FALSE
        ),
        Token::Comma
        | Token::Whitespace(_)
        | Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::EscapedStringLiteral(_)
        | Token::LParen
        | Token::RParen
        | Token::SemiColon
        | Token::Placeholder(_) => false,
        _ => true,
    }
}

/// Checks that a plan only reads.
///
/// # Errors
/// [`ServeError::NotRead`] with the statement's kind.
pub fn check_plan(plan: &LogicalPlan) -> Result<(), ServeError> {
    let refuse = |statement: &str| {
        Err(ServeError::NotRead {
            statement: statement.to_owned(),
        })
    };
    match plan {
        LogicalPlan::Ddl(ddl) => refuse(match ddl {
            DdlStatement::DropTable(_)
            | DdlStatement::DropView(_)
            | DdlStatement::DropCatalogSchema(_)
            | DdlStatement::DropFunction(_) => "DROP",
            _ => "CREATE",
        }),
        LogicalPlan::Dml(dml) => refuse(match dml.op {
            WriteOp::Insert(_) => "INSERT",
            WriteOp::Delete => "DELETE",
            WriteOp::Update => "UPDATE",
            _ => "changing a table",
        }),
        LogicalPlan::Copy(_) => refuse("COPY"),
        LogicalPlan::Statement(statement) => refuse(match statement {
            Statement::SetVariable(_) => "SET",
            Statement::ResetVariable(_) => "RESET",
            Statement::Prepare(_) | Statement::Execute(_) | Statement::Deallocate(_) => "PREPARE",
            _ => "a transaction",
        }),
        // What hides inside (EXPLAIN ANALYZE INSERT …, sub-queries) is looked for by the engine.
        plan => SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(plan)
            .or_else(|_| refuse("a statement that changes something")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_let_through_and_deep_chains_are_not() {
        let values: Vec<String> = (0..10_000).map(|n| format!("('w{n}', 'v{n}')")).collect();
        let list = format!("SELECT * FROM (VALUES {}) AS t(a, b)", values.join(", "));
        assert!(check_text(&list, 1 << 20).is_ok());
        let chain = format!("SELECT {}1", "1+".repeat(MAX_OPERATORS));
        let refused = check_text(&chain, 1 << 20).unwrap_err().to_string();
        assert!(refused.contains("join with a VALUES list"), "{refused}");
        assert!(
            check_text(&chain, 100)
                .unwrap_err()
                .to_string()
                .contains("bytes")
        );
    }
}
