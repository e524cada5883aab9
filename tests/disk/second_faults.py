"""A kill or an error, and soon after it a power cut (threats A39, A43, A44): what was set right in between has to last.

A point is a plan of :data:`tests.disk.plans.PLANS`, one of :data:`COURSES` and the number of the call that goes wrong, of those that change
or sync something. To replay: ``check_second("replace", "kill, start", 61, [1, 0])`` with the choices that the message names.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ciruela.model.errors import DiskError, DownloadFailed
from tests.disk.bench import V1, Stand, Violation, done, outcome, succeed
from tests.disk.faulty import Killed
from tests.disk.plans import LOOKING, PLANS, Choices, check_start, cuts, ready
from tests.doubles.simos import SimOS

COURSES = (
    "kill, start",
    "kill, start, again",
    "error",
    "error, dropped",
    "error, again",
)
"""What happens: ``start`` is a new process, ``dropped`` gives the upload up, as a daemon does, ``again`` does the operation once more."""


class Once:
    """Lets one of the calls that are more than a look go wrong; with ``code`` None all that follow it, too."""

    def __init__(self, at: int, code: int | None) -> None:
        self.at = at
        self.code = code
        self.calls: list[str] = []

    def __call__(self, call: str, _mount: str) -> None:
        if call in LOOKING:
            return
        self.calls.append(call)
        if self.at and self.code is None and len(self.calls) >= self.at:
            raise Killed
        if len(self.calls) == self.at and self.code is not None:
            raise OSError(self.code, os.strerror(self.code))


@functools.cache
def calls_of(name: str) -> tuple[str, ...]:
    """What a plan calls, but for looks."""
    bench, calls = ready(name).copy(), Once(0, None)
    bench.sim.before = calls
    with bench.sim.installed():
        succeed(bench, PLANS[name].act)
        bench.store.close()
    return tuple(calls.calls)


def after(name: str, course: str, at: int) -> tuple[SimOS, bool]:
    """The disks when the power goes, and whether anybody was told by then that all is done."""
    plan, bench = PLANS[name], ready(name).copy()
    how, *then = course.split(", ")
    with bench.sim.installed(), _named(name, course, at):
        bench.sim.before = Once(at, None if how == "kill" else errno.EIO)
        acked = not isinstance(outcome(bench, plan.act), Failure)
        bench.sim.before = lambda _call, _mount: None
        if "start" in then:
            bench.restart()
            images = {held.vpath: held.committed.image for held in bench.loaded().held if held.committed}
            acked = Stand(images.get(V1), bench.tree(V1)) == plan.stands[-1]
        if "dropped" in then and not acked:
            dropped: Deferred[None] = bench.store.drop_pending(V1)
            done(dropped)
        if "again" in then and not acked:
            succeed(bench, plan.act)
            acked = True
        bench.store.close()
    return bench.sim, acked


@contextmanager
def _named(name: str, course: str, at: int) -> Iterator[None]:
    try:
        yield
    except (AssertionError, OSError, DiskError, DownloadFailed) as error:
        raise Violation(f'after("{name}", "{course}", {at}): {type(error).__name__}: {error}') from error


def check_second(name: str, course: str, at: int, told: list[int]) -> None:
    """Let the power go after one fault. Raises Violation."""
    disks, acked = after(name, course, at)
    disks.power_cut(Choices(told), "/n")
    check_start(PLANS[name], disks, acked, f'check_second("{name}", "{course}", {at}, {told})', failed=course.startswith("error"))


def check_course(name: str, course: str, ats: Iterable[int], *, most: int = 32, sample: int = 6) -> tuple[int, int]:
    """Each of the calls ``ats`` goes wrong. How many power cuts there were, and how many different disks they left."""
    count = 0
    seen: set[tuple[bytes, bool]] = set()
    for at in ats:
        disks, acked = after(name, course, at)
        for left, made in cuts(disks, at, most, sample):
            count += 1
            key = left.digest("/n"), acked
            if key not in seen:
                seen.add(key)
                replay = f'check_second("{name}", "{course}", {at}, {made})'
                check_start(PLANS[name], left, acked, replay, finish=len(seen) % 4 == 0, failed=course.startswith("error"))
    return count, len(seen)
