//! `pg_catalog`: the system tables that PostgreSQL's clients read to find tables and types.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use async_trait::async_trait;
use datafusion::arrow::array::Int32Array;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::common::cast::as_string_array;
use datafusion::datasource::TableType;
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use datafusion::prelude::SessionContext;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::catalog_info::CatalogInfo;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::{
    PgCatalogSchemaProvider, PgCatalogStaticTables, setup_pg_catalog,
};

use datafusion_postgres::pgwire::api::Type;

use crate::error::ServeError;
use crate::shared::Shared;

/// The version of PostgreSQL that is spoken: in `version()` and as `server_version`.
pub(super) const SERVER_VERSION: &str = "16.6";

type PgSchema = PgCatalogSchemaProvider<Live, EmptyContextProvider>;

/// One `pg_catalog` for the life of the server, so that an object keeps its number (OID) from one
/// query to the next; it lists what the newest snapshot holds.
#[derive(Debug, Clone)]
pub struct PgParts {
    schema: Arc<PgSchema>,
    live: Live,
}

impl PgParts {
    /// Gives a context the functions and types that clients of PostgreSQL expect.
    ///
    /// # Errors
    /// When the tables that come with the crate cannot be read.
    pub fn install(context: &SessionContext) -> Result<Self, ServeError> {
        let bug = |error: String| ServeError::Bug(error);
        let name = context
            .copied_config()
            .options()
            .catalog
            .default_catalog
            .clone();
        if let Some(catalog) = context.catalog(&name) {
            // The default schema of a new context may be missing; what is set up here is only the functions.
            let _ = catalog.register_schema("public", Arc::new(MemorySchemaProvider::new()));
        }
        setup_pg_catalog(context, &name, EmptyContextProvider)
            .map_err(|error| bug(error.strip_backtrace()))?;
        context.register_udf(version());
        context.register_udf(to_regtype());
        super::rewrite::install(context);
        let tables =
            PgCatalogStaticTables::try_new().map_err(|error| bug(error.strip_backtrace()))?;
        let live = Live::default();
        let schema =
            PgCatalogSchemaProvider::try_new(live.clone(), Arc::new(tables), EmptyContextProvider)
                .map_err(|error| bug(error.strip_backtrace()))?;
        let schema = Arc::new(schema);
        let weak: Weak<dyn SchemaProvider> = Arc::downgrade(&schema) as _;
        // A new `Live` has none yet.
        let _ = live.own.set(weak);
        Ok(Self { schema, live })
    }

    /// The schema, from now on listing what `newest` holds.
    #[must_use]
    pub fn schema(&self, newest: Shared<SessionContext>) -> Arc<dyn SchemaProvider> {
        *self
            .live
            .newest
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(newest);
        Arc::new(Corrected(self.schema.clone()))
    }
}

/// `pg_catalog` without the indexes and constraints of PostgreSQL's own system tables, which are no
/// tables here. Their lists of columns are arrays, as clients take them to be.
#[derive(Debug)]
struct Corrected(Arc<PgSchema>);

#[async_trait]
impl SchemaProvider for Corrected {
    fn table_names(&self) -> Vec<String> {
        self.0.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let table = self.0.table(name).await?;
        if !matches!(name, "pg_index" | "pg_constraint") {
            return Ok(table);
        }
        let Some(table) = table else {
            return Ok(None);
        };
        let fields: Vec<Field> = table.schema().fields().iter().map(|f| array(f)).collect();
        Ok(Some(Arc::new(EmptyTable::new(Arc::new(Schema::new(
            fields,
        ))))))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.table_exist(name)
    }
}

fn array(field: &Field) -> Field {
    let item = match field.name().as_str() {
        "indkey" | "indoption" | "conkey" | "confkey" | "confdelsetcols" => DataType::Int16,
        "indcollation" | "indclass" | "conpfeqop" | "conppeqop" | "conffeqop" | "conexclop" => {
            DataType::Int32
        }
        _ => return field.clone(),
    };
    Field::new_list(field.name(), Field::new_list_field(item, true), true)
}

