"""`pmill sql --cluster` and `pmill serve --cluster`: the answers of one process, whoever dies."""

import json
import math
import signal
import subprocess
import threading
import time

import adbc_driver_flightsql.dbapi as flight_sql
import psycopg
import pytest

import certificates
import cluster
import pmill
from test_serve import Server

QUERIES = {
    "filter": 'SELECT left_id, right_id, count FROM j.pairs WHERE count > 40 ORDER BY 1, 2',
    "strings": "SELECT \"left\", \"right\", n_xy FROM j.pmi WHERE \"left\" LIKE 'a%' ORDER BY 1, 2 LIMIT 500",
    "group": "SELECT left_id % 100 AS g, count(*) AS pairs, sum(count) AS n, max(count) AS top FROM j.pairs GROUP BY g ORDER BY g",
    "having": "SELECT left_id, sum(count) AS n FROM j.pairs GROUP BY left_id HAVING sum(count) > 500 ORDER BY n DESC, left_id",
    "floats": 'SELECT "left", avg(npmi) AS mean, stddev(pmi) AS spread, corr(pmi, npmi) AS r FROM j.pmi GROUP BY "left" ORDER BY "left" LIMIT 300',
    "join": "SELECT v.token, sum(p.count) AS n FROM j.pairs p JOIN j.vocab v ON p.left_id = v.id GROUP BY v.token ORDER BY n DESC, v.token LIMIT 50",
    "two joins": "SELECT a.token AS l, b.token AS r, p.count FROM j.pairs p JOIN j.vocab a ON p.left_id = a.id JOIN j.vocab b ON p.right_id = b.id"
    " WHERE a.count < b.count + 100 ORDER BY p.count DESC, l, r LIMIT 40",
    "left join": "SELECT v.id, count(p.count) AS n FROM j.vocab v LEFT JOIN j.pairs p ON p.left_id = v.id AND p.count > 30 GROUP BY v.id ORDER BY n, v.id LIMIT 60",
    "full join": "SELECT a.id, b.left_id, b.count FROM j.vocab a FULL JOIN (SELECT * FROM j.pairs WHERE count > 60) b ON a.id = b.left_id + 4990 ORDER BY 1, 2, 3",
    "anti": "SELECT count(*) AS n FROM j.vocab v WHERE NOT EXISTS (SELECT 1 FROM j.pairs p WHERE p.right_id = v.id AND p.count > 3)",
    "in": "SELECT sum(count) AS n FROM j.pairs WHERE left_id IN (SELECT id FROM j.vocab WHERE token < 'c')",
    "window": "SELECT * FROM (SELECT left_id, right_id, count, row_number() OVER (PARTITION BY left_id ORDER BY count DESC, right_id) AS place FROM j.pairs WHERE count > 1) t"
    " WHERE place <= 2 ORDER BY left_id, place LIMIT 400",
    "top": 'SELECT "left", "right", npmi FROM j.pmi ORDER BY npmi DESC, "left", "right" LIMIT 25',
    "top offset": "SELECT * FROM j.pairs ORDER BY count DESC, left_id, right_id LIMIT 10 OFFSET 1000",
    "distinct": "SELECT DISTINCT count FROM j.pairs WHERE left_id < 700 ORDER BY count",
    "count distinct": "SELECT count(DISTINCT right_id) AS n, count(DISTINCT count) AS c FROM j.pairs",
    "count": "SELECT count(*) AS n FROM j.pairs",
    "count filtered": "SELECT count(*) AS n FROM j.pairs WHERE count = 3",
    "union": "SELECT left_id AS id, count FROM j.pairs WHERE count > 50 UNION ALL SELECT id, count FROM j.vocab WHERE count > 500 ORDER BY 1, 2",
    "empty": "SELECT left_id, count FROM j.pairs WHERE count < 0 ORDER BY 1",
    "empty sum": "SELECT sum(count) AS n, count(*) AS c FROM j.pairs WHERE count < 0",
    "null": "SELECT nullif(count % 5, 0) AS k, count(*) AS n, sum(nullif(count % 7, 0)) AS s FROM j.pairs GROUP BY k ORDER BY k NULLS FIRST",
    "version": "SELECT count(*) AS n, sum(count) AS s, max(left_id) AS m FROM j.pairs VERSION AS OF 0 WHERE count > 1",
    "two versions": "SELECT a.n - b.n AS more FROM (SELECT sum(count) AS n FROM j.pairs) a, (SELECT sum(count) AS n FROM j.pairs VERSION AS OF 0) b",
    "scalar subquery": "SELECT count(*) AS n FROM j.pairs WHERE count > (SELECT avg(count) FROM j.pairs)",
    "with": "WITH t AS (SELECT left_id, sum(count) AS n FROM j.pairs GROUP BY left_id) SELECT v.token, t.n FROM t JOIN j.vocab v ON v.id = t.left_id ORDER BY t.n DESC, v.token LIMIT 9",
    "grouping sets": "SELECT left_id % 3 AS a, right_id % 2 AS b, count(*) AS n FROM j.pairs GROUP BY ROLLUP (left_id % 3, right_id % 2) ORDER BY 1, 2, 3",
    "functions": "SELECT round(avg(pmi(n_xy, n_x, n_y, n)), 9) AS p, approx_distinct(\"left\") > 0 AS d FROM j.pmi WHERE n_xy > 2",
    "function of pmill": "SELECT exact_quantile(pmi, 0.25) AS q, correlation_matrix(make_array(pmi, npmi)) AS m FROM j.pmi",
    "case": "SELECT CASE WHEN count > 9 THEN 'many' WHEN count > 1 THEN 'some' ELSE 'one' END AS size, count(*) AS n FROM j.pairs GROUP BY 1 ORDER BY 1",
}
# These have nothing that could be sent, and need no cluster.
HERE = [
    "SELECT 1 AS one",
    "SELECT * FROM information_schema.tables ORDER BY table_schema, table_name",
    "SELECT rank, neighbour FROM neighbours('j', 'TOKEN', 5) ORDER BY rank",
    "SELECT * FROM j.pairs LIMIT 0",
    "SELECT count(*) AS n FROM j.pairs WHERE count > 1 AND now() IS NOT NULL",
    "SELECT count(*) AS n FROM j.pairs",
]


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster-sql")
    pmill.run("sample-corpus", "--output", folder / "corpus", "--rows", 8000, "--files", 4)
    files = sorted((folder / "corpus").glob("*.parquet"))
    flags = ["--vocab-size", "5000", "--context", "window", "--window", "5"]
    pmill.count(folder / "wh", "j", files[:2], "TEXT", *flags)
    job = pmill.count(folder / "wh", "j", files, "TEXT", *flags)
    pmill.score(job)
    return folder / "wh"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with cluster.Cluster(tmp_path_factory.mktemp("roles"), executors=2, slots=1) as running:
        yield running


