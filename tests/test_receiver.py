"""The receiver of examples/ judges other tests, so it is tested itself."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from examples.receiver import Ledger, Mood, Receiver, Reply
from workers.webhook.signature import parse_secrets, signature_headers

pytestmark = pytest.mark.anyio

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def signed(webhook_id: str, body: bytes, *, at: float | None = None, secret: str = SECRET) -> dict[str, str]:
    keys = parse_secrets(secret, variable="S")
    return signature_headers(keys, webhook_id=webhook_id, timestamp=int(time.time() if at is None else at), body=body)


async def answers(receiver: Receiver, ids: list[str], body: bytes = b"{}") -> list[str]:
    """What the ledger says of one request for each id."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        for webhook_id in ids:
            try:
                async with session.post(receiver.url, data=body, headers=signed(webhook_id, body)) as response:
                    await response.read()
            except (aiohttp.ClientError, TimeoutError):
                pass
    return list(receiver.ledger.replies.elements())


async def status_of(receiver: Receiver, headers: dict[str, str]) -> int:
    async with aiohttp.ClientSession() as session, session.post(receiver.url, data=b"{}", headers=headers) as response:
        return response.status


async def test_genuine_webhook_is_accepted_once_however_often_it_comes():
    async with Receiver(Mood(bad=0), secrets=SECRET) as receiver:
        await answers(receiver, ["a", "b", "a"], b'{"n":1}')

    assert receiver.ledger.accepted == {"a": {"n": 1}, "b": {"n": 1}}
    assert receiver.ledger.duplicates == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        signed("a", b"other"),
        signed("a", b"{}") | {"webhook-id": "b"},
        signed("a", b"{}", at=time.time() - 1000),
        signed("a", b"{}", secret="whsec_" + "A" * 32),
        signed("a", b"{}") | {"webhook-signature": "v1,"},
    ],
)
async def test_forged_stale_or_unsigned_webhook_is_not_believed(headers: dict[str, str]):
    async with Receiver(Mood(bad=0), secrets=SECRET) as receiver:
        assert await status_of(receiver, headers) == 401

    assert not receiver.ledger.accepted


async def test_one_right_signature_among_several_is_enough():
    headers = signed("a", b"{}")
    headers["webhook-signature"] = "v1,abc= " + headers["webhook-signature"]

    async with Receiver(Mood(bad=0), secrets=SECRET) as receiver:
        assert await status_of(receiver, headers) == 200


async def test_same_seed_gives_the_same_answers():
    seen = []
    for _ in range(2):
        async with Receiver(Mood(bad=0.7, seed=3, pause_s=0, hang_s=0.05)) as receiver:
            seen.append(await answers(receiver, [str(number) for number in range(25)]))

    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 3


async def test_refused_payload_is_always_refused_and_others_never():
    async with Receiver(Mood(bad=0, refuse=0.5)) as receiver:
        bodies = [b'{"n":%d}' % number for number in range(20)]
        for _ in range(2):
            for body in bodies:
                await answers(receiver, [body.decode()], body)

    refused = {body.decode() for body in bodies if receiver.refuses(body)}
    assert 0 < len(refused) < 20
    assert receiver.ledger.refused == refused
    assert receiver.ledger.replies[Reply.REFUSED] == 2 * len(refused)


async def test_webhook_is_served_after_five_bad_answers():
    async with Receiver(Mood(bad=1, seed=1, pause_s=0, hang_s=0)) as receiver:
        await answers(receiver, ["a"] * 6)

    assert receiver.ledger.bad_by_id["a"] == 5
    assert receiver.ledger.replies[Reply.OK] == 1


def test_a_pause_of_no_seconds_is_over_at_once_so_that_the_seed_alone_decides():
    receiver = Receiver(Mood(pause_s=0))

    for _ in range(20):
        assert receiver._ask_for_pause(1000.25) == "0"
        assert receiver._pause[1] <= 1000.25


async def test_request_in_a_pause_is_a_violation_unless_it_was_under_way():
    async with Receiver(Mood(bad=0, pause_s=60, grace_s=0.0)) as receiver:
        await answers(receiver, ["a"])
        receiver._pause = (time.time(), time.time() + 60)
        await answers(receiver, ["b"])
        receiver._pause = (time.time() - 0.1, time.time() - 0.01)
        await answers(receiver, ["c"])

    assert receiver.ledger.violations == 1
    assert receiver.ledger.replies[Reply.THROTTLED] == 1


async def test_ledger_file_outlives_the_receiver_and_a_line_that_was_cut_off(tmp_path: Path):
    file = tmp_path / "ledger.jsonl"
    async with Receiver(Mood(bad=0), ledger=file) as receiver:
        await answers(receiver, ["a", "a", "b"])
    file.write_text(file.read_text() + '{"at": 1, "id": "c", "re')

    again = Ledger(file)
    again.load()

    assert again.summary() == receiver.ledger.summary()
    assert again.accepted == {"a": {}, "b": {}}


async def test_ledger_is_shown():
    async with Receiver(Mood(bad=0)) as receiver:
        await answers(receiver, ["a"])
        where = receiver.url.replace("/hook", "/ledger")
        async with aiohttp.ClientSession() as session, session.get(where) as response:
            shown = await response.json()

    assert (shown["requests"], shown["accepted"], shown["replies"]) == (1, 1, {"200": 1})


async def test_command_prints_its_address_and_stops_at_sigterm(tmp_path: Path):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "examples.receiver", "--bad", "0", cwd=Path(__file__).parents[1],
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    url = json.loads(await process.stdout.readline())["url"]
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=b"{}", headers={"webhook-id": "a"}) as response,
    ):
        assert response.status == 200

    process.terminate()
    out, _ = await process.communicate()

    assert process.returncode == 0
    assert json.loads(out)["accepted"] == 1
