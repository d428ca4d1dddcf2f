//! Statements: what PostgreSQL's clients say beside queries (transactions, SET, SHOW, cursors) is
//! answered as they expect, and every query goes through the service.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ParamValues;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast;
use datafusion_postgres::arrow_pg::datatypes::df::deserialize_parameters_with_server_types;
use datafusion_postgres::arrow_pg::datatypes::{arrow_schema_to_pg_fields, encode_recordbatch};
use datafusion_postgres::datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use datafusion_postgres::hooks::cursor::CursorStatementHook;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use datafusion_postgres::hooks::{HookClient, QueryHook};
use datafusion_postgres::pgwire::api::portal::{Format, Portal};
use datafusion_postgres::pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use datafusion_postgres::pgwire::api::results::{FieldInfo, QueryResponse, Response, Tag};
use datafusion_postgres::pgwire::api::stmt::{QueryParser, StoredStatement};
use datafusion_postgres::pgwire::api::store::PortalStore;
use datafusion_postgres::pgwire::api::{ClientInfo, ClientPortalStore, Type};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::PgWireBackendMessage;
use datafusion_postgres::pgwire::types::format::FormatOptions;
use datafusion_postgres::{DfSessionService, Parser};
use futures::{Sink, StreamExt};

use super::rewrite;
use super::savepoints::Savepoints;
use super::{PROTOCOL, Running, pg_error};
use crate::auth::User;
use crate::error::ServeError;
use crate::guard;
use crate::library::Dialect;
use crate::service::{Asker, Prepared, Rows, Service};
use crate::shared::Shared;

type Statement = (String, Option<(ast::Statement, LogicalPlan)>);

pub(super) struct Handlers {
    service: Arc<Service>,
    parser: Arc<Parse>,
}

/// Parses and plans, and knows the types of parameters and results.
pub(super) struct Parse {
    service: Arc<Service>,
    hooks: [Arc<dyn QueryHook>; 4],
    /// A context for hooks that change nothing: making one takes longer than a look-up.
    nothing: Shared<SessionContext>,
    sql: Shared<PostgresCompatibilityParser>,
    types: Shared<Arc<Parser>>,
}

impl Handlers {
    pub(super) fn new(service: Arc<Service>) -> Self {
        // Only its knowledge of types is used: it plans nothing.
        let types = DfSessionService::new_with_hooks(Arc::new(SessionContext::new()), Vec::new());
        Self {
            parser: Arc::new(Parse {
                service: service.clone(),
                hooks: [
                    Arc::new(Savepoints),
                    Arc::new(CursorStatementHook),
                    Arc::new(SetShowHook),
                    Arc::new(TransactionStatementHook),
                ],
                nothing: Shared::new(SessionContext::new()),
                sql: Shared::new(PostgresCompatibilityParser::new()),
                types: Shared::new(types.query_parser()),
            }),
            service,
        }
    }

    async fn answer<C>(
        &self,
        client: &mut C,
        statement: &ast::Statement,
    ) -> PgWireResult<Option<Response>>
    where
        C: HookClient + Unpin,
    {
        if let ast::Statement::Declare { stmts } = statement {
            return self.declare(client, stmts).await.map(Some);
        }
        let context = self.parser.aside(statement).await?;
        for hook in &self.parser.hooks {
            if let Some(answer) = hook.handle_simple_query(statement, &context, client).await {
                return answer.map(Some);
            }
        }
        Ok(None)
    }

    /// `DECLARE name CURSOR FOR query`: the query starts, and its rows wait to be fetched.
    async fn declare<C>(&self, client: &mut C, all: &[ast::Declare]) -> PgWireResult<Response>
    where
        C: HookClient + Unpin,
    {
        for declare in all {
            let (Some(name), Some(query), Some(ast::DeclareType::Cursor)) = (
                declare.names.first(),
                &declare.for_query,
                &declare.declare_type,
            ) else {
                return Err(pg_error(&ServeError::Query(
                    "only DECLARE name CURSOR FOR query is known".to_owned(),
                )));
            };
            let query = ast::Statement::Query(query.clone());
            let text = query.to_string();
            let prepared = self.prepare(text.clone(), query.clone()).await?;
            let plan = (*prepared.plan).clone();
            let rows = self.start(client, &prepared, None).await?;
            let response = encode(client, rows, &Format::UnifiedText)?;
            let statement =
                StoredStatement::new(name.value.clone(), (text, Some((query, plan))), Vec::new());
            let portal = Portal::new_cursor(name.value.clone(), Arc::new(statement));
            portal.start(response).await;
            client.portal_store().put_portal(Arc::new(portal));
        }
        Ok(Response::Execution(Tag::new("DECLARE CURSOR")))
    }

