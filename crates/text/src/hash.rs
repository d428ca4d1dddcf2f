//! A fast hash of short byte strings. Not for keys that an enemy chooses to keep forever: collisions
//! cost time, never a wrong answer.

const SEED_A: u64 = 0x2D35_8DCC_AA6C_78A5;
const SEED_B: u64 = 0x8BB8_4B93_962E_ACC9;

/// The high and low half of a 128-bit product, folded.
#[inline(always)]
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

/// Hash of two words, the whole key of a short token.
#[inline(always)]
pub(crate) fn hash_pair(a: u64, b: u64) -> u64 {
    fold(a ^ SEED_A, b ^ SEED_B)
}

#[inline(always)]
fn word(bytes: &[u8]) -> u64 {
    let mut padded = [0; 8];
    padded[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(padded)
}

/// Hash of any byte string.
#[inline]
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut state = bytes.len() as u64 ^ SEED_B;
    let mut chunks = bytes.chunks_exact(16);
    for chunk in &mut chunks {
        state = fold(word(&chunk[..8]) ^ SEED_A, word(&chunk[8..]) ^ state);
    }
    let rest = chunks.remainder();
    let (low, high) = rest.split_at(rest.len().min(8));
    fold(word(low) ^ SEED_A, word(high) ^ state)
}
