//! XXH3 of 128 bits for long inputs, with the vector instructions that the processor has.
//!
//! `xxhash-rust` picks its instructions when it is compiled, which are those of any x86-64 machine; here AVX2 is
//! used where the processor has it, and that is twice as fast. Inputs up to 240 bytes have formulas of
//! their own and are left to the crate, which is also what the tests compare with. The names are those of the
//! specification: a *stripe* is 64 bytes, a *block* 16 stripes, after which the accumulators are scrambled.
//! The last stripe is taken apart, so a block waits until more follows.

use xxhash_rust::xxh3::xxh3_128;

const STRIPE: usize = 64;
const BLOCK: usize = 16 * STRIPE;
/// Inputs up to here are short.
const SHORT: u64 = 240;

const PRIME32: [u64; 3] = [0x9E37_79B1, 0x85EB_CA77, 0xC2B2_AE3D];
const PRIME64: [u64; 5] = [
    0x9E37_79B1_85EB_CA87,
    0xC2B2_AE3D_27D4_EB4F,
    0x1656_67B1_9E37_79F9,
    0x85EB_CA77_C2B2_AE63,
    0x27D4_EB2F_1656_67C5,
];
const START: [u64; 8] = [
    PRIME32[2], PRIME64[0], PRIME64[1], PRIME64[2], PRIME64[3], PRIME32[1], PRIME64[4], PRIME32[0],
];

/// The specification's default secret.
const SECRET: [u8; 192] = [
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
];

/// Eight words of the secret, from a byte of it.
const fn secret(from: usize) -> [u64; 8] {
    let mut words = [0; 8];
    let mut byte = 0;
    while byte < STRIPE {
        words[byte / 8] |= (SECRET[from + byte] as u64) << (byte % 8 * 8);
        byte += 1;
    }
    words
}

/// The secret of each stripe of a block.
const STRIPES: [[u64; 8]; 16] = {
    let mut words = [[0; 8]; 16];
    let mut stripe = 0;
    while stripe < 16 {
        words[stripe] = secret(stripe * 8);
        stripe += 1;
    }
    words
};
const SCRAMBLE: [u64; 8] = secret(192 - STRIPE);
const LAST_STRIPE: [u64; 8] = secret(192 - STRIPE - 7);

/// Adds the stripes of a block, or of its beginning.
#[inline(always)]
fn add_stripes(sums: &mut [u64; 8], stripes: &[u8], secrets: &[[u64; 8]]) {
    for (stripe, secret) in stripes.chunks_exact(STRIPE).zip(secrets) {
        for lane in 0..8 {
            let bytes = &stripe[lane * 8..lane * 8 + 8];
            let word = u64::from_le_bytes(bytes.try_into().unwrap_or([0; 8]));
            let key = word ^ secret[lane];
            let product = (key & 0xffff_ffff).wrapping_mul(key >> 32);
            sums[lane] = sums[lane].wrapping_add(product);
            sums[lane ^ 1] = sums[lane ^ 1].wrapping_add(word);
        }
    }
}

fn scramble(sums: &mut [u64; 8]) {
    for (sum, secret) in sums.iter_mut().zip(&SCRAMBLE) {
        *sum = (*sum ^ (*sum >> 47) ^ secret).wrapping_mul(PRIME32[0]);
    }
}

/// Adds whole blocks, each of which is followed by more.
fn add_blocks(sums: &mut [u64; 8], blocks: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return simd.vectorize(avx2::Blocks { simd, sums, blocks });
    }
    for block in blocks.chunks_exact(BLOCK) {
        add_stripes(sums, block, &STRIPES);
        scramble(sums);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{BLOCK, PRIME32, SCRAMBLE, STRIPE, STRIPES};
    use pulp::bytemuck::{cast, pod_read_unaligned};
    use pulp::x86::V3;
    use std::arch::x86_64::__m256i;

    pub(super) struct Blocks<'a> {
        pub simd: V3,
        pub sums: &'a mut [u64; 8],
        pub blocks: &'a [u8],
    }

    impl pulp::NullaryFnOnce for Blocks<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let simd = self.simd.avx2;
            let secrets: [[__m256i; 2]; 16] = STRIPES.map(cast);
            let last: [__m256i; 2] = cast(SCRAMBLE);
            let prime: __m256i = cast([PRIME32[0]; 4]);
            let mut sums: [__m256i; 2] = cast(*self.sums);
            for block in self.blocks.chunks_exact(BLOCK) {
                for (stripe, secret) in block.chunks_exact(STRIPE).zip(&secrets) {
                    for half in 0..2 {
                        let words: __m256i = pod_read_unaligned(&stripe[half * 32..half * 32 + 32]);
                        let key = simd._mm256_xor_si256(words, secret[half]);
                        let product = simd._mm256_mul_epu32(key, simd._mm256_srli_epi64::<32>(key));
                        // Each word to the sum beside its own.
                        let beside = simd._mm256_shuffle_epi32::<0b01_00_11_10>(words);
                        let both = simd._mm256_add_epi64(product, beside);
                        sums[half] = simd._mm256_add_epi64(sums[half], both);
                    }
                }
                for half in 0..2 {
                    let shifted = simd._mm256_srli_epi64::<47>(sums[half]);
                    let mixed = simd._mm256_xor_si256(sums[half], shifted);
                    let mixed = simd._mm256_xor_si256(mixed, last[half]);
                    // 64 bits times 32: the upper half's product only counts in the upper half.
                    let low = simd._mm256_mul_epu32(mixed, prime);
                    let high = simd._mm256_srli_epi64::<32>(mixed);
                    let high = simd._mm256_mul_epu32(high, prime);
                    let high = simd._mm256_slli_epi64::<32>(high);
                    sums[half] = simd._mm256_add_epi64(low, high);
                }
            }
            *self.sums = cast(sums);
        }
    }
}

