//! Cuts rows fast: eight bytes at a step where the text is ASCII.
//!
//! In: a row, or a part of it that ends behind a blank, within a longer text that has blanks before
//! and behind, so that every load is within bounds and every token has an end. Out: a queue of tokens (short ones as
//! keys, in ASCII lower case where the tokenizer lower-cases) and of pieces that need the plain road.
//! Each scanner stops when the queue is full and is called again with the place it reached.

use crate::memo::{SHORT_BYTES, ShortKey};
use crate::unicode::{is_letter_or_number, is_python_space};

/// Blanks behind each row.
pub(crate) const PADDING: &str = "                        ";

/// Items that are queued before they are looked up.
pub(crate) const QUEUE_LENGTH: usize = 256;

/// A token or piece of the text, or the end of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    low: u64,
    high: u64,
}

/// What an [`Item`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A normalised token.
    Short(ShortKey),
    /// A token in bytes `start..end` of the text, to be lower-cased if the tokenizer does so.
    Long(usize, usize),
    /// Bytes `start..end` of the text for the plain road.
    Piece(usize, usize),
    /// A row ends.
    RowEnd,
}

/// In the last byte of an item, where a short key has its length.
const LONG: u64 = 0xFF;
const PIECE: u64 = 0xFE;
const ROW_END: u64 = 0xFD;
const LENGTH_BITS: u32 = 56;

impl Item {
    pub(crate) const ROW_END: Self = Self {
        low: 0,
        high: ROW_END << LENGTH_BITS,
    };

    #[inline(always)]
    fn spanned(mark: u64, start: usize, end: usize) -> Self {
        Self {
            low: start as u64,
            high: mark << LENGTH_BITS | (end - start) as u64,
        }
    }

    /// The item if it is a short token. (For others the key means nothing, but may be hashed.)
    #[inline(always)]
    pub(crate) fn key(self) -> ShortKey {
        ShortKey {
            low: self.low,
            high: self.high,
        }
    }

    #[inline(always)]
    pub(crate) fn is_short(self) -> bool {
        self.high >> LENGTH_BITS < ROW_END
    }

    #[inline(always)]
    pub(crate) fn meaning(self) -> Meaning {
        let start = self.low as usize;
        let end = start.wrapping_add((self.high & ((1 << LENGTH_BITS) - 1)) as usize);
        match self.high >> LENGTH_BITS {
            LONG => Meaning::Long(start, end),
            PIECE => Meaning::Piece(start, end),
            ROW_END => Meaning::RowEnd,
            _ => Meaning::Short(self.key()),
        }
    }
}

/// Rows with [`PADDING`] behind each, and where the one at hand ends.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) text: &'a str,
    pub(crate) end: usize,
}

const EVERY: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x80 * EVERY;

const fn mask(length: usize) -> u128 {
    (1 << (8 * length)) - 1
}

/// By length of a short token: which bits of its 16 loaded bytes are its own.
const MASKS: [u128; SHORT_BYTES + 1] = {
    let mut masks = [0; SHORT_BYTES + 1];
    let mut length = 0;
    while length <= SHORT_BYTES {
        masks[length] = mask(length);
        length += 1;
    }
    masks
};

#[inline(always)]
fn load(padded: &[u8], place: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&padded[place..place + 8]);
    u64::from_le_bytes(word)
}

/// The high bit of each byte that is below `limit` (ASCII) or not ASCII.
#[inline(always)]
fn below_or_high(word: u64, limit: u8) -> u64 {
    (!((word | HIGH) - u64::from(limit) * EVERY) | word) & HIGH
}

/// The high bit of each byte that is in `first..=last`; all bytes must be ASCII.
#[inline(always)]
fn within(word: u64, first: u8, last: u8) -> u64 {
    let from = word + u64::from(0x80 - first) * EVERY;
    let beyond = word + u64::from(0x7F - last) * EVERY;
    from & !beyond & HIGH
}

/// The high bit of each byte that is no ASCII letter or digit.
#[inline(always)]
fn not_alphanumeric(word: u64) -> u64 {
    let ascii = word & !HIGH;
    let letters = within(ascii | (0x20 * EVERY), b'a', b'z');
    let digits = within(ascii, b'0', b'9');
    !(letters | digits) & HIGH | word & HIGH
}