    async fn prepare(&self, text: String, statement: ast::Statement) -> PgWireResult<Prepared> {
        self.service
            .prepare_statement(Dialect::Postgres, text, Shared::new(statement))
            .await
            .map_err(|error| pg_error(&error))
    }

    async fn start<C>(
        &self,
        client: &C,
        prepared: &Prepared,
        parameters: Option<ParamValues>,
    ) -> PgWireResult<Rows>
    where
        C: ClientInfo + ?Sized,
    {
        let extensions = client.session_extensions();
        let asker = match extensions.get::<Asker>() {
            Some(asker) => asker.as_ref().clone(),
            None => Asker {
                user: User::anonymous(),
                protocol: PROTOCOL,
                parent: None,
            },
        };
        let rows = self
            .service
            .run(&asker, prepared, parameters)
            .await
            .map_err(|error| pg_error(&error))?;
        if let Some(running) = extensions.get::<Arc<Running>>() {
            running.set(rows.stopper());
        }
        Ok(rows)
    }
}

fn encode<C>(client: &C, rows: Rows, format: &Format) -> PgWireResult<QueryResponse>
where
    C: ClientInfo + ?Sized,
{
    let options = Arc::new(FormatOptions::from_client_metadata(client.metadata()));
    let fields = Arc::new(arrow_schema_to_pg_fields(
        &rows.schema(),
        format,
        Some(options),
    )?);
    let columns = fields.clone();
    let rows = rows.flat_map(move |batch| {
        let rows: Vec<PgWireResult<_>> = match batch {
            Ok(batch) => encode_recordbatch(columns.clone(), batch).collect(),
            Err(error) => vec![Err(pg_error(&error))],
        };
        futures::stream::iter(rows)
    });
    Ok(QueryResponse::new(fields, rows))
}

#[async_trait]
impl SimpleQueryHandler for Handlers {
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let statements = self.parser.parse(query)?;
        if statements.is_empty() {
            return Ok(vec![Response::EmptyQuery]);
        }
        let mut responses = Vec::with_capacity(statements.len());
        for statement in statements {
            if let Some(response) = self.answer(client, &statement).await? {
                responses.push(response);
                continue;
            }
            let prepared = self.prepare(statement.to_string(), statement).await?;
            let rows = self.start(client, &prepared, None).await?;
            responses.push(Response::Query(encode(client, rows, &Format::UnifiedText)?));
        }
        Ok(responses)
    }
}

#[async_trait]
impl ExtendedQueryHandler for Handlers {
    type Statement = Statement;
    type QueryParser = Parse;

    fn query_parser(&self) -> Arc<Parse> {
        self.parser.clone()
    }

    async fn do_query<C>(
        &self,
        client: &mut C,
        portal: &Portal<Statement>,
        _max_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let (text, Some((statement, _))) = &portal.statement.statement else {
            return Ok(Response::EmptyQuery);
        };
        if let Some(response) = self.answer(client, statement).await? {
            return Ok(response);
        }
        // Planned again when somebody committed since: a query sees the newest version.
        let prepared = self.prepare(text.clone(), statement.clone()).await?;
        let stored = (
            text.clone(),
            Some((statement.clone(), (*prepared.plan).clone())),
        );
        let wire = self.parser.get_parameter_types(&stored)?;
        let parameters = match wire.is_empty() {
            true => None,
            false => {
                let mut wire = wire;
                wire.resize(wire.len().max(portal.parameter_len()), Type::TEXT);
                let known = parameter_types(&prepared.plan)?;
                let known: Vec<Option<&DataType>> = known.iter().map(Option::as_ref).collect();
                let wire: Vec<Option<&Type>> = wire.iter().map(Some).collect();
                Some(deserialize_parameters_with_server_types(
                    portal, &known, &wire,
                )?)
            }
        };
        let rows = self.start(client, &prepared, parameters).await?;
        Ok(Response::Query(encode(
            client,
            rows,
            &portal.result_column_format,
        )?))
    }
}