/// A hash that grows.
pub(crate) struct Xxh3 {
    sums: [u64; 8],
    length: u64,
    /// The last stripe of the blocks that are done, then the bytes that wait: a block at most.
    tail: [u8; STRIPE + BLOCK],
    waiting: usize,
}

impl Xxh3 {
    pub fn new() -> Self {
        Self {
            sums: START,
            length: 0,
            tail: [0; STRIPE + BLOCK],
            waiting: 0,
        }
    }

    pub fn update(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if self.waiting > 0 {
            let more = bytes.len().min(BLOCK - self.waiting);
            let end = STRIPE + self.waiting;
            self.tail[end..end + more].copy_from_slice(&bytes[..more]);
            self.waiting += more;
            bytes = &bytes[more..];
            if bytes.is_empty() {
                return;
            }
            // More follows, so what waits is a whole block.
            add_blocks(&mut self.sums, &self.tail[STRIPE..]);
            self.tail.copy_within(BLOCK.., 0);
            self.waiting = 0;
        }
        let whole = bytes.len().saturating_sub(1) / BLOCK * BLOCK;
        if whole > 0 {
            add_blocks(&mut self.sums, &bytes[..whole]);
            self.tail[..STRIPE].copy_from_slice(&bytes[whole - STRIPE..whole]);
        }
        let rest = &bytes[whole..];
        self.tail[STRIPE..STRIPE + rest.len()].copy_from_slice(rest);
        self.waiting = rest.len();
    }

    pub fn finish(&self) -> u128 {
        let end = STRIPE + self.waiting;
        let waiting = &self.tail[STRIPE..end];
        if self.length <= SHORT {
            return xxh3_128(waiting);
        }
        let mut sums = self.sums;
        let whole = waiting.len().saturating_sub(1) / STRIPE * STRIPE;
        add_stripes(&mut sums, &waiting[..whole], &STRIPES);
        add_stripes(&mut sums, &self.tail[end - STRIPE..end], &[LAST_STRIPE]);
        let low = merge(&sums, 11, self.length.wrapping_mul(PRIME64[0]));
        let high = merge(
            &sums,
            192 - STRIPE - 11,
            !self.length.wrapping_mul(PRIME64[1]),
        );
        u128::from(high) << 64 | u128::from(low)
    }
}

/// One half of the hash.
fn merge(sums: &[u64; 8], secret_from: usize, start: u64) -> u64 {
    let secret = secret(secret_from);
    let mut hash = start;
    for pair in 0..4 {
        let factor = |lane: usize| u128::from(sums[lane] ^ secret[lane]);
        let product = factor(pair * 2) * factor(pair * 2 + 1);
        hash = hash.wrapping_add(product as u64 ^ (product >> 64) as u64);
    }
    hash = (hash ^ (hash >> 37)).wrapping_mul(0x1656_6791_9E37_79F9);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(length: usize) -> Vec<u8> {
        let word = |number: u32| number.wrapping_mul(0x9E37_79B1) >> 24;
        (0..length as u32)
            .map(|number| word(number) as u8)
            .collect()
    }

    #[test]
    fn every_length_around_stripes_and_blocks_is_the_hash_of_the_crate() {
        for length in (0..2_200).chain([65_535, 65_536, 65_537, 262_144]) {
            let bytes = bytes(length);
            let mut hash = Xxh3::new();
            hash.update(&bytes);
            assert_eq!(hash.finish(), xxh3_128(&bytes), "{length} bytes");
        }
    }

    #[test]
    fn blocks_with_and_without_vectors_are_the_same() {
        let bytes = bytes(5 * BLOCK);
        let (mut fast, mut plain) = (START, START);
        add_blocks(&mut fast, &bytes);
        for block in bytes.chunks_exact(BLOCK) {
            add_stripes(&mut plain, block, &STRIPES);
            scramble(&mut plain);
        }
        assert_eq!(fast, plain);
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(lengths in prop::collection::vec(prop_oneof![0..70_usize, 900..1_100_usize, 0..5_000_usize], 0..9)) {
            let whole = bytes(lengths.iter().sum());
            let (mut hash, mut at) = (Xxh3::new(), 0);
            for length in lengths {
                hash.update(&whole[at..at + length]);
                at += length;
            }
            prop_assert_eq!(hash.finish(), xxh3_128(&whole));
        }
    }
}
