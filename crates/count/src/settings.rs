//! What is counted: context, window, weight, and the integer unit of the weights.

use serde::{Deserialize, Serialize};

use crate::error::{CountError, Result};

/// The id of a token outside the vocabulary.
pub const OUT_OF_VOCABULARY: u32 = u32::MAX;

/// The largest vocabulary: ids below it, and room for the block's own marks above.
pub const LARGEST_VOCABULARY: u32 = u32::MAX - 16;

/// The largest window, in tokens.
pub const LARGEST_WINDOW: u32 = 4096;

/// The largest window with harmonic weights: `lcm(1..=22) = 232,792,560` is the last unit below
/// 2³², so that a pair can still meet 2³² times (at distance 1) before its sum leaves 64 bits.
pub const LARGEST_HARMONIC_WINDOW: u32 = 22;

/// Where two features meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Context {
    /// Both in one row, counted once a row; stored with left id < right id.
    Document {
        /// Keep at most this many distinct ids of a row, the lowest (most frequent) first; the
        /// rest of the row is dropped and counted in
        /// [`TokenBlock::dropped_features`](crate::TokenBlock::dropped_features). `None` keeps all.
        #[serde(default)]
        max_features: Option<u32>,
    },
    /// Within `size` tokens of each other in one row.
    Window(Window),
    /// Left and right features of one row, two lists; every left id meets every right id once a
    /// row. Both id spaces start at 0 and are independent of each other.
    Row,
}

/// A window: pairs of positions `p < q` of one row with `q - p <= size`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Largest distance, in tokens, at least 1.
    pub size: u32,
    /// What a pair at distance `d` weighs.
    #[serde(default)]
    pub weight: Weight,
    /// Which of the two tokens is left.
    #[serde(default)]
    pub side: Side,
    /// What tokens outside the vocabulary do.
    #[serde(default)]
    pub out_of_vocabulary: OutOfVocabulary,
}

/// The weight of a pair at distance `d` in a window of size `W`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// 1 at any distance; unit 1.
    #[default]
    Uniform,
    /// `1/d`; counted as `lcm(1..=W)/d` units of `1/lcm(1..=W)`.
    Harmonic,
    /// `(W - d + 1)/W`, the mean of word2vec's shrinking window; counted as `W - d + 1` units of `1/W`.
    Dynamic,
}

/// Which token of a pair is the left (row) id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Both: the matrix is symmetric and only its half with left id <= right id is stored.
    ///
    /// For `x < y` the stored count is `M[x][y] = M[y][x]`, the sum over all unordered events.
    /// For `x = y` each event is stored **once**: GloVe adds it to `(x, x)` twice, so the
    /// full matrix has `M[x][x] = 2 * stored`.
    #[default]
    Symmetric,
    /// The context word stands to the left: left id = the later token, right id = the earlier one.
    Left,
    /// The context word stands to the right: left id = the earlier token, right id = the later one.
    Right,
}

/// What tokens outside the vocabulary do to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutOfVocabulary {
    /// They are taken out first, so their neighbours move together (GloVe, hyperwords `--del`).
    #[default]
    Removed,
    /// They count for nothing but keep their place.
    Gap,
}

/// The settings of one count; two tables merge only if these agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountSettings {
    /// Where two features meet.
    pub context: Context,
    /// Ids are `0..vocabulary_size`, by falling frequency. For [`Context::Row`] the larger of
    /// the two sides' vocabularies.
    pub vocabulary_size: u32,
}

impl CountSettings {
    /// Checks window and vocabulary; every other function of the crate that takes settings does
    /// this too.
    ///
    /// # Errors
    /// [`CountError::WindowSize`], [`CountError::WeightUnit`], [`CountError::VocabularySize`].
    pub fn validate(&self) -> Result<()> {
        if self.vocabulary_size > LARGEST_VOCABULARY {
            return Err(CountError::VocabularySize {
                size: self.vocabulary_size,
                largest: LARGEST_VOCABULARY,
            });
        }
        weight_unit(&self.context).map(|_| ())
    }
}

