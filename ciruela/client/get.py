"""``ciruela get``: a verified copy of an image, from as many nodes as have it. What an interrupted run got stays for the next."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from ciruela.client.context import AppContext, make_display
from ciruela.client.errors import CommandError
from ciruela.client.options.reading import GetOptions
from ciruela.client.options.signing import Keys
from ciruela.client.orders import LocalProblem, check_directory
from ciruela.client.origin import ImageOrigin, ReadContext, real_reach
from ciruela.client.progress import Display
from ciruela.client.scanning import hash_caches, scan_directory
from ciruela.client.text import count, interval, size, stamp
from ciruela.client.tracker import EXIT_CONFLICT, EXIT_DONE, EXIT_NETWORK
from ciruela.client.trust import Proof, my_trust, shown
from ciruela.disk.checkout import Checkout, DestinationKind
from ciruela.download.fetch_blocks import BlockFetch, FetchContext
from ciruela.download.plan import BlockPlan
from ciruela.download.relaycache import BlockRelayCache
from ciruela.download.sources import Totals
from ciruela.index.tree import Index
from ciruela.model.bitfield import BlockSet
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.proto.messages import BlockPart

LOOK_S = 1.0
"""Interval of looks whether anything came."""

ASK_AGAIN_S = 10.0
"""Time without any block after which the nodes are asked whether the image is still the one at the path."""


class _Nobody(BlockRelayCache):
    """A client passes nothing on."""

    def put(self, image: ImageId, numbers: tuple[int, ...], part: BlockPart) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, slots=True)
class _Destination:
    """DEST as the directory that it stands in, and its name there."""

    parent: str
    name: str


def destination(text: str) -> _Destination:
    """Parses DEST. Raises LocalProblem for what cannot be the name of a new directory."""
    above, slash, name = text.rstrip("/").rpartition("/")
    if name in ("", ".", "..") or "\0" in text:
        raise LocalProblem(f"{text[:200]!r} cannot be the name of a new directory; name one that does not exist yet")
    return _Destination(above or (slash or "."), name)


async def get(options: GetOptions, around: AppContext, reach: ReadContext | None = None) -> int:
    """``ciruela get``. Gives the exit code; raises Ends, LocalProblem, DiskError or DownloadFailed.

    Cancel to stop: what is here stays for the next run.
    """
    where = destination(options.destination)
    check_directory(where.parent)
    for directory in options.reuse:
        check_directory(directory)
    display = make_display(options.common, around, options.print_progress_s)
    using = reach or real_reach(options.common, around)
    origin = ImageOrigin(options.target, using, display.note)
    display.show(lambda: f"Asking {options.target.cluster.label} for the index of {options.target.vpath}")
    try:
        index = await origin.index()
        display.hide()
        if options.image is not None and index.image != options.image:
            raise CommandError(EXIT_CONFLICT, f"{options.target} is the image {index.image.hex()}, not {options.image.hex()}")
        trust = await my_trust(options.trusting, Keys(), around, display)
        proof = await origin.proof(index.image, trust)
        return await _Getting(options, index, proof, origin, using, around, display).run()
    finally:
        display.hide()
        await using.nodes.stop()


class _Getting:
    """One copy, from its index on."""

    def __init__(
        self,
        options: GetOptions,
        index: Index,
        proof: Proof | None,
        origin: ImageOrigin,
        reach: ReadContext,
        around: AppContext,
        display: Display,
    ) -> None:
        """``proof``: whom the image is from, as far as that can be told."""
        self._signed = shown(proof)
        self._options = options
        self._where = where = destination(options.destination)
        self._index = index
        self._origin = origin
        self._reach = reach
        self._around = around
        self._display = display
        self._landing = Checkout(where.parent, where.name, index, reach.in_thread, link=options.link)
        self._totals = Totals()
        self._began_s = reach.clock.seconds()

    async def run(self) -> int:
        """Put it together. Gives the exit code."""
        options, index, display = self._options, self._index, self._display
        files = f"{count(len(index.files), 'file')}, {size(index.total_bytes)}"
        display.say(f"{options.target} is the image {index.image.hex()}: {files}; {self._signed}")
        display.show(lambda: f"Looking at {options.destination}")
        standing = await self._landing.look()
        if standing is DestinationKind.SAME:
            display.hide()
            display.result(f"{options.destination}  is this image already  {self._signed}")
            return EXIT_DONE
        if standing is DestinationKind.NO_DIRECTORY or (standing is DestinationKind.OTHER and not options.replace):
            advice = "name another DEST, or let --replace take its place" if standing is DestinationKind.OTHER else "name another DEST"
            raise LocalProblem(f"{options.destination} exists and is {standing.value}, not this image: {advice}")
        olds = [*options.reuse, *([options.destination] if standing is DestinationKind.OTHER else [])]
        try:
            await self._fill(olds)
        except CancelledError:
            display.hide()
            display.say(f"interrupted; what is here stays in {self._where.parent}/{self._landing.staging}: run the same command to go on")
            raise
        finally:
            self._landing.close()
        display.hide()
        took = interval(self._reach.clock.seconds() - self._began_s)
        sizes = f"received {size(self._totals.received_bytes)}, reused {size(self._totals.reused_bytes)}"
        display.result(f"{options.destination}  {files}  {took}  {sizes}  {self._signed}")
        return EXIT_DONE

    async def _fill(self, olds: Sequence[str]) -> None:
        display, index = self._display, self._index
        display.show(lambda: "Looking at what an earlier run left")
        have = await self._landing.open()
        if have:
            kept = index.blocks.bytes_of(have)
            self._totals.reused_bytes += kept
            display.say(f"{size(kept)} are here from an earlier run")
        if olds and len(have) < index.block_count:
            caches = hash_caches(self._options.cache, self._around)
            scans = [await scan_directory(one, index.kind, display, self._reach.in_thread, caches) for one in olds]
            indexes = [(one, await self._reach.in_thread(partial(getattr, scan, "index"))) for one, scan in zip(olds, scans, strict=True)]
            display.show(lambda: f"Reusing {', '.join(olds)}")
            reused = await self._landing.reuse(indexes)
            self._totals.reused_bytes += reused.bytes
        if len(have) < index.block_count:
            await self._fetch(have)
        display.show(lambda: f"Verifying {self._options.destination}")
        await self._landing.show(replacing=self._options.replace)

    async def _fetch(self, have: BlockSet) -> None:
        index, clock = self._index, self._reach.clock
        plan = await self._reach.in_thread(BlockPlan, index, have, self._reach.rng)
        fetch = BlockFetch(
            str(self._options.target.vpath),
            index,
            plan,
            self._landing,
            self._origin.candidates,
            lambda: None,
            FetchContext(clock, self._totals, _Nobody(clock)),
        )
        wanted_bytes = index.total_bytes - await self._reach.in_thread(index.blocks.bytes_of, have)
        began_s = clock.seconds()

        def so_far() -> str:
            got = self._totals.received_bytes
            rate = got / max(clock.seconds() - began_s, 0.1)
            how = f"{size(int(rate))}/s, from {count(self._origin.nodes, 'node')}"
            return f"{self._options.destination}  {size(got)} of {size(wanted_bytes)}, {how}"

        self._display.show(so_far)
        running = fetch.run()
        why: list[CommandError] = []
        guard = Deferred.fromCoroutine(self._guard(fetch, running, wanted_bytes, why))
        guard.addErrback(lambda failure: failure.trap(CancelledError))
        try:
            await running
        except CancelledError:
            if why:
                raise why[0] from None
            raise
        finally:
            guard.cancel()

    async def _guard(self, fetch: BlockFetch, running: Deferred[None], wanted_bytes: int, why: list[CommandError]) -> None:
        """End a fetch that gets nowhere, and note ``why``; tell in a log how it goes."""
        clock, options = self._reach.clock, self._options
        asked_s = told_s = clock.seconds()
        while True:
            await deferLater(clock, LOOK_S)
            now_s = clock.seconds()
            if now_s - told_s >= options.print_progress_s:
                told_s = now_s
                got = self._totals.received_bytes
                when = stamp(self._around.now_ms())
                self._display.log_line(f"{when} progress path={options.target.vpath} received_bytes={got} want_bytes={wanted_bytes}")
            silent_s = now_s - fetch.last_good_s
            if silent_s >= options.patience_s:
                why.append(
                    CommandError(EXIT_NETWORK, f"nothing came for {interval(silent_s)}: run the same command to go on where it ended")
                )
            elif silent_s >= ASK_AGAIN_S and now_s - asked_s >= ASK_AGAIN_S:
                current = await self._origin.current()
                asked_s = clock.seconds()
                if current and self._index.image not in current:
                    why.append(
                        CommandError(EXIT_CONFLICT, f"another image took the place of {self._index.image.hex()}: run the command again")
                    )
            if why:
                running.cancel()
                return
