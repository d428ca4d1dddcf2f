//! The fast road from rows to numbers, for [`crate::DictionaryBuilder`] and [`crate::IdEncoder`].
//!
//! What a token becomes (filters, lemma, number) depends on the token alone, so it is remembered by the
//! token's bytes, in bounded memos. A row is cut into a queue of tokens first and looked up then, so
//! that the memory accesses of many tokens overlap. The plain road is
//! [`FeatureExtractor::for_each_feature`]; tests hold the two together.

use std::sync::Arc;

use crate::memo::{PieceMemo, ShortKey, ShortMemo};
use crate::phrases::Matcher;
use crate::scan::{self, Block, Item, Meaning, PADDING, QUEUE_LENGTH};
use crate::tokenize::{self, Cutter};
use crate::{FeatureExtractor, OUT_OF_VOCABULARY, TextError};

/// Where features get their numbers.
pub(crate) trait Numbers {
    /// The number of a feature, below [`crate::terms::TERM_LIMIT`], or [`OUT_OF_VOCABULARY`].
    fn number(&mut self, feature: &str) -> Result<u32, TextError>;
}

/// A token that leaves nothing.
const SKIP: u32 = u32::MAX - 1;
/// Never a token's value.
const NEVER: u32 = u32::MAX - 2;
/// Not asked for yet.
const UNKNOWN: u32 = u32::MAX - 3;
/// With a term list only: values from here to below [`UNKNOWN`] are symbols of the list, as
/// `SYMBOL + 2 * symbol + keeps`.
const SYMBOL: u32 = 1 << 31;

/// Sizes of the memos of one thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoLimits {
    pub(crate) short_bytes: usize,
    pub(crate) piece_bytes: usize,
}

impl Default for MemoLimits {
    fn default() -> Self {
        Self {
            short_bytes: 8 << 20,
            piece_bytes: 4 << 20,
        }
    }
}

/// Text is copied and scanned in blocks of about so many bytes.
const BLOCK_BYTES: usize = 64 << 10;

/// The fast road of one thread.
pub(crate) struct Road<N> {
    resolver: Resolver<N>,
    /// Raw pieces (not normalised) to the values of their tokens.
    pieces: PieceMemo,
    terms: TermValues,
    /// Hugging Face token ids to values.
    by_token_id: Vec<u32>,
    padded: Vec<u8>,
    queue: Vec<Item>,
    /// Values of a row when a term list must see all of them.
    row: Vec<u32>,
    piece_values: Vec<u32>,
}

/// Normalised tokens to values.
struct Resolver<N> {
    extractor: Arc<FeatureExtractor>,
    numbers: N,
    short: ShortMemo,
    long: PieceMemo,
    lemma: String,
}

impl<N: Numbers> Resolver<N> {
    /// The value of a token that no memo knows.
    fn resolve(&mut self, token: &str) -> Result<u32, TextError> {
        let Self {
            extractor,
            numbers,
            lemma,
            ..
        } = self;
        let keeps = extractor.keeps(token);
        let Some(matcher) = &extractor.matcher else {
            return if keeps {
                numbers.number(extractor.lemma(token, lemma))
            } else {
                Ok(SKIP)
            };
        };
        let lemma = extractor.lemma(token, lemma);
        if let Some(symbol) = matcher.symbol(lemma) {
            return Ok(SYMBOL + 2 * symbol + u32::from(keeps));
        }
        if keeps && matcher.keeps_others() {
            below_symbols(numbers.number(lemma)?)
        } else {
            Ok(SKIP)
        }
    }

    /// The value of a token of any length.
    fn value(&mut self, token: &str) -> Result<u32, TextError> {
        match ShortKey::of(token.as_bytes()) {
            Some(key) => match self.short.get(key) {
                Some(value) => Ok(value),
                None => {
                    let value = self.resolve(token)?;
                    self.short.put(key, value);
                    Ok(value)
                }
            },
            None => {
                if let Some([value]) = self.long.get(token.as_bytes()) {
                    return Ok(*value);
                }
                let value = self.resolve(token)?;
                self.long.put(token.as_bytes(), &[value]);
                Ok(value)
            }
        }
    }

    /// The value of a short token that the memo does not know.
    #[cold]
    #[inline(never)]
    fn short_miss(&mut self, key: ShortKey) -> Result<u32, TextError> {
        let (bytes, length) = key.bytes();
        let token = std::str::from_utf8(&bytes[..length])
            .expect("a short key holds a whole token, cut at character edges");
        let value = self.resolve(token)?;
        self.short.put(key, value);
        Ok(value)
    }
}

/// With a term list, numbers must leave room for symbols.
fn below_symbols(number: u32) -> Result<u32, TextError> {
    if number < SYMBOL || number == OUT_OF_VOCABULARY {
        Ok(number)
    } else {
        Err(TextError::TooManyTerms { limit: SYMBOL })
    }
}