impl Context {
    /// The name of the context in settings files and messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Document { .. } => "document",
            Self::Window(_) => "window",
            Self::Row => "row",
        }
    }
}

/// How many units make the weight 1: stored counts divided by this are natural weights.
///
/// 1 for `document`, `row` and uniform windows, `lcm(1..=size)` for harmonic ones, `size` for
/// dynamic ones.
///
/// # Errors
/// [`CountError::WindowSize`] when the size is 0 or above [`LARGEST_WINDOW`],
/// [`CountError::WeightUnit`] when it is above [`LARGEST_HARMONIC_WINDOW`] with harmonic weights.
/// ```
/// use pmill_count::{Context, Weight, Window, weight_unit};
/// let window = Window { size: 10, weight: Weight::Harmonic, side: Default::default(), out_of_vocabulary: Default::default() };
/// // 2520 is the least number that 1, 2, … 10 all divide.
/// assert_eq!(weight_unit(&Context::Window(window))?, 2520);
/// # Ok::<(), pmill_count::CountError>(())
/// ```
pub fn weight_unit(context: &Context) -> Result<u64> {
    let Context::Window(window) = context else {
        return Ok(1);
    };
    if window.size == 0 || window.size > LARGEST_WINDOW {
        return Err(CountError::WindowSize {
            size: window.size,
            largest: LARGEST_WINDOW,
        });
    }
    match window.weight {
        Weight::Uniform => Ok(1),
        Weight::Dynamic => Ok(u64::from(window.size)),
        Weight::Harmonic if window.size > LARGEST_HARMONIC_WINDOW => Err(CountError::WeightUnit {
            size: window.size,
            largest: LARGEST_HARMONIC_WINDOW,
        }),
        Weight::Harmonic => Ok((1..=u64::from(window.size)).fold(1, lcm)),
    }
}

/// The units of each distance, `[0]` for distance 1.
pub(crate) fn distance_units(window: &Window) -> Result<Vec<u32>> {
    let unit = weight_unit(&Context::Window(window.clone()))?;
    let unit = u32::try_from(unit).map_err(|_| CountError::WeightUnit {
        size: window.size,
        largest: LARGEST_HARMONIC_WINDOW,
    })?;
    Ok((1..=window.size)
        .map(|distance| match window.weight {
            Weight::Uniform => 1,
            Weight::Harmonic => unit / distance,
            Weight::Dynamic => window.size - distance + 1,
        })
        .collect())
}

fn lcm(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn harmonic(size: u32) -> Context {
        Context::Window(Window {
            size,
            weight: Weight::Harmonic,
            side: Side::Symmetric,
            out_of_vocabulary: OutOfVocabulary::Removed,
        })
    }

    #[test]
    fn harmonic_unit_is_the_least_common_multiple() {
        for (size, unit) in [(1, 1), (2, 2), (5, 60), (10, 2520), (22, 232_792_560)] {
            assert_eq!(weight_unit(&harmonic(size)).unwrap(), unit);
        }
    }

    #[test]
    fn too_large_a_harmonic_window_is_a_user_error() {
        let error = weight_unit(&harmonic(23)).unwrap_err();
        assert!(matches!(error, CountError::WeightUnit { size: 23, .. }));
        assert_eq!(error.kind(), crate::ErrorKind::User);
        assert!(weight_unit(&harmonic(0)).is_err());
    }

    #[test]
    fn settings_survive_json() {
        let settings = CountSettings {
            context: harmonic(10),
            vocabulary_size: 7,
        };
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(
            text,
            r#"{"context":{"window":{"size":10,"weight":"harmonic","side":"symmetric","out_of_vocabulary":"removed"}},"vocabulary_size":7}"#
        );
        assert_eq!(
            serde_json::from_str::<CountSettings>(&text).unwrap(),
            settings
        );
    }
}
