//! A contingency table of two or three categories, built in one pass over rows in any order, repeated cells added up.
//!
//! Memory: one entry a distinct cell and one a distinct key. Weights are integers in steps of 2^−64, so sums are exact
//! and order-free: whole counts below 2^64 in total and every float of 2^−11 and more fit without rounding.

use std::hash::BuildHasher;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Int64Type, UInt64Type};
use datafusion_common::{Result, ScalarValue, internal_err};
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use super::{Counts, Estimator, float_result};
use crate::StatsError;
use crate::catalogue::Values;
use crate::codec::{Reader, Writer};

/// One count: 1 in steps of 2^−64.
const ONE: u128 = 1 << 64;

/// The number that one key of one column got, by first appearance.
type Code = u32;

/// Gives the keys of one column their numbers.
#[derive(Debug, Default)]
struct Keys {
    /// Codes (plus one; 0 is free) of the small whole keys, by key: no hashing for ids and labels.
    small: Vec<Code>,
    integers: HashMap<i64, Code>,
    hasher: DefaultHashBuilder,
    /// Codes of texts, hashed by their text in `texts`.
    by_text: HashTable<Code>,
    names: Vec<Name>,
}

#[derive(Debug, Clone, PartialEq)]
enum Name {
    Integer(i64),
    Text(Box<str>),
}

/// Keys below this have a place of their own.
const SMALL_KEYS: usize = 1 << 16;

impl Keys {
    #[inline]
    fn integer(&mut self, key: i64) -> Code {
        if let Some(code) = usize::try_from(key)
            .ok()
            .and_then(|key| self.small.get(key))
            && *code != 0
        {
            return code - 1;
        }
        self.integer_slow(key)
    }

    #[cold]
    fn new_code(&mut self, name: Name) -> Code {
        let code = Code::try_from(self.names.len()).unwrap_or(Code::MAX);
        self.names.push(name);
        code
    }

    fn integer_slow(&mut self, key: i64) -> Code {
        match usize::try_from(key) {
            Ok(place) if place < SMALL_KEYS => {
                let code = self.new_code(Name::Integer(key));
                if place >= self.small.len() {
                    self.small.resize((place + 1).next_power_of_two(), 0);
                }
                self.small[place] = code + 1;
                code
            }
            _ => {
                if let Some(code) = self.integers.get(&key) {
                    return *code;
                }
                let code = self.new_code(Name::Integer(key));
                self.integers.insert(key, code);
                code
            }
        }
    }

    fn text(&mut self, key: &str) -> Code {
        let hash = self.hasher.hash_one(key);
        let same =
            |code: &Code| matches!(&self.names[*code as usize], Name::Text(text) if **text == *key);
        if let Some(code) = self.by_text.find(hash, same) {
            return *code;
        }
        let code = self.new_code(Name::Text(key.into()));
        let (names, hasher) = (&self.names, &self.hasher);
        let rehash = |code: &Code| match &names[*code as usize] {
            Name::Text(text) => hasher.hash_one(&**text),
            Name::Integer(key) => hasher.hash_one(key),
        };
        self.by_text.insert_unique(hash, code, rehash);
        code
    }

    fn name(&mut self, name: &Name) -> Code {
        match name {
            Name::Integer(key) => self.integer(*key),
            Name::Text(text) => self.text(text),
        }
    }

    fn read(&mut self, array: &ArrayRef, codes: &mut Vec<Code>) -> Result<()> {
        codes.clear();
        match array.data_type() {
            DataType::Int64 => {
                let keys = array.as_primitive::<Int64Type>().values();
                codes.extend(keys.iter().map(|key| self.integer(*key)));
            }
            // One column has one type, so the keys above 2^63 may take the place of the negatives.
            DataType::UInt64 => {
                let keys = array.as_primitive::<UInt64Type>().values();
                codes.extend(keys.iter().map(|key| self.integer(*key as i64)));
            }
            DataType::Utf8View => {
                let keys = array.as_string_view();
                codes.extend((0..keys.len()).map(|row| self.text(keys.value(row))));
            }
            other => return internal_err!("key column of type {other}"),
        }
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        let texts: usize = self
            .names
            .iter()
            .map(|name| match name {
                Name::Integer(_) => 0,
                Name::Text(text) => text.len(),
            })
            .sum();
        self.small.capacity() * 4
            + self.integers.capacity() * 16
            + self.by_text.capacity() * 8
            + self.names.capacity() * std::mem::size_of::<Name>()
            + texts
    }
}

/// A cell's key: codes of x, y and z (0 in a table of two).
type Cell = [Code; 3];

/// A square of weights for cells whose codes are small: an index instead of a hash.
const DENSE_SIDE: usize = 256;

/// Bits of a code in a packed cell.
const PACKED_BITS: u32 = 21;

