//! Finds the text column in a file's schema and reads its rows out of Arrow batches.
//!
//! A column is named by its name or by a path through structs (`meta.caption`). Any string type
//! will do, bytes that hold UTF-8 too, and lists of them hold tokens that are made already.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, GenericListArray, LargeBinaryArray,
    LargeStringArray, OffsetSizeTrait, StringArray, StringViewArray, StructArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Schema};

use crate::error::{FileFault, nearest_name};

/// Where the text is in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextColumn {
    /// Index of the top-level column: in the file, or in what is read of it.
    pub root: usize,
    /// Fields to step into, from the top-level column down.
    steps: Vec<usize>,
}

/// Takes the rows of a column, in order.
pub trait RowReceiver {
    /// What can go wrong in it.
    type Error;

    /// Rows of text; `None` is a null, a row without features.
    ///
    /// # Errors
    /// The receiver's own.
    fn texts(&mut self, rows: &mut dyn Iterator<Item = Option<&str>>) -> Result<(), Self::Error>;

    /// One row of tokens made already; `None` is a null.
    ///
    /// # Errors
    /// The receiver's own.
    fn tokens(&mut self, row: Option<&mut dyn Iterator<Item = &str>>) -> Result<(), Self::Error>;
}

/// Why a batch cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub enum RowFault<E> {
    /// The row (from 0, in the batch) is not UTF-8.
    NotUtf8(usize),
    /// The array is not of the type that the schema promised.
    Type(String),
    /// The receiver of rows failed.
    Receiver(E),
}

impl TextColumn {
    /// Finds `path` in a file's schema.
    ///
    /// # Errors
    /// When it is missing (with the nearest name), ambiguous, or not text.
    pub fn find(schema: &Schema, path: &str) -> Result<Self, FileFault> {
        let (root, field, mut rest) = find_root(schema, path)?;
        let mut steps = Vec::new();
        let mut field: &Field = field;
        while !rest.is_empty() {
            let (name, after) = rest.split_once('.').unwrap_or((rest, ""));
            let DataType::Struct(children) = field.data_type() else {
                return Err(FileFault::ColumnType {
                    column: path.to_owned(),
                    found: format!("{} at `{}`", field.data_type(), field.name()),
                });
            };
            let Some(index) = children.iter().position(|child| child.name() == name) else {
                return Err(missing(
                    path,
                    name,
                    children.iter().map(|child| child.name().as_str()),
                ));
            };
            steps.push(index);
            field = &children[index];
            rest = after;
        }
        if !is_text(field.data_type()) && !is_text_list(field.data_type()) {
            return Err(FileFault::ColumnType {
                column: path.to_owned(),
                found: field.data_type().to_string(),
            });
        }
        Ok(Self { root, steps })
    }

    /// The same column, where the top-level column has another index.
    #[must_use]
    pub fn with_root(&self, root: usize) -> Self {
        Self {
            root,
            steps: self.steps.clone(),
        }
    }

    /// A column that is nothing but text.
    #[must_use]
    pub fn whole() -> Self {
        Self {
            root: 0,
            steps: Vec::new(),
        }
    }

    /// Gives the rows of the column to `receiver`, in order. `top` is the top-level column.
    ///
    /// # Errors
    /// When a value is not UTF-8, or the receiver fails.
    pub fn rows<R: RowReceiver>(
        &self,
        top: &ArrayRef,
        receiver: &mut R,
    ) -> Result<(), RowFault<R::Error>> {
        let mut array = top.clone();
        let mut nulls = array.logical_nulls();
        for step in &self.steps {
            let parent = array
                .as_any()
                .downcast_ref::<StructArray>()
                .ok_or_else(|| RowFault::Type(array.data_type().to_string()))?;
            let child = parent.column(*step).clone();
            nulls = NullBuffer::union(nulls.as_ref(), child.logical_nulls().as_ref());
            array = child;
        }
        // Dictionaries are few distinct values: unpacking one batch costs a copy of references.
        if let DataType::Dictionary(_, values) = array.data_type() {
            let plain = match **values {
                DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
                    DataType::BinaryView
                }
                _ => DataType::Utf8View,
            };
            array = arrow::compute::cast(&array, &plain)
                .map_err(|error| RowFault::Type(error.to_string()))?;
        }
        if let Some(values) = TextValues::of(&array) {
            return values.rows(nulls.as_ref(), receiver);
        }
        match array.data_type() {
            DataType::List(_) => lists(array.as_list::<i32>(), nulls.as_ref(), receiver),
            DataType::LargeList(_) => lists(array.as_list::<i64>(), nulls.as_ref(), receiver),
            other => Err(RowFault::Type(other.to_string())),
        }
    }
}

