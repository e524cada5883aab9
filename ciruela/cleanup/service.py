"""The cleanup service: one base dir at a time, one image at a time, and before each image everything is looked at anew (threats 6.10).

Also what follows from deletions in the long run: tombstones are folded, and indexes that nobody names are collected (protocol 5.14).

Questions that may never be answered: a keep list, a directory or a link on a network file system that hangs.

Ports and values through which it sees the rest of the node and the world stand here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field
from functools import partial
from typing import Protocol, TypeVar

from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.cleanup.health import (
    SKEW_MS,
    Blocked,
    Cause,
    DirSight,
    Explained,
    Moment,
    NodeSight,
    clock_faults,
    dir_faults,
    node_faults,
    outlooks,
)
from ciruela.cleanup.rules import Ruling, most_deletions, rulings
from ciruela.interfaces import Identity, KeepList, KeepLists, NodeContext, ProtectedLinks
from ciruela.model.config import DirConfig
from ciruela.model.errors import CiruelaError, ConfigError, DiskError
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.model.versions import Tombstone
from ciruela.model.vpath import VPath, leads_to
from ciruela.runtime import PeriodicTask
from ciruela.tracking.ledger import Ledger


class CleanupContext(Protocol):
    """Port to the rest of the node, for cleanup."""

    def peers(self) -> Mapping[str, bool]:
        """The other configured nodes by name, each with whether it was heard lately."""

    def clocks_ms(self) -> Sequence[int]:
        """Gives the times of the clocks of other nodes now, by their own word, in wall ms."""

    def served(self) -> Collection[VPath]:
        """The paths of which blocks were given since the last call."""

    def wanted(self, base: VPath) -> Collection[VPath]:
        """The paths in ``base`` whose images other nodes are fetching, or this one is repairing."""

    def downloads(self) -> int:
        """Counts the downloads that are running."""

    def given_up(self) -> int:
        """Counts the downloads that were given up since the start."""

    def indexes(self) -> Collection[ImageId]:
        """The images whose indexes are in use, besides those in the ledger."""

    def alone(self, vpath: VPath, work: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Run ``work`` while no order for ``vpath`` is being judged."""


@dataclass(frozen=True, slots=True)
class Safeguards:
    """Sources of what is checked before anything is deleted.

    ``steady_s`` is a clock that nobody can set, in seconds; the reactor's may follow the wall clock. ``configured`` reads the directory
    configs again and fails with ConfigError when they are bad. ``unresolved``: nodes that are configured without a known address.
    Without ``links`` none are protected.
    """

    steady_s: Callable[[], float]
    keep_lists: KeepLists
    configured: Callable[[], Deferred[Mapping[str, DirConfig]]]
    unresolved: Callable[[], int]
    links: ProtectedLinks | None = None


ANSWER_S = 30.0
"""For so long a keep list, a directory or the configuration may take to be read; then the base dir has to wait for its next cycle."""


class Questions:
    """Asks each question once at a time, and waits for so long."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._asking: set[tuple[str, str]] = set()

    def ask(self, what: str, key: str, ask: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Gives the answer of ``ask``; fails with DiskError after too long, and at once while the last such question is unanswered."""
        question = (what, key)
        if question in self._asking:
            raise DiskError(f"{what} of /{key} cannot be read: an earlier attempt has still not ended")
        self._asking.add(question)
        found: Deferred[T] = Deferred()

        def ended(result: T | Failure) -> None:
            self._asking.discard(question)
            if not found.called:
                found.callback(result)

        def late(failure: Failure) -> Failure:
            if failure.check(defer.TimeoutError):
                return Failure(DiskError(f"{what} of /{key} cannot be read: no answer within {ANSWER_S:.0f} s"))
            return failure

        ask().addBoth(ended)
        return found.addTimeout(ANSWER_S, self._clock).addErrback(late)  # guard: A46 F57 I8, -> found


T = TypeVar("T")

LOOK_S = 60.0
"""Interval at which the node looks around: who is heard, what is served, what is due."""

PAUSE_S = 300.0
"""Two looks that are so far apart mean that the process did not run in between (SIGSTOP, a stopped virtual machine)."""

FIRST_S = (600.0, 1200.0)
"""Bounds of the delay until a base dir is first cleaned, after the start or its arrival; random, so that not all nodes delete at once."""

CYCLE_S = (3240.0, 3960.0)
"""And then every hour, 10 % more or less."""

SETTLED_S = 10.0
"""A keep list has to say the same for so long: one that is being written does not."""

