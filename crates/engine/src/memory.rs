//! The memory limit: how it is written, what it is by default, and what the process used.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes, written as `512MiB`, `4GiB`, `2GB` or plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 12] = [
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("g", 1 << 30),
    ("m", 1 << 20),
    ("k", 1 << 10),
    ("b", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size; write 512MiB, 4GiB, 2GB or bytes");
        let lower = text.trim().to_ascii_lowercase();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, factor)| lower.strip_suffix(name).map(|rest| (rest, *factor)))
            .unwrap_or((&lower, 1));
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        let bytes = number * unit as f64;
        if !(0.0..9e18).contains(&bytes) {
            return Err(wrong());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = match self.0 {
            0..1024 => return write!(formatter, "{} B", self.0),
            1024..0x10_0000 => ("KiB", 1u64 << 10),
            0x10_0000..0x4000_0000 => ("MiB", 1 << 20),
            0x4000_0000..0x100_0000_0000 => ("GiB", 1 << 30),
            _ => ("TiB", 1 << 40),
        };
        write!(formatter, "{:.1} {unit}", self.0 as f64 / factor as f64)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Bytes(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Bytes(bytes) => Ok(Self(bytes)),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// The smallest limit that a job can run in.
pub const SMALLEST_LIMIT: ByteSize = ByteSize(64 << 20);

/// What a job may use when nobody says: half of what the machine, or the container, has.
#[must_use]
pub fn default_limit() -> ByteSize {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib << 10)
    });
    let container = read("/sys/fs/cgroup/memory.max")
        .or_else(|| read("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
        .and_then(|text| text.trim().parse::<u64>().ok());
    let available = machine
        .into_iter()
        .chain(container)
        .min()
        .unwrap_or(4 << 30);
    ByteSize((available / 2).max(SMALLEST_LIMIT.0))
}

/// The most memory that this process has held so far, from the operating system.
#[must_use]
pub fn peak_rss() -> Option<ByteSize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(ByteSize(kib << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_for_people() {
        for (text, bytes) in [
            ("512MiB", 512 << 20),
            ("4 GiB", 4 << 30),
            ("2gb", 2_000_000_000),
            ("1.5g", 3 << 29),
            ("4096", 4096),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1MiB", "many", "1e30GiB", "NaN"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert_eq!(ByteSize(512 << 20).to_string(), "512.0 MiB");
        assert_eq!(ByteSize(7).to_string(), "7 B");
    }
}