fn find_root<'a, 'b>(
    schema: &'a Schema,
    path: &'b str,
) -> Result<(usize, &'a Field, &'b str), FileFault> {
    // A name that holds a dot wins over a path with that spelling.
    for name in [path, path.split_once('.').map_or(path, |(first, _)| first)] {
        let mut matches = schema
            .fields()
            .iter()
            .enumerate()
            .filter(|(_, field)| field.name() == name);
        if let Some((index, field)) = matches.next() {
            let times = 1 + matches.count();
            if times > 1 {
                return Err(FileFault::AmbiguousColumn {
                    column: name.to_owned(),
                    times,
                });
            }
            let rest = path[name.len()..].trim_start_matches('.');
            return Ok((index, field, rest));
        }
    }
    let names = schema.fields().iter().map(|field| field.name().as_str());
    Err(missing(path, path, names))
}

fn missing<'a>(path: &str, name: &str, known: impl Iterator<Item = &'a str>) -> FileFault {
    let known: Vec<String> = known.map(str::to_owned).collect();
    FileFault::NoColumn {
        column: path.to_owned(),
        nearest: nearest_name(name, known.iter().map(String::as_str)),
        known,
    }
}

pub(crate) fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        // A column of type null holds no text in any row.
        | DataType::Null => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

pub(crate) fn is_text_list(data_type: &DataType) -> bool {
    matches!(data_type, DataType::List(item) | DataType::LargeList(item) if is_text(item.data_type()))
}

