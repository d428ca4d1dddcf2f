//! The calls of Flight SQL.

use std::pin::Pin;

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest,
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any,
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetSqlInfo, CommandGetTableTypes,
    CommandGetTables, CommandPreparedStatementQuery, CommandStatementQuery,
    DoPutPreparedStatementResult, ProstMessageExt, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus,
    FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, IpcMessage,
    SchemaAsIpc,
};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::ipc::writer::IpcWriteOptions;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::LogicalPlan;
use futures::{Stream, StreamExt, TryStreamExt};
use prost::Message;
use tonic::codegen::Bytes;
use tonic::{Request, Response, Status, Streaming};

use super::statements::MOST_ROWS;
use super::ticket::Ticket;
use super::{Flight, lists, shown};
use crate::error::ServeError;
use crate::library::Dialect;
use crate::service::{Asker, Prepared, Rows};

type DataStream = <Flight as FlightService>::DoGetStream;

fn bug(error: impl std::fmt::Display) -> Status {
    ServeError::Bug(error.to_string()).status()
}

/// An info that sends its reader back here with `ticket`.
fn info(
    descriptor: FlightDescriptor,
    schema: &Schema,
    ticket: Vec<u8>,
) -> Result<Response<FlightInfo>, Status> {
    let endpoint = FlightEndpoint::new().with_ticket(arrow_flight::Ticket::new(ticket));
    let info = FlightInfo::new()
        .try_with_schema(schema)
        .map_err(bug)?
        .with_descriptor(descriptor)
        .with_endpoint(endpoint)
        // Not known before it has run.
        .with_total_records(-1)
        .with_total_bytes(-1);
    Ok(Response::new(info))
}

fn send(
    schema: SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch, ServeError>> + Send + 'static,
) -> Response<DataStream> {
    let batches = batches.map_err(|error| FlightError::Tonic(Box::new(error.status())));
    let data = FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .build(batches)
        .map_err(|error| match error {
            FlightError::Tonic(status) => *status,
            other => bug(other),
        });
    Response::new(Box::pin(data))
}

fn send_one(batch: RecordBatch) -> Response<DataStream> {
    send(batch.schema(), futures::stream::iter([Ok(batch)]))
}

fn schema_bytes(schema: &Schema) -> Result<Bytes, Status> {
    let options = IpcWriteOptions::default();
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &options).try_into().map_err(bug)?;
    Ok(bytes)
}

/// Parameters in the order of their numbers; a type that the plan does not tell is text.
fn parameters(plan: &LogicalPlan) -> Result<Schema, Status> {
    let types = plan
        .get_parameter_types()
        .map_err(|error| ServeError::Query(error.strip_backtrace()).status())?;
    let mut types: Vec<(u32, String, DataType)> = types
        .into_iter()
        .map(|(name, of)| {
            let number = name.trim_start_matches('$').parse().unwrap_or(u32::MAX);
            (number, name, of.unwrap_or(DataType::Utf8))
        })
        .collect();
    types.sort_by_key(|(number, ..)| *number);
    let fields = types
        .into_iter()
        .map(|(_, name, of)| Field::new(name, of, true));
    Ok(Schema::new(fields.collect::<Vec<_>>()))
}

/// The values of one row, as the types that the plan expects.
fn values(batch: &RecordBatch, row: usize, types: &Schema) -> Result<ParamValues, ServeError> {
    let wrong =
        |error: datafusion::error::DataFusionError| ServeError::Query(error.strip_backtrace());
    if batch.num_columns() != types.fields().len() {
        return Err(ServeError::Query(format!(
            "the statement has {} parameters, and {} were given",
            types.fields().len(),
            batch.num_columns()
        )));
    }
    let values: Vec<ScalarValue> = batch
        .columns()
        .iter()
        .zip(types.fields())
        .map(|(column, field)| {
            ScalarValue::try_from_array(column, row)
                .and_then(|value| value.cast_to(field.data_type()))
                .map_err(wrong)
        })
        .collect::<Result<_, _>>()?;
    Ok(ParamValues::from(values))
}

impl Flight {
    async fn prepare(&self, asker: &Asker, sql: &str) -> Result<Prepared, Status> {
        let parent = asker.parent.as_ref();
        Ok(self.service.prepare(Dialect::Plain, sql, parent).await?)
    }

    async fn start(
        &self,
        asker: &Asker,
        prepared: &Prepared,
        values: Option<ParamValues>,
    ) -> Result<Rows, ServeError> {
        self.service.run(asker, prepared, values).await
    }

