//! Puts [`UnitExec`] on the wire: an own prefix, else Ballista's codec.

use std::sync::Arc;

use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use pmill_engine::job::distributed::PROTOCOL;
use prost::Message;

use crate::PROGRAM;
use crate::proto::UnitNode;
use crate::unit_exec::{UnitExec, Units};

/// No message of Ballista's begins like this: the byte 0xff is no field of any.
const MAGIC: &[u8] = b"\xffpmill\0";

/// The codec of all roles; executors give it what runs units.
#[derive(Debug, Default)]
pub struct UnitCodec {
    inner: BallistaPhysicalExtensionCodec,
    units: Option<Arc<Units>>,
}

impl UnitCodec {
    /// A codec whose operators run with `units`.
    pub fn new(units: Option<Arc<Units>>) -> Self {
        Self {
            inner: BallistaPhysicalExtensionCodec::default(),
            units,
        }
    }
}

impl PhysicalExtensionCodec for UnitCodec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(own) = bytes.strip_prefix(MAGIC) else {
            return self.inner.try_decode(bytes, inputs, context, converter);
        };
        let node = UnitNode::decode(own)
            .map_err(|error| DataFusionError::Plan(format!("not a unit operator: {error}")))?;
        if node.protocol != PROTOCOL {
            return Err(DataFusionError::Plan(format!(
                "this is {PROGRAM} with unit protocol {PROTOCOL}, and the plan comes from {} with protocol {}; run the same version everywhere",
                node.program, node.protocol
            )));
        }
        let [input] = inputs else {
            return Err(DataFusionError::Plan(
                "a unit operator has one input".into(),
            ));
        };
        Ok(Arc::new(UnitExec::new(input.clone(), self.units.clone())))
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        if node.downcast_ref::<UnitExec>().is_none() {
            return self.inner.try_encode(node, bytes, converter);
        }
        bytes.extend_from_slice(MAGIC);
        let node = UnitNode {
            protocol: PROTOCOL,
            program: PROGRAM.to_owned(),
        };
        node.encode(bytes)
            .map_err(|error| DataFusionError::Internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::physical_plan::empty::EmptyExec;
    use datafusion::prelude::SessionContext;
    use datafusion_proto::physical_plan::DefaultPhysicalProtoConverter;

    use super::*;

    fn decode(bytes: &[u8]) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = Arc::new(arrow::datatypes::Schema::empty());
        let input: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(schema));
        UnitCodec::default().try_decode(
            bytes,
            &[input],
            &SessionContext::new().task_ctx(),
            &DefaultPhysicalProtoConverter {},
        )
    }

    fn message(node: &UnitNode) -> Vec<u8> {
        [MAGIC, &node.encode_to_vec()].concat()
    }

    #[test]
    fn a_plan_of_another_version_is_refused_by_name() {
        let same = UnitNode {
            protocol: PROTOCOL,
            program: PROGRAM.into(),
        };
        assert_eq!(decode(&message(&same)).unwrap().name(), "UnitExec");
        let newer = UnitNode {
            protocol: PROTOCOL + 1,
            program: "pmill 99.0".into(),
        };
        let error = decode(&message(&newer)).unwrap_err().to_string();
        assert!(error.contains("pmill 99.0"), "{error}");
        assert!(error.contains("run the same version everywhere"), "{error}");
        assert!(decode(b"\xffpmill\0\xff\xff").is_err());
    }
}