fn pack(cell: Cell) -> u64 {
    let [x, y, z] = cell.map(u64::from);
    x << (2 * PACKED_BITS) | y << PACKED_BITS | z
}

fn unpack(packed: u64) -> Cell {
    [2 * PACKED_BITS, PACKED_BITS, 0]
        .map(|shift| (packed >> shift) as Code & ((1 << PACKED_BITS) - 1))
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Table {
    keys: Vec<Keys>,
    /// Weights of cells with both codes below [`DENSE_SIDE`] in a table of two; empty until there are enough rows.
    dense: Vec<u128>,
    /// Other cells whose codes fit in 21 bits each, by the codes in one word: quicker to hash than three.
    packed: HashMap<u64, u128>,
    cells: HashMap<Cell, u128>,
    /// Sum of all weights; in range as long as no overflow was reported.
    total: u128,
    outside: bool,
    rows: u64,
    codes: Vec<Vec<Code>>,
}

/// What measures look at: the weights of non-empty cells with their codes, as floats.
pub(crate) struct Summary {
    /// `(codes, weight)`, weight above zero.
    pub(crate) cells: Vec<(Cell, f64)>,
    /// Margins of each column, by code.
    pub(crate) margins: Vec<Vec<f64>>,
    /// Sum of the weights.
    pub(crate) total: f64,
}

fn to_float(weight: u128) -> f64 {
    weight as f64 / ONE as f64
}

impl Table {
    fn new(columns: usize) -> Table {
        Table {
            keys: (0..columns).map(|_| Keys::default()).collect(),
            codes: vec![Vec::new(); columns],
            ..Table::default()
        }
    }

    #[inline]
    fn add(&mut self, cell: Cell, weight: u128) -> Result<(), ()> {
        // Cells are parts of the total: if that has room, they have.
        self.total = self.total.checked_add(weight).ok_or(())?;
        let (x, y) = (cell[0] as usize, cell[1] as usize);
        if x < DENSE_SIDE && y < DENSE_SIDE && !self.dense.is_empty() {
            self.dense[x * DENSE_SIDE + y] += weight;
        } else if (cell[0] | cell[1] | cell[2]) < 1 << PACKED_BITS {
            *self.packed.entry(pack(cell)).or_insert(0) += weight;
        } else {
            *self.cells.entry(cell).or_insert(0) += weight;
        }
        Ok(())
    }

    /// Rows after which the dense square (1 MiB) is worth its memory.
    const DENSE_AFTER_ROWS: u64 = 100_000;

    fn update(
        &mut self,
        function: &str,
        columns: &[ArrayRef],
        counts: Option<&ArrayRef>,
    ) -> Result<()> {
        let rows = columns[0].len();
        self.rows += rows as u64;
        if self.keys.len() == 2 && self.dense.is_empty() && self.rows > Self::DENSE_AFTER_ROWS {
            self.dense = vec![0; DENSE_SIDE * DENSE_SIDE];
        }
        let mut codes = std::mem::take(&mut self.codes);
        for ((keys, column), codes) in self.keys.iter_mut().zip(columns).zip(&mut codes) {
            keys.read(column, codes)?;
        }
        let cell = |row: usize| match codes.as_slice() {
            [x, y] => [x[row], y[row], 0],
            [x, y, z] => [x[row], y[row], z[row]],
            _ => [0; 3],
        };
        let overflow = |()| StatsError::Overflow {
            function: function.to_owned(),
        };
        match counts.map(Counts::read).transpose()? {
            None => {
                for row in 0..rows {
                    self.add(cell(row), ONE).map_err(overflow)?;
                }
            }
            Some(Counts::Unsigned(counts)) => {
                for (row, count) in counts.iter().enumerate() {
                    self.add(cell(row), u128::from(*count) << 64)
                        .map_err(overflow)?;
                }
            }
            Some(Counts::Signed(counts)) => {
                for (row, count) in counts.iter().enumerate() {
                    match u64::try_from(*count) {
                        Ok(count) => self
                            .add(cell(row), u128::from(count) << 64)
                            .map_err(overflow)?,
                        Err(_) => self.outside = true,
                    }
                }
            }
            Some(Counts::Floats(counts)) => {
                for (row, count) in counts.iter().enumerate() {
                    if *count >= 0.0 && *count < ONE as f64 {
                        self.add(cell(row), (*count * ONE as f64) as u128)
                            .map_err(overflow)?;
                    } else if *count >= ONE as f64 {
                        return Err(overflow(()).into());
                    } else {
                        self.outside = true;
                    }
                }
            }
        }
        self.codes = codes;
        Ok(())
    }

    fn each_cell(&self) -> impl Iterator<Item = (Cell, u128)> + '_ {
        let dense = self
            .dense
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight > 0)
            .map(|(place, weight)| {
                (
                    [
                        (place / DENSE_SIDE) as Code,
                        (place % DENSE_SIDE) as Code,
                        0,
                    ],
                    *weight,
                )
            });
        let packed = self
            .packed
            .iter()
            .map(|(packed, weight)| (unpack(*packed), *weight));
        let others = self.cells.iter().map(|(cell, weight)| (*cell, *weight));
        dense.chain(packed.chain(others).filter(|(_, weight)| *weight > 0))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.outside.into());
        out.u64(self.rows);
        for keys in &self.keys {
            out.u64(keys.names.len() as u64);
            for name in &keys.names {
                match name {
                    Name::Integer(key) => {
                        out.u64(0);
                        out.u64(*key as u64);
                    }
                    Name::Text(text) => {
                        out.u64(1);
                        out.text(text);
                    }
                }
            }
        }
        // A cell that was counted before and after the dense square came is in both places; adding is all it takes.
        out.u64(self.each_cell().count() as u64);
        for (cell, weight) in self.each_cell() {
            for code in &cell[..self.keys.len()] {
                out.u64(u64::from(*code));
            }
            out.u128(weight);
        }
        out.bytes
    }

    /// `None` when damaged; `Some(Err)` when the sum overflows.
    fn merge(&mut self, state: &[u8]) -> Option<Result<(), ()>> {
        let mut input = Reader::new(state);
        self.outside |= input.u64()? != 0;
        self.rows += input.u64()?;
        let mut translation: Vec<Vec<Code>> = Vec::new();
        for keys in &mut self.keys {
            let length = input.length(16)?;
            let mut codes = Vec::with_capacity(length);
            for _ in 0..length {
                let name = match input.u64()? {
                    0 => Name::Integer(input.u64()? as i64),
                    1 => Name::Text(input.text()?.into()),
                    _ => return None,
                };
                codes.push(keys.name(&name));
            }
            translation.push(codes);
        }
        let length = input.length(16)?;
        for _ in 0..length {
            let mut cell = [0; 3];
            for (slot, codes) in cell.iter_mut().zip(&translation) {
                *slot = *codes.get(usize::try_from(input.u64()?).ok()?)?;
            }
            if self.add(cell, input.u128()?).is_err() {
                return Some(Err(()));
            }
        }
        Some(Ok(()))
    }

    /// Cells in no particular order: what is computed from them is summed exactly.
    fn summary(&self) -> Summary {
        let mut weights: HashMap<Cell, u128> = HashMap::new();
        let mut margins: Vec<Vec<u128>> = self
            .keys
            .iter()
            .map(|keys| vec![0; keys.names.len()])
            .collect();
        for (cell, weight) in self.each_cell() {
            *weights.entry(cell).or_insert(0) += weight;
            for (margin, code) in margins.iter_mut().zip(cell) {
                margin[code as usize] += weight;
            }
        }
        Summary {
            cells: weights
                .into_iter()
                .map(|(cell, weight)| (cell, to_float(weight)))
                .collect(),
            margins: margins
                .into_iter()
                .map(|margin| margin.into_iter().map(to_float).collect())
                .collect(),
            total: to_float(self.total),
        }
    }

    fn held_bytes(&self) -> usize {
        self.keys.iter().map(Keys::held_bytes).sum::<usize>()
            + self.dense.capacity() * 16
            + (self.cells.capacity() + self.packed.capacity()) * 33
            + self
                .codes
                .iter()
                .map(|codes| codes.capacity() * 4)
                .sum::<usize>()
    }
}

