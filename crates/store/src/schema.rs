//! The tables' columns, as Arrow and as Delta schemas.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use deltalake_core::kernel::{DataType as DeltaType, StructField};

/// Version of the table layout; a reader refuses a newer one.
pub const FORMAT_VERSION: u32 = 1;

/// `vocab(id, token, count, documents)`: terms by falling token count, then by their bytes.
/// `count` is how often the term occurs, `documents` how many rows hold it.
pub static VOCAB: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int32, false),
        Field::new("token", DataType::Utf8, false),
        Field::new("count", DataType::Int64, false),
        Field::new("documents", DataType::Int64, false),
    ]))
});

/// `vocab` of a job that is counted by slice: each term once for every slice, the ids of a slice in a row.
/// `slice` is null for the rows whose slice is null.
pub static SLICED_VOCAB: LazyLock<SchemaRef> = LazyLock::new(|| {
    let mut fields = VOCAB.fields().to_vec();
    fields.push(Arc::new(Field::new("slice", DataType::Utf8, true)));
    Arc::new(Schema::new(fields))
});

/// `vocab` of a job with a sketch: for each term the exact sums of its sketched pairs, as the left and as the
/// right one, in weight units.
pub static SKETCHED_VOCAB: LazyLock<SchemaRef> = LazyLock::new(|| {
    let mut fields = VOCAB.fields().to_vec();
    for name in ["tail_left", "tail_right"] {
        fields.push(Arc::new(Field::new(name, DataType::Int64, false)));
    }
    Arc::new(Schema::new(fields))
});

/// `tail(kind, hash, seed, sketch)`: the sketch of the pairs that are not in `pairs`. A row of kind `count-min`
/// is one hash row, one of kind `hyperloglog` (no `hash`) tells how many distinct pairs there are; `sketch`
/// is the binary format of DataSketches.
pub static TAIL: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("kind", DataType::Utf8, false),
        Field::new("hash", DataType::Int32, true),
        Field::new("seed", DataType::Int64, false),
        Field::new("sketch", DataType::Binary, false),
    ]))
});

/// `pairs(left_id, right_id, count)`, sorted by both ids. `count` is in weight units.
pub static PAIRS: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("left_id", DataType::Int32, false),
        Field::new("right_id", DataType::Int32, false),
        Field::new("count", DataType::Int64, false),
    ]))
});

/// `outside(token, count, documents)`, sorted by the bytes of the token: what was met in the text
/// and is not in the vocabulary.
pub static OUTSIDE: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("token", DataType::Utf8, false),
        Field::new("count", DataType::Int64, false),
        Field::new("documents", DataType::Int64, false),
    ]))
});

/// `sources`: one row an input file; `status` is `counted` or `skipped`, `message` says why. Rows of
/// status `retracted` tell what was taken out again: a whole file (no message), or the rows of a
/// counted file that the message names (`rows 0, 4-7`, from 0).
/// `etag` is the store's entity tag, or size and modification time for local files.
pub static SOURCES: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("uri", DataType::Utf8, false),
        Field::new("size", DataType::Int64, false),
        Field::new("etag", DataType::Utf8, false),
        Field::new("rows", DataType::Int64, false),
        Field::new("tokens", DataType::Int64, false),
        Field::new("batch", DataType::Utf8, false),
        Field::new("status", DataType::Utf8, false),
        Field::new("message", DataType::Utf8, true),
    ]))
});

/// The Delta columns of an Arrow schema made of the types that pmill's tables use.
#[must_use]
pub(crate) fn delta_columns(schema: &Schema) -> Option<Vec<StructField>> {
    schema
        .fields()
        .iter()
        .map(|field| {
            let data_type = match field.data_type() {
                DataType::Int32 => DeltaType::INTEGER,
                DataType::Int64 => DeltaType::LONG,
                DataType::Float64 => DeltaType::DOUBLE,
                DataType::Utf8 => DeltaType::STRING,
                DataType::Boolean => DeltaType::BOOLEAN,
                DataType::Binary => DeltaType::BINARY,
                _ => return None,
            };
            Some(StructField::new(
                field.name(),
                data_type,
                field.is_nullable(),
            ))
        })
        .collect()
}