def asked(warehouse, query, *flags, **more):
    return pmill.run("sql", "--warehouse", warehouse, "--json", *flags, query, **more)


def on(url, *flags):
    return ["--cluster", url, "--cluster-bytes", 1, *flags]


def same(found, expected):
    """Equal values; floats to the last digits."""
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(found, expected, rel_tol=1e-12, abs_tol=1e-12)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    return found == expected


def units_done(running):
    return sum(role.log.read_text().count("unit done") for role in running.executors)


def ran_there(running, before):
    """An executor says that a unit is done after the driver has seen it."""
    return cluster.wait_for(lambda: units_done(running) > before, seconds=10)


def left(warehouse):
    return [path.name for path in (warehouse / ".pmill").glob("*.query")]


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_has_the_answer_that_it_has_in_process(name, running, warehouse):
    before = units_done(running)
    found = asked(warehouse, QUERIES[name], *on(running.url))
    expected = asked(warehouse, QUERIES[name])
    assert same(found.json, expected.json), (found.json[:5], expected.json[:5])
    if name not in ("floats", "functions", "function of pmill"):
        assert found.raw == expected.raw
    if name != "count":
        assert ran_there(running, before), "it did not run on the cluster"
    assert left(warehouse) == []


@pytest.mark.parametrize("query", HERE)
def test_what_has_nothing_to_send_asks_no_cluster(query, warehouse):
    flags = on("http://127.0.0.1:1")
    token = asked(warehouse, "SELECT token FROM j.vocab WHERE id = 0").json[0]["token"]
    query = query.replace("TOKEN", token)
    assert asked(warehouse, query, *flags).raw == asked(warehouse, query).raw


def test_small_tables_are_asked_here(running, warehouse):
    before = units_done(running)
    query = QUERIES["group"]
    assert asked(warehouse, query, "--cluster", running.url).raw == asked(warehouse, query).raw
    assert units_done(running) == before


