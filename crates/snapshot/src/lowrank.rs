//! Low-rank adapters (LoRA): the mean of the factors is not the mean of the products.
//!
//! With `B_i A_i` as the change that agent i learned and weights `k_i / K`, the mean change
//! `sum of (k_i / K) B_i A_i` is itself a product: all `A_i` stacked along the rank, and all `(k_i / K) B_i`
//! beside each other. So the merged adapter has the sum of the ranks, and no product is ever formed.

use crate::dtype::DType;
use crate::error::Problem;
use crate::header::TensorInfo;
use crate::layout::pretty;
use crate::plan::Kind;
use crate::resolve::input_types;
use crate::snapshot::Snapshot;
use serde_json::{Map, Value};

/// Which factor a tensor is, and along which axis its rank lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Factor {
    /// The factor applied last, which carries the weights.
    outer: bool,
    rank_axis: usize,
}

/// Recognises the names of PEFT (`lora_A.weight` of shape rank x in, `lora_B.weight` of out x rank) and MLX
/// (`lora_a` of in x rank, `lora_b` of rank x out), also with an adapter's name inside.
pub(crate) fn factor(name: &str) -> Option<Factor> {
    for part in name.split('.') {
        let factor = match part {
            "lora_A" => Factor {
                outer: false,
                rank_axis: 0,
            },
            "lora_B" => Factor {
                outer: true,
                rank_axis: 1,
            },
            "lora_a" => Factor {
                outer: false,
                rank_axis: 1,
            },
            "lora_b" => Factor {
                outer: true,
                rank_axis: 0,
            },
            "lora_embedding_A" => Factor {
                outer: false,
                rank_axis: 0,
            },
            "lora_embedding_B" => Factor {
                outer: true,
                rank_axis: 1,
            },
            _ => continue,
        };
        return Some(factor);
    }
    None
}

/// The output tensor that holds the factors of all inputs side by side.
pub(crate) fn stack(
    inputs: &[Snapshot],
    name: &str,
    factor: Factor,
    output_dtype: Option<DType>,
) -> Result<(TensorInfo, Kind), Problem> {
    let adapter = |what: String| Problem::Adapter { what };
    let mut info: Option<TensorInfo> = None;
    for input in inputs {
        let Some((_, tensor)) = input.tensor(name) else {
            continue;
        };
        if tensor.shape.len() != 2 {
            return Err(adapter(format!(
                "`{name}` has shape {:?} in `{}`, expected two dimensions",
                tensor.shape,
                input.location()
            )));
        }
        match &mut info {
            None => info = Some(tensor.clone()),
            Some(first) => {
                let other = 1 - factor.rank_axis;
                if tensor.shape[other] != first.shape[other] {
                    return Err(Problem::Shape {
                        tensor: name.to_owned(),
                        snapshot: input.location(),
                        found: tensor.shape.clone(),
                        reference: inputs[0].location(),
                        expected: inputs[0]
                            .tensor(name)
                            .map(|(_, tensor)| tensor.shape.clone())
                            .unwrap_or_default(),
                    });
                }
                first.shape[factor.rank_axis] += tensor.shape[factor.rank_axis];
            }
        }
    }
    let mut info = info.ok_or_else(|| adapter(format!("`{name}` is in no input")))?;
    let types = input_types(inputs, name);
    if output_dtype.is_none() && types.iter().any(|dtype| *dtype != types[0]) {
        return Err(adapter(format!(
            "`{name}` has the types {types:?}; name the output type (output_dtype)"
        )));
    }
    let dtype = output_dtype.unwrap_or(info.dtype);
    let float = dtype.float().filter(|_| {
        types
            .iter()
            .all(|dtype| dtype.lanes().is_some_and(|(_, lanes)| lanes == 1))
    });
    let float = float
        .ok_or_else(|| adapter(format!("`{name}` is {}, expected a float type", info.dtype)))?;
    info.dtype = dtype;
    Ok((
        info,
        Kind::Stack {
            axis: factor.rank_axis,
            weighted: factor.outer,
            float,
        },
    ))
}

/// The `adapter_config.json` of the merged adapter: the rank grows with the number of inputs, and `alpha`
/// with it so that the scale of the product stays.
///
/// Returns nothing but a warning when no input has such a file.
pub(crate) fn adapter_config(
    inputs: &[Snapshot],
) -> Result<(Option<Vec<u8>>, Option<String>), Problem> {
    let adapter = |what: String| Problem::Adapter { what };
    let mut configs: Vec<(String, Map<String, Value>)> = Vec::new();
    for input in inputs {
        let bytes = input
            .side_file("adapter_config.json")
            .map_err(|error| adapter(error.to_string()))?;
        if let Some(bytes) = bytes {
            let config = serde_json::from_slice(&bytes).map_err(|error| {
                adapter(format!(
                    "adapter_config.json of `{}` is not valid JSON: {error}",
                    input.location()
                ))
            })?;
            configs.push((input.location(), config));
        }
    }
    let Some((place, first)) = configs.first() else {
        let warning = format!(
            "the adapters come without adapter_config.json; the merged rank is the sum of the {} ranks, and what scales by alpha / rank must be told so",
            inputs.len()
        );
        return Ok((None, Some(warning)));
    };
    if configs.len() != inputs.len() {
        return Err(adapter(format!(
            "`{place}` has an adapter_config.json but others have none"
        )));
    }
    for (other, config) in &configs[1..] {
        for key in [
            "r",
            "lora_alpha",
            "use_rslora",
            "use_dora",
            "rank_pattern",
            "alpha_pattern",
            "lora_parameters",
        ] {
            if config.get(key) != first.get(key) {
                return Err(adapter(format!(
                    "`{key}` in adapter_config.json differs between `{place}` and `{other}`"
                )));
            }
        }
    }
    if first.get("use_dora").and_then(Value::as_bool) == Some(true) {
        return Err(adapter(
            "weight-decomposed adapters (use_dora) are not a plain product".to_owned(),
        ));
    }
    let count = inputs.len() as f64;
    let slow = first.get("use_rslora").and_then(Value::as_bool) == Some(true);
    // The product is scaled by alpha / r, or by alpha / sqrt(r).
    let alpha_factor = if slow { count.sqrt() } else { count };
    let mut config = first.clone();
    scale(config.get_mut("r"), count);
    scale(config.get_mut("lora_alpha"), alpha_factor);
    for (key, factor) in [("rank_pattern", count), ("alpha_pattern", alpha_factor)] {
        if let Some(Value::Object(pattern)) = config.get_mut(key) {
            pattern
                .values_mut()
                .for_each(|value| scale(Some(value), factor));
        }
    }
    if let Some(Value::Object(parameters)) = config.get_mut("lora_parameters") {
        scale(parameters.get_mut("rank"), count);
        scale(parameters.get_mut("alpha"), count);
    }
    Ok((Some(pretty(&Value::Object(config))), None))
}

fn scale(value: Option<&mut Value>, factor: f64) {
    if let Some(value) = value
        && let Some(number) = value.as_f64()
    {
        let scaled = number * factor;
        *value = if scaled.fract() == 0.0 {
            (scaled as i64).into()
        } else {
            scaled.into()
        };
    }
}
