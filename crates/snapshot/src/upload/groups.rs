//! Which slices become which part of which upload.

use crate::plan::MergePlan;
use std::ops::Range;

/// More parts than this are not planned for one object; S3 takes 10,000.
const MOST_PARTS: u64 = 9_000;

/// Slices of one weight file that are one part of its upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub index: usize,
    pub shard: usize,
    pub part: usize,
    pub slices: Range<usize>,
    /// Bytes of the part, for one output; the first of a file holds its header too.
    pub bytes: u64,
}

/// Cuts a plan into groups of at least `part_bytes`.
pub(crate) fn groups(plan: &MergePlan, part_bytes: u64) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut next = 0;
    for (position, shard) in plan.shards.iter().enumerate() {
        let least = part_bytes.max(shard.bytes / MOST_PARTS);
        let mut open = Group {
            index: groups.len(),
            shard: position,
            part: 0,
            slices: next..next,
            bytes: shard.header.len() as u64,
        };
        while let Some(slice) = plan.slices.get(next)
            && plan.tensors[slice.tensor].shard == position
        {
            if open.bytes >= least {
                let following = Group {
                    index: open.index + 1,
                    part: open.part + 1,
                    slices: next..next,
                    bytes: 0,
                    ..open
                };
                groups.push(std::mem::replace(&mut open, following));
            }
            open.bytes += slice.bytes;
            next += 1;
            open.slices.end = next;
        }
        groups.push(open);
    }
    groups
}