def test_a_job_shown_at_a_version_is_that_version_everywhere(running, warehouse):
    query = QUERIES["group"]
    old = asked(warehouse, query, "--version", "j=0")
    assert old.raw != asked(warehouse, query).raw
    assert asked(warehouse, query, "--version", "j=0", *on(running.url)).raw == old.raw


@pytest.mark.parametrize(
    "query",
    [
        "SELECT nothing FROM j.pairs",
        "SELECT * FROM k.pairs WHERE count > 1",
        "SELECT * FROM j.pairs VERSION AS OF 77 WHERE count > 1",
        "SELEKT 1",
        "DROP TABLE j.pairs",
        "SELECT count / (count - count) AS x FROM j.pairs WHERE count > 1",
        "SELECT CAST(concat('x', count - count) AS INT) FROM j.vocab WHERE id > 1",
    ],
)
def test_a_wrong_query_is_told_as_in_process(query, running, warehouse):
    here = asked(warehouse, query, code=2)
    there = asked(warehouse, query, *on(running.url), code=2)
    assert there.err == here.err
    assert left(warehouse) == []


def test_a_cluster_that_is_away_is_told_in_time(warehouse):
    result = asked(warehouse, QUERIES["group"], *on("http://127.0.0.1:1"), code=75)
    assert result.seconds < 30
    assert "127.0.0.1:1" in result.err
    assert left(warehouse) == []


def test_a_cluster_without_executors_is_waited_for_so_long(tmp_path, warehouse):
    with cluster.Cluster(tmp_path, executors=0) as empty:
        result = asked(warehouse, QUERIES["group"], *on(empty.url, "--cluster-patience", 2), code=75)
    assert "nothing has come from the cluster" in result.err
    assert left(warehouse) == []


