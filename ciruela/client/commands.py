"""``ciruela sync`` and ``ciruela index`` as stories; ``main`` runs them, ``demo`` runs the first one inside its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from twisted.internet.defer import CancelledError, Deferred

from ciruela.client.book import EXIT_NOTHING
from ciruela.client.clusters import SyncRun, exit_code
from ciruela.client.hashes import OURS, hash_for
from ciruela.client.identities import Identities, load_identities, read_key_file, terminal
from ciruela.client.ignore import excludes_for
from ciruela.client.listener import Listener
from ciruela.client.options.common import Common
from ciruela.client.options.excluding import NOTHING, Excluding
from ciruela.client.options.local import IndexOptions
from ciruela.client.options.signing import Keys
from ciruela.client.options.sync import SyncOptions
from ciruela.client.orders import Prepared, check_directory, check_sources, prepare, sign_checks
from ciruela.client.pace import SHARED_BYTES_S, Pace
from ciruela.client.progress import Block, Display, wants_live
from ciruela.client.report import Report, Reporting
from ciruela.client.source import Offer, Source
from ciruela.client.sync import CONNECTIONS, ClusterRun, Row, World
from ciruela.client.text import count, size
from ciruela.disk.hashcache import HashCache, cache_home
from ciruela.disk.localtree import LocalTree
from ciruela.disk.scan import Scan, ScanProgress, scan
from ciruela.index.digest import HashKind
from ciruela.model.errors import BadKey
from ciruela.net.agent import agent_keys
from ciruela.net.outgoing import CLIENT_HOST, connect
from ciruela.net.resolve import resolver
from ciruela.seams import InThread, NowMs


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a command gets from the process: everything that is not in its options.

    ``in_thread`` reads and hashes, ``look_up_in_thread`` waits for names; they are two pools, so that neither holds up the other.
    ``report`` writes what programs read, where they asked for it.
    """

    reactor: Any
    now_ms: NowMs
    rng: random.Random
    environ: Mapping[str, str]
    stdout: IO[str]
    stderr: IO[str]
    in_thread: InThread
    look_up_in_thread: InThread
    report: Report | None = None


def make_display(common: Common, around: Surroundings, lines_every_s: float | None) -> Display:
    """The display that the options ask for. Results go to stdout, unless that is for a report."""
    live = wants_live(common.progress, around.stderr, around.environ)
    plain = lines_every_s is not None and not live and common.progress.value != "none"
    return Display(
        clock=around.reactor,
        now_ms=around.now_ms,
        out=around.stdout if around.report is None else around.stderr,
        err=around.stderr,
        block=_live_block(around) if live else None,
        lines_every_s=lines_every_s if plain else None,
        verbosity=common.verbosity,
    )


def _live_block(around: Surroundings) -> Block:
    from ciruela.client.live import TerminalBlock  # here, because only a terminal needs it

    return TerminalBlock(around.stderr, around.environ)


def scanned_line(name: str, found: Scan) -> str:
    """What indexing a directory found."""
    left_out = f", {found.excluded:,} left out" if found.excluded else ""
    return (
        f"Indexed {name}: {count(found.dirs, 'dir')}, {count(found.files, 'file')}, {count(found.symlinks, 'link')}, {size(found.bytes)}"
        f"{left_out} in {found.seconds:.1f} s, id {found.image.hex()}"
    )


def hash_caches(wanted: bool, around: Surroundings) -> HashCache | None:
    """The hash caches of the user, if they are wanted and there is a place for them."""
    home = cache_home(around.environ) if wanted else None
    return None if home is None else HashCache(home, lambda: around.now_ms() * 1_000_000)


async def scan_directory(
    name: str,
    kind: HashKind,
    display: Display,
    in_thread: InThread,
    caches: HashCache | None = None,
    excluding: Excluding = NOTHING,
) -> Scan:
    """Index one directory, and show that it goes on. Without ``caches`` every file is read."""
    excludes = await in_thread(excludes_for, name, excluding)
    latest: list[ScanProgress] = []

    def so_far() -> str:
        if not latest:
            return f"Indexing {name}"
        seen = latest[-1]
        numbers = f"{count(seen.dirs, 'dir')}, {count(seen.files, 'file')}, {count(seen.symlinks, 'link')}, {size(seen.bytes)}"
        return f"Indexing {name}: {numbers}"

    def progressed(progress: ScanProgress) -> None:
        latest[:] = [progress]

    display.show(so_far)
    try:
        found = await scan(name, kind, in_thread, progressed, caches=caches, excludes=excludes)
    finally:
        display.hide()
    display.say(scanned_line(name, found))
    for path in found.excluded_paths:
        display.note("", f"left out {path}")
    for warning in found.warnings:
        display.problem("", warning)
    return found


