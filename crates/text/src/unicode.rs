//! Questions about characters, answered as Python 3.11 answers them.

use std::sync::LazyLock;

use crate::unicode_tables::{CASE_IGNORABLE, CASED, LETTER_OR_NUMBER, NUMERIC};

/// One bit a code point below U+110000.
struct CharSet(Box<[u64]>);

impl CharSet {
    fn from_ranges(ranges: &[(u32, u32)]) -> Self {
        let mut bits = vec![0_u64; 0x11_0000 / 64].into_boxed_slice();
        for code in ranges.iter().flat_map(|&(first, last)| first..=last) {
            bits[code as usize / 64] |= 1 << (code % 64);
        }
        Self(bits)
    }

    fn contains(&self, c: char) -> bool {
        let code = c as u32;
        self.0[code as usize / 64] >> (code % 64) & 1 == 1
    }
}

static LETTERS_AND_NUMBERS: LazyLock<CharSet> =
    LazyLock::new(|| CharSet::from_ranges(LETTER_OR_NUMBER));
static NUMERICS: LazyLock<CharSet> = LazyLock::new(|| CharSet::from_ranges(NUMERIC));

static CASE_IGNORABLES: LazyLock<CharSet> = LazyLock::new(|| CharSet::from_ranges(CASE_IGNORABLE));
static CASED_CHARACTERS: LazyLock<CharSet> = LazyLock::new(|| CharSet::from_ranges(CASED));

/// Python 3.11's `str.lower` for text of letters, numbers and blanks.
///
/// The standard library's rule for a capital sigma at a word's end stands on a newer Unicode, where
/// some letters (U+0295, for one) have lost their case. All other mappings of Unicode 14 are stable.
pub(crate) fn python_lower(text: &str) -> String {
    let beside = |mut characters: &mut dyn Iterator<Item = char>| {
        let next = (&mut characters).find(|&c| !CASE_IGNORABLES.contains(c));
        next.is_some_and(|c| CASED_CHARACTERS.contains(c))
    };
    let mut lower = String::with_capacity(text.len());
    for (place, c) in text.char_indices() {
        if c != 'Σ' {
            lower.extend(c.to_lowercase());
            continue;
        }
        let after = place + c.len_utf8();
        let is_final =
            beside(&mut text[..place].chars().rev()) && !beside(&mut text[after..].chars());
        lower.push(if is_final { 'ς' } else { 'σ' });
    }
    lower
}

/// Whether a character is of category L or N in Unicode 14: Python 3.11's `[^\W_]`.
pub(crate) fn is_letter_or_number(c: char) -> bool {
    LETTERS_AND_NUMBERS.contains(c)
}

/// Python 3.11's `str.isnumeric`: at least one character, and each has a numeric value.
///
/// ```
/// assert!(pmill_text::is_numeric("½Ⅷ一二3"));
/// assert!(!pmill_text::is_numeric("1.5") && !pmill_text::is_numeric(""));
/// ```
#[must_use]
pub fn is_numeric(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| NUMERICS.contains(c))
}

/// Python's `str.isspace` for one character: White_Space and the separators U+001C to U+001F.
pub(crate) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&c)
}

/// U+0009 to U+000D and the blank: where `words` and `icu` cut before anything else.
pub(crate) fn is_ascii_white_space(c: char) -> bool {
    c == ' ' || ('\t'..='\r').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_sets_agree_on_every_character() {
        for (set, ranges) in [
            (&*LETTERS_AND_NUMBERS, LETTER_OR_NUMBER),
            (&*NUMERICS, NUMERIC),
        ] {
            for c in '\0'..=char::MAX {
                let listed = ranges
                    .binary_search_by(|&(first, last)| {
                        if last < c as u32 {
                            std::cmp::Ordering::Less
                        } else if first > c as u32 {
                            std::cmp::Ordering::Greater
                        } else {
                            std::cmp::Ordering::Equal
                        }
                    })
                    .is_ok();
                assert_eq!(set.contains(c), listed, "{c:?}");
            }
        }
    }

    #[test]
    fn a_capital_sigma_is_small_by_its_place() {
        assert_eq!(python_lower("ΟΔΟΣ ΣΑΣ Σ ΣΑ"), "οδος σας σ σα");
        // In Unicode 14 U+0295 is a small letter.
        assert_eq!(python_lower("ʕΣ İ"), "ʕς i\u{307}");
    }

    #[test]
    fn marks_and_the_underscore_are_no_letters() {
        assert!(is_letter_or_number('ß') && is_letter_or_number('Ⅷ') && is_letter_or_number('字'));
        assert!(!is_letter_or_number('_') && !is_letter_or_number('\u{301}'));
    }

    #[test]
    fn python_space_has_four_characters_more_than_white_space() {
        let more: Vec<char> = ('\0'..=char::MAX)
            .filter(|&c| is_python_space(c) != c.is_whitespace())
            .collect();
        assert_eq!(more, ['\u{1C}', '\u{1D}', '\u{1E}', '\u{1F}']);
    }
}
