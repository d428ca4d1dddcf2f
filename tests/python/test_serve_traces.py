"""Traces of `pmill serve --otlp`: a collector that takes OTLP over gRPC, as OpenTelemetry's own messages define it."""

import threading
import time
from concurrent import futures

import adbc_driver_flightsql.dbapi as flight_sql
import grpc
import psycopg
import pyarrow.flight as flight
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

import certificates
import pmill
from test_serve import ALL, Server, ticket, warehouse  # noqa: F401

SECRET_TERM = "w150"
QUERY = f"SELECT \"right\", pmi FROM captions.pmi WHERE \"left\" = '{SECRET_TERM}' ORDER BY pmi DESC LIMIT 7"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self, certificates=None):
        self.requests, self.come = [], threading.Condition()
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        if certificates:
            pair = [((certificates / "collector.key").read_bytes(), (certificates / "collector.pem").read_bytes())]
            port = self.server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
        else:
            port = self.server.add_insecure_port("127.0.0.1:0")
        self.url = f"http{'s' if certificates else ''}://127.0.0.1:{port}"
        self.server.start()

    def Export(self, request, context):  # noqa: N802
        with self.come:
            self.requests.append(request)
            self.come.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self):
        with self.come:
            return [
                span
                for request in self.requests
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]

    def text(self):
        with self.come:
            return "".join(map(str, self.requests))


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.server.stop(None)


def notes(span):
    """A span's attributes."""
    return {note.key: getattr(note.value, note.value.WhichOneof("value")) for note in span.attributes}


def named(spans, name):
    return [span for span in spans if span.name == name]


def test_a_query_is_a_span_with_its_parts(warehouse, collector):  # noqa: F811
    with Server(warehouse, *ALL, "--otlp", collector.url) as server:
        with psycopg.connect(server.dsn(user="ann"), autocommit=True) as connection:
            rows = len(connection.execute(QUERY).fetchall())
            with pytest.raises(psycopg.Error):
                connection.execute("SELECT no_such_column FROM captions.pmi")
            with pytest.raises(psycopg.Error):
                connection.execute("SELECT 1 / (count - count) FROM captions.vocab").fetchall()
        with flight_sql.connect(f"grpc://{server.flight_sql}") as connection, connection.cursor() as cursor:
            cursor.execute(QUERY)
            assert cursor.fetch_arrow_table().num_rows == rows
        assert "<table" in server.get(f"/?job=captions&word={SECRET_TERM}")
        waited = time.monotonic() + 30
        while not named(collector.spans(), "query") and time.monotonic() < waited:
            time.sleep(0.1)
        assert named(collector.spans(), "query"), "spans are sent while the server runs"
    spans = collector.spans()
    queries = named(spans, "query")
    for query in queries:
        parts = [span for span in spans if span.parent_span_id == query.span_id]
        assert {part.trace_id for part in parts} <= {query.trace_id}
        assert all(part.start_time_unix_nano >= query.start_time_unix_nano for part in parts)
        assert all(part.end_time_unix_nano <= query.end_time_unix_nano for part in parts)
        names = {part.name for part in parts}
        assert "optimize" in names and names <= {"optimize", "execute"}, names
    by_protocol = {protocol: [] for protocol in ("postgres", "flight_sql", "web")}
    for query in queries:
        by_protocol[notes(query)["network.protocol.name"]].append(query)
        assert query.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert all(by_protocol.values()), by_protocol
    found = [notes(query) for query in by_protocol["postgres"]]
    assert any(note["db.response.returned_rows"] == rows and note["pmill.outcome"] == "ok" for note in found), found
    failed = [query for query in queries if query.status.code == trace_pb2.Status.STATUS_CODE_ERROR]
    assert [notes(query)["error.type"] for query in failed] == ["42601"]
    plans = named(spans, "plan")
    assert [notes(plan) for plan in plans if plan.status.code == trace_pb2.Status.STATUS_CODE_ERROR] == [
        {"error.type": "42601"}
    ]
    # Planned once in each of the two dialects; then its plan was kept.
    text = collector.text()
    assert "pmill" in text and "service.version" in text
    for kept_back in (SECRET_TERM, "SELECT", "no_such_column", "captions"):
        assert kept_back not in text, kept_back


def test_a_clients_own_span_is_the_parent(warehouse, collector):  # noqa: F811
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with Server(warehouse, *ALL, "--otlp", collector.url) as server:
        client = flight.connect(f"grpc://{server.flight_sql}")
        options = flight.FlightCallOptions(headers=[(b"traceparent", f"00-{trace}-{span}-01".encode())])
        client.do_get(flight.Ticket(ticket("SELECT 1 AS one")), options).read_all()
        unsampled = flight.FlightCallOptions(headers=[(b"traceparent", f"00-{trace[::-1]}-{span}-00".encode())])
        client.do_get(flight.Ticket(ticket("SELECT 2 AS two")), unsampled).read_all()
        broken = flight.FlightCallOptions(headers=[(b"traceparent", b"00-nonsense")])
        client.do_get(flight.Ticket(ticket("SELECT 3 AS three")), broken).read_all()
        client.close()
        server.get("/?job=captions", headers={"traceparent": f"00-{trace}-{span}-01"})
    spans = collector.spans()
    below = [(one.name, notes(one).get("network.protocol.name")) for one in spans if one.parent_span_id.hex() == span]
    assert ("plan", None) in below and ("query", "flight_sql") in below and ("query", "web") in below
    assert trace[::-1] not in {one.trace_id.hex() for one in spans}, "what its client does not sample is not sent"
    roots = [one for one in named(spans, "query") if not one.parent_span_id]
    assert len(roots) == 1, "a malformed parent is none"


def test_spans_go_over_tls_to_who_the_system_trusts(warehouse, tmp_path, monkeypatch):  # noqa: F811
    folder = certificates.make(tmp_path, "collector")
    collector = Collector(folder)
    for trusted in (False, True):
        if trusted:
            # Where OpenSSL's programs, and this one, look for the system's certificates.
            monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
        with Server(warehouse, *ALL, "--otlp", collector.url) as server:
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("SELECT 1").fetchone()
        assert bool(named(collector.spans(), "query")) == trusted
    collector.server.stop(None)


def test_a_collector_that_is_away_costs_no_query(warehouse):  # noqa: F811
    with Server(warehouse, *ALL, "--otlp", "http://127.0.0.1:1") as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            for number in range(3000):
                assert connection.execute("SELECT %s + 1", (number,)).fetchone() == (number + 1,)
        began = time.monotonic()
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("url", ["collector:4317", "ftp://collector", "http://"])
def test_a_url_that_is_none_is_refused(warehouse, url):  # noqa: F811
    result = pmill.run("serve", "--warehouse", warehouse, "--health", "127.0.0.1:0", "--otlp", url, code=2)
    assert f"--otlp `{url}`" in result.err and "http://127.0.0.1:4317" in result.err