SERVED_S = 600.0
"""An image of which somebody got blocks is in use for so long."""

FORGET_MS = 90 * 24 * 3_600_000
"""Tombstones get so old before they are folded into the floor (threats 6.5)."""

FOLD_S = 24 * 3600.0

COLLECT_FIRST_S = (4.8 * 3600.0, 24 * 3600.0)
COLLECT_S = 24 * 3600.0
COLLECT_AGAIN_S = 3600.0
"""Indexes are collected once a day, first at a random time after the start (protocol section 10), again after a failure."""

COLLECT_ABOVE = 100
"""Or when so many images were deleted and uploads given up since (protocol section 5.14)."""

COLLECT_BELOW = 5
"""But only while fewer downloads than this are running (protocol section 5.14)."""

MOST_FAULTS = 3
"""After so many images that could not be deleted a cycle ends."""


@dataclass(slots=True)
class CleanupReport:
    """Report on one base dir. ``ended_ms``: wall time of the end of the last cycle; ``blocked``: why that deleted nothing (more)."""

    ended_ms: int = 0
    blocked: tuple[Blocked, ...] = ()
    deleted: int = 0
    faults: int = 0


@dataclass(slots=True)
class _Observed:
    """Observations gathered since the start or the last pause; times by the steady clock."""

    awake_s: float
    looked_s: float
    heard: set[str] = field(default_factory=set)
    served: dict[VPath, float] = field(default_factory=dict)


