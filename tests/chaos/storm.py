"""Everything breaks at once, for a while: workers die and freeze, the server restarts, the network is bad.

What was promised is kept outside the broker: the ledger of the handlers, and here each job whose submission was
acknowledged.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from taskflow.core.job import JobState
from taskflow.errors import BrokerUnavailable
from tests.chaos.fleet import Fleet, Line, until
from tests.chaos.pulse import Pulse, Still, noted

if TYPE_CHECKING:
    import subprocess

    from tests.chaos.places import Place

WORKERS, SLOTS, LEASE_S = 3, 10, 2.0  # a shorter lease is lost on a machine that is busy with other tests, too
BATCH, EVERY_S, MOST_OPEN = 25, 0.15, 400  # what is submitted, while no more than this is open
# One job in fifty outlives a lease: a zombie that wakes up ends it while another worker runs it. Only then it is the token
# that tells them apart: of a job that is done by then everybody's word would be stale.
SHORT, LONG, LONG_SHARE = (0.02, 0.3), (1.0, 5.0), 0.02
NOTICE_S = 2.0  # beyond the lease: by then a dead worker's jobs are ready again
# A job that ended this long before a fault may not have been settled: it was in flight. As a rule that takes milliseconds,
# but a server that syncs every write to a disk which others keep busy may stand still for a second.
TOLD_S = 1.5
AFTER_S = LEASE_S + 3.0  # beyond a fault of the server, until all is as usual again
# The server and the network are broken for the first of these seconds, and then left alone for the second, so that a
# dead worker can be noticed, and a job run twice be explained, without them.
STORM_S, CALM_S = 10.0, 10.0
# What broken servers alone explain: each time, on average, all that one worker ran; and once what all ran. As a rule it is
# a tenth of that: workers keep what they run as long as their lease is trusted, and what has ended until it is told.
MOST_AGAIN, MOST_AGAIN_ONCE = SLOTS, WORKERS * SLOTS
MOST_STALLED = 0.02  # of all jobs: a machine that stood still more often has proven nothing
LONG_S = 120.0  # so long a storm has seen everything


class Fault(NamedTuple):
    """One thing that was broken, from when to when. Without a `pid` it was the server, or the way to it."""

    kind: str
    began_at: float
    ended_at: float
    pid: int = 0


@dataclass
class Report:
    """What a storm came to."""

    broker: str
    seconds: float
    seed: int
    submitted: int = 0
    executed: int = 0
    lost: list[int] = field(default_factory=list)
    again: int = 0  # second and later runs
    unexplained: list[str] = field(default_factory=list)  # of which no fault can be the reason
    undone: list[str] = field(
        default_factory=list
    )  # run again after the broker said that it is done: nothing excuses it
    stale: int = 0
    by_server: int = 0  # of those runs, which only a fault of the server explains
    # Seconds until the last job of each dead worker was taken back: while nothing else was broken, and while something
    # was; then without the time in which it was.
    noticed_s: list[float] = field(default_factory=list)
    noticed_in_outage_s: list[float] = field(default_factory=list)
    refused: int = 0
    refused_after_s: float = 0.0
    no_advice: int = 0  # refusals that did not say when to come back
    stalls: int = 0  # of those runs, in workers that lost their lease while the machine stood still, as `Pulse` saw
    died: int = 0  # workers that ended though nobody killed them
    faults: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        return (
            f"chaos {self.broker}: {self.seconds:.0f} s, seed {self.seed}: {self.submitted:,} submitted, "
            f"{self.executed:,} executed, {len(self.lost)} lost, {self.again:,} run again "
            f"({len(self.unexplained)} of them not in flight at a fault, {self.by_server} in flight at none but the "
            f"server's), {self.stale:,} stale settlements refused; "
            f"{len(self.noticed_s)} dead workers noticed within {max(self.noticed_s, default=0):.2f} s "
            f"(lease {LEASE_S:g} s), {len(self.noticed_in_outage_s)} while the server was broken within "
            f"{max(self.noticed_in_outage_s, default=0):.2f} s of the time in which it was not; submit refused {self.refused} times, within "
            f"{self.refused_after_s:.1f} s; {self.stalls} runs lost while the machine stood still; faults: {faults}"
        )


class Storm:
    """`run` breaks things for `seconds`, mends them, waits until every job is final, and reports."""

    def __init__(self, place: Place, fleet: Fleet, *, seconds: float, seed: int) -> None:
        self._place = place
        self._fleet = fleet
        self._rng = random.Random(seed)
        self._report = Report(place.name, seconds, seed)
        self._faults: list[Fault] = []
        self._ids: dict[int, str] = {}  # number → id of each job whose submission was acknowledged
        self._numbers = 0
        self._frozen: set[int] = set()
        self._still = fleet.ledger.with_name(f"{fleet.ledger.name}.still")  # the workers write there, too

    async def run(self) -> Report:
        for _ in range(WORKERS):
            self._fleet.start("-c", str(SLOTS))
        await until(lambda: len(self._fleet.events("worker.started")) == WORKERS, seconds=30, what="all have started")
        give_up_at = time.monotonic() + self._report.seconds
        loops = [self._submit(give_up_at), self._break_workers(give_up_at)]
        if self._place.server is not None:
            loops.append(self._break_the_server(give_up_at))
        with Pulse(self._still, pid=0, syncs=True):
            await asyncio.gather(*loops)
            await self._until_all_is_done()
        self._look_back()
        return self._report

    # ---- what is promised ----

    async def _submit(self, give_up_at: float) -> None:
        flow = self._place.flow(is_direct=False)
        done = _Done(self._fleet)
        async with flow:
            work = flow.find("work")
            while time.monotonic() < give_up_at:
                await asyncio.sleep(EVERY_S)  # its rate
                if len(self._ids) - done.count() > MOST_OPEN:
                    continue
                numbers = range(self._numbers, self._numbers + BATCH)
                self._numbers += BATCH
                began = time.monotonic()
                try:
                    jobs = await work.submit_many([work.call(one, self._lasts_s()) for one in numbers])
                except BrokerUnavailable as error:
                    took_s = time.monotonic() - began
                    self._report.refused += 1
                    self._report.refused_after_s = max(self._report.refused_after_s, took_s)
                    if error.retry_after_s is None:
                        self._report.no_advice += 1
                    await asyncio.sleep(min(1.0, error.retry_after_s or 1.0))
                else:
                    self._ids.update((number, job.id) for number, job in zip(numbers, jobs, strict=True))

    def _lasts_s(self) -> float:
        return self._rng.uniform(*(LONG if self._rng.random() < LONG_SHARE else SHORT))

    # ---- what breaks ----

    async def _break_workers(self, give_up_at: float) -> None:
        while time.monotonic() < give_up_at:
            await asyncio.sleep(self._rng.uniform(1.0, 3.0))
            self._replace_dead()
            awake = [worker for worker in self._fleet.workers if worker.pid not in self._frozen]
            if len(awake) < 2:
                continue
            worker = self._rng.choice(awake)
            # One first: in any storm the fence is put to the proof.
            has_frozen = any(fault.kind == "freezes" for fault in self._faults)
            if self._frozen or (has_frozen and self._rng.random() < 0.7):
                self._fleet.kill(worker)
                self._faults.append(Fault("kills", self._fleet.killed[worker.pid], time.time(), worker.pid))
                self._fleet.start("-c", str(SLOTS))
            else:
                await self._freeze(worker)

    async def _freeze(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGSTOP beyond its lease: what it says afterwards counts for nothing."""
        began_at = time.time()
        self._frozen.add(worker.pid)
        self._fleet.stop(worker)
        await asyncio.sleep(LEASE_S + self._rng.uniform(0.5, 2.0))  # this is the fault: it outlives the lease
        worker.send_signal(signal.SIGCONT)
        self._frozen.discard(worker.pid)
        self._faults.append(Fault("freezes", began_at, time.time(), worker.pid))

    def _replace_dead(self) -> None:
        """Nobody ends by himself: but one that started just when the server was away says so, and exits 3."""
        for worker in [worker for worker in self._fleet.workers if worker.poll() is not None]:
            if worker.returncode != 3:
                self._report.died += 1
            self._fleet.workers.remove(worker)
            self._faults.append(Fault("exits at start", time.time(), time.time(), worker.pid))
            self._fleet.start("-c", str(SLOTS))

    async def _break_the_server(self, give_up_at: float) -> None:
        rng = self._rng
        kinds = kinds_of_fault(self._place)
        left = ["crashes of the server"]
        calm_from = time.monotonic() + min(STORM_S, self._report.seconds / 2)
        while time.monotonic() < give_up_at:
            await asyncio.sleep(rng.uniform(0.3, 1.2))
            if time.monotonic() > calm_from:
                await asyncio.sleep(min(CALM_S, give_up_at - time.monotonic()))
                calm_from = time.monotonic() + STORM_S
                continue
            if not left:  # all of them, in another order each time
                left = rng.sample(list(kinds), len(kinds))
            kind, began_at = left.pop(), time.time()
            await kinds[kind](rng.uniform(0.1, 2.0))
            self._faults.append(Fault(kind, began_at, time.time()))

    # ---- what came of it ----

    async def _until_all_is_done(self) -> None:
        flow = self._place.flow()
        async with flow:

            async def is_done() -> bool:
                self._replace_dead()
                counts = await flow.broker.counts()
                return not any(one.ready + one.scheduled + one.running for one in counts)

            await until(is_done, seconds=60 + self._report.seconds / 5, what="every job is final")
            ids = list(self._ids.values())
            for start in range(0, len(ids), 1_000):
                some = ids[start : start + 1_000]
                states = await flow.broker.states(some)
                self._report.states.update(states.get(job_id, "not there") for job_id in some)
        for worker in self._fleet.workers:  # what they still have to say, they say now
            worker.terminate()
        for worker in self._fleet.workers:
            await asyncio.to_thread(worker.wait, 30)

    def _look_back(self) -> None:
        report, lines = self._report, self._fleet.lines()
        ends = {(line.number, line.token): line.at for line in lines if line.event == "end"}
        done = {number for number, _ in ends}
        report.submitted = len(self._ids)
        report.executed = len(done & self._ids.keys())
        report.lost = sorted(self._ids.keys() - done)
        report.stale = len(self._fleet.events("job.stale"))
        report.faults = Counter(fault.kind for fault in self._faults)
        lost_at, still = self._times("worker.lease_lost", "job.stale"), noted(self._still)
        told = self._fleet.told()
        for number, runs in self._fleet.starts().items():
            job_id = self._ids.get(number, "")
            done_by = told.get(job_id, set())
            if done_by and (len(done_by) > 1 or max(run.token for run in runs) > min(done_by)):
                report.undone.append(f"job {number}: claims {[run.token for run in runs]}, done by {sorted(done_by)}")
            # By token: a zombie that wakes up begins what others have run since, and it is its own freeze that explains it.
            for run, again in pairwise(sorted(runs, key=lambda run: run.token)):
                report.again += 1
                ended_at = ends.get((number, run.token))
                faults = self._explained_by(run, ended_at, again.at)
                # Its worker says so as soon as the machine lets it, which may be after another began.
                is_known = any(run.at <= at <= again.at + 2 * LEASE_S for at in lost_at[job_id])
                if faults:
                    report.by_server += not any(fault.pid for fault in faults)
                elif is_known and has_stood_still(still, run, again.at):
                    report.stalls += 1
                else:
                    report.unexplained.append(self._tell(run, ended_at, again.at))
        self._measure_notice(lines, ends)

    def _tell(self, run: Line, ended_at: float | None, again_at: float) -> str:
        near = [
            f"{fault.kind} of {fault.pid or 'the broker'} at {fault.began_at - run.at:+.2f} to {fault.ended_at - run.at:+.2f} s"
            for fault in self._faults
            if fault.ended_at - run.at > -2 * AFTER_S and fault.began_at - run.at < 2 * AFTER_S
        ]
        ended = "never ended" if ended_at is None else f"ended {ended_at - run.at:+.2f} s"
        return f"job {run.number}, token {run.token}, worker {run.pid}, began {run.at:.3f}, {ended}, again {again_at - run.at:+.2f} s; {', '.join(near)}"

    def _explained_by(self, run: Line, ended_at: float | None, again_at: float) -> list[Fault]:
        """The faults that this run was in flight at, of its own worker or of the broker, that began before the next."""
        told_at = again_at if ended_at is None else min(again_at, ended_at + TOLD_S)
        found = []
        for fault in self._faults:
            began_at, over_at = fault.began_at, fault.ended_at
            if not fault.pid:
                began_at, over_at = began_at - TOLD_S, over_at + AFTER_S
            if fault.pid in (0, run.pid) and min(run.at, again_at) <= over_at and began_at <= told_at:
                found.append(fault)
        return found

    def _times(self, *names: str) -> dict[str, list[float]]:
        """When the log has one of these events, for each job that it names."""
        found: dict[str, list[float]] = defaultdict(list)
        for event in self._fleet.events(*names):
            at = datetime.fromisoformat(event["timestamp"]).timestamp()
            for job_id in event.get("job_ids", [event.get("job_id", "")]):
                found[job_id].append(at)
        return found

    def _measure_notice(self, lines: list[Line], ends: dict[tuple[int, int], float]) -> None:
        """From a death until each of its jobs is ready again: told by who took it back, or seen to run.

        Who took it back may be killed before it has told.
        """
        back = self._times("job.redelivered")
        for line in lines:
            if line.event == "start" and line.number in self._ids:
                back[self._ids[line.number]].append(line.at)
        held: dict[int, dict[str, float]] = defaultdict(dict)  # by worker: since when, by job
        for line in lines:
            if line.event == "start" and (line.number, line.token) not in ends and line.number in self._ids:
                held[line.pid][self._ids[line.number]] = line.at
        for pid, at in self._fleet.killed.items():
            back_at = [
                min((moment for moment in back[job_id] if moment > since), default=0.0)
                for job_id, since in held[pid].items()
            ]
            after = [moment for moment in back_at if moment > at]  # it had lost the others before
            if not after:
                continue
            broken_s = self._broken_s(at, max(after))
            if self._broken_s(at, at + LEASE_S + NOTICE_S):
                self._report.noticed_in_outage_s.append(max(after) - at - broken_s)
            else:
                self._report.noticed_s.append(max(after) - at)

    def _broken_s(self, from_at: float, to_at: float) -> float:
        """Of this time, the seconds in which the server was broken, or all was not yet as usual again."""
        broken_s, seen_to = 0.0, from_at
        for fault in sorted((one for one in self._faults if not one.pid), key=lambda one: one.began_at):
            began_at, over_at = max(seen_to, fault.began_at), min(to_at, fault.ended_at + AFTER_S)
            broken_s += max(0.0, over_at - began_at)
            seen_to = max(seen_to, over_at)
        return broken_s