/// Numbers of the terms of a list and of their single tokens, once they were asked for.
struct TermValues {
    by_symbol: Vec<u32>,
    by_term: Vec<u32>,
}

impl TermValues {
    fn new(matcher: Option<&Matcher>) -> Self {
        let (symbols, terms) = matcher.map_or((0, 0), |matcher| {
            (matcher.symbol_count(), matcher.term_count())
        });
        Self {
            by_symbol: vec![UNKNOWN; symbols],
            by_term: vec![UNKNOWN; terms],
        }
    }

    /// A row's values to its features, the longest terms joined.
    fn join(
        &mut self,
        matcher: &Matcher,
        numbers: &mut impl Numbers,
        row: &[u32],
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let symbol_of = |value: u32| {
            (SYMBOL..UNKNOWN)
                .contains(&value)
                .then(|| (value - SYMBOL) / 2)
        };
        let mut index = 0;
        while index < row.len() {
            let value = row[index];
            let Some(symbol) = symbol_of(value) else {
                if value != SKIP {
                    out.push(value);
                }
                index += 1;
                continue;
            };
            let symbols = row[index..].iter().map(|&value| symbol_of(value));
            if let Some(found) = matcher.longest(symbols) {
                let number = &mut self.by_term[found.term as usize];
                if *number == UNKNOWN {
                    *number = numbers.number(matcher.name(found.term))?;
                }
                out.push(*number);
                index += found.tokens;
                continue;
            }
            if value & 1 == 1 && matcher.keeps_others() {
                let number = &mut self.by_symbol[symbol as usize];
                if *number == UNKNOWN {
                    *number = numbers.number(matcher.token(symbol))?;
                }
                out.push(*number);
            }
            index += 1;
        }
        Ok(())
    }
}

impl<N: Numbers> Road<N> {
    pub(crate) fn new(extractor: &Arc<FeatureExtractor>, numbers: N, limits: MemoLimits) -> Self {
        #[cfg(feature = "huggingface")]
        let token_ids = match &extractor.cutter {
            Cutter::HuggingFace(tokenizer) => tokenizer.id_limit(),
            _ => 0,
        };
        #[cfg(not(feature = "huggingface"))]
        let token_ids = 0;
        Self {
            terms: TermValues::new(extractor.matcher.as_ref()),
            resolver: Resolver {
                extractor: Arc::clone(extractor),
                numbers,
                short: ShortMemo::new(limits.short_bytes),
                long: PieceMemo::new(limits.piece_bytes),
                lemma: String::new(),
            },
            pieces: PieceMemo::new(limits.piece_bytes),
            by_token_id: vec![UNKNOWN; token_ids],
            padded: Vec::new(),
            queue: Vec::with_capacity(QUEUE_LENGTH),
            row: Vec::new(),
            piece_values: Vec::new(),
        }
    }

    pub(crate) fn numbers(&self) -> &N {
        &self.resolver.numbers
    }

    pub(crate) fn into_numbers(self) -> N {
        self.resolver.numbers
    }

    /// Bytes on the heap, without the shared extractor and the numbers.
    pub(crate) fn held_bytes(&self) -> usize {
        let words = self.terms.by_symbol.capacity()
            + self.terms.by_term.capacity()
            + self.by_token_id.capacity()
            + self.row.capacity()
            + self.piece_values.capacity();
        self.resolver.short.held_bytes()
            + self.resolver.long.held_bytes()
            + self.pieces.held_bytes()
            + words * size_of::<u32>()
            + self.padded.capacity()
            + self.queue.capacity() * size_of::<Item>()
    }

    /// Appends the numbers of a text's features.
    pub(crate) fn push_row(&mut self, text: &str, out: &mut Vec<u32>) -> Result<(), TextError> {
        let extractor = Arc::clone(&self.resolver.extractor);
        let Some(matcher) = &extractor.matcher else {
            return self.cut(&extractor.cutter, text, SKIP, out);
        };
        let mut row = std::mem::take(&mut self.row);
        row.clear();
        // Tokens that leave nothing stay in the row: terms do not reach over them.
        self.cut(&extractor.cutter, text, NEVER, &mut row)?;
        self.terms
            .join(matcher, &mut self.resolver.numbers, &row, out)?;
        self.row = row;
        Ok(())
    }

