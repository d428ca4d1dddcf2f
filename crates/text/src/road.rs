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

    /// Touches the memory that [`Numbers::number`] will read if this token becomes a feature as it
    /// is; the result means nothing.
    fn touch(&self, token: &[u8]) -> u32;
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

/// Rows are copied and scanned together up to about so many bytes.
const BATCH_BYTES: usize = 32 << 10;

/// The fast road of one thread.
pub(crate) struct Road<N> {
    resolver: Resolver<N>,
    /// Raw pieces (not normalised) to the values of their tokens.
    pieces: PieceMemo,
    terms: TermValues,
    /// Hugging Face token ids to values.
    by_token_id: Vec<u32>,
    /// Rows with padding.
    batch: String,
    queue: Vec<Item>,
    /// Where in the queue a token is that the memo does not know.
    misses: Vec<usize>,
    /// Values of a row when a term list must see all of them.
    row: Vec<u32>,
    piece_values: Vec<u32>,
}

/// Where the numbers of rows go.
pub(crate) struct Output<'a> {
    pub(crate) numbers: &'a mut Vec<u32>,
    /// After each row, the length of `numbers`.
    pub(crate) row_ends: &'a mut Vec<usize>,
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

    /// The value of a short token that the memo did not know a moment ago.
    fn short_value(&mut self, key: ShortKey) -> Result<u32, TextError> {
        if let Some(value) = self.short.get(key) {
            return Ok(value);
        }
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
            batch: String::new(),
            queue: Vec::with_capacity(QUEUE_LENGTH + 1),
            misses: Vec::new(),
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
            + self.batch.capacity()
            + self.misses.capacity() * size_of::<usize>()
            + self.queue.capacity() * size_of::<Item>()
    }

    /// Appends the numbers of the features of rows; a null row has none.
    pub(crate) fn push_rows<'a>(
        &mut self,
        rows: impl Iterator<Item = Option<&'a str>>,
        out: &mut Output<'_>,
    ) -> Result<(), TextError> {
        let extractor = Arc::clone(&self.resolver.extractor);
        let scanner = match &extractor.cutter {
            Cutter::Whitespace => scan::whitespace,
            Cutter::Words => scan::words,
            Cutter::QuXie => scan::letters_and_numbers,
            Cutter::Icu(_) => scan::between_white_space,
            #[cfg(feature = "huggingface")]
            Cutter::HuggingFace(tokenizer) => {
                for row in rows {
                    self.push_ids(tokenizer, row.unwrap_or_default(), out)?;
                }
                return Ok(());
            }
        };
        // An earlier row may have ended in an error.
        self.row.clear();
        self.queue.clear();
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        for row in rows {
            let mut rest = row.unwrap_or_default();
            loop {
                if batch.len() > BATCH_BYTES {
                    self.look_up(&extractor, &batch, out)?;
                    batch.clear();
                }
                let (block, after) = split_block(rest);
                let mut place = batch.len();
                batch.push_str(block);
                let end = batch.len();
                batch.push_str(PADDING);
                while place < end {
                    place = scanner(Block { text: &batch, end }, place, &mut self.queue);
                    if self.queue.len() >= QUEUE_LENGTH {
                        self.look_up(&extractor, &batch, out)?;
                    }
                }
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            self.queue.push(Item::ROW_END);
            if self.queue.len() >= QUEUE_LENGTH {
                self.look_up(&extractor, &batch, out)?;
            }
        }
        self.look_up(&extractor, &batch, out)?;
        self.batch = batch;
        Ok(())
    }

    /// Appends the numbers of a row by the ids of a Hugging Face tokenizer.
    #[cfg(feature = "huggingface")]
    fn push_ids(
        &mut self,
        tokenizer: &tokenize::HuggingFaceTokenizer,
        text: &str,
        out: &mut Output<'_>,
    ) -> Result<(), TextError> {
        self.row.clear();
        for id in tokenizer.ids(text)? {
            let token = tokenizer.token(id)?;
            if self.by_token_id[id as usize] == UNKNOWN {
                self.by_token_id[id as usize] = self.resolver.resolve(token)?;
            }
            self.row.push(self.by_token_id[id as usize]);
        }
        let extractor = Arc::clone(&self.resolver.extractor);
        self.end_row(&extractor, out)
    }

    /// Appends the numbers of the features of a row that is cut already.
    pub(crate) fn push_tokens_row<'a>(
        &mut self,
        tokens: impl Iterator<Item = &'a str>,
        out: &mut Output<'_>,
    ) -> Result<(), TextError> {
        self.row.clear();
        for token in tokens.filter(|token| !token.is_empty()) {
            self.row.push(self.resolver.value(token)?);
        }
        let extractor = Arc::clone(&self.resolver.extractor);
        self.end_row(&extractor, out)
    }

    /// Moves the values of `self.row` to the output, terms joined and dropped tokens left out.
    fn end_row(
        &mut self,
        extractor: &FeatureExtractor,
        out: &mut Output<'_>,
    ) -> Result<(), TextError> {
        match &extractor.matcher {
            Some(matcher) => {
                let numbers = &mut self.resolver.numbers;
                self.terms.join(matcher, numbers, &self.row, out.numbers)?;
            }
            None => out
                .numbers
                .extend(self.row.iter().filter(|&&value| value != SKIP)),
        }
        self.row.clear();
        out.row_ends.push(out.numbers.len());
        Ok(())
    }

    /// Moves the queue to the output. `batch` is the text that its items lie in.
    fn look_up(
        &mut self,
        extractor: &FeatureExtractor,
        batch: &str,
        out: &mut Output<'_>,
    ) -> Result<(), TextError> {
        let queue = std::mem::take(&mut self.queue);
        let mut values = [UNKNOWN; QUEUE_LENGTH + 1];
        self.look_up_short(&queue, &mut values)?;
        // With a term list, tokens that leave nothing stay in the row: terms do not reach over them.
        let joins = extractor.matcher.is_some();
        let drop = if joins { NEVER } else { SKIP };
        let mut length = 0;
        for (index, &item) in queue.iter().enumerate() {
            if item.is_short() {
                let value = values[index];
                values[length] = value;
                length += usize::from(value != drop);
                continue;
            }
            let target = if joins {
                &mut self.row
            } else {
                &mut *out.numbers
            };
            target.extend_from_slice(&values[..length]);
            length = 0;
            if item != Item::ROW_END {
                let mut row = std::mem::take(target);
                let outcome = self.look_up_long(&extractor.cutter, batch, item, drop, &mut row);
                *if joins {
                    &mut self.row
                } else {
                    &mut *out.numbers
                } = row;
                outcome?;
            } else if joins {
                self.end_row(extractor, out)?;
            } else {
                out.row_ends.push(out.numbers.len());
            }
        }
        let target = if joins {
            &mut self.row
        } else {
            &mut *out.numbers
        };
        target.extend_from_slice(&values[..length]);
        self.queue = queue;
        self.queue.clear();
        Ok(())
    }

    /// The values of the short tokens in the queue. Each pass starts the memory accesses of many
    /// tokens before the next one needs them.
    fn look_up_short(
        &mut self,
        queue: &[Item],
        values: &mut [u32; QUEUE_LENGTH + 1],
    ) -> Result<(), TextError> {
        let Self {
            resolver, misses, ..
        } = self;
        let mut touched = 0;
        for item in queue {
            touched ^= resolver.short.touch(item.key());
        }
        std::hint::black_box(touched);
        misses.clear();
        for (index, (item, value)) in queue.iter().zip(values.iter_mut()).enumerate() {
            if item.is_short() {
                match resolver.short.get(item.key()) {
                    Some(known) => *value = known,
                    None => misses.push(index),
                }
            }
        }
        let mut touched = 0;
        for &index in misses.iter() {
            let (bytes, length) = queue[index].key().bytes();
            touched ^= resolver.numbers.touch(&bytes[..length]);
        }
        std::hint::black_box(touched);
        for &index in misses.iter() {
            values[index] = resolver.short_value(queue[index].key())?;
        }
        Ok(())
    }

    /// Appends the values of a long token or of a piece but those that are `drop`.
    #[inline(never)]
    fn look_up_long(
        &mut self,
        cutter: &Cutter,
        batch: &str,
        item: Item,
        drop: u32,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let mut push = |values: &[u32]| out.extend(values.iter().filter(|&&value| value != drop));
        let piece = match item.meaning() {
            Meaning::Short(_) | Meaning::RowEnd => return Ok(()),
            Meaning::Long(start, end) => {
                let token = &batch[start..end];
                let value = match cutter {
                    Cutter::Whitespace => self.resolver.value(token)?,
                    _ => self.resolver.value(&token.to_ascii_lowercase())?,
                };
                push(&[value]);
                return Ok(());
            }
            Meaning::Piece(start, end) => &batch[start..end],
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

/// About [`BATCH_BYTES`] of text that end behind a blank, and the rest; all of it if no blank comes.
fn split_block(text: &str) -> (&str, &str) {
    if text.len() <= BATCH_BYTES {
        return (text, "");
    }
    match text.as_bytes()[BATCH_BYTES..]
        .iter()
        .position(|&byte| byte == b' ')
    {
        Some(blank) => text.split_at(BATCH_BYTES + blank + 1),
        None => (text, ""),
    }
}