def has_stood_still(still: list[Still], run: Line, again_at: float) -> bool:
    """Whether the machine kept the worker of this run from its beats, or the broker from its disk, before the next."""
    return any(
        one.pid in (0, run.pid) and one.began_at <= again_at and one.ended_at >= run.at - LEASE_S for one in still
    )


def kinds_of_fault(place: Place) -> dict[str, Callable[[float], Awaitable[None]]]:
    """What can be done to the server and the way to it: each takes the seconds that it lasts, and mends it then."""
    server, proxy = place.server, place.proxy
    assert server is not None
    assert proxy is not None

    def lasting(begin: Callable[[], object], end: Callable[[], object]) -> Callable[[float], Awaitable[None]]:
        async def last(seconds: float) -> None:
            await asyncio.to_thread(begin)
            try:
                await asyncio.sleep(seconds)
            finally:
                await asyncio.to_thread(end)

        return last

    return {
        "crashes of the server": lasting(server.kill, server.start),
        "restarts of the server": lasting(server.stop, server.start),
        "hangs of the server": lasting(server.pause, server.resume),
        "cuts": lasting(proxy.cut, proxy.mend),
        "black holes": lasting(proxy.drop, proxy.mend),
        "lost replies": lasting(proxy.swallow_replies, proxy.mend),
        "slow lines": lasting(lambda: proxy.delay(0.15), proxy.mend),
        "resets": lasting(proxy.reset, proxy.mend),
        "dropped clients": lasting(place.drop_clients, proxy.mend),
        "forgotten scripts": lasting(place.forget_scripts, proxy.mend),
        "refused writes": lasting(place.refuse_writes, place.take_writes),
    }


