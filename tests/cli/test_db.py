"""`taskflow db`: the schema made, brought up to date, and looked at; exit codes that a deploy relies on."""

import json
import sqlite3
from contextlib import closing

import pytest

from tests.cli.desk import run, sit_down
from tests.servers.postgres import PostgresServer
from tests.servers.valkey import valkey_url

NAMESPACE = "of_db"


@pytest.fixture(scope="module")
def server():
    with PostgresServer() as server:
        yield server


class File:
    """Jobs in an SQLite file that is not there yet."""

    lack = "no file "

    def __init__(self, path):
        self.path = path

    def set_version(self, version):
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"PRAGMA user_version = {version}")

    def everything(self):
        files = self.path.parent.glob("jobs.db*")
        return {file.name: file.read_bytes() for file in files}


class Database:
    """Jobs in a PostgreSQL database without a schema."""

    lack = f"no schema {NAMESPACE!r} in "

    def __init__(self, server):
        self.server, self.url = server, server.database()

    def execute(self, statement):
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def set_version(self, version):
        self.execute(f"UPDATE {NAMESPACE}.meta SET version = {version}")

    def everything(self):
        tables = self.execute("SELECT oid, xmin::text, relname FROM pg_class WHERE oid >= 16384 ORDER BY oid")
        meta = f"{NAMESPACE}.meta"
        is_made = self.execute(f"SELECT to_regclass('{meta}') IS NOT NULL")[0][0]
        return tables, self.execute(f"SELECT version FROM {meta}") if is_made else None


@pytest.fixture(params=["sqlite", "postgres"])
def there(request, tmp_path, monkeypatch):
    file = sit_down(tmp_path, monkeypatch)
    if request.param == "sqlite":
        return File(file)
    database = Database(request.getfixturevalue("server"))
    monkeypatch.setenv("TASKFLOW_BROKER__URL", database.url)
    monkeypatch.setenv("TASKFLOW_BROKER__NAMESPACE", NAMESPACE)
    return database


def test_check_of_a_missing_schema_is_exit_6_says_what_to_do_and_makes_nothing(there):
    before = there.everything()

    result = run("db", "check")

    assert result.code == 6
    assert "taskflow db migrate" in result.out
    assert there.everything() == before


def test_migrate_makes_the_schema_and_says_its_version(there):
    made = json.loads(run("db", "migrate", "--json").out)
    checked = run("db", "check")

    assert (made["found"], made["newest"]) == (0, 1)
    assert (checked.code, "schema version 1" in checked.out) == (0, True)
    assert run("queue", "list").code == 0


def test_migrate_of_what_is_up_to_date_changes_nothing(there):
    run("db", "migrate")
    before = there.everything()

    again = run("db", "migrate")

    assert again.code == 0
    assert "version 1" in again.out
    assert there.everything() == before


def test_check_of_a_newer_schema_is_exit_2_and_changes_nothing(there):
    run("db", "migrate")
    there.set_version(999)
    before = there.everything()

    checked, migrated = run("db", "check"), run("db", "migrate")

    assert (checked.code, migrated.code) == (2, 2)
    assert "999" in checked.err
    assert there.everything() == before


def test_check_of_an_older_schema_is_exit_6(there, monkeypatch):
    run("db", "migrate")
    monkeypatch.setattr("taskflow.brokers.sqlite.broker.SqliteBroker.newest_version", 2)
    monkeypatch.setattr("taskflow.brokers.postgres.broker.PostgresBroker.newest_version", 2)

    result = run("db", "check")

    assert result.code == 6
    assert "schema version 1, not 2" in result.out


def test_the_look_before_a_worker_starts_leaves_a_database_as_it_is(there):
    before = there.everything()

    result = run("check")

    assert result.code == 0
    assert "the first worker or submit makes it" in result.out
    assert there.everything() == before


LISTS = ["job list", "queue list", "gate list", "dead list"]
NAMED = ["job show 1", "job cancel 1", "job retry 1", "queue purge mail --yes", "gate release smtp", "dead retry 1"]


@pytest.mark.parametrize(
    ("words", "code"), [("status", 0), *((words, 0) for words in LISTS), *((words, 5) for words in NAMED)]
)
def test_a_command_that_looks_makes_nothing_where_nothing_is_and_says_so(there, words, code):
    before = there.everything()

    result = run(*words.split())

    assert result.code == code
    assert f"nothing is kept yet: {there.lack}" in result.err
    assert "the first worker or submit makes it" in result.err
    assert there.everything() == before


def test_policies_are_shown_where_nothing_is_and_nothing_is_made(there, tmp_path, monkeypatch):
    (tmp_path / "of_db.py").write_text("from taskflow import TaskFlow\nflow = TaskFlow()\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = there.everything()

    result = run("config", "show", "of_db")

    assert result.code == 0, result.err
    assert there.everything() == before


def test_a_setting_of_an_operator_is_kept_also_where_nothing_is_yet(there):
    paused = run("queue", "pause", "mail")

    assert (paused.code, run("db", "check").code) == (0, 0)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///no/such/folder/jobs.db",
        "postgresql://postgres@127.0.0.1:1/postgres",
        "redis://127.0.0.1:1/0",
    ],
)
def test_a_broker_that_cannot_be_reached_is_exit_3(url, tmp_path, monkeypatch):
    sit_down(tmp_path, monkeypatch)
    monkeypatch.setenv("TASKFLOW_BROKER__URL", url)

    assert (run("db", "check").code, run("db", "migrate").code) == (3, 3)


@pytest.mark.parametrize("make_url", [lambda: "memory://", valkey_url], ids=["memory", "redis"])
def test_brokers_without_tables_have_nothing_to_migrate(make_url, tmp_path, monkeypatch):
    sit_down(tmp_path, monkeypatch)
    monkeypatch.setenv("TASKFLOW_BROKER__URL", make_url())

    migrated, checked = run("db", "migrate"), run("db", "check")

    assert (migrated.code, checked.code) == (0, 0)
    assert "nothing to migrate" in migrated.out
    assert list(tmp_path.iterdir()) == []
