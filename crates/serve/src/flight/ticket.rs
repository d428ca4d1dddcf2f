//! Tickets: what a client shows to get the rows of a statement that it announced.
//!
//! A ticket holds the statement itself, so that the server remembers nothing between the two calls:
//! one byte of version, 16 bytes that name the query (to cancel it), the statement as UTF-8.

use uuid::Uuid;

use crate::error::ServeError;

const VERSION: u8 = 1;

/// A statement that will be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Names the query.
    pub id: Uuid,
    /// The statement.
    pub sql: String,
}

impl Ticket {
    /// A ticket for a statement.
    #[must_use]
    pub fn new(sql: String) -> Self {
        Self {
            id: Uuid::new_v4(),
            sql,
        }
    }

    /// As bytes.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(17 + self.sql.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(self.sql.as_bytes());
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    /// For anything that [`Ticket::write`] does not make.
    pub fn read(bytes: &[u8]) -> Result<Self, ServeError> {
        let wrong = || ServeError::Message("the ticket is not one of this server".to_owned());
        let (version, rest) = bytes.split_first().ok_or_else(wrong)?;
        let (id, sql) = rest.split_first_chunk::<16>().ok_or_else(wrong)?;
        if *version != VERSION {
            return Err(wrong());
        }
        Ok(Self {
            id: Uuid::from_bytes(*id),
            sql: std::str::from_utf8(sql).map_err(|_| wrong())?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_comes_back_as_it_was_written_and_mutated_ones_are_answered() {
        let ticket = Ticket::new("SELECT 'ü'".to_owned());
        let bytes = ticket.write();
        assert_eq!(Ticket::read(&bytes).unwrap(), ticket);
        assert!(Ticket::read(&[]).is_err());
        assert!(Ticket::read(&bytes[..16]).is_err());
        let mut seed = 7_u32;
        for _ in 0..20_000 {
            let mut mutated = bytes.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (seed >> 8) as usize % mutated.len();
                mutated[at] = (seed >> 24) as u8;
            }
            mutated.truncate(1 + (seed >> 4) as usize % mutated.len());
            if let Ok(read) = Ticket::read(&mutated) {
                assert_eq!(read.write(), mutated);
            }
        }
    }
}