/// The parameters that a plan has, by number, from 1, with the types that it gives them. There may be
/// gaps: a rewritten statement does not ask for all.
fn numbered(plan: &LogicalPlan) -> PgWireResult<BTreeMap<usize, Option<DataType>>> {
    let types = plan
        .get_parameter_types()
        .map_err(|error| pg_error(&ServeError::Query(error.strip_backtrace())))?;
    let number = |name: &str| name.trim_start_matches('$').parse().ok();
    Ok(types
        .into_iter()
        .filter_map(|(name, of)| Some((number(&name)?, of)))
        .filter(|(number, _)| (1..=usize::from(u16::MAX)).contains(number))
        .collect())
}

/// Types of `$1`, `$2`, … as the plan has them, none for those that it does not have.
fn parameter_types(plan: &LogicalPlan) -> PgWireResult<Vec<Option<DataType>>> {
    let types = numbered(plan)?;
    let last = types.keys().next_back().copied().unwrap_or(0);
    let of = |number| types.get(&number).cloned().flatten();
    Ok((1..=last).map(of).collect())
}

impl Parse {
    /// A context for what is no query. One that `SET` may change is thrown away after: it changes
    /// nothing for anybody.
    async fn aside(&self, statement: &ast::Statement) -> PgWireResult<Shared<SessionContext>> {
        let changes = matches!(
            statement,
            ast::Statement::Set(_) | ast::Statement::ShowCatalogs { .. }
        );
        if !changes {
            return Ok(self.nothing.clone());
        }
        let snapshot = self.service.snapshot().await;
        let snapshot = snapshot.map_err(|error| pg_error(&error))?;
        let state = snapshot.context(Dialect::Postgres).state();
        Ok(Shared::new(SessionContext::new_with_state(state)))
    }

    fn parse(&self, text: &str) -> PgWireResult<Vec<ast::Statement>> {
        guard::check_text(text, self.service.limits().statement_bytes)
            .map_err(|error| pg_error(&error))?;
        let mut statements = self
            .sql
            .parse(text)
            .map_err(|error| pg_error(&ServeError::Query(error.to_string())))?;
        statements.iter_mut().for_each(rewrite::rewrite);
        Ok(statements)
    }
}

#[async_trait]
impl QueryParser for Parse {
    type Statement = Statement;

    async fn parse_sql<C>(
        &self,
        client: &C,
        sql: &str,
        _types: &[Option<Type>],
    ) -> PgWireResult<Option<Statement>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let mut statements = self.parse(sql)?;
        if statements.is_empty() {
            return Ok(None);
        }
        if statements.len() > 1 {
            return Err(pg_error(&ServeError::Query(
                "cannot insert multiple commands into a prepared statement".to_owned(),
            )));
        }
        let statement = statements.swap_remove(0);
        let text = statement.to_string();
        for hook in &self.hooks {
            if let Some(plan) = hook
                .handle_extended_parse_query(&statement, &self.nothing, client)
                .await
            {
                return Ok(Some((text, Some((statement, plan?)))));
            }
        }
        let prepared = self
            .service
            .prepare_statement(
                Dialect::Postgres,
                text.clone(),
                Shared::new(statement.clone()),
            )
            .await
            .map_err(|error| pg_error(&error))?;
        Ok(Some((text, Some((statement, (*prepared.plan).clone())))))
    }

    fn get_parameter_types(&self, statement: &Statement) -> PgWireResult<Vec<Type>> {
        let known = self.types.get_parameter_types(statement)?;
        let Some((_, plan)) = &statement.1 else {
            return Ok(known);
        };
        // What is not asked for may be anything; as text it is at least read.
        let numbers = numbered(plan)?;
        let last = numbers.keys().next_back().copied().unwrap_or(0);
        let mut all = vec![Type::TEXT; last];
        for (number, of) in numbers.keys().zip(known) {
            all[number - 1] = of;
        }
        Ok(all)
    }

    fn get_result_schema(
        &self,
        statement: &Statement,
        format: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        self.types.get_result_schema(statement, format)
    }
}
