//! What became of a token the last time it was seen. Bounded caches: forgetting costs time only.

use hashbrown::HashTable;

use crate::hash::{hash_bytes, hash_pair};

/// The longest token that is its own key, in bytes.
pub(crate) const SHORT_BYTES: usize = 15;

/// A token of 1 to 15 bytes as two words: the bytes, zeros, and the length in the last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ShortKey {
    pub(crate) low: u64,
    pub(crate) high: u64,
}

impl ShortKey {
    /// The key of a whole token, `None` if it is empty or too long.
    pub(crate) fn of(token: &[u8]) -> Option<Self> {
        if token.is_empty() || token.len() > SHORT_BYTES {
            return None;
        }
        let mut bytes = [0; 16];
        bytes[..token.len()].copy_from_slice(token);
        bytes[15] = token.len() as u8;
        let key = u128::from_le_bytes(bytes);
        Some(Self {
            low: key as u64,
            high: (key >> 64) as u64,
        })
    }

    /// The token's bytes, and how many they are.
    pub(crate) fn bytes(self) -> ([u8; 16], usize) {
        let bytes = (u128::from(self.high) << 64 | u128::from(self.low)).to_le_bytes();
        (bytes, usize::from(bytes[15]))
    }

    #[inline(always)]
    fn hash(self) -> u64 {
        hash_pair(self.low, self.high)
    }
}

const WAYS: usize = 3;

/// One cache line: three keys with their values. A key of zeros is an empty place.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Bucket {
    keys: [ShortKey; WAYS],
    values: [u32; WAYS],
}

/// Short tokens to values. Starts small; grows while it forgets much, up to a limit.
pub(crate) struct ShortMemo {
    buckets: Vec<Bucket>,
    forgotten: usize,
    limit_buckets: usize,
}

impl ShortMemo {
    const FIRST_BUCKETS: usize = 256;

    /// At most `limit_bytes`, rounded down to a power of two (at least one bucket).
    pub(crate) fn new(limit_bytes: usize) -> Self {
        let limit = (limit_bytes / size_of::<Bucket>()).max(1);
        let limit_buckets = 1 << limit.ilog2();
        Self {
            buckets: vec![Bucket::default(); limit_buckets.min(Self::FIRST_BUCKETS)],
            forgotten: 0,
            limit_buckets,
        }
    }

    #[inline(always)]
    fn place(&self, key: ShortKey) -> usize {
        (key.hash() as usize) & (self.buckets.len() - 1)
    }

    /// Touches the place of a key, so that it is in the cache when it is asked for.
    #[inline(always)]
    pub(crate) fn touch(&self, key: ShortKey) -> u64 {
        self.buckets[self.place(key)].keys[0].low
    }

    #[inline(always)]
    pub(crate) fn get(&mut self, key: ShortKey) -> Option<u32> {
        let place = self.place(key);
        let bucket = &mut self.buckets[place];
        if bucket.keys[0] == key {
            return Some(bucket.values[0]);
        }
        if bucket.keys[1] == key {
            bucket.keys.swap(0, 1);
            bucket.values.swap(0, 1);
            return Some(bucket.values[0]);
        }
        if bucket.keys[2] == key {
            bucket.keys.swap(1, 2);
            bucket.values.swap(1, 2);
            return Some(bucket.values[1]);
        }
        None
    }

    /// Keeps a value for a key that is not there; forgets the least used of a full bucket.
    pub(crate) fn put(&mut self, key: ShortKey, value: u32) {
        if self.forgotten > self.buckets.len() / 4 && self.buckets.len() < self.limit_buckets {
            self.grow();
        }
        let place = self.place(key);
        let bucket = &mut self.buckets[place];
        let free = bucket
            .keys
            .iter()
            .position(|&held| held == ShortKey::default());
        self.forgotten += usize::from(free.is_none());
        let way = free.unwrap_or(WAYS - 1);
        bucket.keys[way] = key;
        bucket.values[way] = value;
    }

    fn grow(&mut self) {
        let size = (self.buckets.len() * 4).min(self.limit_buckets);
        let before = std::mem::replace(&mut self.buckets, vec![Bucket::default(); size]);
        for bucket in before {
            for (key, value) in bucket.keys.into_iter().zip(bucket.values) {
                if key != ShortKey::default() {
                    let place = self.place(key);
                    let bucket = &mut self.buckets[place];
                    if let Some(way) = bucket
                        .keys
                        .iter()
                        .position(|&held| held == ShortKey::default())
                    {
                        bucket.keys[way] = key;
                        bucket.values[way] = value;
                    }
                }
            }
        }
        self.forgotten = 0;
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }
}