async def index(options: IndexOptions, around: Surroundings) -> int:
    """``ciruela index``: the bytes of the index to stdout and nothing else there."""
    check_directory(options.directory)
    display = make_display(options.common, around, None)
    caches = hash_caches(options.cache, around)
    found = await scan_directory(options.directory, options.common.hash or OURS, display, around.in_thread, caches, options.excluding)
    around.stdout.flush()
    around.stdout.buffer.write(found.data)  # type: ignore[attr-defined]
    around.stdout.buffer.flush()  # type: ignore[attr-defined]
    return 0


async def identities_of(keys: Keys, around: Surroundings, display: Display) -> Identities:
    """The keys that sign, told to the user. Raises BadKey, also when there is none: servers refuse what nobody signed."""
    found = await load_identities(
        keys.files,
        keys.variables,
        environ=around.environ,
        home=around.environ.get("HOME"),
        read_file=read_key_file,
        ask_passphrase=terminal(),
        agent=partial(agent_keys, around.reactor),
        in_thread=around.in_thread,
    )
    if not found.keys:
        raise BadKey("; ".join(found.notes) or "there is no key to sign with (name one with -i)")
    for note in found.notes:
        display.problem("", note)
    for line in found.describe():
        display.say(f"Signing with {line}")
    return found


async def open_source(
    prepared: Prepared, in_thread: InThread, changed: Callable[..., None], pace: Pace | None = None
) -> tuple[Source, list[LocalTree]]:
    """Open the scanned directories to the nodes. The trees must be closed in the end."""
    offers = []
    trees: list[LocalTree] = []
    for name, found in prepared.scans.items():
        tree: LocalTree = await in_thread(_open_tree, name, found)
        trees.append(tree)
        offers.append(Offer(found.index, found.data, tree, name))
    return Source(offers, in_thread, changed, pace), trees


def _open_tree(name: str, found: Scan) -> LocalTree:
    """In a thread, because it also reads the index."""
    return LocalTree(name, found.index)


def real_world(common: Common, around: Surroundings) -> World:
    """Real connections and names."""
    resolve = resolver(around.look_up_in_thread)
    return World(
        clock=around.reactor,
        rng=around.rng,
        connect=lambda address, counterpart: connect(around.reactor, address, counterpart, CLIENT_HOST),
        resolve=lambda name: resolve(name, common.port),
    )


async def sync(
    options: SyncOptions, around: Surroundings, world: World | None = None, ended: Callable[[list[Row]], None] | None = None
) -> int:
    """``ciruela sync``. Gives the exit code, and the final rows to ``ended``.

    Cancel to stop: what has been promised so far is printed, then CancelledError is raised. Raises what keeps it from sending anything.
    """
    if options.dry_run:
        from ciruela.client.check import dry_run  # here, because only a dry run needs it

        return await dry_run(options, around, world)
    check_sources(options.wishes)
    display = make_display(options.common, around, options.print_progress_s)
    identities = await identities_of(options.keys, around, display)
    net = world or real_world(options.common, around)
    kind = options.common.hash or await hash_for([names.names for names in options.clusters], net)
    caches = hash_caches(options.cache, around)
    prepared = await prepare(
        options.wishes,
        lambda name: Deferred.fromCoroutine(scan_directory(name, kind, display, around.in_thread, caches, options.excluding)),
        identities,
        around.now_ms,
    )
    report = around.report
    if report is not None:
        for wish in options.wishes:
            report.indexed(wish, prepared.scans[wish.source])
    if options.exit_code:
        from ciruela.client.check import nothing_to_do, survey_all

        checks = await sign_checks(options.wishes, prepared.scans, identities, around.now_ms())
        if nothing_to_do(await survey_all(options, checks, net, display), options.rule):
            display.say("Nothing to do: every node has exactly this already")
            if report is not None:
                report.end(EXIT_NOTHING, "nothing-to-do", [])
            return EXIT_NOTHING
    clusters: list[ClusterRun] = []
    run = SyncRun(clusters)
    connections = 1 if options.limit_bytes_s is not None and options.limit_bytes_s < SHARED_BYTES_S else CONNECTIONS
    pace = None if options.limit_bytes_s is None else Pace(around.reactor, options.limit_bytes_s)
    source, trees = await open_source(prepared, around.in_thread, run.source_changed, pace)
    try:
        listener: Listener = display if report is None else Reporting(display, report)
        clusters += [
            ClusterRun(names.label, names.names, prepared.uploads, options.rule, net, source, listener, connections)
            for names in options.clusters
        ]
        going = run.start()
        display.watch(run)
        if report is not None:
            report.watch(run, around.reactor, options.print_progress_s)
        try:
            rows = await going
        except CancelledError:
            display.interrupted(run.rows())
            raise
        finally:
            display.hide()
            if report is not None:
                report.rest()
        display.finish(rows)
        if ended is not None:
            ended(rows)
        code = exit_code(rows)
        if report is not None:
            report.summary(code, rows)
        return code
    finally:
        for name, tree in zip(prepared.scans, trees, strict=True):
            tree.close()
            if caches is not None and tree.changed:
                await around.in_thread(caches.drop, name, kind, tree.changed)
