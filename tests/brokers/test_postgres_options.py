"""The options of a PostgreSQL URL: libpq's are kept, or refused in words that help; none is passed over in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.postgres import PostgresBroker
from taskflow.brokers.postgres.options import connect_s, for_driver
from taskflow.errors import ConfigError
from tests.servers.postgres import PostgresServer, needed

if TYPE_CHECKING:
    from pathlib import Path

URL = "postgresql://app:s3cret@127.0.0.1:1/shop"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("ssl_mode=require", "it has an .option .*: did you mean sslmode?"),
        ("statement_timeout=5", "it has an .option .*options=-c%20NAME%3DVALUE"),
        ("sslmode=bogus", "sslmode must be one of disable, .*, verify-full, got 'bogus'"),
        ("sslmode=verify-ca&sslrootcert=/nope", "sslrootcert=/nope is no file that can be read here"),
        ("passfile=/nope", "passfile=/nope is no file"),
        ("channel_binding=require", "channel_binding can be disable or prefer here"),
        ("gssencmode=require", "gssencmode can be disable or prefer here"),
        ("connect_timeout=soon", "connect_timeout must be seconds from 0 to 3600, got 'soon'"),
        ("connect_timeout=-1", "connect_timeout must be seconds"),
        ("connect_timeout=nan", "connect_timeout must be seconds"),
        ("service=shop", "it has an .option"),
    ],
)
def test_an_option_that_cannot_be_kept_is_refused_with_what_to_do(option: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"TASKFLOW_BROKER__URL: {words}") as no:
        PostgresBroker(f"{URL}?{option}")

    assert "s3cret" not in str(no.value)


def test_a_part_of_a_password_that_looks_like_an_option_is_not_told() -> None:
    with pytest.raises(ConfigError, match="write %26 for &") as refused:
        PostgresBroker("postgresql://127.0.0.1:1/shop?user=app&password=pa&s3cret")

    assert "s3cret" not in str(refused.value)


@pytest.mark.anyio
async def test_verified_tls_without_a_ca_names_the_option_and_the_usual_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)

    with pytest.raises(ConfigError, match=r"sslmode needs the CA .*: add sslrootcert=FILE .*root\.crt") as refused:
        await PostgresBroker(f"{URL}?sslmode=verify-full").open()

    assert "s3cret" not in str(refused.value)


def test_options_that_promise_nothing_more_than_is_kept_are_taken() -> None:
    options = [("keepalives", "1"), ("gssencmode", "disable"), ("channel_binding", "prefer"), ("listen", "off")]

    assert for_driver([*options, ("sslmode", "prefer"), ("client_encoding", "UTF8")]) == [("sslmode", "prefer")]
    assert [connect_s([("connect_timeout", said)], 10.0) for said in ("2", "0")] == [2.0, 10.0]
    assert connect_s([], 10.0) == 10.0


@pytest.mark.anyio
async def test_a_url_with_the_options_of_production_reaches_the_server() -> None:
    needed()
    with PostgresServer() as server:
        options = "connect_timeout=5&keepalives=1&application_name=shop&options=-c%20statement_timeout%3D7s"
        broker = PostgresBroker(f"{server.url}?{options}")
        await broker.open()
        names = server.execute("SELECT application_name FROM pg_stat_activity WHERE application_name <> ''")
        limit = await broker._pool.value("SHOW statement_timeout")
        await broker.close()

    assert ("shop",) in names
    assert limit == "7s"


@pytest.mark.anyio
async def test_a_server_without_tls_is_named_where_tls_is_asked_for() -> None:
    needed()
    words = "offers no TLS, and sslmode in TASKFLOW_BROKER__URL asks for it"
    with PostgresServer() as server, pytest.raises(ConfigError, match=words):
        await PostgresBroker(f"{server.url}?sslmode=require").open()
