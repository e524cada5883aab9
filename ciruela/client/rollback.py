"""``ciruela rollback``: a replace by an image that the nodes still have, signed anew. Nothing is uploaded."""

from __future__ import annotations

from ciruela.client.asking import Sight
from ciruela.client.book import EXIT_DONE, EXIT_LOCAL, EXIT_REJECTED
from ciruela.client.options.removing import RollbackOptions, Target
from ciruela.client.progress import Display
from ciruela.client.removing import agreed, described, run_one, seen
from ciruela.client.surroundings import Surroundings, identities_of, make_display, real_world
from ciruela.client.sync import Upload, World
from ciruela.client.text import stamp
from ciruela.keys.signed import signed_bytes
from ciruela.model.ids import ImageId
from ciruela.proto.messages import ReplaceDir


def candidates(sight: Sight) -> list[str]:
    """A line for each image that can be gone back to, the one that was replaced last first."""
    asked = len(sight.answers)
    return [
        f"{image.hex()}  signed {stamp(version.timestamp_ms)}  kept by {len(names)} of {asked} nodes that were asked"
        for image, (version, names) in sight.kept.items()
    ]


def chosen(image: ImageId | None, sight: Sight) -> tuple[ImageId | None, str]:
    """The image to go back to, or None and a sentence why there is none."""
    current = sight.newest
    kept = sight.kept
    why = ""
    if current is None:
        why = "nothing is there, so there is nothing to go back from (upload with ciruela sync)"
    elif image is not None and image == current.image:
        why = f"{image.hex()} is there already"
    elif image is not None and image not in kept:
        why = f"none of the nodes that were asked keeps {image.hex()}"
    elif not kept:
        why = "none of the nodes that were asked keeps a replaced image (keep-replaced says how many are kept from now on)"
    elif any(sight.vpath.entry in answer.pending for answer in sight.answers.values()):
        why = "an upload is on its way there (try again when it is done)"
    elif image is None and not _agree(sight):
        why = "the nodes do not agree which image was replaced last: name one"
    return (None, why) if why else (image or next(iter(kept)), "")


def _agree(sight: Sight) -> bool:
    """Whether all nodes that keep something name the same image first."""
    current = sight.newest
    entry = sight.vpath.entry
    rows = [[one.image for one in answer.kept.get(entry, ())] for answer in sight.answers.values()]
    first = {next((image for image in row if current is None or image != current.image), None) for row in rows}
    return len(first - {None}) == 1


async def rollback(options: RollbackOptions, around: Surroundings, world: World | None = None) -> int:
    """``ciruela rollback``. Gives the exit code. Raises what keeps it from sending anything."""
    display = make_display(options.common, around, None)
    net = world or real_world(options.common, around)
    target = options.target
    sight = await seen(target, net, display)
    if options.listing:
        return _list(target, sight, display)
    image, why = chosen(options.image, sight)
    current = sight.newest
    if image is None or current is None:
        display.problem(target.entry_point, f"{target.vpath}: {why}")
        for line in candidates(sight):
            display.say(f"  can be gone back to: {line}")
        return EXIT_REJECTED
    display.say(f"Now at {target.vpath}: {described(current)}")
    display.say(f"Going back to: {next(line for line in candidates(sight) if line.startswith(image.hex()))}")
    if not await agreed("Go back?", options.sure, around):
        display.say("nothing was changed")
        return EXIT_LOCAL
    identities = await identities_of(options.keys, around, display)
    timestamp_ms = max(around.now_ms(), current.version.timestamp_ms + 1)
    path = str(target.vpath)
    signatures = tuple(signature for _, signature in await identities.sign_all(signed_bytes(path, image, timestamp_ms)))
    request = ReplaceDir(path, image, current.image, timestamp_ms, signatures)
    upload = Upload(request, weak=False, total_bytes=0)
    return await run_one(target, upload, options.rule, options.print_progress_s, options.common, around, net)


def _list(target: Target, sight: Sight, display: Display) -> int:
    if sight.newest is not None:
        display.say(f"Now at {target.vpath}: {described(sight.newest)}")
    for line in candidates(sight):
        display.result(line)
    return EXIT_DONE