/// Where a piece and its values lie in the arenas.
#[derive(Clone, Copy)]
struct Held {
    hash: u64,
    start: u32,
    length: u32,
    values_start: u32,
    values_length: u32,
}

/// Pieces of text to the values of their tokens. Forgets everything when it is full.
pub(crate) struct PieceMemo {
    index: HashTable<Held>,
    bytes: Vec<u8>,
    values: Vec<u32>,
    limit_bytes: usize,
}

impl PieceMemo {
    /// Longer pieces seldom come twice.
    const LONGEST: usize = 96;

    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            index: HashTable::new(),
            bytes: Vec::new(),
            values: Vec::new(),
            // The arenas are addressed by 32 bits.
            limit_bytes: limit_bytes.min(1 << 30),
        }
    }

    /// The values of a piece.
    pub(crate) fn get(&self, piece: &[u8]) -> Option<&[u32]> {
        if piece.len() > Self::LONGEST {
            return None;
        }
        let hash = hash_bytes(piece);
        let held = self.index.find(hash, |held| {
            held.hash == hash && &self.bytes[held.start as usize..][..held.length as usize] == piece
        })?;
        Some(&self.values[held.values_start as usize..][..held.values_length as usize])
    }

    /// Keeps the values of a piece that is not there.
    pub(crate) fn put(&mut self, piece: &[u8], values: &[u32]) {
        if piece.len() > Self::LONGEST {
            return;
        }
        let need = piece.len() + size_of_val(values) + 2 * size_of::<Held>();
        let used = self.bytes.len()
            + self.values.len() * size_of::<u32>()
            + self.index.len() * 2 * size_of::<Held>();
        if used + need > self.limit_bytes {
            self.index.clear();
            self.bytes.clear();
            self.values.clear();
        }
        let hash = hash_bytes(piece);
        let held = Held {
            hash,
            start: self.bytes.len() as u32,
            length: piece.len() as u32,
            values_start: self.values.len() as u32,
            values_length: values.len() as u32,
        };
        self.bytes.extend_from_slice(piece);
        self.values.extend_from_slice(values);
        self.index.insert_unique(hash, held, |held| held.hash);
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.index.allocation_size()
            + self.bytes.capacity()
            + self.values.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> ShortKey {
        ShortKey::of(number.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_short_key_gives_its_token_back() {
        for token in ["a", "seventeen", "fifteen bytes!!", "日本語", "\0\0"] {
            let (bytes, length) = ShortKey::of(token.as_bytes()).unwrap().bytes();
            assert_eq!(&bytes[..length], token.as_bytes());
        }
        assert_eq!(ShortKey::of(b""), None);
        assert_eq!(ShortKey::of(b"sixteen bytes!!!"), None);
        assert_ne!(ShortKey::of(b"a"), ShortKey::of(b"a\0"));
    }

    #[test]
    fn a_memo_never_gives_a_wrong_value_and_keeps_to_its_limit() {
        for limit in [0, 64, 4 << 10, 1 << 20] {
            let mut memo = ShortMemo::new(limit);
            let mut hits = 0;
            for round in 0..3 {
                for number in 0..5000 {
                    match memo.get(key(number)) {
                        Some(value) => {
                            assert_eq!(value, number * 2);
                            hits += u32::from(round > 0);
                        }
                        None => memo.put(key(number), number * 2),
                    }
                }
            }
            assert!(memo.held_bytes() <= limit.max(64));
            // 1 MiB has room for 49,152 tokens: nearly all 5,000 are kept.
            assert!(limit < 1 << 20 || hits > 9_000, "{hits}");
        }
    }

    #[test]
    fn a_piece_memo_forgets_all_rather_than_grow() {
        let mut memo = PieceMemo::new(1000);
        for number in 0..1000_u32 {
            let piece = number.to_string();
            assert_eq!(memo.get(piece.as_bytes()), None);
            memo.put(piece.as_bytes(), &[number, number]);
            assert_eq!(
                memo.get(piece.as_bytes()),
                Some([number, number].as_slice())
            );
        }
        assert!(memo.held_bytes() < 4000, "{}", memo.held_bytes());
        assert_eq!(memo.get(b"0"), None);
    }
}
