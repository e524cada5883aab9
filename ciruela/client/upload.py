"""``ciruela upload``, the old name of ``ciruela sync``, with its own exit codes (protocol sections 6.5 and 7.1)."""

from __future__ import annotations

from ciruela.client.book import EXIT_DONE, EXIT_LOCAL, EXIT_USAGE, Rule
from ciruela.client.clusters import exit_code
from ciruela.client.commands import Sending
from ciruela.client.options.signing import ClusterNames
from ciruela.client.options.sync import Wish
from ciruela.client.options.upload import UploadOptions
from ciruela.client.orders import check_directory
from ciruela.client.surroundings import Surroundings, identities_of, make_display, real_world
from ciruela.client.sync import World
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
    try:
        check_directory(options.source)
        identities = await identities_of(options.keys, around, display)
        sending = Sending(_targets(options), Rule(), options.common.hash, identities, net, around, display, cache=options.cache)
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
    """What each host gets; several paths on one host are one set of connections."""
    hosts = dict.fromkeys(target.name for target in options.targets)
    return [
        (ClusterNames((host,)), [Wish(options.mode, options.source, target.vpath) for target in options.targets if target.name == host])
        for host in hosts
    ]
