"""`pmill serve` with the clients that people have: ADBC and pyarrow for Flight SQL; psql, psycopg, asyncpg, SQLAlchemy
and JDBC for PostgreSQL. Results are compared with `pmill sql`."""

import base64
import json
import random
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import adbc_driver_flightsql.dbapi as flight_sql
import psycopg
import pyarrow as pa
import pyarrow.flight as flight
import pytest

import certificates
import pmill

ROWS = 3000
NEIGHBOURS = 'SELECT "left", "right", n_xy, pmi, npmi FROM captions.pmi WHERE "left" = {} ORDER BY npmi DESC, "right" LIMIT 20'


def corpus(seed, rows=ROWS):
    """Sentences of words with falling frequency, and one with a quote in it."""
    source = random.Random(seed)
    words = [f"w{n}" for n in range(200)] + ["it's"]
    weights = [1 / (n + 1) for n in range(len(words))]
    return [" ".join(source.choices(words, weights, k=8)) for _ in range(rows)]


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    texts = pmill.write(folder / "corpus" / "a.parquet", corpus(1))
    job = pmill.count(folder / "wh", "captions", texts, "TEXT")
    pmill.score(job)
    return folder / "wh"


class Server:
    """A running server; its addresses are in `.flight_sql`, `.postgres` and `.health`."""

    def __init__(self, warehouse, *flags, code=0):
        self.code = code
        self.process = subprocess.Popen(
            [pmill.binary(), "serve", "--warehouse", str(warehouse), "--json", *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=pmill.environment(PMILL_LOG_FORMAT="json"),
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read().decode()
        self.addresses = json.loads(line)
        self.flight_sql, self.postgres, self.health = (
            self.addresses[name] for name in ("flight_sql", "postgres", "health")
        )
        self.log = []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.reader.join(timeout=10)
        text = b"".join(self.log).decode()
        if failure[0] is None:
            assert code == self.code, text
            for noise in ("panicked", "backtrace"):
                assert noise not in text, text

    def pg(self, **more):
        host, port = self.postgres.rsplit(":", 1)
        return {"host": host, "port": int(port), "user": "ann", "dbname": "wh"} | more

    def dsn(self, **more):
        return " ".join(f"{key}={value}" for key, value in self.pg(**more).items())

    def get(self, path, headers=None, context=None):
        request = urllib.request.Request(f"http{'s' if context else ''}://{self.health}{path}", headers=headers or {})
        return urllib.request.urlopen(request, timeout=30, context=context).read().decode()


ALL = ("--flight-sql", "127.0.0.1:0", "--postgres", "127.0.0.1:0", "--health", "127.0.0.1:0", "--threads", "2")


@pytest.fixture(scope="module")
def server(warehouse):
    with Server(warehouse, *ALL, "--memory-limit", "1GiB") as server:
        yield server


def as_rows(table):
    return [tuple(row.values()) for row in table.to_pylist()]


def expected(warehouse, query):
    return [tuple(row.values()) for row in pmill.sql(warehouse, query)]


QUERIES = [
    NEIGHBOURS.format("'w3'"),
    NEIGHBOURS.format("'it''s'"),
    NEIGHBOURS.format("'nobody'"),
    'SELECT n_xy, pmi FROM captions.pmi WHERE "left" = \'w1\' AND "right" = \'w7\'',
    "SELECT p.* FROM captions.pmi p JOIN (VALUES ('w1','w7'),('w2','w9'),('x','y')) AS q(l, r)"
    ' ON p."left" = q.l AND p."right" = q.r ORDER BY 1, 2',
    "SELECT count(*) AS pairs, sum(n_xy) AS n, max(npmi) AS top FROM captions.pmi",
    'SELECT "left", count(*) AS n FROM captions.pmi WHERE "left" IN (\'w1\', \'w2\', \'w150\') GROUP BY 1 ORDER BY 1',
    'SELECT "right", pmi FROM captions.pmi WHERE "right" = \'w5\' OR "left" = \'w5\' ORDER BY pmi DESC, 1 LIMIT 9',
    "SELECT id, token, count, documents FROM captions.vocab ORDER BY id LIMIT 12",
    "SELECT v.token, sum(p.count) AS n FROM captions.pairs p JOIN captions.vocab v ON v.id = p.left_id"
    " GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5",
    "SELECT pmi(4, 4, 4, 8) AS two, npmi(2, 3, 4, 10) AS x, NULL AS nothing, true AS yes",
    "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema = 'captions' ORDER BY 2",
]


def test_flight_sql_gives_what_pmill_sql_gives(server, warehouse):
    with flight_sql.connect(f"grpc://{server.flight_sql}") as connection, connection.cursor() as cursor:
        for query in QUERIES:
            cursor.execute(query)
            assert cursor.fetchall() == expected(warehouse, query), query


def test_psycopg_gives_what_pmill_sql_gives_as_text_and_binary(server, warehouse):
    with psycopg.connect(server.dsn()) as connection:
        for binary in (False, True):
            with connection.cursor(binary=binary) as cursor:
                for query in QUERIES:
                    cursor.execute(query)
                    assert cursor.fetchall() == expected(warehouse, query), (binary, query)


def test_flight_sql_prepared_statements_take_parameters(server, warehouse):
    with flight_sql.connect(f"grpc://{server.flight_sql}") as connection, connection.cursor() as cursor:
        query = NEIGHBOURS.format("$1")
        for word in ("w3", "it's", "nobody", "w3' OR '1'='1"):
            cursor.execute(query, (word,))
            quoted = word.replace("'", "''")
            assert cursor.fetchall() == expected(warehouse, NEIGHBOURS.format(f"'{quoted}'")), word


def test_flight_sql_tells_what_there_is(server):
    with flight_sql.connect(f"grpc://{server.flight_sql}") as connection:
        info = connection.adbc_get_info()
        assert info["vendor_name"] == "pmill"
        objects = connection.adbc_get_objects(depth="all").read_all().to_pylist()
        schemas = {
            schema["db_schema_name"]: {table["table_name"]: table for table in schema["db_schema_tables"]}
            for catalog in objects
            for schema in catalog["catalog_db_schemas"]
        }
        assert set(schemas["captions"]) == {"outside", "pairs", "pmi", "sources", "vocab"}
        columns = [column["column_name"] for column in schemas["captions"]["pmi"]["table_columns"]]
        assert columns[:6] == ["left", "right", "n_xy", "n_x", "n_y", "n"]
        assert connection.adbc_get_table_types() == ["TABLE"]


def test_pyarrow_flight_streams_a_statement(server, warehouse):
    client = flight.connect(f"grpc://{server.flight_sql}")
    # CommandStatementQuery in an Any: field 1 is the statement.
    query = b"SELECT * FROM captions.pmi"
    command = b"\x0a" + bytes([len(query)]) + query
    url = b"type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery"
    any_ = b"\x0a" + bytes([len(url)]) + url + b"\x12" + bytes([len(command)]) + command
    info = client.get_flight_info(flight.FlightDescriptor.for_command(any_))
    table = client.do_get(info.endpoints[0].ticket).read_all()
    assert table.num_rows == pmill.sql(warehouse, "SELECT count(*) AS n FROM captions.pmi")[0]["n"]
    assert table.schema.names == info.schema.names
    with pytest.raises(pa.ArrowInvalid, match="(?i)not one of this server|parse|decode|protobuf|type_url"):
        client.do_get(flight.Ticket(b"\x01nonsense")).read_all()
    client.close()


def test_psql_lists_and_describes(server):
    psql = shutil.which("psql")
    if not psql:
        pytest.skip("psql is not installed")

    def ask(command):
        result = subprocess.run(
            [psql, server.dsn(), "-X", "-A", "-t", "-c", command], capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    listed = ask("\\dt captions.*")
    assert "captions|pmi|table" in listed, listed
    described = ask("\\d captions.pmi")
    assert "left" in described and "npmi" in described and "double precision" in described, described
    assert "captions|" in ask("\\dn") and "captions|vocab|table" in ask("\\d")
    assert ask("SELECT count(*) FROM captions.vocab").strip() == "201"


def test_psycopg_has_parameters_and_server_side_cursors(server, warehouse):
    with psycopg.connect(server.dsn()) as connection:
        query = NEIGHBOURS.format("%s")
        for word in ("w3", "it's"):
            quoted = word.replace("'", "''")
            rows = connection.execute(query, (word,)).fetchall()
            assert rows == expected(warehouse, NEIGHBOURS.format(f"'{quoted}'"))
        everything = 'SELECT "left", "right", pmi FROM captions.pmi ORDER BY 1, 2'
        with connection.cursor(name="all rows") as cursor:
            cursor.itersize = 500
            cursor.execute(everything)
            assert list(cursor) == expected(warehouse, everything)


def test_asyncpg_prepares_and_has_cursors(server, warehouse):
    import asyncio

    import asyncpg

    async def ask():
        connection = await asyncpg.connect(**{key.replace("dbname", "database"): v for key, v in server.pg().items()})
        rows = await connection.fetch(NEIGHBOURS.format("$1"), "w3")
        async with connection.transaction():
            streamed = [tuple(row) async for row in connection.cursor("SELECT id, token FROM captions.vocab ORDER BY id")]
        await connection.close()
        return [tuple(row) for row in rows], streamed

    rows, streamed = asyncio.run(ask())
    assert rows == expected(warehouse, NEIGHBOURS.format("'w3'"))
    assert streamed == expected(warehouse, "SELECT id, token FROM captions.vocab ORDER BY id")


@pytest.fixture
def engine(server):
    import sqlalchemy

    host, port = server.postgres.rsplit(":", 1)
    engine = sqlalchemy.create_engine(f"postgresql+psycopg://ann@{host}:{port}/wh")
    yield engine
    engine.dispose()


def test_sqlalchemy_asks_and_lists_tables(engine, warehouse):
    import sqlalchemy

    query = NEIGHBOURS.format("'w3'")
    with engine.connect() as connection, connection.begin_nested():
        assert [tuple(row) for row in connection.execute(sqlalchemy.text(query))] == expected(warehouse, query)
    inspector = sqlalchemy.inspect(engine)
    assert set(inspector.get_table_names(schema="captions")) == {"outside", "pairs", "pmi", "sources", "vocab"}


def test_sqlalchemy_reflects_schemas_columns_and_whole_tables(engine, warehouse):
    import sqlalchemy

    inspector = sqlalchemy.inspect(engine)
    assert {"captions", "public"} <= set(inspector.get_schema_names())
    columns = inspector.get_columns("pmi", schema="captions")
    assert [column["name"] for column in columns][:3] == ["left", "right", "n_xy"]
    assert str(columns[0]["type"]) == "TEXT" and not columns[0]["nullable"]
    assert str(columns[2]["type"]) == "DOUBLE PRECISION" and columns[2]["default"] is None
    for empty in ("get_indexes", "get_unique_constraints", "get_foreign_keys", "get_check_constraints"):
        assert getattr(inspector, empty)("pmi", schema="captions") == [], empty
    assert inspector.get_pk_constraint("pmi", schema="captions")["constrained_columns"] == []
    assert inspector.has_table("pmi", schema="captions") and not inspector.has_table("nope", schema="captions")
    metadata = sqlalchemy.MetaData()
    metadata.reflect(engine, schema="captions")
    assert set(metadata.tables) == {f"captions.{name}" for name in ("outside", "pairs", "pmi", "sources", "vocab")}
    table = metadata.tables["captions.pmi"].c
    question = (
        sqlalchemy.select(table["left"], table.right, table.n_xy, table.pmi, table.npmi)
        .where(table["left"] == "w3")
        .order_by(table.npmi.desc(), table.right)
        .limit(20)
    )
    with engine.connect() as connection:
        assert [tuple(row) for row in connection.execute(question)] == expected(warehouse, NEIGHBOURS.format("'w3'"))


def test_jdbc_reads(server, warehouse, tmp_path):
    jar = Path("/usr/share/java/postgresql.jar")
    if not (jar.exists() and shutil.which("java") and shutil.which("javac")):
        pytest.skip("Java with a compiler and Debian's libpostgresql-jdbc-java are not installed")
    source = Path(__file__).with_name("Jdbc.java")
    result = subprocess.run(
        ["java", "-cp", str(jar), str(source), f"jdbc:postgresql://{server.postgres}/wh?user=ann", "w3"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert ["table", "captions", "pmi"] in lines
    rows = [(line[1], float(line[2])) for line in lines if line[0] == "row"]
    assert rows == [(row[1], row[4]) for row in expected(warehouse, NEIGHBOURS.format("'w3'"))]


TABLE_FUNCTIONS = [
    "SELECT * FROM neighbours('captions', 'w3', 5) ORDER BY rank",
    "SELECT neighbour, score FROM neighbours('captions', 'w3', k => 3, measure => 'pmi', min_pair_count => 2) ORDER BY rank",
    'SELECT "left", "right", n_xy_a, n_xy_b, js FROM drift(\'captions\', \'captions\') ORDER BY n_xy_a DESC, 1, 2 LIMIT 5',
    "SELECT * FROM matrix_rows((SELECT correlation_matrix(make_array(pmi, npmi)) FROM captions.pmi)) ORDER BY 1, 2",
]


def test_table_functions_give_what_pmill_sql_gives(server, warehouse):
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        for query in TABLE_FUNCTIONS:
            assert same(connection.execute(query).fetchall(), expected(warehouse, query)), query
        with pytest.raises(psycopg.Error, match="no job `captoins` .did you mean `captions`"):
            connection.execute("SELECT * FROM neighbours('captoins', 'w3')")
    with flight_sql.connect(f"grpc://{server.flight_sql}") as connection, connection.cursor() as cursor:
        for query in TABLE_FUNCTIONS:
            cursor.execute(query)
            assert same(cursor.fetchall(), expected(warehouse, query)), query


def same(found, expected):
    """Equal but for the last places of sums, whose order is that of threads."""
    assert len(found) == len(expected) > 0
    return all(
        a == b or (isinstance(a, float) and abs(a - b) <= 1e-9 * abs(b))
        for one, other in zip(found, expected)
        for a, b in zip(one, other)
    )


def test_files_are_counted_only_where_they_may_be_read(server, warehouse, tmp_path):
    texts = pmill.write(tmp_path / "texts.parquet", corpus(4, 300))
    query = f"SELECT \"left\", \"right\", n_xy FROM cooccur('{texts}', 'TEXT', min_count => 2) ORDER BY 3 DESC, 1, 2 LIMIT 9"
    # A lemmatizer's or phrases' file is not opened either.
    other = f"SELECT * FROM cooccur('nowhere', 'TEXT', phrases => '{texts}')"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        for refused in (query, other):
            with pytest.raises(psycopg.Error, match="--allow-files"):
                connection.execute(refused)
    with flight_sql.connect(f"grpc://{server.flight_sql}") as connection, connection.cursor() as cursor:
        with pytest.raises(Exception, match="--allow-files"):
            cursor.execute(query)
    flags = ("--allow-files", "--memory-limit", "1GiB", "--query-time", "60")
    with Server(warehouse, *ALL, *flags) as open_server:
        with psycopg.connect(open_server.dsn(), autocommit=True) as connection:
            assert connection.execute(query).fetchall() == expected(warehouse, query)
            # Counted anew each time: the plan is kept, its answer is not.
            pmill.write(texts, corpus(5, 300))
            assert connection.execute(query).fetchall() == expected(warehouse, query)
        with flight_sql.connect(f"grpc://{open_server.flight_sql}") as connection, connection.cursor() as cursor:
            cursor.execute(query)
            assert cursor.fetchall() == expected(warehouse, query)


def test_nothing_can_be_changed_or_read_beside_the_warehouse(server, warehouse, tmp_path):
    before = sorted((path, path.stat().st_mtime_ns) for path in warehouse.rglob("*"))
    statements = [
        "CREATE TABLE captions.x AS SELECT 1",
        "CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION '/tmp/x'",
        "DROP TABLE captions.pmi",
        "INSERT INTO captions.vocab SELECT * FROM captions.vocab",
        "DELETE FROM captions.vocab",
        "UPDATE captions.vocab SET count = 0",
        f"COPY (SELECT 1) TO '{tmp_path}/x.parquet'",
        f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{tmp_path}/x.parquet'",
        f"SELECT * FROM '{next(warehouse.rglob('*.parquet'))}'",
        "SET datafusion.execution.batch_size = 1; SELECT 1; DROP TABLE captions.pmi",
    ]
    with flight_sql.connect(f"grpc://{server.flight_sql}") as connection, connection.cursor() as cursor:
        for statement in statements:
            with pytest.raises(Exception) as refused:
                cursor.execute(statement)
                cursor.fetchall()
            assert "internal error" not in str(refused.value), statement
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        for statement in statements:
            with pytest.raises(psycopg.Error):
                connection.execute(statement)
        connection.execute("SET datafusion.execution.target_partitions = 1")
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in warehouse.rglob("*"))
    assert not list(tmp_path.iterdir())


def test_new_commits_are_seen_by_new_queries(tmp_path):
    first = pmill.write(tmp_path / "a.parquet", corpus(2, 300))
    second = pmill.write(tmp_path / "b.parquet", corpus(3, 300))
    job = pmill.count(tmp_path / "wh", "captions", first, "TEXT")
    pmill.score(job)
    query = "SELECT count(*) AS n, sum(n_xy) AS sum FROM captions.pmi"
    with Server(tmp_path / "wh", *ALL) as server, psycopg.connect(server.dsn(), prepare_threshold=0) as connection:
        assert connection.execute(query).fetchall() == expected(tmp_path / "wh", query)
        pmill.count(tmp_path / "wh", "captions", [first, second], "TEXT")
        pmill.score(job)
        grown = expected(tmp_path / "wh", query)
        assert connection.execute(query).fetchall() == grown
        pmill.count(tmp_path / "wh", "other", second, "TEXT")
        assert connection.execute("SELECT count(*) FROM other.vocab").fetchone()[0] > 0


def test_limits_hold_for_one_query_and_not_for_others(warehouse):
    flags = ("--query-memory", "4MiB", "--query-time", "3", "--result-rows", "5000", "--user-queries", "2")
    with Server(warehouse, *ALL, *flags) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:

            def refuse(query, state):
                with pytest.raises(psycopg.Error) as refused:
                    connection.execute(query).fetchall()
                assert refused.value.sqlstate == state, refused.value
                assert connection.execute("SELECT 1").fetchone() == (1,)

            cross = "FROM captions.pmi a, captions.pmi b, captions.pmi c"
            refuse("SELECT a.left, b.right FROM captions.pmi a, captions.pmi b", "54000")
            refuse(f"SELECT count(*) {cross} WHERE a.pmi + b.pmi + c.pmi > 1", "57014")
            # One list cannot spill; it is past its limit long before its time is over.
            refuse("SELECT cardinality(array_agg(x)) FROM generate_series(1, 3000000) AS t(x)", "53200")
            refuse("SELECT " + "1+" * 6000 + "1", "54000")


def test_a_query_is_cancelled(warehouse):
    slow = "SELECT count(*) FROM captions.pmi a, captions.pmi b, captions.pmi c WHERE a.pmi + b.pmi + c.pmi > 1"
    with Server(warehouse, *ALL) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            threading.Timer(1, connection.cancel).start()
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute(slow)
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with flight_sql.connect(f"grpc://{server.flight_sql}") as connection, connection.cursor() as cursor:
            threading.Timer(1, cursor.adbc_cancel).start()
            with pytest.raises(Exception, match="(?i)cancel"):
                cursor.execute(slow)
                cursor.fetchall()
        none_running(server)


def users_file(folder):
    line = pmill.run("serve", "hash-password", "ann", stdin=b"right: horse\n").out
    token = pmill.run("serve", "hash-password", "bot", "--token", "--json").json
    path = folder / "users"
    path.write_text(f"# who may in\n{line}{token['line']}\n")
    return path, token["token"]


def test_only_who_knows_a_secret_comes_in(warehouse, tmp_path):
    users, token = users_file(tmp_path)
    assert "right: horse" not in users.read_text()
    with Server(warehouse, *ALL, "--users", users) as server:
        with psycopg.connect(server.dsn(), password="right: horse") as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError, match="wrong user name, password or token"):
            psycopg.connect(server.dsn(), password="wrong")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.dsn(user="eve"), password="right: horse")
        uri = f"grpc://{server.flight_sql}"
        for options in (
            {"username": "ann", "password": "right: horse"},
            {"adbc.flight.sql.authorization_header": f"Bearer {token}"},
        ):
            with flight_sql.connect(uri, db_kwargs=options) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM captions.vocab")
                assert cursor.fetchall() == [(201,)]
        client = flight.connect(uri)
        pair = client.authenticate_basic_token("ann", "right: horse")
        options = flight.FlightCallOptions(headers=[pair])
        assert list(client.list_actions(options))
        one = flight.Ticket(ticket("SELECT 1"))
        for headers in ([], [(b"authorization", b"Bearer nonsense")]):
            with pytest.raises(flight.FlightUnauthenticatedError):
                client.do_get(one, flight.FlightCallOptions(headers=headers)).read_all()
        with pytest.raises(pa.ArrowInvalid, match="base64"):
            client.do_get(one, flight.FlightCallOptions(headers=[(b"authorization", b"Basic !")])).read_all()
        client.close()
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.get("/")
        assert refused.value.code == 401
        basic = base64.b64encode(b"ann:right: horse").decode()
        assert "captions" in server.get("/", {"Authorization": f"Basic {basic}"})
        assert server.get("/healthz") == "ok\n"
        # Guessing is braked, for that name only.
        refusals = []
        for _ in range(7):
            with pytest.raises(psycopg.OperationalError) as refused:
                psycopg.connect(server.dsn(user="bot"), password="guess")
            refusals.append(str(refused.value))
        assert "too many wrong passwords" in refusals[-1], refusals
        with psycopg.connect(server.dsn(), password="right: horse") as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        log = b"".join(server.log).decode()
        assert "horse" not in log and token not in log and "SELECT" not in log


def ticket(sql):
    """A ticket as the server makes it: TicketStatementQuery in an Any."""
    handle = b"\x01" + bytes(16) + sql.encode()
    inner = b"\x0a" + bytes([len(handle)]) + handle
    url = b"type.googleapis.com/arrow.flight.protocol.sql.TicketStatementQuery"
    return b"\x0a" + bytes([len(url)]) + url + b"\x12" + bytes([len(inner)]) + inner


def test_other_machines_are_not_served_without_secrets_and_tls(warehouse, tmp_path):
    refused = pmill.run("serve", "--warehouse", warehouse, "--postgres", "0.0.0.0:0", code=2)
    assert "nobody is asked who they are" in refused.err
    users, _ = users_file(tmp_path)
    refused = pmill.run("serve", "--warehouse", warehouse, "--postgres", "0.0.0.0:0", "--users", users, code=2)
    assert "unencrypted" in refused.err
    with Server(warehouse, "--postgres", "0.0.0.0:0", "--insecure"):
        pass
    (tmp_path / "plain").write_text("ann:password:hunter2\n")
    refused = pmill.run(
        "serve", "--warehouse", warehouse, "--postgres", "127.0.0.1:0", "--users", tmp_path / "plain", code=2
    )
    assert "line 1" in refused.err and "hunter2" not in refused.err
    assert "nothing to serve" in pmill.run("serve", "--warehouse", warehouse, code=2).err


def test_tls_and_mutual_tls(warehouse, tmp_path):
    folder = certificates.make(tmp_path, "server", "client")
    tls = ("--tls-cert", folder / "server.pem", "--tls-key", folder / "server.key")
    root = (folder / "authority.pem").read_text()
    pg_tls = {"sslmode": "verify-full", "sslrootcert": folder / "authority.pem", "host": "localhost"}
    mine = {"sslcert": folder / "client.pem", "sslkey": folder / "client.key"}
    chain, key = (folder / "client.pem").read_text(), (folder / "client.key").read_text()
    with Server(warehouse, *ALL, *tls) as server:
        with psycopg.connect(server.dsn(**pg_tls)) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        port = server.flight_sql.rsplit(":", 1)[1]
        options = {"adbc.flight.sql.client_option.tls_root_certs": root}
        with flight_sql.connect(f"grpc+tls://localhost:{port}", db_kwargs=options) as connection:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                assert cursor.fetchall() == [(1,)]
        assert server.get("/healthz", context=ssl.create_default_context(cafile=folder / "authority.pem")) == "ok\n"
    with Server(warehouse, *ALL, *tls, "--tls-client-ca", folder / "authority.pem") as server:
        with psycopg.connect(server.dsn(**pg_tls, **mine)) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.dsn(**pg_tls)).execute("SELECT 1")
        port = server.flight_sql.rsplit(":", 1)[1]
        client = flight.connect(
            f"grpc+tls://localhost:{port}", tls_root_certs=root, cert_chain=chain, private_key=key
        )
        assert client.do_get(flight.Ticket(ticket("SELECT 1 AS one"))).read_all().to_pylist() == [{"one": 1}]
        client.close()


def test_health_and_figures(server):
    assert server.get("/healthz") == "ok\n"
    assert server.get("/readyz") == "ready\n"
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("SELECT 1")
        text = server.get("/metrics")
    assert 'pmill_queries_total{outcome="ok",protocol="postgres"}' in text
    assert 'pmill_connections{protocol="postgres"} 1' in text
    assert "pmill_resident_bytes" in text and "ann" not in text


def test_sigterm_lets_running_queries_finish(warehouse):
    with Server(warehouse, *ALL) as server:
        slow = "SELECT count(*) FROM captions.pmi a, captions.pmi b WHERE a.pmi + b.pmi > 1"
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            idle = psycopg.connect(server.dsn())
            stopper = threading.Timer(0.5, server.process.send_signal, (signal.SIGTERM,))
            stopper.start()
            rows = connection.execute(slow).fetchall()
            stopper.join()
            assert rows[0][0] > 0
            idle.close()
        assert server.process.wait(timeout=30) == 0
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.dsn())


