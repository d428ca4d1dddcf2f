//! All that this crate parses of what strangers send, in one call for a fuzzer: it must come back, and
//! what it took for good must be good.

use datafusion_postgres::datafusion_pg_catalog::sql::PostgresCompatibilityParser;

use crate::auth::{Credentials, Users};
use crate::flight::ticket::Ticket;
use crate::guard;
use crate::postgres::rewrite;

/// Bytes of a statement that is looked at; deeper ones are refused before they are parsed.
const STATEMENT_BYTES: usize = 4 << 10;

/// Parses bytes as a ticket, as an `Authorization` header, as a file of users, as a statement and as a
/// pattern of LIKE.
///
/// # Panics
/// When one of these takes what it should not.
pub fn any_bytes(bytes: &[u8], sql: &PostgresCompatibilityParser) {
    if let Ok(ticket) = Ticket::read(bytes) {
        assert_eq!(ticket.write(), bytes, "a ticket reads as another one");
    }
    if let Ok(Credentials::Basic { name, .. }) = Credentials::parse(bytes) {
        assert!(!name.contains(':'), "a name holds the mark that ends it");
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Err(error) = Users::parse(text, "users") {
        let told = error.to_string();
        assert!(told.contains("line"), "an error without a line: {told}");
    }
    if let Some((pattern, escape)) = text.split_once('\n')
        && let Ok(said) = rewrite::backslashed(pattern, escape)
    {
        let lone = said
            .chars()
            .rev()
            .take_while(|letter| *letter == '\\')
            .count()
            % 2;
        assert_eq!(lone, 0, "a pattern ends with a lone backslash: {said}");
    }
    if guard::check_text(text, STATEMENT_BYTES).is_ok()
        && let Ok(mut statements) = sql.parse(text)
    {
        statements.iter_mut().for_each(rewrite::rewrite);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few thousand messages made of pieces of good ones; the fuzz target `wire` goes further.
    #[test]
    fn pieces_of_messages_are_answered() {
        let sql = PostgresCompatibilityParser::new();
        let seeds: [&[u8]; 8] = [
            b"Basic YW5uOnJpZ2h0OiBob3JzZQ==",
            b"Bearer bot.secret",
            b"ann:password:$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaA\n# x\n",
            b"SELECT a LIKE b || '%' ESCAPE '/', generate_subscripts(k, 1) FROM t WHERE x NOT ILIKE $1 ESCAPE ''",
            b"SELECT CASE WHEN a THEN (SELECT b FROM pg_catalog.pg_attrdef) END, pg_class.reloptions FROM pg_class",
            b"a/_b%\\\n/",
            b"\x01aaaaaaaaaaaaaaaaSELECT 1",
            b"SELECT generate_subscripts(), generate_subscripts(*), like_pattern('a')",
        ];
        let mut state = 11_u64;
        let mut draw = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % below.max(1)
        };
        for _ in 0..4_000 {
            let mut message = seeds[draw(seeds.len())].to_vec();
            for _ in 0..draw(4) {
                let other = seeds[draw(seeds.len())];
                let (from, length, at) = (draw(other.len()), draw(12), draw(message.len() + 1));
                let piece = &other[from..(from + length).min(other.len())];
                message.splice(at..(at + draw(6)).min(message.len()), piece.iter().copied());
            }
            if draw(3) == 0 && !message.is_empty() {
                let at = draw(message.len());
                message[at] = draw(256) as u8;
            }
            any_bytes(&message, &sql);
        }
    }
}
