//! Hints for large buffers that are read at random: huge pages, and reading ahead.

/// Asks for huge pages for the unused part of a vector's memory, before it is filled.
///
/// Only a hint, on Linux, for 4 MiB and more; contents and length do not change, errors are ignored.
pub fn prefer_huge_pages<T>(memory: &mut Vec<T>) {
    let unused = memory.spare_capacity_mut();
    if size_of_val(unused) < LEAST_BYTES {
        return;
    }
    advise(unused.as_mut_ptr_range());
}

/// `length` zeros, in huge pages where the system has them, and not touched yet.
#[must_use]
pub fn zeros<T: Zero>(length: usize) -> Vec<T> {
    let mut zeros = vec![T::default(); length];
    if size_of_val(&zeros[..]) >= LEAST_BYTES {
        advise(zeros.as_mut_ptr_range());
    }
    zeros
}

/// Numbers whose zero is all bits zero, so that memory fresh from the system need not be written.
pub trait Zero: Copy + Default + sealed::Zero {}

mod sealed {
    pub trait Zero {}
    impl Zero for u32 {}
    impl Zero for [f32; 2] {}
}

impl Zero for u32 {}
impl Zero for [f32; 2] {}

/// Asks the processor for `items[place]` before it is read; beyond the end, for nothing.
///
/// Only a hint, on x86-64.
#[inline(always)]
pub fn prefetch<T>(items: &[T], place: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(item) = items.get(place) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing, whatever the address.
        #[allow(unsafe_code, reason = "the instruction; see the SAFETY line")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (items, place);
}

/// Below this a buffer is near the size of the caches.
const LEAST_BYTES: usize = 4 << 20;

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "the system call; see the SAFETY line")]
fn advise<T>(range: std::ops::Range<*mut T>) {
    const HUGE_PAGE: usize = 2 << 20;
    let start = (range.start as usize).next_multiple_of(HUGE_PAGE);
    let end = range.end as usize / HUGE_PAGE * HUGE_PAGE;
    if start >= end {
        return;
    }
    let skipped = start - range.start as usize;
    // SAFETY: MADV_HUGEPAGE changes how a range is backed and never what it holds; an address that is
    // not mapped gives an error, which is ignored.
    unsafe {
        let address = range.start.cast::<u8>().add(skipped);
        libc::madvise(address.cast(), end - start, libc::MADV_HUGEPAGE);
    }
}

#[cfg(not(target_os = "linux"))]
fn advise<T>(_range: std::ops::Range<*mut T>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_zero_and_can_be_written() {
        for length in [0, 10, 1 << 20, 3 << 20] {
            let mut zeros = zeros::<u32>(length);
            assert_eq!(zeros.len(), length);
            assert!(zeros.iter().all(|value| *value == 0));
            zeros.fill(7);
            assert!(zeros.iter().all(|value| *value == 7));
        }
    }

    #[test]
    fn a_hint_changes_nothing_that_can_be_read() {
        for capacity in [0, 10, 1 << 20, 3 << 20] {
            let mut hinted: Vec<u32> = Vec::with_capacity(capacity);
            hinted.extend(0..capacity.min(700) as u32);
            let plain = hinted.clone();
            let before = (hinted.as_ptr(), hinted.capacity());
            prefer_huge_pages(&mut hinted);
            assert_eq!(hinted, plain);
            assert_eq!((hinted.as_ptr(), hinted.capacity()), before);
            let room = hinted.capacity();
            hinted.resize(room, 7);
            assert!(hinted[plain.len()..].iter().all(|value| *value == 7));
        }
    }
}
