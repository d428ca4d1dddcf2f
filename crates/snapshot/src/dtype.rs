//! The element types of the safetensors format, and what pmill may do with each.

use serde::{Deserialize, Serialize};

/// An element type as the safetensors header names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(
    non_camel_case_types,
    reason = "the variants are the names in the file format"
)]
#[expect(missing_docs, reason = "each variant is the format's own name")]
pub enum DType {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    I64,
    U64,
    F64,
}

impl DType {
    /// Every type of the format, from narrow to wide.
    pub const ALL: [DType; 20] = [
        DType::BOOL,
        DType::F4,
        DType::F6_E2M3,
        DType::F6_E3M2,
        DType::U8,
        DType::I8,
        DType::F8_E5M2,
        DType::F8_E4M3,
        DType::F8_E8M0,
        DType::I16,
        DType::U16,
        DType::F16,
        DType::BF16,
        DType::I32,
        DType::U32,
        DType::F32,
        DType::C64,
        DType::I64,
        DType::U64,
        DType::F64,
    ];

    /// The name in a safetensors header, such as `BF16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DType::BOOL => "BOOL",
            DType::F4 => "F4",
            DType::F6_E2M3 => "F6_E2M3",
            DType::F6_E3M2 => "F6_E3M2",
            DType::U8 => "U8",
            DType::I8 => "I8",
            DType::F8_E5M2 => "F8_E5M2",
            DType::F8_E4M3 => "F8_E4M3",
            DType::F8_E8M0 => "F8_E8M0",
            DType::I16 => "I16",
            DType::U16 => "U16",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I32 => "I32",
            DType::U32 => "U32",
            DType::F32 => "F32",
            DType::C64 => "C64",
            DType::I64 => "I64",
            DType::U64 => "U64",
            DType::F64 => "F64",
        }
    }

    /// Bits per element: 4 for `F4`, 64 for `F64`.
    #[must_use]
    pub fn bits(self) -> u64 {
        match self {
            DType::F4 => 4,
            DType::F6_E2M3 | DType::F6_E3M2 => 6,
            DType::BOOL
            | DType::U8
            | DType::I8
            | DType::F8_E5M2
            | DType::F8_E4M3
            | DType::F8_E8M0 => 8,
            DType::I16 | DType::U16 | DType::F16 | DType::BF16 => 16,
            DType::I32 | DType::U32 | DType::F32 => 32,
            DType::C64 | DType::I64 | DType::U64 | DType::F64 => 64,
        }
    }

    /// The type that is averaged, and how many of it make one element: itself for the float types,
    /// two `F32` for `C64`. `None` for what is copied and must agree: integers, bools, the scale type
    /// `F8_E8M0` and the types below a byte.
    #[must_use]
    pub fn lanes(self) -> Option<(Float, u64)> {
        match self {
            DType::F8_E5M2 => Some((Float::F8E5M2, 1)),
            DType::F8_E4M3 => Some((Float::F8E4M3, 1)),
            DType::F16 => Some((Float::F16, 1)),
            DType::BF16 => Some((Float::BF16, 1)),
            DType::F32 => Some((Float::F32, 1)),
            DType::C64 => Some((Float::F32, 2)),
            DType::F64 => Some((Float::F64, 1)),
            _ => None,
        }
    }

    /// The float type behind this element type, as [`DType::lanes`] gives it.
    #[must_use]
    pub fn float(self) -> Option<Float> {
        self.lanes().map(|(float, _)| float)
    }

    /// The name that a `config.json` uses for this type, such as `bfloat16`; `None` where there is none.
    #[must_use]
    pub fn config_name(self) -> Option<&'static str> {
        match self {
            DType::F16 => Some("float16"),
            DType::BF16 => Some("bfloat16"),
            DType::F32 => Some("float32"),
            DType::F64 => Some("float64"),
            DType::F8_E4M3 => Some("float8_e4m3fn"),
            DType::F8_E5M2 => Some("float8_e5m2"),
            _ => None,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = String;

    /// Reads the format's name or the usual long one (`bf16`, `BF16`, `bfloat16`), in any case.
    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let upper = match upper.as_str() {
            "FLOAT16" | "HALF" => "F16",
            "BFLOAT16" => "BF16",
            "FLOAT32" | "FLOAT" => "F32",
            "FLOAT64" | "DOUBLE" => "F64",
            "FLOAT8_E4M3FN" | "FLOAT8_E4M3" | "F8_E4M3FN" => "F8_E4M3",
            "FLOAT8_E5M2" => "F8_E5M2",
            other => other,
        };
        DType::ALL.into_iter().find(|dtype| dtype.name() == upper).ok_or_else(|| {
            format!("`{text}` is not a safetensors type (expected one of F64, F32, F16, BF16, F8_E4M3, F8_E5M2, ...)")
        })
    }
}

