//! The SQL function `features(text)`: the features that a job would count in a text.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListBuilder, StringBuilder};
use arrow::datatypes::{DataType, Field};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use pmill_text::{FeatureExtractor, Scratch};

/// `features(text)` of one extractor: a list of text, in the order of the text, repeats kept; of NULL, NULL.
#[must_use]
pub fn features(extractor: Arc<FeatureExtractor>) -> ScalarUDF {
    ScalarUDF::new_from_impl(Features {
        extractor: Extractor(extractor),
        signature: Signature::string(1, Volatility::Immutable),
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Features {
    extractor: Extractor,
    signature: Signature,
}

/// Equal when it is the same object: a session has one.
struct Extractor(Arc<FeatureExtractor>);

impl std::fmt::Debug for Extractor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.describe().fmt(formatter)
    }
}

impl PartialEq for Extractor {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Extractor {}

impl std::hash::Hash for Extractor {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl ScalarUDFImpl for Features {
    fn name(&self) -> &str {
        "features"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(Arc::new(Field::new_list_field(
            DataType::Utf8,
            true,
        ))))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(texts) = arguments.args.first() else {
            return Err(DataFusionError::Internal("features() without text".into()));
        };
        let texts = texts.to_array(arguments.number_rows)?;
        let texts = arrow::compute::cast(&texts, &DataType::Utf8View)?;
        let mut lists = ListBuilder::new(StringBuilder::new());
        let mut scratch = Scratch::default();
        for text in texts.as_string_view() {
            match text {
                None => lists.append_null(),
                Some(text) => {
                    let mut append = |feature: &str| lists.values().append_value(feature);
                    self.extractor
                        .0
                        .for_each_feature(text, &mut scratch, &mut append)
                        .map_err(|error| DataFusionError::External(Box::new(error)))?;
                    lists.append(true);
                }
            }
        }
        let lists: ArrayRef = Arc::new(lists.finish());
        debug_assert_eq!(lists.len(), texts.len());
        Ok(ColumnarValue::Array(lists))
    }
}

#[cfg(test)]
mod tests {
    use pmill_text::FeatureSpec;

    use super::*;

    #[test]
    fn a_text_gives_its_features_in_order() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let context = datafusion::prelude::SessionContext::new();
        let extractor = FeatureExtractor::new(&FeatureSpec::default()).unwrap();
        context.register_udf(features(Arc::new(extractor)));
        let sql = "SELECT array_to_string(features(t), '|', '-') AS f FROM (VALUES ('A dog, a Cat'), (NULL), ('')) AS v(t)";
        let rows =
            runtime.block_on(async { context.sql(sql).await.unwrap().collect().await.unwrap() });
        let texts = arrow::compute::cast(rows[0].column(0), &DataType::Utf8).unwrap();
        let texts: Vec<_> = texts.as_string::<i32>().iter().collect();
        assert_eq!(texts, [Some("a|dog|a|cat"), None, Some("")]);
    }
}