def test_bad_clients_disturb_nobody(server, warehouse):
    host, port = server.postgres.rsplit(":", 1)
    postgres = (host, int(port))
    grpc = (server.flight_sql.rsplit(":", 1)[0], int(server.flight_sql.rsplit(":", 1)[1]))
    source = random.Random(7)
    startup = struct.pack("!ii", 8 + len(b"user\0ann\0\0"), 196608) + b"user\0ann\0\0"
    bad = [
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("!i", 0x7FFFFFFF) + b"x" * 1000,
        struct.pack("!ii", 8, 80877103) + b"junk",
        startup + b"Q" + struct.pack("!i", 0x7FFFFFFF) + b"SELECT 1",
        startup + b"Q" + struct.pack("!i", 3),
        startup + b"Q" + struct.pack("!i", 12) + b"\xff\xfe\xfd\0\0\0\0\0",
        startup + b"P" + struct.pack("!i", 20) + b"a\0SELECT 1\0\xff\xff",
        startup + b"B" + struct.pack("!i", 20) + b"\0\0\x7f\xff" + b"\0" * 12,
        startup + b"E" + struct.pack("!i", 9) + b"\0\x7f\xff\xff\xff",
        startup + b"\xff" + struct.pack("!i", 4),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
    ]
    bad += [startup + bytes(source.randrange(256) for _ in range(source.randrange(200))) for _ in range(60)]
    stop, asked, failed = threading.Event(), [], []

    def good():
        with psycopg.connect(server.dsn()) as connection:
            query = NEIGHBOURS.format("'w3'")
            right = connection.execute(query).fetchall()
            while not stop.is_set():
                try:
                    assert connection.execute(query).fetchall() == right
                    asked.append(1)
                except Exception as error:  # told below
                    failed.append(error)
                    return

    watcher = threading.Thread(target=good)
    watcher.start()
    for address in (postgres, grpc):
        for message in bad:
            with socket.create_connection(address, timeout=10) as client:
                try:
                    client.sendall(message)
                    client.shutdown(socket.SHUT_WR)
                    client.settimeout(10)
                    while client.recv(65536):
                        pass
                except OSError:
                    pass
    # Gone in the middle of a result, and one that never reads.
    everything = b"SELECT a.* FROM captions.pmi a, captions.pmi b\0"
    ask = startup + b"Q" + struct.pack("!i", 4 + len(everything)) + everything
    for _ in range(5):
        with socket.create_connection(postgres, timeout=10) as client:
            client.sendall(ask)
            client.recv(4096)
    lazy = socket.create_connection(postgres, timeout=10)
    lazy.sendall(ask)
    time.sleep(1)
    before = resident(server)
    time.sleep(1)
    assert resident(server) - before < 64 << 20, "a client that does not read fills the server"
    lazy.close()
    stop.set()
    watcher.join(timeout=30)
    assert not failed and len(asked) > 10, (failed, len(asked))
    assert server.process.poll() is None
    assert server.get("/readyz") == "ready\n"