/// ASCII capitals to small letters; all bytes must be ASCII.
#[inline(always)]
fn lower(word: u64) -> u64 {
    word | within(word, b'A', b'Z') >> 2
}

#[inline(always)]
fn first_byte(mask: u64) -> usize {
    mask.trailing_zeros() as usize / 8
}

/// The first place at or after `place` whose byte is no ASCII letter or digit.
#[inline(always)]
fn skip_alphanumeric(padded: &[u8], mut place: usize) -> usize {
    loop {
        let stop = not_alphanumeric(load(padded, place));
        if stop != 0 {
            return place + first_byte(stop);
        }
        place += 8;
    }
}

/// A token as it stands.
#[inline(always)]
fn token(padded: &[u8], start: usize, end: usize) -> Item {
    let length = end - start;
    if length > SHORT_BYTES {
        return Item::spanned(LONG, start, end);
    }
    let mask = MASKS[length];
    Item {
        low: load(padded, start) & mask as u64,
        high: load(padded, start + 8) & (mask >> 64) as u64 | (length as u64) << LENGTH_BITS,
    }
}

/// An ASCII token in small letters.
#[inline(always)]
fn lower_token(padded: &[u8], start: usize, end: usize) -> Item {
    let item = token(padded, start, end);
    if !item.is_short() {
        return item;
    }
    Item {
        low: lower(item.low),
        high: lower(item.high),
    }
}

#[inline(always)]
fn is_ascii_white_space(byte: u8) -> bool {
    byte == b' ' || (b'\t'..=b'\r').contains(&byte)
}

/// `whitespace`: fills the queue from `place`, gives the place to go on from.
pub(crate) fn whitespace(block: Block<'_>, mut place: usize, queue: &mut Vec<Item>) -> usize {
    let Block {
        text,
        end: block_end,
    } = block;
    let padded = text.as_bytes();
    let is_space = |byte: u8| is_ascii_white_space(byte) || (0x1C..=0x1F).contains(&byte);
    while place < block_end && queue.len() < QUEUE_LENGTH {
        let start = place;
        loop {
            let stop = below_or_high(load(padded, place), b' ' + 1);
            if stop == 0 {
                place += 8;
                continue;
            }
            place += first_byte(stop);
            let byte = padded[place];
            if is_space(byte) {
                if place > start {
                    queue.push(token(padded, start, place));
                }
                place += 1;
                break;
            }
            if byte < 0x80 {
                place += 1;
                continue;
            }
            let width = match byte {
                // Every space beyond ASCII begins with one of these.
                0xC2 | 0xE1..=0xE3 => match text[place..].chars().next() {
                    Some(c) if is_python_space(c) => {
                        if place > start {
                            queue.push(token(padded, start, place));
                        }
                        place += c.len_utf8();
                        break;
                    }
                    c => c.map_or(1, char::len_utf8),
                },
                0xC0..=0xDF => 2,
                0xE0..=0xEF => 3,
                _ => 4,
            };
            place += width;
        }
    }
    place
}

/// What a byte is to UAX 29.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Other,
    Letter,
    Digit,
    Underscore,
    /// Joins letters: the colon.
    MidLetter,
    /// Joins digits: comma and semicolon.
    MidNumber,
    /// Joins letters or digits: full stop and apostrophe.
    MidBoth,
    NotAscii,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'A'..=b'Z' | b'a'..=b'z' => Class::Letter,
            b'0'..=b'9' => Class::Digit,
            b'_' => Class::Underscore,
            b':' => Class::MidLetter,
            b',' | b';' => Class::MidNumber,
            b'.' | b'\'' => Class::MidBoth,
            0x80.. => Class::NotAscii,
            _ => Class::Other,
        };
        byte += 1;
    }
    classes
};

fn class(byte: u8) -> Class {
    CLASSES[usize::from(byte)]
}

