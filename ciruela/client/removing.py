"""``ciruela remove``: look, show, ask, sign, and wait until it is gone."""

from __future__ import annotations

from ciruela.client.asking import Sight, look
from ciruela.client.book import EXIT_DONE, EXIT_LOCAL, Rule
from ciruela.client.clusters import SyncRun, exit_code, to_its_end
from ciruela.client.identities import terminal_line
from ciruela.client.options.common import Common
from ciruela.client.options.removing import RemoveOptions, Target
from ciruela.client.progress import Display
from ciruela.client.source import Source
from ciruela.client.surroundings import Surroundings, identities_of, make_display, real_world
from ciruela.client.sync import ClusterRun, Upload, World
from ciruela.client.text import stamp
from ciruela.keys.signed import removal_bytes
from ciruela.model.errors import ConfigError
from ciruela.model.ids import ImageId
from ciruela.model.state import State
from ciruela.proto.messages import RemoveDir

YES = frozenset({"y", "yes"})


def described(state: State) -> str:
    """One version, for people."""
    return f"{state.image.hex()}, signed {stamp(state.version.timestamp_ms)}"


async def agreed(question: str, sure: bool, around: Surroundings) -> bool:
    """Whether the user wants it. Raises ConfigError when nobody can be asked."""
    if sure:
        return True
    ask = terminal_line()
    if ask is None:
        raise ConfigError("there is no terminal to ask on: give --yes")
    return (await around.in_thread(ask, f"{question} [y/N] ")).strip().lower() in YES


async def run_one(
    target: Target, upload: Upload, rule: Rule, lines_every_s: float, common: Common, around: Surroundings, net: World
) -> int:
    """Send one signed wish to the cluster and wait for its end. Gives the exit code."""
    display = make_display(common, around, lines_every_s)
    source = Source((), around.in_thread, lambda _image, _text: None)
    run = SyncRun([ClusterRun(target.entry_point, [target.entry_point], [upload], rule, net, source, display)])
    return exit_code(await to_its_end(run, display))


async def seen(target: Target, net: World, display: Display) -> Sight:
    """What some nodes say of the path. Raises what keeps all of them from saying it."""
    sight = await look(target.entry_point, target.vpath, net)
    for problem in sight.problems:
        display.note(target.entry_point, problem)
    return sight


async def remove(options: RemoveOptions, around: Surroundings, world: World | None = None) -> int:
    """``ciruela remove``. Gives the exit code. Raises what keeps it from sending anything."""
    display = make_display(options.common, around, None)
    net = world or real_world(options.common, around)
    target = options.target
    sight = await seen(target, net, display)
    image = options.image or (None if sight.newest is None else sight.newest.image)
    if image is None:
        display.result(f"{target.entry_point} {target.vpath}  nothing is there")
        return EXIT_DONE
    display.say(_what(target, image, sight))
    if not await agreed("Remove it from all nodes?", options.sure, around):
        display.say("nothing was removed")
        return EXIT_LOCAL
    identities = await identities_of(options.keys, around, display)
    timestamp_ms = max([around.now_ms(), *(sight.states[name].version.timestamp_ms + 1 for name in sight.with_image(image))])
    path = str(target.vpath)
    signatures = tuple(signature for _, signature in await identities.sign_all(removal_bytes(path, image, timestamp_ms)))
    upload = Upload(RemoveDir(path, image, timestamp_ms, signatures), weak=False, total_bytes=0)
    return await run_one(target, upload, options.rule, options.print_progress_s, options.common, around, net)


def _what(target: Target, image: ImageId, sight: Sight) -> str:
    """What is about to go."""
    here = sight.with_image(image)
    if not here:
        return f"Removing {target.vpath}: {image.hex()}, which none of the nodes that were asked has"
    newest = max((sight.states[name] for name in here), key=lambda state: state.version)
    others = len(sight.answers) - len(here)
    note = f"; {others} of the {len(sight.answers)} nodes that were asked have something else there, or nothing" if others else ""
    return f"Removing {target.vpath}: {described(newest)}{note}"