def test_huge_statements_are_refused_and_nobody_notices(server):
    huge = "SELECT '" + "x" * (5 << 20) + "'"
    with psycopg.connect(server.dsn(), autocommit=True) as good:
        with pytest.raises(psycopg.Error):
            with psycopg.connect(server.dsn(), autocommit=True) as bad:
                bad.execute(huge)
        with flight_sql.connect(f"grpc://{server.flight_sql}") as connection, connection.cursor() as cursor:
            with pytest.raises(Exception, match="(?i)large|limit|bytes"):
                cursor.execute(huge)
                cursor.fetchall()
            cursor.execute("SELECT 1 AS one")
            assert cursor.fetchall() == [(1,)]
        assert good.execute("SELECT 1").fetchone() == (1,)


def none_running(server):
    deadline = time.monotonic() + 30
    while "pmill_queries_running 0" not in server.get("/metrics"):
        assert time.monotonic() < deadline, "a query that nobody reads goes on"
        time.sleep(0.05)


def test_flight_clients_that_read_slowly_or_leave_hold_nothing(warehouse):
    everything = "SELECT a.* FROM captions.pmi a, captions.pmi b"
    with Server(warehouse, *ALL, "--query-time", "8") as server:
        slow = flight.connect(f"grpc://{server.flight_sql}")
        reader = slow.do_get(flight.Ticket(ticket(everything)))
        assert reader.read_chunk().data.num_rows > 0
        for _ in range(3):
            gone = flight.connect(f"grpc://{server.flight_sql}")
            gone.do_get(flight.Ticket(ticket(everything))).read_chunk()
            gone.close()
        before = resident(server)
        with flight_sql.connect(f"grpc://{server.flight_sql}") as connection, connection.cursor() as cursor:
            for _ in range(20):
                cursor.execute("SELECT count(*) FROM captions.vocab")
                assert cursor.fetchall() == [(201,)]
        assert resident(server) - before < 64 << 20, "a client that does not read fills the server"
        # Its time ends, though it never asks for more.
        none_running(server)
        with pytest.raises((flight.FlightError, pa.ArrowException)):
            for _ in range(1_000_000):
                reader.read_chunk()
        slow.close()


def resident(server):
    for line in server.get("/metrics").splitlines():
        if line.startswith("pmill_resident_bytes "):
            return int(float(line.split()[1]))
    raise AssertionError("no figure")
