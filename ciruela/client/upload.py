"""``ciruela upload``, the old name of ``ciruela sync``, with its own exit codes (protocol sections 6.5 and 7.1)."""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred

from ciruela.client.book import EXIT_DONE, EXIT_LOCAL, EXIT_USAGE, Rule
from ciruela.client.clusters import SyncRun, exit_code, to_its_end
from ciruela.client.commands import open_source
from ciruela.client.hashes import hash_for
from ciruela.client.options.sync import Wish
from ciruela.client.options.upload import UploadOptions
from ciruela.client.orders import Prepared, check_directory, prepare
from ciruela.client.progress import Display
from ciruela.client.scanning import hash_caches, scan_directory
from ciruela.client.surroundings import Surroundings, identities_of, make_display, real_world
from ciruela.client.sync import ClusterRun, World
from ciruela.client.text import clean
from ciruela.model.errors import CiruelaError

LINES_EVERY_S = 30.0
"""Interval of the progress lines."""


async def upload(options: UploadOptions, around: Surroundings, world: World | None = None) -> int:
    """``ciruela upload``: 0 done, 1 some target failed, 2 nothing was sent."""
    display = make_display(options.common, around, LINES_EVERY_S)
    mode = f"--{options.mode.value}"
    first = options.targets[0]
    display.problem("", f"ciruela upload is deprecated; use: ciruela sync {mode} {options.source}:{first.vpath} {first.name}")
    net = world or real_world(options.common, around)
    caches = hash_caches(options.cache, around)
    try:
        check_directory(options.source)
        identities = await identities_of(options.keys, around, display)
        hosts = list(dict.fromkeys(target.name for target in options.targets))
        kind = options.common.hash or await hash_for([(host,) for host in hosts], net)
        scan = partial(scan_directory, kind=kind, display=display, in_thread=around.in_thread, caches=caches)
        wishes = [Wish(options.mode, options.source, vpath) for vpath in dict.fromkeys(target.vpath for target in options.targets)]
        prepared = await prepare(wishes, lambda name: Deferred.fromCoroutine(scan(name)), identities, around.now_ms)
    except (CiruelaError, OSError) as error:
        display.hide()
        around.stderr.write(f"ciruela: {clean(str(error), 10_000) or type(error).__name__}\n")
        return EXIT_USAGE
    return EXIT_DONE if await _run(options, prepared, net, display, around) == EXIT_DONE else EXIT_LOCAL


async def _run(options: UploadOptions, prepared: Prepared, net: World, display: Display, around: Surroundings) -> int:
    """All targets at once; several paths on one host are one set of connections. Gives the exit code that ``sync`` would have."""
    clusters: list[ClusterRun] = []
    run = SyncRun(clusters)
    source, trees = await open_source(prepared, around.in_thread, run.source_changed)
    try:
        for host in dict.fromkeys(target.name for target in options.targets):
            paths = {str(target.vpath) for target in options.targets if target.name == host}
            uploads = [one for one in prepared.uploads if one.request.path in paths]
            clusters.append(ClusterRun(host, (host,), uploads, Rule(), net, source, display))
        return exit_code(await to_its_end(run, display))
    finally:
        for tree in trees:
            tree.close()