@dataclass(eq=False)
class Cleanup:
    """Deletes what the keep rules drop, while everything is well. ``deleted`` counts images, ``collected`` indexes, since the start.

    ``doubtful``: directories (key) of which a protected link cannot be followed, and why; nothing is deleted there.
    """

    _log = Logger()

    # required parameters
    context: NodeContext
    ledger: Ledger
    guards: Safeguards
    around: CleanupContext

    # internal state
    reports: dict[VPath, CleanupReport] = field(init=False, default_factory=dict)
    deleted: int = field(init=False, default=0)
    collected: int = field(init=False, default=0)
    doubtful: dict[str, str] = field(init=False, default_factory=dict)
    _identities: dict[str, Identity | str] = field(init=False, default_factory=dict)
    _lists: dict[str, tuple[KeepList, float]] = field(init=False, default_factory=dict)
    _turns: dict[str, DeferredLock] = field(init=False, default_factory=dict)
    _due: dict[VPath, float] = field(init=False, default_factory=dict)
    _gone_before: int = field(init=False, default=0)
    _round: Deferred[None] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        clock, rng = self.context.clock, self.context.rng
        self._began = self._moment()
        self._seen = _Observed(self._began.steady_s, self._began.steady_s)
        self._questions = Questions(clock)
        self._fold_s = self._began.steady_s + rng.uniform(*FIRST_S)
        self._collect_s = self._began.steady_s + rng.uniform(*COLLECT_FIRST_S)
        self._beat = PeriodicTask(clock, rng, LOOK_S, self._look, "cleanup")

    @property
    def _configs(self) -> dict[str, DirConfig]:
        """Those that are cleaned, as they are now: a reload may change them at any time."""
        return {key: config for key, config in self.context.configs.items() if config.auto_clean and config.num_levels}

    def start(self) -> None:
        """Begin to look around; the ledger is filled."""
        self._round = self._follow(self._know_directories())
        self._beat.start()

    def stop(self) -> None:
        """End. A deletion that is under way is finished by the next start."""
        self._beat.stop()
        if self._round is not None:
            self._round.cancel()

    def rulings(self, base: VPath, listed: KeepList, protected: KeepList = frozenset()) -> list[Ruling]:
        """Applies the keep rules to the images in ``base``, as they are now; the newest first."""
        config = self._configs[base.key]
        entries = {vpath.entry: state.version for vpath, state in self.ledger.committed_in(base)}
        names = {parts[-1] for parts in listed if parts[:-1] == base.parts[1:]}
        led_to = {entry for entry in entries if any(leads_to(parts, (*base.parts[1:], entry)) for parts in protected)}
        return rulings(entries, config, names, self._in_use(base), self.context.now_ms(), led_to)

    async def explain(self, base: VPath) -> Explained | None:
        """Explains what becomes of each image in ``base``, as it is now; None for a directory that is not cleaned."""
        config = self._configs.get(base.key)
        if config is None or base.level != config.num_levels - 1:
            return None
        sight = await self._dir_sight(config, settle=False)
        blocked = (*node_faults(self._sight(self._recorded_ms())), *dir_faults(sight))
        listed = frozenset() if isinstance(sight.keep_list, str) else sight.keep_list
        protected = frozenset() if isinstance(sight.protected, str) else sight.protected
        wait_s = max(0.0, self._due.get(base, self.guards.steady_s() + FIRST_S[0]) - self.guards.steady_s())
        next_ms = self.context.now_ms() + round(wait_s * 1000)
        found = outlooks(self.rulings(base, listed, protected), config, next_ms, round(CYCLE_S[0] * 1000))
        return Explained(config, blocked, next_ms, found)

    # -- looking around -------------------------------------------------------------------------------------------------------------

    def _moment(self) -> Moment:
        return Moment(self.context.now_ms(), self.guards.steady_s())

    def _look(self) -> None:
        now_s = self.guards.steady_s()
        # While suspended, nothing was heard and the clock may have jumped: what was observed before proves nothing.
        if now_s - self._seen.looked_s > PAUSE_S:  # guard: F45 A42 I9
            self._log.info("this process did not run for {pause_s} s; cleanup begins anew", pause_s=round(now_s - self._seen.looked_s))
            self._seen = _Observed(now_s, now_s)
        seen = self._seen
        seen.looked_s = now_s
        seen.heard.update(name for name, heard in self.around.peers().items() if heard)
        self._note_served()
        if self._round is None:
            self._round = self._follow(self._work())

    def _note_served(self) -> None:
        now_s = self.guards.steady_s()
        served = {vpath: at_s for vpath, at_s in self._seen.served.items() if now_s - at_s < SERVED_S}
        self._seen.served = served | dict.fromkeys(self.around.served(), now_s)

    def _follow(self, work: Deferred[None]) -> Deferred[None] | None:
        """Remember ``work`` until it ends; an error of our own is logged, and the next look goes on."""

        def failed(failure: Failure) -> None:
            if not failure.check(CancelledError):
                PeriodicTask.failures += 1
                self._log.failure("cleanup failed; it goes on in {look_s} s", failure, look_s=LOOK_S)

        def ended(_: None) -> None:
            self._round = None

        ending = work.addErrback(failed)
        if ending.called:
            return None
        return ending.addCallback(ended)

    def _recorded_ms(self) -> int:
        """The latest time that the records of this node know of; signatures may have been made a little ahead of it."""
        latest_ms = 0
        for base in self.ledger.base_hashes():
            for _, state in self.ledger.committed_in(base):
                latest_ms = max(latest_ms, state.version.timestamp_ms - SKEW_MS)
        for base in self.ledger.buried_bases():
            for tombstone in self.ledger.burials(base).tombstones.values():
                latest_ms = max(latest_ms, tombstone.buried_ms)
        return latest_ms

    def _sight(self, recorded_ms: int) -> NodeSight:
        """The node as it is now."""
        seen = self._seen
        peers = self.around.peers()
        return NodeSight(
            self._began,
            seen.awake_s,
            self._moment(),
            recorded_ms,
            self.around.clocks_ms(),
            len(peers) + self.guards.unresolved(),
            sum(name in seen.heard for name in peers),
        )

    def _in_use(self, base: VPath) -> set[str]:
        """The images in ``base`` that somebody needs at this moment."""
        self._note_served()
        busy = {vpath for vpath in self._seen.served if vpath.base == base} | set(self.around.wanted(base))
        busy |= {pending.vpath for pending in self.ledger.pendings() if pending.vpath.base == base}
        return {vpath.entry for vpath in busy}

    # -- asking what may hang ---------------------------------------------------------------------------------------------------------

    async def _identity(self, key: str) -> Identity | str:
        try:
            return await self._questions.ask("the directory", key, lambda: self.context.disk.identity(key))
        except DiskError as error:
            return str(error)

    async def _config(self, key: str) -> DirConfig | str:
        try:
            found = await self._questions.ask("the configuration", key, self.guards.configured)
        except ConfigError as error:
            return f"the configuration has mistakes now: {str(error).splitlines()[0]}"
        except DiskError as error:
            return str(error)
        return found.get(key, f"configs/{key}.yaml is gone; reload or restart to let that count")

    async def _protected(self, config: DirConfig) -> KeepList | str:
        links = self.guards.links
        if links is None:
            return frozenset() if not config.protect else "nobody can follow the protected links"
        try:
            return await self._questions.ask("what is protected", config.key, lambda: links.follow(config))
        except DiskError as error:
            return str(error)

    async def _keep_list(self, config: DirConfig, *, settle: bool) -> KeepList | str:
        """The list; to ``settle``, only if it has been the same for :data:`SETTLED_S`."""
        for _ in range(2):
            try:
                found = await self._questions.ask("the keep list", config.key, lambda: self.guards.keep_lists.read(config))
            except DiskError as error:
                self._lists.pop(config.key, None)
                return str(error)
            now_s = self.guards.steady_s()
            before, since_s = self._lists.get(config.key, (None, now_s))
            if before != found:
                since_s = now_s
                self._lists[config.key] = (found, since_s)
            if config.keep_list_file is None or not settle or now_s - since_s >= SETTLED_S:  # guard: A46 F57, -> True
                return found
            await deferLater(self.context.clock, SETTLED_S + 1)
        return f"the keep list {config.keep_list_file} is being written"

    async def _dir_sight(self, config: DirConfig, *, settle: bool = True) -> DirSight:
        """One directory as it is now. Who else wants to know waits."""
        turn = self._turns.setdefault(config.key, DeferredLock())
        await turn.acquire()
        try:
            return await self._look_at(config, settle)
        finally:
            turn.release()

    async def _look_at(self, config: DirConfig, settle: bool) -> DirSight:
        key = config.key
        config_now = await self._config(key)
        keep_list = await self._keep_list(config, settle=settle)
        protected = await self._protected(config)
        identity_now = await self._identity(key)
        return DirSight(config, config_now, self._identities.get(key, "not looked at"), identity_now, keep_list, protected)

    # -- a round ----------------------------------------------------------------------------------------------------------------------

    def _know_directories(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._know_new())

    async def _know_new(self) -> None:
        """Look at the directories that were not looked at yet; forget those that a reload took away."""
        configs = self._configs
        self._identities = {key: identity for key, identity in self._identities.items() if key in configs}
        for key in sorted(configs.keys() - self._identities.keys()):
            self._identities[key] = await self._identity(key)

    def _work(self) -> Deferred[None]:
        async def work() -> None:
            await self._know_new()
            await self._follow_links()
            for base in self._due_bases():
                self._due[base] = self.guards.steady_s() + self.context.rng.uniform(*CYCLE_S)
                await self._clean_and_tell(base)
            await self._fold()
            await self._collect()

        return Deferred.fromCoroutine(work())

    async def _follow_links(self) -> None:
        """Tell of a protected link that cannot be followed as soon as it is seen: until it can be, nothing is deleted."""
        found = {}
        for key, config in sorted(self.context.configs.items()):
            if config.protect:
                led_to = await self._protected(config)
                if isinstance(led_to, str):
                    found[key] = led_to
        for key in found.keys() - self.doubtful.keys():
            self._log.error("/{key}: {reason}; until it can be followed, nothing is cleaned up there", key=key, reason=found[key])
        for key in self.doubtful.keys() - found.keys():
            self._log.info("/{key}: all protected links can be followed again", key=key)
        self.doubtful = found

    def _due_bases(self) -> list[VPath]:
        now_s = self.guards.steady_s()
        bases = [base for base in sorted(self.ledger.base_hashes()) if base.key in self._configs]
        self._due = {base: self._due.get(base) or now_s + self.context.rng.uniform(*FIRST_S) for base in bases}
        self.reports = {base: self.reports.get(base) or CleanupReport() for base in bases}
        return [base for base in bases if self._due[base] <= now_s]

    async def _clean_and_tell(self, base: VPath) -> None:
        """One cycle of one base dir, and what is logged of it."""
        report, config = self.reports[base], self._configs.get(base.key)
        if config is None:
            return
        before = {one.cause for one in report.blocked}
        report.blocked = tuple(await self._clean(base, config, report))
        report.ended_ms = self.context.now_ms()
        for one in report.blocked:
            if one.cause not in before:
                emit = self._log.info if one.cause.passes else self._log.error
                emit("{base}: nothing is deleted: {detail}", base=str(base), detail=one.detail)
        if before and not report.blocked:
            self._log.info("{base}: cleaning goes on", base=str(base))

    async def _clean(self, base: VPath, config: DirConfig, report: CleanupReport) -> list[Blocked]:
        """Delete what may be deleted now, the oldest first; gives what stood in the way."""
        failed: set[str] = set()
        most: int | None = None
        done = 0
        recorded_ms = self._recorded_ms()
        while True:
            sight = await self._dir_sight(config)
            # guard: I9, + dir_faults(sight) ->; I9, -> dir_faults(sight)
            blocked = node_faults(self._sight(recorded_ms)) + dir_faults(sight)
            # Each image is judged anew, so a reload in the middle of a cycle must end it, not half apply.
            if self._configs.get(base.key) != config:  # guard: A47 I9
                blocked.append(Blocked(Cause.CONFIG, f"the settings of /{base.key} were changed by a reload just now"))
            if blocked or isinstance(sight.keep_list, str) or isinstance(sight.protected, str):  # guard: I9, without 1
                return blocked
            found = self.rulings(base, sight.keep_list, sight.protected)
            most = most_deletions(len(found)) if most is None else most
            dropped = [ruling for ruling in found if not ruling.keeps and ruling.entry not in failed]
            if done >= most or not dropped or len(failed) >= MOST_FAULTS:  # guard: I9, without 1; A39, without 3
                return []
            oldest = dropped[-1]
            try:
                await self.around.alone(base.image_at(oldest.entry), partial(self._bury, base, oldest))
            except CiruelaError as error:  # guard: I8 A39
                failed.add(oldest.entry)
                report.faults += 1
                vpath = str(base.image_at(oldest.entry))
                self._log.warn("{vpath}: could not be deleted: {error}", vpath=vpath, error=error)
            else:
                done += 1
                report.deleted += 1

    def _bury(self, base: VPath, ruling: Ruling) -> Deferred[None]:
        """Delete one image; nobody judges an order for its path meanwhile."""
        vpath = base.image_at(ruling.entry)
        state = self.ledger.committed(vpath)
        # The rules were applied before the wait for this turn: only the very version that they judged may go.
        # guard: A51 F58 I9, without 2; F58 I9, without 3
        if state is None or state.version != ruling.version or self.ledger.pending(vpath) is not None:
            raise DiskError(f"{vpath}: was changed meanwhile")
        tombstone = Tombstone(state.version, self.context.now_ms())

        def buried(_: None) -> None:
            self.deleted += 1
            self._log.info(
                "{vpath}: {image} was deleted: {rule}", vpath=str(vpath), image=ruling.version.image.hex(), rule=ruling.rule.value
            )

        return self.context.disk.remove(vpath, tombstone).addCallback(lambda burials: self.ledger.bury(vpath, burials)).addCallback(buried)

    # -- in the long run --------------------------------------------------------------------------------------------------------------

    async def _fold(self) -> None:
        """Fold old tombstones, while the clock is right: by a wrong one they would all be old."""
        now_s = self.guards.steady_s()
        if now_s < self._fold_s:
            return
        sight = self._sight(self._recorded_ms())
        if clock_faults(sight):
            return
        self._fold_s = now_s + FOLD_S
        before_ms = sight.now.wall_ms - FORGET_MS
        for base in self.ledger.buried_bases():
            old = [entry for entry, one in self.ledger.burials(base).tombstones.items() if one.buried_ms < before_ms]
            if not old or base.key not in self.context.configs:
                continue
            try:
                self.ledger.fold(base, await self.context.disk.fold_burials(base.image_at(old[0]), before_ms))
            except DiskError as error:
                self._log.warn("{base}: its tombstones could not be folded: {error}", base=str(base), error=error)

    async def _collect(self) -> None:
        """Delete the indexes of images that are nowhere any more."""
        now_s = self.guards.steady_s()
        gone = self.deleted + self.around.given_up()
        due = now_s >= self._collect_s or gone - self._gone_before > COLLECT_ABOVE
        if not due or self.around.downloads() >= COLLECT_BELOW or now_s - self._seen.awake_s < FIRST_S[0]:
            return
        keep = set(self.around.indexes()) | {pending.state.image for pending in self.ledger.pendings()} | self.ledger.kept_images()
        for base in self.ledger.base_hashes():
            keep |= {state.image for _, state in self.ledger.committed_in(base)}
        self._gone_before = gone
        try:
            count = await self.context.disk.collect_indexes(keep)
        except DiskError as error:
            self._collect_s = now_s + COLLECT_AGAIN_S
            self._log.warn("indexes were not collected: {error}", error=error)
            return
        self._collect_s = now_s + COLLECT_S
        self.collected += count
        self._log.info("{count} indexes that no image needs were deleted", count=count)


def words(report: CleanupReport) -> list[str]:
    """Gives the reasons why the last cycle deleted nothing (more), for the status page."""
    return sorted({one.cause.value for one in report.blocked})