/// `words`: like [`whitespace`]. From a character beyond ASCII to the next white space is a piece,
/// together with the ASCII word or the one separator before it, which it may change (a mark composes
/// with `=`, a joiner holds on to anything).
pub(crate) fn words(block: Block<'_>, mut place: usize, queue: &mut Vec<Item>) -> usize {
    let Block {
        text,
        end: block_end,
    } = block;
    let padded = text.as_bytes();
    while place < block_end && queue.len() < QUEUE_LENGTH {
        let start = place;
        let piece_start = match class(padded[place]) {
            Class::Letter | Class::Digit | Class::Underscore => match word_end(padded, start) {
                WordEnd::Word(end) => {
                    queue.push(lower_token(padded, start, end));
                    place = end;
                    continue;
                }
                WordEnd::NoWord(end) => {
                    place = end;
                    continue;
                }
                WordEnd::NotAscii => start,
            },
            Class::NotAscii if start > 0 && !is_ascii_white_space(padded[start - 1]) => start - 1,
            Class::NotAscii => start,
            _ => {
                place += 1;
                continue;
            }
        };
        while !is_ascii_white_space(padded[place]) {
            place += 1;
        }
        queue.push(Item::spanned(PIECE, piece_start, place));
    }
    place
}

enum WordEnd {
    /// A word with a letter or digit ends here.
    Word(usize),
    /// Only underscores.
    NoWord(usize),
    /// A character beyond ASCII has a say in where the word ends.
    NotAscii,
}

/// The end of the UAX 29 word that starts at a letter, digit or underscore.
#[inline(always)]
fn word_end(padded: &[u8], start: usize) -> WordEnd {
    let mut place = start;
    let mut is_word = false;
    loop {
        let end = skip_alphanumeric(padded, place);
        is_word |= end > place;
        place = end;
        let stop = class(padded[place]);
        match stop {
            Class::Other => break,
            Class::Underscore => {
                place += 1;
                continue;
            }
            Class::NotAscii => return WordEnd::NotAscii,
            _ => {}
        }
        // A mid character joins two of its kind.
        let next = class(padded[place + 1]);
        if next == Class::NotAscii {
            return WordEnd::NotAscii;
        }
        let joins = class(padded[place - 1]) == next
            && match next {
                Class::Letter => stop != Class::MidNumber,
                Class::Digit => stop != Class::MidLetter,
                _ => false,
            };
        if !joins {
            break;
        }
        place += 1;
    }
    if is_word {
        WordEnd::Word(place)
    } else {
        WordEnd::NoWord(place)
    }
}

/// `qu-xie`: like [`whitespace`]. A run with characters beyond ASCII is a piece.
pub(crate) fn letters_and_numbers(
    block: Block<'_>,
    mut place: usize,
    queue: &mut Vec<Item>,
) -> usize {
    let Block {
        text,
        end: block_end,
    } = block;
    let padded = text.as_bytes();
    while place < block_end && queue.len() < QUEUE_LENGTH {
        let start = place;
        let mut ascii = true;
        loop {
            place = skip_alphanumeric(padded, place);
            if padded[place] < 0x80 {
                break;
            }
            match text[place..].chars().next() {
                Some(c) if is_letter_or_number(c) => {
                    ascii = false;
                    place += c.len_utf8();
                }
                _ => break,
            }
        }
        if place > start {
            queue.push(if ascii {
                lower_token(padded, start, place)
            } else {
                Item::spanned(PIECE, start, place)
            });
        }
        // The separator.
        place += text[place..].chars().next().map_or(1, char::len_utf8);
    }
    place
}

/// `icu`: like [`whitespace`]. What is not all ASCII letters and digits between white space is a piece.
pub(crate) fn between_white_space(
    block: Block<'_>,
    mut place: usize,
    queue: &mut Vec<Item>,
) -> usize {
    let Block {
        text,
        end: block_end,
    } = block;
    let padded = text.as_bytes();
    while place < block_end && queue.len() < QUEUE_LENGTH {
        let start = place;
        place = skip_alphanumeric(padded, place);
        if is_ascii_white_space(padded[place]) {
            if place > start {
                queue.push(lower_token(padded, start, place));
            }
        } else {
            while !is_ascii_white_space(padded[place]) {
                place += 1;
            }
            queue.push(Item::spanned(PIECE, start, place));
        }
        place += 1;
    }
    place
}