class _Done:
    """How many jobs the ledger has an end of; it reads only what is new."""

    def __init__(self, fleet: Fleet) -> None:
        self._ledger = fleet.ledger
        self._read_to = 0
        self._numbers: set[bytes] = set()

    def count(self) -> int:
        with self._ledger.open("rb") as ledger:
            ledger.seek(self._read_to)
            new = ledger.read()
        self._read_to += len(new)
        for line in new.splitlines():
            event, number, *_ = line.split()
            if event == b"end":
                self._numbers.add(number)
        return len(self._numbers)


def check(report: Report) -> None:
    """The promises."""
    assert not report.lost, f"lost: {report.lost[:20]}"
    assert report.states == {JobState.SUCCEEDED: report.submitted}
    assert not report.undone, report.undone[:20]
    assert not report.unexplained, report.unexplained[:20]
    broken = report.faults.total() - sum(report.faults[kind] for kind in ("kills", "freezes", "exits at start"))
    most = MOST_AGAIN * broken + MOST_AGAIN_ONCE
    assert report.by_server <= most, f"{report.by_server} run again at {broken} faults of the server"
    assert report.stalls <= MOST_STALLED * report.submitted, f"{report.stalls} run again: the machine stood still"
    assert max(report.noticed_s, default=0) <= LEASE_S + NOTICE_S
    assert max(report.noticed_in_outage_s, default=0) <= LEASE_S + NOTICE_S
    assert not report.died, "a worker ended though nobody told it to"
    assert report.refused_after_s <= 15
    assert not report.no_advice
    if report.seconds >= LONG_S:  # nothing of this held for want of a case
        assert report.noticed_s
        assert report.stale
