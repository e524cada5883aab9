"""``ciruela sync`` and ``ciruela index`` as stories; ``main`` runs them, ``demo`` runs the first one inside its own.

``ciruela upload``, the old name of ``ciruela sync``, with its own exit codes (protocol sections 6.5 and 7.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from twisted.internet.defer import CancelledError, Deferred

from ciruela.client.clusters import ClusterUploads, SyncRun, exit_code, to_its_end
from ciruela.client.contacts import RunContext
from ciruela.client.context import AppContext, identities_of, make_display, real_world
from ciruela.client.entrance import together
from ciruela.client.identities import Identities
from ciruela.client.listener import Listener, UploadRow
from ciruela.client.options.common import NOTHING, Excluding
from ciruela.client.options.local import IndexOptions
from ciruela.client.options.signing import ClusterNames
from ciruela.client.options.sync import CONNECTIONS, SyncOptions, UploadOptions, Wish
from ciruela.client.orders import OURS, Signer, check_content, check_directory, check_sources
from ciruela.client.preflight import Late, Preflight
from ciruela.client.progress import Display
from ciruela.client.report import Reporting
from ciruela.client.scanning import Scans, hash_caches, scan_directory
from ciruela.client.source import SHARED_BYTES_S, ImageSource, SharedImage, small_content
from ciruela.client.text import clean
from ciruela.client.tracker import EXIT_DONE, EXIT_LOCAL, EXIT_NOTHING, EXIT_USAGE, CompletionRule
from ciruela.disk.localtree import LocalTree
from ciruela.disk.scan import Scan
from ciruela.index.digest import HashKind
from ciruela.interfaces import InThread
from ciruela.model.errors import CiruelaError
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.runtime import TokenBucket


async def index(options: IndexOptions, around: AppContext) -> int:
    """``ciruela index``: the bytes of the index to stdout and nothing else there."""
    check_directory(options.directory)
    display = make_display(options.common, around, None)
    caches = hash_caches(options.cache, around)
    found = await scan_directory(options.directory, options.common.hash or OURS, display, around.in_thread, caches, options.excluding)
    around.stdout.flush()
    around.stdout.buffer.write(found.data)  # type: ignore[attr-defined]
    around.stdout.buffer.flush()  # type: ignore[attr-defined]
    return 0


async def open_source(
    scans: Iterable[tuple[str, Scan]], in_thread: InThread, changed: Callable[..., None], pace: TokenBucket | None = None
) -> tuple[ImageSource, list[LocalTree]]:
    """Open the scanned directories to the nodes. The trees must be closed in the end."""
    offers = []
    trees: list[LocalTree] = []
    for name, found in scans:
        offer, tree = await in_thread(_open_tree, name, found)
        trees.append(tree)
        offers.append(offer)
    return ImageSource(offers, in_thread, changed, pace), trees


def _open_tree(name: str, found: Scan) -> tuple[SharedImage, LocalTree]:
    """In a thread, because it also reads the index, and a small image."""
    tree = LocalTree(name, found.index, found.seen)
    return SharedImage(found.index, found.data, tree, name, small_content(found.index, found.data, tree)), tree


@dataclass(frozen=True, slots=True)
class SendOptions:
    """The options of sending. ``kind``: the hash that the user chose, None for the best that each cluster understands.

    ``connections``: hosts of each cluster that the data is given to, one where no faster than ``pace.SHARED_BYTES_S``.
    """

    kind: HashKind | None = None
    cache: bool = True
    excluding: Excluding = NOTHING
    allow_empty: bool = False
    limit_bytes_s: int | None = None
    connections: int = CONNECTIONS


class Sending:
    """Run that ``sync`` and ``upload`` share: find the nodes, index for them, ask what they would answer, and send.

    Cancel what is awaited to stop. ``close`` ends the connections that were not needed.
    """

    def __init__(
        self,
        targets: Sequence[tuple[ClusterNames, Sequence[Wish]]],
        rule: CompletionRule,
        options: SendOptions,
        identities: Identities,
        net: RunContext,
        around: AppContext,
        display: Display,
    ) -> None:
        self._around = around
        self._display = display
        self._kind = options.kind
        self._allow_empty = options.allow_empty
        self._caches = hash_caches(options.cache, around)
        excluding, limit_bytes_s, connections = options.excluding, options.limit_bytes_s, options.connections
        self._pace = None if limit_bytes_s is None else TokenBucket(around.reactor, limit_bytes_s, 0.0)
        self.scans = Scans(
            lambda name, kind: Deferred.fromCoroutine(scan_directory(name, kind, display, around.in_thread, self._caches, excluding))
        )
        self._timestamp_ms = 0
        self._reported: set[tuple[Wish, ImageId]] = set()
        self._opened: list[tuple[str, HashKind, LocalTree]] = []
        signer = Signer(identities)
        if limit_bytes_s is not None and limit_bytes_s < SHARED_BYTES_S:
            connections = 1
        self.preflights = [Preflight(names, wishes, rule, net, signer, around, connections) for names, wishes in targets]

    def close(self) -> None:
        """End the connections that no run took."""
        for one in self.preflights:
            one.close()

    async def prepare(self, *, dry: bool = False) -> None:
        """Reach the clusters, index what they get, and ask them. Raises what indexing and signing raise.

        LocalProblem for a directory that is empty by mistake. A cluster of which nobody answers now is tried again while the
        others get theirs; in a ``dry`` run it is not.
        """
        try:
            await self._reach()
        finally:
            self._display.hide()
        for one in self.preflights:
            await self._index(one)
        asked = [one for one in self.preflights if one.reached or dry]
        self._display.show(lambda: "Asking what the nodes would answer")
        try:
            await together([self._ask(one) for one in asked])
        finally:
            self._display.hide()
        self._report(self.preflights)

    async def _reach(self) -> None:
        """Reach the clusters, and index meanwhile with the hash that ours know; not any more once only others are found to be there."""
        ahead = Deferred.fromCoroutine(self._ahead())
        wasted = False

        async def reach() -> None:
            nonlocal wasted
            await together([one.entrance.reach(once=True) for one in self.preflights])
            wasted = self._kind is None and all(one.reached and one.kind is not OURS for one in self.preflights)
            if wasted:
                ahead.cancel()

        async def index() -> None:
            try:
                await ahead
            except CancelledError:
                if not wasted:
                    raise
            self._display.show(lambda: "Asking who is there")

        await together([index(), reach()])

    async def _ahead(self) -> None:
        for one in self.preflights:
            for wish in one.wishes:
                await self.scans.of(wish.source, self._kind or OURS)

    async def _index(self, one: Preflight) -> None:
        for wish in one.wishes:
            check_content(wish, await self.scans.of(wish.source, self._kind or one.kind), self._allow_empty)
        self._timestamp_ms = self._around.now_ms()

    async def _ask(self, one: Preflight) -> None:
        await one.ask(self.scans, self._kind or one.kind, self._timestamp_ms)

    def _report(self, preflights: Sequence[Preflight]) -> None:
        """Tell which images are meant, each once."""
        report = self._around.report
        if report is None:
            return
        for one in preflights:
            for number, wish in enumerate(one.wishes):
                ruling = one.rulings[number] if one.rulings else None
                found = self.scans.with_image(ruling.intent.image) if ruling else self.scans.made[wish.source, self._kind or one.kind]
                if (wish, found.image) not in self._reported:
                    self._reported.add((wish, found.image))
                    report.indexed(wish, found)

    async def send(self, listener: Listener, watch: Callable[[SyncRun], None] = lambda _: None) -> list[UploadRow]:
        """Send what nobody refused, and wait for its end. Gives the final rows, which were shown. ``watch`` is told of the run."""
        clusters: list[ClusterUploads] = []
        run = SyncRun(clusters)
        try:
            source = await self._open([one for one in self.preflights if one.reached], run)
            for one in self.preflights:
                if one.reached:
                    clusters += await one.runs(source, listener)
                else:
                    images = [self.scans.made[wish.source, self._kind or one.kind] for wish in one.wishes]
                    clusters.append(Late(one, images, partial(self._begin, one, run, listener), listener))
            watch(run)
            return await to_its_end(run, self._display)
        finally:
            for name, kind, tree in self._opened:
                tree.close()
                if self._caches is not None and tree.changed:  # guard: I7
                    await self._around.in_thread(self._caches.drop, name, kind, tree.changed)

    async def _open(self, preflights: Sequence[Preflight], run: SyncRun) -> ImageSource:
        """Opens the scanned directories that are given to these clusters, as one source."""
        used = {ruling.intent.image for one in preflights for ruling in one.rulings if not ruling.refusal}
        opened = [(name, kind, found) for (name, kind), found in self.scans.made.items() if found.image in used]
        in_thread = self._around.in_thread
        source, trees = await open_source([(name, found) for name, _, found in opened], in_thread, run.source_changed, self._pace)
        self._opened += [(name, kind, tree) for (name, kind, _), tree in zip(opened, trees, strict=True)]
        return source

    async def _begin(self, one: Preflight, run: SyncRun, listener: Listener) -> list[ClusterUploads]:
        """The runs of a cluster that answered late."""
        await self._index(one)
        await self._ask(one)
        self._report([one])
        return await one.runs(await self._open([one], run), listener)


async def sync(
    options: SyncOptions, around: AppContext, world: RunContext | None = None, ended: Callable[[list[UploadRow]], None] | None = None
) -> int:
    """``ciruela sync``. Gives the exit code, and the final rows to ``ended``.

    Cancel to stop: what has been promised so far is printed, then CancelledError is raised. Raises what keeps it from sending anything.
    """
    check_sources(options.wishes)
    display = make_display(options.common, around, None if options.dry_run else options.print_progress_s)
    identities = await identities_of(options.keys, around, display)
    sending = Sending(
        [(names, options.wishes) for names in options.clusters],
        options.rule,
        SendOptions(
            options.common.hash,
            options.cache,
            options.excluding,
            options.allow_empty,
            options.limit_bytes_s,
            options.initial_connections,
        ),
        identities,
        world or real_world(options.common, around),
        around,
        display,
    )
    report = around.report
    try:
        await sending.prepare(dry=options.dry_run)
        if options.dry_run or options.exit_code:
            from ciruela.client import preflight

            await preflight.survey_all(sending.preflights, display)
            if options.dry_run:  # guard: I7
                return await preflight.show_forecast(sending.preflights, sending.scans, options, around, display)
            if preflight.nothing_to_do(sending.preflights, options.rule):
                display.say("Nothing to do: every node has exactly this already")
                if report is not None:
                    report.end(EXIT_NOTHING, "nothing-to-do", [])
                return EXIT_NOTHING
        listener: Listener = display if report is None else Reporting(display, report)
        try:
            rows = await sending.send(
                listener, lambda run: None if report is None else report.watch(run, around.reactor, options.print_progress_s)
            )
        finally:
            if report is not None:
                report.rest()
    finally:
        sending.close()
    if ended is not None:
        ended(rows)
    code = exit_code(rows)
    if report is not None:
        report.summary(code, rows)
    return code


LINES_EVERY_S = 30.0
"""Interval of the progress lines."""


async def upload(options: UploadOptions, around: AppContext, world: RunContext | None = None) -> int:
    """``ciruela upload``: 0 done, 1 some target failed, 2 nothing was sent."""
    display = make_display(options.common, around, LINES_EVERY_S)
    mode = f"--{options.mode.value}"
    first = options.targets[0]
    display.problem("", f"ciruela upload is deprecated; use: ciruela sync {mode} {options.source}:{first.vpath} {first.name}")
    net = world or real_world(options.common, around)
    try:
        check_directory(options.source)
        identities = await identities_of(options.keys, around, display)
        chosen = SendOptions(options.common.hash, options.cache)
        sending = Sending(_targets(options), CompletionRule(), chosen, identities, net, around, display)
        try:
            await sending.prepare()
        except BaseException:
            sending.close()
            raise
    except (CiruelaError, OSError) as error:
        display.hide()
        around.stderr.write(f"ciruela: {clean(str(error), 10_000) or type(error).__name__}\n")
        return EXIT_USAGE
    try:
        return EXIT_DONE if exit_code(await sending.send(display)) == EXIT_DONE else EXIT_LOCAL
    finally:
        sending.close()


def _targets(options: UploadOptions) -> list[tuple[ClusterNames, list[Wish]]]:
    """Groups the uploads by host; several paths on one host are one set of connections."""
    hosts = dict.fromkeys(target.name for target in options.targets)
    return [
        (ClusterNames((host,)), [Wish(options.mode, options.source, target.vpath) for target in options.targets if target.name == host])
        for host in hosts
    ]