    fn cancel(&self, asker: &Asker, info: &FlightInfo) -> Result<bool, Status> {
        for endpoint in &info.endpoint {
            let Some(ticket) = &endpoint.ticket else {
                continue;
            };
            let any = Any::decode(ticket.ticket.clone()).map_err(|_| {
                ServeError::Message("the ticket does not parse".to_owned()).status()
            })?;
            let Ok(Some(statement)) = any.unpack::<TicketStatementQuery>() else {
                continue;
            };
            let ticket = Ticket::read(&statement.statement_handle)?;
            return Ok(self.statements.cancel(&asker.user, ticket.id));
        }
        Ok(false)
    }
}

#[tonic::async_trait]
impl FlightSqlService for Flight {
    type FlightService = Self;

    async fn do_handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<
        Response<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>>,
        Status,
    > {
        let (address, credentials) = shown(&request)?;
        let asker = self.let_in(address, credentials).await?;
        let token = self.gate.open_session(&asker.user);
        let answer = HandshakeResponse {
            protocol_version: 0,
            payload: token.clone().into(),
        };
        let mut response: Response<Pin<Box<dyn Stream<Item = _> + Send>>> =
            Response::new(Box::pin(futures::stream::iter([Ok(answer)])));
        let header = format!("Bearer {token}").parse().map_err(bug)?;
        response.metadata_mut().insert("authorization", header);
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let asker = self.asker(&request).await?;
        let prepared = self.prepare(&asker, &query.query).await?;
        let ticket = TicketStatementQuery {
            statement_handle: Ticket::new(query.query).write().into(),
        };
        let schema = prepared.plan.schema().as_arrow();
        info(
            request.into_inner(),
            schema,
            ticket.as_any().encode_to_vec(),
        )
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<arrow_flight::Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        let asker = self.asker(&request).await?;
        let ticket = Ticket::read(&ticket.statement_handle)?;
        let prepared = self.prepare(&asker, &ticket.sql).await?;
        let rows = self.start(&asker, &prepared, None).await?;
        self.statements
            .started(ticket.id, &asker.user, rows.stopper());
        Ok(send(rows.schema(), rows))
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let asker = self.asker(&request).await?;
        let prepared = self.prepare(&asker, &query.query).await?;
        let handle = self.statements.prepare(&asker.user, query.query)?;
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle.as_bytes().to_vec().into(),
            dataset_schema: schema_bytes(prepared.plan.schema().as_arrow())?,
            parameter_schema: schema_bytes(&parameters(&prepared.plan)?)?,
        })
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<(), Status> {
        let asker = self.asker(&request).await?;
        let handle = &query.prepared_statement_handle;
        Ok(self.statements.close(&asker.user, handle)?)
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let (address, credentials) = shown(&request)?;
        let asker = self.let_in(address, credentials).await?;
        let data = request
            .into_inner()
            .map_err(|status| FlightError::Tonic(Box::new(status)));
        let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
        let (mut bound, mut rows) = (Vec::new(), 0);
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|error| {
                ServeError::Message(format!("parameters cannot be read: {error}")).status()
            })?;
            rows += batch.num_rows();
            if rows > MOST_ROWS {
                return Err(ServeError::TooComplex(format!(
                    "more than {MOST_ROWS} rows of parameters; join with a VALUES list instead"
                ))
                .status());
            }
            bound.push(batch);
        }
        let handle = &query.prepared_statement_handle;
        self.statements.bind(&asker.user, handle, bound)?;
        Ok(DoPutPreparedStatementResult {
            prepared_statement_handle: Some(handle.clone()),
        })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let asker = self.asker(&request).await?;
        let (sql, _) = self
            .statements
            .get(&asker.user, &query.prepared_statement_handle)?;
        let prepared = self.prepare(&asker, &sql).await?;
        let schema = prepared.plan.schema().as_arrow();
        info(request.into_inner(), schema, query.as_any().encode_to_vec())
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<arrow_flight::Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        let asker = self.asker(&request).await?;
        let (sql, bound) = self
            .statements
            .get(&asker.user, &query.prepared_statement_handle)?;
        let prepared = self.prepare(&asker, &sql).await?;
        let types = parameters(&prepared.plan)?;
        if types.fields().is_empty() {
            let rows = self.start(&asker, &prepared, None).await?;
            return Ok(send(rows.schema(), rows));
        }
        let Some(first) = bound.first() else {
            return Err(ServeError::Query(format!(
                "the statement has {} parameters, and none were given",
                types.fields().len()
            ))
            .status());
        };
        let all = concat_batches(&first.schema(), &bound).map_err(bug)?;
        if all.num_rows() == 1 {
            let rows = self
                .start(&asker, &prepared, Some(values(&all, 0, &types)?))
                .await?;
            return Ok(send(rows.schema(), rows));
        }
        // Row after row of parameters, each when the one before has been taken.
        let schema = std::sync::Arc::new(prepared.plan.schema().as_arrow().clone());
        let service = self.service.clone();
        let parts = futures::stream::iter(0..all.num_rows()).then(move |row| {
            let (service, asker, prepared) = (service.clone(), asker.clone(), prepared.clone());
            let values = values(&all, row, &types);
            async move { service.run(&asker, &prepared, Some(values?)).await }
        });
        Ok(send(schema, parts.try_flatten()))
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.asker(&request).await?;
        let ticket = query.as_any().encode_to_vec();
        info(request.into_inner(), &query.into_builder().schema(), ticket)
    }

    async fn do_get_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<arrow_flight::Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        self.asker(&request).await?;
        let mut builder = query.into_builder();
        builder.append(self.service.library().catalog());
        Ok(send_one(builder.build().map_err(bug)?))
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.asker(&request).await?;
        let ticket = query.as_any().encode_to_vec();
        info(request.into_inner(), &query.into_builder().schema(), ticket)
    }

    async fn do_get_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<arrow_flight::Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        self.asker(&request).await?;
        Ok(send_one(self.list_schemas(query).await?))
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.asker(&request).await?;
        let ticket = query.as_any().encode_to_vec();
        info(request.into_inner(), &query.into_builder().schema(), ticket)
    }

    async fn do_get_tables(
        &self,
        query: CommandGetTables,
        request: Request<arrow_flight::Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        self.asker(&request).await?;
        Ok(send_one(self.list_tables(query).await?))
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.asker(&request).await?;
        let ticket = query.as_any().encode_to_vec();
        info(request.into_inner(), &query.into_builder().schema(), ticket)
    }

    async fn do_get_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<arrow_flight::Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        self.asker(&request).await?;
        let mut builder = query.into_builder();
        builder.append("TABLE");
        Ok(send_one(builder.build().map_err(bug)?))
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.asker(&request).await?;
        let ticket = query.as_any().encode_to_vec();
        let all = lists::info()?;
        info(
            request.into_inner(),
            &query.into_builder(&all).schema(),
            ticket,
        )
    }

    async fn do_get_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<arrow_flight::Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        self.asker(&request).await?;
        let all = lists::info()?;
        Ok(send_one(query.into_builder(&all).build().map_err(bug)?))
    }

    async fn do_action_cancel_query(
        &self,
        query: ActionCancelQueryRequest,
        request: Request<Action>,
    ) -> Result<ActionCancelQueryResult, Status> {
        let asker = self.asker(&request).await?;
        let info = FlightInfo::decode(query.info)
            .map_err(|_| ServeError::Message("the info does not parse".to_owned()).status())?;
        // `CancelResult` has the numbers of `CancelStatus`, which is the one that the crate shows.
        let result = match self.cancel(&asker, &info)? {
            true => CancelStatus::Cancelled,
            false => CancelStatus::NotCancellable,
        };
        Ok(ActionCancelQueryResult {
            result: result.into(),
        })
    }

    async fn list_custom_actions(&self) -> Option<Vec<Result<ActionType, Status>>> {
        Some(vec![Ok(ActionType {
            r#type: CANCEL_FLIGHT_INFO.to_owned(),
            description: "Stops the query of a FlightInfo.".to_owned(),
        })])
    }

    async fn do_action_fallback(
        &self,
        request: Request<Action>,
    ) -> Result<Response<<Self as FlightService>::DoActionStream>, Status> {
        let asker = self.asker(&request).await?;
        let action = request.into_inner();
        if action.r#type != CANCEL_FLIGHT_INFO {
            return Err(Status::unimplemented(format!(
                "no action `{}`",
                action.r#type
            )));
        }
        let wrong = || ServeError::Message("the info does not parse".to_owned()).status();
        let info = CancelFlightInfoRequest::decode(action.body)
            .map_err(|_| wrong())?
            .info
            .ok_or_else(wrong)?;
        let status = match self.cancel(&asker, &info)? {
            true => CancelStatus::Cancelled,
            false => CancelStatus::NotCancellable,
        };
        let result = arrow_flight::Result {
            body: CancelFlightInfoResult::new(status).encode_to_vec().into(),
        };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(result)]))))
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}

const CANCEL_FLIGHT_INFO: &str = "CancelFlightInfo";
