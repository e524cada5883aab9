"""``ciruela sync`` and ``ciruela index`` as stories; ``main`` runs them, ``demo`` runs the first one inside its own."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from ciruela.client.book import EXIT_NOTHING
from ciruela.client.clusters import SyncRun, exit_code, to_its_end
from ciruela.client.hashes import OURS, hash_for
from ciruela.client.listener import Listener
from ciruela.client.options.local import IndexOptions
from ciruela.client.options.sync import SyncOptions
from ciruela.client.orders import Prepared, check_directory, check_sources, prepare, sign_checks
from ciruela.client.pace import SHARED_BYTES_S, Pace
from ciruela.client.report import Reporting
from ciruela.client.scanning import hash_caches, scan_directory
from ciruela.client.source import Offer, Source
from ciruela.client.surroundings import Surroundings, identities_of, make_display, real_world
from ciruela.client.sync import CONNECTIONS, ClusterRun, Row, World
from ciruela.disk.localtree import LocalTree
from ciruela.disk.scan import Scan
from ciruela.seams import InThread


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
        if report is not None:
            report.watch(run, around.reactor, options.print_progress_s)
        try:
            rows = await to_its_end(run, display)
        finally:
            if report is not None:
                report.rest()
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