/// A binary float format that can be averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each variant is the format's own name")]
pub enum Float {
    F8E5M2,
    F8E4M3,
    F16,
    BF16,
    F32,
    F64,
}

impl Float {
    /// Bytes of one value.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Float::F8E5M2 | Float::F8E4M3 => 1,
            Float::F16 | Float::BF16 => 2,
            Float::F32 => 4,
            Float::F64 => 8,
        }
    }

    /// Stored fraction bits; the precision is one more.
    #[must_use]
    pub const fn fraction_bits(self) -> u32 {
        match self {
            Float::F8E5M2 => 2,
            Float::F8E4M3 => 3,
            Float::F16 => 10,
            Float::BF16 => 7,
            Float::F32 => 23,
            Float::F64 => 52,
        }
    }

    /// Exponent bias; the smallest normal value is `2^(1 - bias)`.
    #[must_use]
    pub const fn bias(self) -> i32 {
        match self {
            Float::F8E5M2 | Float::F16 => 15,
            Float::F8E4M3 => 7,
            Float::BF16 | Float::F32 => 127,
            Float::F64 => 1023,
        }
    }

    /// The bits of a value without its sign.
    #[must_use]
    pub const fn magnitude_mask(self) -> u64 {
        (1 << (self.bytes() * 8 - 1)) - 1
    }

    /// The bits of the largest finite value. `F8_E4M3` has no infinity: only the all-ones pattern is
    /// not a number, so its largest value is 448.
    #[must_use]
    pub const fn largest_finite(self) -> u64 {
        match self {
            Float::F8E4M3 => 0x7e,
            _ => self.overflow() - 1,
        }
    }

    /// What a value too large becomes: infinity, or not-a-number for `F8_E4M3`.
    #[must_use]
    pub const fn overflow(self) -> u64 {
        match self {
            Float::F8E5M2 => 0x7c,
            Float::F8E4M3 => 0x7f,
            Float::F16 => 0x7c00,
            Float::BF16 => 0x7f80,
            Float::F32 => 0x7f80_0000,
            Float::F64 => 0x7ff0_0000_0000_0000,
        }
    }

    /// The one pattern that pmill writes for not-a-number: quiet, sign clear.
    #[must_use]
    pub const fn quiet_nan(self) -> u64 {
        match self {
            Float::F8E4M3 => 0x7f,
            _ => self.overflow() | (1 << (self.fraction_bits() - 1)),
        }
    }

    /// The exponent of the smallest step: every value is a multiple of `2^this`.
    #[must_use]
    pub const fn smallest_exponent(self) -> i32 {
        1 - self.bias() - self.fraction_bits() as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for dtype in DType::ALL {
            assert_eq!(dtype.name().parse::<DType>(), Ok(dtype));
        }
        assert_eq!("bfloat16".parse::<DType>(), Ok(DType::BF16));
        assert!("F7".parse::<DType>().is_err());
    }

    #[test]
    fn float_constants_are_those_of_the_formats() {
        assert_eq!(f32::from_bits(Float::F32.largest_finite() as u32), f32::MAX);
        assert_eq!(f64::from_bits(Float::F64.largest_finite()), f64::MAX);
        assert_eq!(
            half::f16::from_bits(Float::F16.largest_finite() as u16),
            half::f16::MAX
        );
        assert_eq!(
            half::bf16::from_bits(Float::BF16.largest_finite() as u16),
            half::bf16::MAX
        );
        assert_eq!(Float::F16.smallest_exponent(), -24);
        assert_eq!(Float::BF16.smallest_exponent(), -133);
        assert_eq!(Float::F64.smallest_exponent(), -1074);
        assert_eq!(Float::F8E4M3.smallest_exponent(), -9);
    }
}
