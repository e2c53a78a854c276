"""The servers of the tests are what they say: their own, with their own data."""

from __future__ import annotations

import pytest

from tests.servers import postgres
from tests.servers.postgres import PostgresServer
from tests.servers.valkey import ValkeyServer


def test_valkey_that_lost_its_port_to_another_server_does_not_start() -> None:
    with ValkeyServer(aof=True) as ours:
        ours.ask("SET", "key", "value")
        ours.stop()
        with ValkeyServer(port=ours.port), pytest.raises(RuntimeError, match="did not start"):
            ours.start()
        ours.start()

        assert ours.ask("GET", "key") == b"value"


def test_postgres_that_lost_its_port_to_another_server_does_not_start() -> None:
    postgres.needed()
    with PostgresServer(bin_folder=postgres.binaries()) as ours:
        ours.stop()
        other = PostgresServer(bin_folder=postgres.binaries(), port=ours.port)
        with other, pytest.raises(RuntimeError, match="did not start"):
            ours.start()
        ours.start()
