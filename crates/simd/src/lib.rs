//! What of pmill needs unsafe code: the vector loops [`collect`], [`followers`], [`drain`], [`distinct`] and [`sort_floats`], and the
//! hints [`prefer_huge_pages`], [`zeros`] and [`prefetch`].
//!
//! In and out are plain slices. Each loop has a safe twin in portable Rust, which runs where
//! the processor lacks the instructions (AVX-512 with VBMI2, or AVX2) and which the tests compare
//! with the fast versions. Nothing is held between calls.

#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod collect;
mod distinct;
mod drain;
mod pages;
mod sort;

pub use collect::{
    LARGEST_WINDOW, Lane, MARGIN, WindowLanes, collect, collect_portable, followers,
    followers_portable,
};
pub use distinct::{distinct, distinct_portable};
pub use drain::{Sum, TOUCHED_SHIFT, drain, drain_portable, drain_touched, drain_touched_portable};
pub use pages::{Zero, prefer_huge_pages, prefetch, zeros};
pub use sort::{sort_floats, sort_floats_portable};

/// Whether this processor runs the fast versions.
#[must_use]
pub fn accelerated() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        avx512::available() || avx2::available()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Names of instruction sets, for traits that have a version for each.
pub(crate) mod isa {
    pub struct Avx2;
    pub struct Avx512;
}

#[cfg(not(target_arch = "x86_64"))]
mod portable_only {
    impl<I> crate::collect::sealed::Vectors<I> for u16 {}
    impl<I> crate::collect::sealed::Vectors<I> for u32 {}
    impl<I> crate::drain::sealed::Vectors<I> for u32 {}
    impl<I> crate::drain::sealed::Vectors<I> for u64 {}
}
