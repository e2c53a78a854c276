"""The proxy itself: each fault is what it says, and `mend` ends it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.chaos.proxy import Proxy

SOON_S = 5.0


@contextmanager
def echo() -> Iterator[tuple[int, list[bytes]]]:
    """A server that sends back whatever it gets, and what it got."""
    got: list[bytes] = []

    def serve(client: socket.socket) -> None:
        with client:
            try:
                while chunk := client.recv(65_536):
                    got.append(chunk)
                    client.sendall(chunk)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], got
        server.shutdown(socket.SHUT_RDWR)
    thread.join(SOON_S)


@pytest.fixture
def line() -> Iterator[tuple[Proxy, list[bytes]]]:
    with echo() as (port, got), Proxy(port) as proxy:
        yield proxy, got


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=SOON_S)


def ask(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return client.recv(65_536)


def until_broken(proxy: Proxy) -> None:
    with dial(proxy) as client:
        if not ask(client, b"2"):
            raise EOFError


def test_it_forwards_both_ways_and_keeps_the_url(line: tuple[Proxy, list[bytes]]) -> None:
    proxy, got = line
    with dial(proxy) as client:
        assert ask(client, b"hello") == b"hello"
    assert got == [b"hello"]
    assert proxy.url("postgresql://me:secret@127.0.0.1:5432/jobs?x=1") == (
        f"postgresql://me:secret@127.0.0.1:{proxy.port}/jobs?x=1"
    )


def test_a_delay_is_there_each_way_and_loses_nothing(line: tuple[Proxy, list[bytes]]) -> None:
    proxy, _ = line
    proxy.delay(0.1)
    with dial(proxy) as client:
        began = time.monotonic()
        answer = ask(client, b"slow")
        took_s = time.monotonic() - began

    assert answer == b"slow"
    assert took_s >= 0.2


def test_a_black_hole_keeps_what_was_sent_until_it_is_mended(line: tuple[Proxy, list[bytes]]) -> None:
    proxy, got = line
    with dial(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.drop()
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ask(client, b"2")
        reached = list(got)
        client.settimeout(SOON_S)
        proxy.mend()

        assert client.recv(10) == b"2"
    assert reached == [b"1"]


def test_replies_that_are_swallowed_never_come_and_their_connection_breaks(line: tuple[Proxy, list[bytes]]) -> None:
    proxy, got = line
    with dial(proxy) as client:
        proxy.swallow_replies()
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ask(client, b"done")
        client.settimeout(SOON_S)
        proxy.mend()
        with pytest.raises(ConnectionResetError):
            client.recv(10)
    assert got == [b"done"]
    with dial(proxy) as client:
        assert ask(client, b"again") == b"again"


def test_a_stranded_connection_hears_nothing_more_and_a_new_one_works(line: tuple[Proxy, list[bytes]]) -> None:
    proxy, got = line
    with dial(proxy) as old:
        assert ask(old, b"1") == b"1"
        proxy.strand()
        old.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ask(old, b"2")
    with dial(proxy) as new:
        assert ask(new, b"3") == b"3"
    assert got == [b"1", b"3"]


def test_a_reset_breaks_what_is_open_and_a_cut_refuses_what_is_new(line: tuple[Proxy, list[bytes]]) -> None:
    proxy, _ = line
    with dial(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(10)
    proxy.cut()
    with pytest.raises((ConnectionError, EOFError)):
        until_broken(proxy)
    proxy.mend()
    with dial(proxy) as client:
        assert ask(client, b"3") == b"3"