/// A function of a table and the parameters; NaN for no value.
pub(crate) type TableMeasure = fn(&Summary, &Values) -> f64;

/// A table with the measure that ends it.
#[derive(Debug)]
pub(crate) struct TableEstimator {
    function: &'static str,
    table: Table,
    values: Values,
    measure: TableMeasure,
}

impl TableEstimator {
    pub(crate) fn boxed(
        function: &'static str,
        columns: usize,
        values: &Values,
        measure: TableMeasure,
    ) -> Box<dyn Estimator> {
        Box::new(TableEstimator {
            function,
            table: Table::new(columns),
            values: *values,
            measure,
        })
    }
}

impl Estimator for TableEstimator {
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let (keys, counts) = columns.split_at(self.table.keys.len());
        self.table.update(self.function, keys, counts.first())
    }

    fn encode(&self) -> Vec<u8> {
        self.table.encode()
    }

    fn merge(&mut self, state: &[u8]) -> Option<()> {
        // An overflow is kept as "outside": the trait's caller knows damaged states only.
        if self.table.merge(state)?.is_err() {
            self.table.outside = true;
        }
        Some(())
    }

    fn evaluate(&self) -> Result<ScalarValue> {
        if self.table.outside || self.table.total == 0 {
            return Ok(ScalarValue::Float64(None));
        }
        Ok(float_result((self.measure)(
            &self.table.summary(),
            &self.values,
        )))
    }

    fn held_bytes(&self) -> usize {
        self.table.held_bytes()
    }
}
