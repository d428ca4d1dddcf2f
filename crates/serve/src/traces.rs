//! Traces of queries for OpenTelemetry: spans that go to a collector over OTLP (gRPC).
//!
//! A query is a span `query` with the parts `optimize`, `cluster` and `execute` below it; a statement
//! that had to be planned is a span `plan` before it. A client that sends a `traceparent` (W3C Trace
//! Context) finds them below its own span. Spans hold times, counts and kinds of errors: never a
//! statement, a term or a secret.
//!
//! A collector that is away costs no query anything: spans wait in a bounded queue and are dropped
//! when it is full.

use std::marker::PhantomData;
use std::time::Duration;

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    SpanContext, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use crate::error::ServeError;

/// How long the last spans may take to leave when the server stops.
const LAST: Duration = Duration::from_secs(5);

/// Where spans go; without a collector, nowhere.
#[derive(Default)]
pub struct Traces(Option<(SdkTracerProvider, SdkTracer)>);

impl Traces {
    /// Spans go to a collector's URL. To be called inside a runtime, which sends them.
    ///
    /// # Errors
    /// A URL that is none.
    pub fn open(collector: &str) -> Result<Self, ServeError> {
        let wrong = |reason: String| {
            ServeError::Setting(format!(
                "--otlp `{collector}`: {reason}; expected the URL of a collector that takes OTLP \
                 over gRPC, as http://127.0.0.1:4317"
            ))
        };
        if !(collector.starts_with("http://") || collector.starts_with("https://")) {
            return Err(wrong(
                "it starts with neither http:// nor https://".to_owned(),
            ));
        }
        let mut exporter = SpanExporter::builder()
            .with_tonic()
            .with_protocol(Protocol::Grpc)
            .with_endpoint(collector);
        if collector.starts_with("https://") {
            // By itself it trusts nobody.
            exporter = exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
        }
        let exporter = exporter.build().map_err(|error| wrong(error.to_string()))?;
        // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before what is given here.
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("pmill");
        }
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.with_attribute(version).build())
            .with_batch_exporter(exporter)
            .build();
        let tracer = provider.tracer("pmill");
        Ok(Self(Some((provider, tracer))))
    }

    /// Begins a span, below the client's if it sent one.
    #[must_use]
    pub fn begin(&self, name: &'static str, parent: Option<&Parent>) -> Trace {
        let Some((_, tracer)) = &self.0 else {
            return Trace(None);
        };
        let above = match parent {
            None => Context::new(),
            Some(parent) => Context::new().with_remote_span_context(parent.0.clone()),
        };
        let span = tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .start_with_context(tracer, &above);
        Trace(Some((tracer.clone(), above.with_span(span))))
    }

    /// Sends what is left. Blocking.
    pub fn close(&self) {
        if let Some((provider, _)) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(LAST)
        {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// A span that runs. It ends when it is told to, or when the last of its copies is dropped.
#[derive(Clone)]
pub struct Trace(Option<(SdkTracer, Context)>);

impl Trace {
    /// Begins a part of it.
    #[must_use]
    pub fn part(&self, name: &'static str) -> Self {
        let part = self.0.as_ref().map(|(tracer, above)| {
            let span = tracer.span_builder(name).start_with_context(tracer, above);
            (tracer.clone(), above.with_span(span))
        });
        Self(part)
    }

    /// Notes something. Values come from short lists, or are numbers and names of users.
    pub fn note(&self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some((_, context)) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// Ends it, whoever still holds a copy.
    pub fn end(&self) {
        if let Some((_, context)) = &self.0 {
            context.span().end();
        }
    }

    /// It failed; `class` is a code, never a text.
    pub fn fail(&self, class: &'static str) {
        if let Some((_, context)) = &self.0 {
            let span = context.span();
            span.set_attribute(KeyValue::new("error.type", class));
            span.set_status(Status::error(""));
        }
    }
}

/// The span of a client that its query is a part of.
#[derive(Debug, Clone)]
pub struct Parent(SpanContext);

impl Parent {
    /// Reads the headers `traceparent` and `tracestate`; `None` when there are none or they are
    /// malformed, as the standard has it.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        header("traceparent")?;
        let context = TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &Headers(header, PhantomData));
        let span = context.span().span_context().clone();
        span.is_valid().then_some(Self(span))
    }
}

struct Headers<'a, F>(F, PhantomData<&'a str>);

impl<'a, F: Fn(&str) -> Option<&'a str>> Extractor for Headers<'a, F> {
    fn get(&self, key: &str) -> Option<&str> {
        (self.0)(key)
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_parent_is_none() {
        let read = |text: &'static str| Parent::read(|key| (key == "traceparent").then_some(text));
        let good = read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert_eq!(
            good.0.trace_id().to_string(),
            "0af7651916cd43dd8448eb211c80319c"
        );
        assert!(good.0.is_sampled());
        for text in [
            "",
            "00",
            "00-0-0-01",
            "xx-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        ] {
            assert!(read(text).is_none(), "{text}");
        }
        assert!(Parent::read(|_| None).is_none());
    }

    #[test]
    fn without_a_collector_nothing_is_kept() {
        let trace = Traces::default().begin("query", None);
        assert!(trace.0.is_none() && trace.part("execute").0.is_none());
    }
}