/// An array of strings, or of bytes that should be strings.
enum TextValues<'a> {
    Utf8(&'a StringArray),
    LargeUtf8(&'a LargeStringArray),
    View(&'a StringViewArray),
    Binary(&'a BinaryArray),
    LargeBinary(&'a LargeBinaryArray),
    BinaryView(&'a BinaryViewArray),
    Null(usize),
}

impl<'a> TextValues<'a> {
    fn of(array: &'a ArrayRef) -> Option<Self> {
        Some(match array.data_type() {
            DataType::Utf8 => Self::Utf8(array.as_string()),
            DataType::LargeUtf8 => Self::LargeUtf8(array.as_string()),
            DataType::Utf8View => Self::View(array.as_string_view()),
            DataType::Binary => Self::Binary(array.as_binary()),
            DataType::LargeBinary => Self::LargeBinary(array.as_binary()),
            DataType::BinaryView => Self::BinaryView(array.as_binary_view()),
            DataType::Null => Self::Null(array.len()),
            _ => return None,
        })
    }

    /// Value `index`, which is not null. `None` when its bytes are not UTF-8.
    fn get(&self, index: usize) -> Option<&'a str> {
        match self {
            Self::Utf8(array) => Some(array.value(index)),
            Self::LargeUtf8(array) => Some(array.value(index)),
            Self::View(array) => Some(array.value(index)),
            Self::Binary(array) => std::str::from_utf8(array.value(index)).ok(),
            Self::LargeBinary(array) => std::str::from_utf8(array.value(index)).ok(),
            Self::BinaryView(array) => std::str::from_utf8(array.value(index)).ok(),
            Self::Null(_) => None,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Utf8(array) => array.len(),
            Self::LargeUtf8(array) => array.len(),
            Self::View(array) => array.len(),
            Self::Binary(array) => array.len(),
            Self::LargeBinary(array) => array.len(),
            Self::BinaryView(array) => array.len(),
            Self::Null(length) => *length,
        }
    }

    fn rows<R: RowReceiver>(
        &self,
        nulls: Option<&NullBuffer>,
        receiver: &mut R,
    ) -> Result<(), RowFault<R::Error>> {
        let mut bad = None;
        let mut rows = (0..self.len()).map_while(|index| {
            if nulls.is_some_and(|nulls| nulls.is_null(index)) {
                return Some(None);
            }
            let text = self.get(index);
            if text.is_none() {
                bad = Some(index);
            }
            text.map(Some)
        });
        let received = receiver.texts(&mut rows);
        match bad {
            Some(index) => Err(RowFault::NotUtf8(index)),
            None => received.map_err(RowFault::Receiver),
        }
    }
}

fn lists<O: OffsetSizeTrait, R: RowReceiver>(
    array: &GenericListArray<O>,
    nulls: Option<&NullBuffer>,
    receiver: &mut R,
) -> Result<(), RowFault<R::Error>> {
    let mut items = array.values().clone();
    if let DataType::Dictionary(_, _) = items.data_type() {
        items = arrow::compute::cast(&items, &DataType::Utf8View)
            .map_err(|error| RowFault::Type(error.to_string()))?;
    }
    let values =
        TextValues::of(&items).ok_or_else(|| RowFault::Type(array.data_type().to_string()))?;
    let item_nulls = items.logical_nulls();
    let offsets = array.value_offsets();
    for index in 0..array.len() {
        if nulls.is_some_and(|nulls| nulls.is_null(index)) {
            receiver.tokens(None).map_err(RowFault::Receiver)?;
            continue;
        }
        let mut bad = false;
        let mut tokens = (offsets[index].as_usize()..offsets[index + 1].as_usize())
            .filter(|item| {
                !item_nulls
                    .as_ref()
                    .is_some_and(|nulls| nulls.is_null(*item))
            })
            .map_while(|item| {
                let token = values.get(item);
                bad |= token.is_none();
                token
            });
        let received = receiver.tokens(Some(&mut tokens));
        if bad {
            return Err(RowFault::NotUtf8(index));
        }
        received.map_err(RowFault::Receiver)?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use arrow::array::{
        DictionaryArray, ListArray,
        builder::{ListBuilder, StringBuilder},
    };
    use arrow::datatypes::{Fields, Int32Type};

    use super::*;

    #[derive(Default)]
    pub(crate) struct Kept(pub(crate) Vec<Option<String>>);

    impl RowReceiver for Kept {
        type Error = ();

        fn texts(&mut self, rows: &mut dyn Iterator<Item = Option<&str>>) -> Result<(), ()> {
            self.0.extend(rows.map(|row| row.map(str::to_owned)));
            Ok(())
        }

        fn tokens(&mut self, row: Option<&mut dyn Iterator<Item = &str>>) -> Result<(), ()> {
            self.0
                .push(row.map(|tokens| tokens.collect::<Vec<_>>().join("|")));
            Ok(())
        }
    }

    fn read(schema: &Schema, path: &str, top: ArrayRef) -> Vec<Option<String>> {
        let column = TextColumn::find(schema, path).unwrap();
        let mut rows = Kept::default();
        column.rows(&top, &mut rows).unwrap();
        rows.0
    }

    fn schema(name: &str, data_type: DataType) -> Schema {
        Schema::new(vec![Field::new(name, data_type, true)])
    }

    #[test]
    fn every_string_type_gives_the_same_rows() {
        let values = vec![Some("a b"), None, Some("")];
        let expected = vec![Some("a b".to_owned()), None, Some(String::new())];
        let plain: ArrayRef = Arc::new(StringArray::from(values.clone()));
        for data_type in [
            DataType::Utf8,
            DataType::LargeUtf8,
            DataType::Utf8View,
            DataType::Binary,
            DataType::LargeBinary,
            DataType::BinaryView,
        ] {
            let array = arrow::compute::cast(&plain, &data_type).unwrap();
            assert_eq!(read(&schema("t", data_type), "t", array), expected);
        }
        let dictionary: DictionaryArray<Int32Type> = values.into_iter().collect();
        let data_type = dictionary.data_type().clone();
        assert_eq!(
            read(&schema("t", data_type), "t", Arc::new(dictionary)),
            expected
        );
    }

    #[test]
    fn a_list_gives_its_items_without_nulls() {
        let mut builder = ListBuilder::new(StringBuilder::new());
        builder.append_value([Some("x"), None, Some("y z")]);
        builder.append_null();
        builder.append_value::<[Option<&str>; 0], _>([]);
        let array: ListArray = builder.finish();
        let schema = schema("t", array.data_type().clone());
        assert_eq!(
            read(&schema, "t", Arc::new(array)),
            [Some("x|y z".to_owned()), None, Some(String::new())]
        );
    }

    #[test]
    fn a_path_goes_through_structs_and_their_nulls() {
        let text: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), Some("b")]));
        let fields = Fields::from(vec![Field::new("caption", DataType::Utf8, true)]);
        let array = StructArray::new(
            fields.clone(),
            vec![text],
            Some(NullBuffer::from(vec![true, false])),
        );
        let schema = schema("meta", DataType::Struct(fields));
        assert_eq!(
            read(&schema, "meta.caption", Arc::new(array)),
            [Some("a".to_owned()), None]
        );
        let fault = TextColumn::find(&schema, "meta.captoin").unwrap_err();
        assert_eq!(
            fault.to_string(),
            "no column `meta.captoin` (did you mean `caption`?); it has: caption"
        );
    }

    #[test]
    fn what_is_not_text_is_refused() {
        let schema = Schema::new(vec![
            Field::new("TEXT", DataType::Utf8, true),
            Field::new("n", DataType::Int32, true),
            Field::new("twice", DataType::Utf8, true),
            Field::new("twice", DataType::Utf8, true),
        ]);
        let message = |path: &str| TextColumn::find(&schema, path).unwrap_err().to_string();
        assert_eq!(
            message("text"),
            "no column `text` (did you mean `TEXT`?); it has: TEXT, n, twice, twice"
        );
        assert_eq!(
            message("n"),
            "column `n` has type Int32, expected text or a list of text"
        );
        assert_eq!(
            message("twice"),
            "column `twice` occurs 2 times, so which one is meant is not known"
        );
        assert_eq!(
            message("zebra"),
            "no column `zebra`; it has: TEXT, n, twice, twice"
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_named() {
        let array: ArrayRef = Arc::new(BinaryArray::from(vec![b"ok".as_slice(), b"\xff"]));
        let column = TextColumn::find(&schema("t", DataType::Binary), "t").unwrap();
        assert_eq!(
            column.rows(&array, &mut Kept::default()),
            Err(RowFault::NotUtf8(1))
        );
    }
}