@pytest.mark.parametrize("name", ["group", "join", "top"])
def test_an_executor_that_dies_in_a_unit_changes_nothing(name, tmp_path, warehouse):
    expected = asked(warehouse, QUERIES[name])
    with cluster.Cluster(tmp_path, executors=0, slots=1) as running:
        # Dies each time that it comes to this unit; the other does it then.
        dies = running.start_executor(env=pmill.environment(PMILL_KILL_UNIT="query-0-00001"))
        dies.ready()
        driver = subprocess.Popen(
            [*map(str, [pmill.binary(), "sql", "--warehouse", warehouse, "--json", *on(running.url), QUERIES[name]])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=pmill.environment(),
        )
        assert cluster.wait_for(lambda: dies.process.poll() is not None), "it did not die"
        running.start_executor().ready()
        out, err = driver.communicate(timeout=120)
    assert driver.returncode == 0, err
    assert out == expected.raw
    assert left(warehouse) == []


def test_executors_that_are_killed_at_any_moment_change_nothing(tmp_path, warehouse):
    expected = asked(warehouse, QUERIES["join"])
    with cluster.Cluster(tmp_path, executors=2, slots=1) as running:
        for pause in (0.0, 0.1, 0.3, 0.6):
            driver = subprocess.Popen(
                [*map(str, [pmill.binary(), "sql", "--warehouse", warehouse, "--json", *on(running.url), QUERIES["join"]])],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=pmill.environment(),
            )
            cluster.wait_for(lambda: left(warehouse) or driver.poll() is not None)
            time.sleep(pause)
            running.executors[0].kill()
            running.executors[0] = running.start_executor()
            out, err = driver.communicate(timeout=120)
            assert driver.returncode == 0, err
            assert out == expected.raw
            running.executors[0].ready()
    assert left(warehouse) == []


@pytest.fixture
def held(running):
    """Executors that do nothing while the test looks."""
    for executor in running.executors:
        executor.signal(signal.SIGSTOP)
    yield
    for executor in running.executors:
        executor.signal(signal.SIGCONT)


def begun(running, warehouse):
    driver = pmill.start("sql", "--warehouse", warehouse, *on(running.url), QUERIES["group"])
    assert cluster.wait_for(lambda: list((warehouse / ".pmill").glob("*.query/plan-units/plan.json")))
    return driver


def test_ctrl_c_leaves_no_folder(held, running, warehouse):
    driver = begun(running, warehouse)
    state = pmill.run("jobs", "--warehouse", warehouse, "--json").json["jobs"]
    assert [(job["phase"], job["done"]) for job in state] == [("query", 0)]
    code, seconds = pmill.interrupt(driver, 30)
    assert (code, seconds < 10) == (75, True)
    assert left(warehouse) == []


def test_a_query_can_be_cancelled_by_its_name(held, running, warehouse):
    driver = begun(running, warehouse)
    name = pmill.run("jobs", "--warehouse", warehouse, "--json").json["jobs"][0]["job"]
    pmill.run("jobs", "--warehouse", warehouse, "--cancel", name)
    assert driver.wait(timeout=30) == 75
    assert left(warehouse) == []


def test_what_a_killed_driver_left_goes_with_a_later_query_or_a_vacuum(held, running, warehouse):
    for later in (["sql", *on(running.url, "--cluster-patience", 1), QUERIES["count filtered"]], ["vacuum", "--name", "j", "--keep-versions", 9]):
        driver = begun(running, warehouse)
        driver.kill()
        driver.wait()
        [name] = left(warehouse)
        # It is not known to be dead yet.
        pmill.run(later[0], "--warehouse", warehouse, *later[1:], code=None)
        assert left(warehouse) == [name]
        (warehouse / ".pmill" / name / "alive").write_text(str(int(time.time()) - 3600))
        pmill.run(later[0], "--warehouse", warehouse, *later[1:], code=None)
        assert left(warehouse) == []


def test_equal_queries_at_once_do_not_meet(running, warehouse):
    expected = asked(warehouse, QUERIES["join"])
    command = [*map(str, [pmill.binary(), "sql", "--warehouse", warehouse, "--json", *on(running.url), QUERIES["join"]])]
    drivers = [subprocess.Popen(command, stdout=subprocess.PIPE, env=pmill.environment()) for _ in range(3)]
    for driver in drivers:
        out, _ = driver.communicate(timeout=120)
        assert (driver.returncode, out) == (0, expected.raw)
    assert left(warehouse) == []


def test_an_executor_reads_only_what_it_is_allowed(tmp_path, warehouse):
    with cluster.Cluster(tmp_path, executors=1, executor_flags=["--allow", tmp_path]) as narrow:
        result = asked(warehouse, QUERIES["group"], *on(narrow.url), code=2)
        assert "--allow" in result.err
    with cluster.Cluster(tmp_path, executors=1, executor_flags=["--allow", warehouse]) as wide:
        assert asked(warehouse, QUERIES["group"], *on(wide.url)).raw == asked(warehouse, QUERIES["group"]).raw


def test_a_plan_that_was_changed_is_refused_once(tmp_path, warehouse):
    """Who can write into the warehouse can write a plan; what it can ask for is tables of the warehouse."""
    with cluster.Cluster(tmp_path, executors=1) as running:
        for executor in running.executors:
            executor.signal(signal.SIGSTOP)
        driver = subprocess.Popen(
            [*map(str, [pmill.binary(), "sql", "--warehouse", warehouse, *on(running.url), QUERIES["group"]])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=pmill.environment(),
        )
        assert cluster.wait_for(lambda: list((warehouse / ".pmill").glob("*.query/plan-units/plan.json")))
        [path] = (warehouse / ".pmill").glob("*.query/plan-units/plan.json")
        plan = json.loads(path.read_text())
        plan["sql"] = "SELECT sum(count) FROM j.pairs WHERE count > 5"
        path.write_text(json.dumps(plan))
        for executor in running.executors:
            executor.signal(signal.SIGCONT)
        _, err = driver.communicate(timeout=60)
    assert driver.returncode == 2, err
    assert b"plans the query otherwise than its driver" in err
    assert left(warehouse) == []


def test_with_tls_and_a_token(tmp_path, warehouse):
    keys = certificates.make(tmp_path / "keys", "scheduler")
    (tmp_path / "token").write_text("0123456789abcdef\n")
    token = ["--token-file", tmp_path / "token"]
    server = ["--tls-cert", keys / "scheduler.pem", "--tls-key", keys / "scheduler.key", *token]
    client = ["--tls-ca", keys / "authority.pem", *token]
    expected = asked(warehouse, QUERIES["group"])
    with cluster.Cluster(
        tmp_path / "roles", executors=1, scheduler_flags=server, executor_flags=client, scheme="https"
    ) as running:
        assert asked(warehouse, QUERIES["group"], *on(running.url, *client)).raw == expected.raw
        refused = asked(warehouse, QUERIES["group"], *on(running.url, *client[:2]), code=None)
        assert refused.code != 0 and "token" in refused.err


SERVE = ("--flight-sql", "127.0.0.1:0", "--postgres", "127.0.0.1:0", "--threads", "2", "--memory-limit", "512MiB")


@pytest.fixture(scope="module")
def server(running, warehouse):
    with Server(warehouse, *SERVE, "--cluster", running.url, "--cluster-bytes", 1) as server:
        yield server


def values(warehouse, query):
    return [tuple(row.values()) for row in asked(warehouse, query).json]


# A list has no type that the driver knows; what no file can hold is not scanned.
@pytest.mark.parametrize("name", [name for name in QUERIES if "version" not in name and name != "function of pmill"])
def test_a_server_gives_the_same_over_both_protocols(name, server, running, warehouse):
    query, expected = QUERIES[name], values(warehouse, QUERIES[name])
    before = units_done(running)
    with psycopg.connect(**server.pg()) as connection:
        rows = connection.execute(query).fetchall()
    # JSON has no NaN, and PostgreSQL numbers of its own kinds.
    assert same([list(row) for row in rows], [list(row) for row in expected])
    if name not in ("count", "empty", "empty sum"):
        assert ran_there(running, before), "it did not run on the cluster"
    with flight_sql.connect(f"grpc://{server.flight_sql}") as connection, connection.cursor() as cursor:
        cursor.execute(query)
        rows = cursor.fetchall()
    assert same([list(row) for row in rows], [list(row) for row in expected])
    assert cluster.wait_for(lambda: left(warehouse) == [], seconds=10)


def test_a_server_sends_the_values_of_parameters(server, running, warehouse):
    expected = values(warehouse, "SELECT count(*), sum(n_xy) FROM j.pmi WHERE \"left\" >= 'c' AND n_xy > 2")
    query = 'SELECT count(*), sum(n_xy) FROM j.pmi WHERE "left" >= {} AND n_xy > {}'
    before = units_done(running)
    with psycopg.connect(**server.pg()) as connection:
        assert connection.execute(query.format("%s", "%s"), ("c", 2.0)).fetchall() == expected
    assert ran_there(running, before)
    before = units_done(running)
    with flight_sql.connect(f"grpc://{server.flight_sql}") as connection, connection.cursor() as cursor:
        cursor.execute(query.format("$1", "$2"), ("c", 2.0))
        assert cursor.fetchall() == expected
    assert ran_there(running, before)


def test_a_server_sees_the_version_of_its_snapshot_and_small_queries_stay(running, warehouse):
    with Server(warehouse, *SERVE, "--cluster", running.url) as server, psycopg.connect(**server.pg()) as connection:
        before = units_done(running)
        rows = connection.execute(QUERIES["group"]).fetchall()
        assert [tuple(row) for row in rows] == values(warehouse, QUERIES["group"])
        assert units_done(running) == before


def test_a_server_whose_cluster_is_away_says_so(warehouse):
    with Server(warehouse, *SERVE, "--cluster", "http://127.0.0.1:1", "--cluster-bytes", 1) as server:
        with psycopg.connect(**server.pg(), autocommit=True) as connection:
            with pytest.raises(psycopg.Error) as error:
                connection.execute(QUERIES["group"])
            assert error.value.sqlstate == "57P03"
            assert "the cluster does not answer" in str(error.value)
            assert connection.execute("SELECT 1").fetchall() == [(1,)]
        with flight_sql.connect(f"grpc://{server.flight_sql}") as connection, connection.cursor() as cursor:
            with pytest.raises(Exception, match="does not answer"):
                cursor.execute(QUERIES["group"])
                cursor.fetchall()


def test_a_query_of_a_server_that_is_cancelled_ends_its_units(held, server, warehouse):
    with psycopg.connect(**server.pg(), autocommit=True) as connection:
        timer = threading.Timer(1.0, connection.cancel)
        timer.start()
        with pytest.raises(psycopg.Error) as error:
            connection.execute(QUERIES["group"])
        assert error.value.sqlstate == "57014"
    assert cluster.wait_for(lambda: left(warehouse) == [], seconds=20)


def test_the_time_of_a_query_ends_its_units(held, running, warehouse):
    flags = ("--cluster", running.url, "--cluster-bytes", 1, "--query-time", 2)
    with Server(warehouse, *SERVE, *flags) as server, psycopg.connect(**server.pg(), autocommit=True) as connection:
        with pytest.raises(psycopg.Error) as error:
            connection.execute(QUERIES["group"])
        assert error.value.sqlstate == "57014"
        assert cluster.wait_for(lambda: left(warehouse) == [], seconds=20)
