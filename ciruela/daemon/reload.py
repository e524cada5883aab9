"""Reading the configuration again while the daemon runs: all of it counts from one moment on, or nothing does.

Everything is read and checked first, and directories that are new are read from the disk. Only then, in one turn of the reactor, are they
taken in: what is removed is let go of, new limits and peers count.

SIGHUP: the operator wants the configuration to be read again.

The directory configs that count now: one mapping that all services share, of which a reload changes the content in one step.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.daemon.keywatch import KeyWatch
from ciruela.daemon.node import Node
from ciruela.daemon.plan import DaemonPlan, in_force, moved, restart_needed
from ciruela.interfaces import Loaded
from ciruela.model.config import DirConfig
from ciruela.model.errors import CiruelaError
from ciruela.model.units import count
from ciruela.model.values import dataclass


class LiveConfigs(Mapping[str, DirConfig]):
    """Threads may look things up at any time: they see all of the old content, or all of the new."""

    def __init__(self, configs: Mapping[str, DirConfig]) -> None:
        self._now = dict(configs)

    def replace(self, configs: Mapping[str, DirConfig]) -> None:
        """These count from now on."""
        self._now = dict(configs)

    def __getitem__(self, key: str) -> DirConfig:
        return self._now[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)


class Sighup:
    """Calls ``asked`` on the reactor after each SIGHUP. ``twistd`` itself uses SIGUSR1, for its log, and leaves this one alone."""

    _log = Logger()

    def __init__(self, reactor: IReactorFromThreads, asked: Callable[[], object]) -> None:
        self._reactor = reactor
        self._asked = asked
        self._before: Any = None
        self._set = False

    def start(self) -> None:
        """Begin to listen. Only the main thread can; elsewhere, as in a test, nothing is changed."""
        try:
            self._before = signal.signal(signal.SIGHUP, self._hung_up)
        except ValueError:
            self._log.warn("SIGHUP is not listened to: this is not the main thread of the process")
        else:
            self._set = True

    def stop(self) -> None:
        """From now on the signal means what it meant before."""
        if self._set:
            self._set = False
            signal.signal(signal.SIGHUP, signal.SIG_DFL if self._before is None else self._before)

    def _hung_up(self, _number: int, _frame: object) -> None:
        """Runs between any two instructions of the program: so it does nothing but leave a note."""
        self._reactor.callFromThread(self._asked)


MOST_SHOWN = 20
"""Places of mistakes that the status page names."""

_PLACE = re.compile(r"(?:configs/[^/:]+|keys/[^/:]+|ciruela\.yaml|peers\.txt|master\.key)(?::[0-9]+)?")


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """Outcome of the last reload. ``mistakes`` are the lines of the log; ``waiting`` the settings that count only after a restart."""

    at_ms: int
    mistakes: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()

    def places(self, config_dir: str) -> list[str]:
        """Gives the places of the mistakes, without anything of this host but the names of its configuration files."""
        found = (_PLACE.match(line.removeprefix(f"{config_dir}/")) for line in self.mistakes)
        return [match[0] for match in found if match][:MOST_SHOWN]


class Reloads:
    """Reads the plan again when it is asked to. ``apply`` takes in what is neither in the node nor in its directories."""

    _log = Logger()

    def __init__(
        self,
        plan: DaemonPlan,
        read: Callable[[], Deferred[DaemonPlan]],
        node: Node,
        configs: LiveConfigs,
        keys: KeyWatch,
        apply: Callable[[DaemonPlan], object],
    ) -> None:
        self.plan = plan
        self._read = read
        self._node = node
        self._configs = configs
        self._keys = keys
        self._apply = apply
        self._work: Deferred[None] | None = None
        self._again = False
        self._stopped = False
        self.last: ReloadReport | None = None
        self.done = 0
        self.refused = 0

    def ask(self) -> Deferred[None]:
        """Read everything again. Asked while that is under way, it is done once more afterwards."""
        if self._stopped:
            return succeed(None)
        if self._work is not None:
            self._again = True
            return succeed(None)
        self._again = False
        work = Deferred.fromCoroutine(self._reload()).addErrback(self._failed)
        if not work.called:
            self._work = work
        return work.addCallback(self._ended)

    def stop(self) -> None:
        """End. A reload that is under way changes nothing any more."""
        self._stopped = True
        if self._work is not None:
            self._work.cancel()

    def _ended(self, _: None) -> Deferred[None] | None:
        self._work = None
        return self.ask() if self._again else None

    def _failed(self, failure: Failure) -> None:
        """An error of our own: what was in force before mostly is."""
        if not self._stopped:
            self._log.failure("the configuration could not be read again; restart when this is mended", failure)
            self._note(("an error of the program, see the log",), ())

    def _note(self, mistakes: tuple[str, ...], waiting: tuple[str, ...]) -> None:
        self.last = ReloadReport(self._node.context.now_ms(), mistakes, waiting)
        if mistakes:
            self.refused += 1
        else:
            self.done += 1

    def _refuse(self, mistakes: list[str]) -> None:
        for mistake in mistakes:
            self._log.error("not reloaded: {mistake}", mistake=mistake)
        self._log.error("the configuration is as it was before: {found}; mend and send SIGHUP again", found=count(len(mistakes), "mistake"))
        self._note(tuple(mistakes), ())

    async def _reload(self) -> None:
        self._log.info("reading the configuration again")
        if not self._node.ready:
            self._refuse([self._node.broken or "the node is starting, try again in a moment"])
            return
        try:
            new = await self._read()
            mistakes = moved(self.plan.configs, new.configs)
            if mistakes:  # guard: F60
                self._refuse(mistakes)
                return
            added = {key: config for key, config in new.configs.items() if key not in self.plan.configs}
            loaded = await self._node.context.disk.load_added(added) if added else Loaded((), {})  # guard: I1, -> Loaded((), {})
        except CiruelaError as error:
            self._refuse(str(error).split("\n"))
            return
        removed = sorted(self.plan.configs.keys() - new.configs.keys())
        while (busy := self._busy(removed)) is not None:
            await busy
        self._take(new, loaded, removed)
        await self._keys.recheck()

    def _busy(self, removed: list[str]) -> Deferred[None] | None:
        """Gives what to wait for before directories can be let go of; None for nothing."""
        downloads = self._node.downloads
        paths = [one.vpath for one in downloads.running()] + downloads.repairing()
        waiting = (downloads.settled(vpath) for vpath in paths if vpath.key in removed)
        return next((one for one in waiting if one is not None), None)

    def _take(self, new: DaemonPlan, loaded: Loaded, removed: list[str]) -> None:
        """In one turn: nobody sees half of it."""
        waiting = restart_needed(self.plan, new)
        before, self.plan = self.plan, in_force(self.plan, new)
        for key in removed:
            self._node.leave(key)
        self._configs.replace(new.configs)
        self._node.tune(self.plan.tuning)
        self._apply(self.plan)
        self._node.take_on(loaded)
        self._note((), tuple(waiting))
        for warning in new.warnings:
            self._log.warn("{warning}", warning=warning)
        for name in waiting:
            self._log.warn("{name} was changed, which counts only after a restart", name=name)
        changed = [key for key in sorted(new.configs) if key in before.configs and before.configs[key] != new.configs[key]]
        self._log.info(
            "the configuration is in force: {directories}, added: {added}, changed: {changed}, removed: {removed}",
            directories=count(len(new.configs), "directory", "directories"),
            added=", ".join(sorted(new.configs.keys() - before.configs.keys())) or "none",
            changed=", ".join(changed) or "none",
            removed=", ".join(removed) or "none",
        )