/// `version()` as clients of PostgreSQL parse it: a number that they know, then who we are.
fn version() -> ScalarUDF {
    let text = format!(
        "PostgreSQL {SERVER_VERSION} (pmill {})",
        env!("CARGO_PKG_VERSION")
    );
    create_udf(
        "version",
        Vec::new(),
        DataType::Utf8,
        Volatility::Stable,
        Arc::new(move |_| Ok(ColumnarValue::Scalar(ScalarValue::Utf8(Some(text.clone()))))),
    )
}

/// `to_regtype(name)`: the number (OID) of a type that results can have, NULL for any other.
fn to_regtype() -> ScalarUDF {
    let known = [
        Type::BOOL,
        Type::BYTEA,
        Type::INT2,
        Type::INT4,
        Type::INT8,
        Type::FLOAT4,
        Type::FLOAT8,
        Type::NUMERIC,
        Type::TEXT,
        Type::VARCHAR,
        Type::DATE,
        Type::TIMESTAMP,
        Type::TIMESTAMPTZ,
    ];
    create_udf(
        "to_regtype",
        vec![DataType::Utf8],
        DataType::Int32,
        Volatility::Stable,
        Arc::new(move |arguments| {
            let names = ColumnarValue::values_to_arrays(arguments)?;
            let numbers: Int32Array = as_string_array(&names[0])?
                .iter()
                .map(|name| {
                    let found = known.iter().find(|of| Some(of.name()) == name)?;
                    i32::try_from(found.oid()).ok()
                })
                .collect();
            Ok(ColumnarValue::Array(Arc::new(numbers)))
        }),
    )
}

/// What there is, as the newest snapshot says, and `pg_catalog` itself.
#[derive(Clone, Default)]
struct Live {
    newest: Arc<RwLock<Option<Shared<SessionContext>>>>,
    own: Arc<OnceLock<Weak<dyn SchemaProvider>>>,
}

impl fmt::Debug for Live {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Live").finish_non_exhaustive()
    }
}

const PG_CATALOG: &str = "pg_catalog";

impl Live {
    fn newest(&self) -> Option<Shared<SessionContext>> {
        self.newest
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn schema(&self, catalog: &str, schema: &str) -> Option<Arc<dyn SchemaProvider>> {
        if schema == PG_CATALOG {
            return self.own.get()?.upgrade();
        }
        self.newest()?.catalog(catalog)?.schema(schema)
    }
}

#[async_trait]
impl CatalogInfo for Live {
    async fn catalog_names(&self) -> Result<Vec<String>> {
        Ok(self
            .newest()
            .map(|context| context.catalog_names())
            .unwrap_or_default())
    }

    async fn schema_names(&self, catalog: &str) -> Result<Option<Vec<String>>> {
        let names = self
            .newest()
            .and_then(|context| Some(context.catalog(catalog)?.schema_names()));
        Ok(names.map(|mut names| {
            names.push(PG_CATALOG.to_owned());
            names
        }))
    }

    async fn table_names(&self, catalog: &str, schema: &str) -> Result<Option<Vec<String>>> {
        Ok(self
            .schema(catalog, schema)
            .map(|schema| schema.table_names()))
    }

    async fn table_schema(
        &self,
        catalog: &str,
        schema: &str,
        table: &str,
    ) -> Result<Option<SchemaRef>> {
        match self.schema(catalog, schema) {
            Some(schema) => Ok(schema.table(table).await?.map(|table| table.schema())),
            None => Ok(None),
        }
    }

    async fn table_type(
        &self,
        catalog: &str,
        schema: &str,
        table: &str,
    ) -> Result<Option<TableType>> {
        match self.schema(catalog, schema) {
            Some(schema) => schema.table_type(table).await,
            None => Ok(None),
        }
    }
}