    /// Appends the numbers of a cut row's features.
    pub(crate) fn push_tokens_row<'a>(
        &mut self,
        tokens: impl Iterator<Item = &'a str>,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let tokens = tokens.filter(|token| !token.is_empty());
        let extractor = Arc::clone(&self.resolver.extractor);
        let Some(matcher) = &extractor.matcher else {
            for token in tokens {
                let value = self.resolver.value(token)?;
                if value != SKIP {
                    out.push(value);
                }
            }
            return Ok(());
        };
        let mut row = std::mem::take(&mut self.row);
        row.clear();
        for token in tokens {
            row.push(self.resolver.value(token)?);
        }
        self.terms
            .join(matcher, &mut self.resolver.numbers, &row, out)?;
        self.row = row;
        Ok(())
    }

    /// Appends the values of a text's tokens but those that are `drop`.
    fn cut(
        &mut self,
        cutter: &Cutter,
        text: &str,
        drop: u32,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let scanner = match cutter {
            Cutter::Whitespace => scan::whitespace,
            Cutter::Words => scan::words,
            Cutter::QuXie => scan::letters_and_numbers,
            Cutter::Icu(_) => scan::between_white_space,
            #[cfg(feature = "huggingface")]
            Cutter::HuggingFace(tokenizer) => {
                for id in tokenizer.ids(text)? {
                    let token = tokenizer.token(id)?;
                    if self.by_token_id[id as usize] == UNKNOWN {
                        self.by_token_id[id as usize] = self.resolver.resolve(token)?;
                    }
                    let value = self.by_token_id[id as usize];
                    if value != drop {
                        out.push(value);
                    }
                }
                return Ok(());
            }
        };
        let mut rest = text;
        while !rest.is_empty() {
            let (block, after) = split_block(rest);
            rest = after;
            let mut padded = std::mem::take(&mut self.padded);
            padded.clear();
            padded.extend_from_slice(block.as_bytes());
            padded.extend_from_slice(&[b' '; PADDING]);
            let mut place = 0;
            while place < block.len() {
                self.queue.clear();
                let view = Block {
                    text: block,
                    padded: &padded,
                };
                place = scanner(view, place, &mut self.queue);
                self.look_up(cutter, block, drop, out)?;
            }
            self.padded = padded;
        }
        Ok(())
    }

    /// Appends the values of the queue but those that are `drop`.
    fn look_up(
        &mut self,
        cutter: &Cutter,
        block: &str,
        drop: u32,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let queue = std::mem::take(&mut self.queue);
        let mut touched = 0;
        for item in &queue {
            touched ^= self.resolver.short.touch(item.key());
        }
        std::hint::black_box(touched);
        let mut values = [0_u32; QUEUE_LENGTH];
        let mut length = 0;
        for &item in &queue {
            if item.is_short() {
                let value = match self.resolver.short.get(item.key()) {
                    Some(value) => value,
                    None => self.resolver.short_miss(item.key())?,
                };
                values[length] = value;
                length += usize::from(value != drop);
                continue;
            }
            out.extend_from_slice(&values[..length]);
            length = 0;
            self.look_up_long(cutter, block, item, drop, out)?;
        }
        out.extend_from_slice(&values[..length]);
        self.queue = queue;
        Ok(())
    }

    #[inline(never)]
    fn look_up_long(
        &mut self,
        cutter: &Cutter,
        block: &str,
        item: Item,
        drop: u32,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let mut push = |values: &[u32]| out.extend(values.iter().filter(|&&value| value != drop));
        let piece = match item.meaning() {
            Meaning::Short(key) => {
                push(&[self.resolver.short_miss(key)?]);
                return Ok(());
            }
            Meaning::Long(start, end) => {
                let token = &block[start..end];
                let value = match cutter {
                    Cutter::Whitespace => self.resolver.value(token)?,
                    _ => self.resolver.value(&token.to_ascii_lowercase())?,
                };
                push(&[value]);
                return Ok(());
            }
            Meaning::Piece(start, end) => &block[start..end],
        };
        if let Some(values) = self.pieces.get(piece.as_bytes()) {
            push(values);
            return Ok(());
        }
        let Self {
            resolver,
            piece_values,
            ..
        } = self;
        piece_values.clear();
        let each = |token: &str| {
            piece_values.push(resolver.value(token)?);
            Ok(())
        };
        match cutter {
            Cutter::Words => tokenize::words(piece, each)?,
            Cutter::Icu(segmenter) => tokenize::icu(*segmenter, piece, each)?,
            _ => cutter.for_each(piece, each)?,
        }
        self.pieces.put(piece.as_bytes(), &self.piece_values);
        push(&self.piece_values);
        Ok(())
    }
}

/// About [`BLOCK_BYTES`] of text that end behind a blank, and the rest; all of it if no blank comes.
fn split_block(text: &str) -> (&str, &str) {
    if text.len() <= BLOCK_BYTES {
        return (text, "");
    }
    match text.as_bytes()[BLOCK_BYTES..]
        .iter()
        .position(|&byte| byte == b' ')
    {
        Some(blank) => text.split_at(BLOCK_BYTES + blank + 1),
        None => (text, ""),
    }
}
