"""``ciruela ls``: the directories of a cluster, or the images in one, put together from what every node says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ciruela.client.book import EXIT_DONE, EXIT_NETWORK, EXIT_REJECTED
from ciruela.client.ends import Ends, columns, write_json, write_line
from ciruela.client.options.reading import LsOptions
from ciruela.client.progress import Display, names
from ciruela.client.shapes import Dir, Version
from ciruela.client.surroundings import Surroundings, make_display
from ciruela.client.survey import Found, Seen, Survey, each, real_survey
from ciruela.client.text import count, stamp
from ciruela.model.errors import CiruelaError
from ciruela.model.vpath import VPath

SHORT_ID = 12
SHORT_KEY = 20
"""Characters of an id and of a fingerprint where a line should fit on a terminal."""

MOST_NAMES = 20


@dataclass(slots=True)
class Listed:
    """One image at one path, by all nodes."""

    path: str
    image: str
    signed_ms: int = 0
    signers: dict[str, None] = field(default_factory=dict)
    on: list[str] = field(default_factory=list)
    coming: list[str] = field(default_factory=list)


def merged(said: Iterable[tuple[str, Sequence[Version]]]) -> list[Listed]:
    """What the nodes (name, images) say, by path; of two images at one path the one signed later comes first."""
    found: dict[tuple[str, str], Listed] = {}
    for node, versions in said:
        for version in versions:
            one = found.setdefault((version.path, version.image), Listed(version.path, version.image))
            one.signed_ms = max(one.signed_ms, version.signed_ms)
            one.signers.update(dict.fromkeys(version.signers))
            (one.on if version.committed else one.coming).append(node)
    return sorted(found.values(), key=lambda one: (one.path.split("/"), -one.signed_ms, one.image))


async def ls(options: LsOptions, around: Surroundings, survey: Survey | None = None) -> int:
    """``ciruela ls``. Gives the exit code; raises Ends."""
    asking = survey or real_survey(options.common, around)
    display = make_display(options.common, around, None)
    display.show(lambda: f"Asking the nodes of {options.target.cluster.label}")
    try:
        found = await asking.find(options.target.cluster)
        tell_missing(found, display)
        if options.target.vpath is None:
            return await _dirs(options, asking, found, around, display)
        return await _versions(options, options.target.vpath, asking, found, around, display)
    finally:
        display.hide()


def tell_missing(found: Found, display: Display) -> None:
    """What did not answer: the list may be shorter than the truth."""
    for name, problem in found.names.items():
        display.problem(name, problem)
    for node in found.nodes:
        if node.identity is None and node.problem not in found.names.values():
            display.problem(node.name, node.problem)


# -- directories --------------------------------------------------------------------------------------------------------------


async def _dirs(options: LsOptions, asking: Survey, found: Found, around: Surroundings, display: Display) -> int:
    async def ask(node: Seen) -> tuple[Seen, tuple[Dir, ...]]:
        try:
            return node, await asking.dirs(node)
        except CiruelaError as error:
            display.problem(node.name, str(error))
            return node, ()

    said = await each(found.answering, ask)
    display.hide()
    keys = sorted({one.key for _, dirs in said for one in dirs})
    rows = [("DIRECTORY", "LEVELS", "KIND", "IMAGES", "NODES")]
    for key in keys:
        having = [(node, one) for node, dirs in said for one in dirs if one.key == key]
        levels = sorted({one.num_levels for _, one in having})
        kinds = sorted({"append-only" if one.append_only else "replaceable" for _, one in having})
        counts = [one.images for _, one in having if one.images is not None]
        nodes = [node.name for node, _ in having]
        if options.json:
            value = {"type": "directory", "path": f"/{key}", "levels": levels, "kinds": kinds, "images": max(counts, default=None)}
            write_json(around.stdout, {**value, "nodes": nodes})
        most = str(max(counts)) if counts else "?"
        rows.append((f"/{key}", " or ".join(map(str, levels)), " or ".join(kinds), most, f"{len(nodes)}/{len(found.nodes)}"))
    if options.json:
        write_json(around.stdout, _summary(found, len(keys)))
    elif keys:
        for line in columns(rows):
            write_line(around.stdout, line)
    else:
        display.say("no directory is configured on the nodes that answered")
    return EXIT_DONE


# -- images -------------------------------------------------------------------------------------------------------------------


async def _versions(options: LsOptions, path: VPath, asking: Survey, found: Found, around: Surroundings, display: Display) -> int:
    taking, bases, said = await _listed(asking, path, found, display)
    rows = merged(said)
    if not taking and path.level:  # an image itself
        taking, bases, said = await _listed(asking, path.base, found, display)
        rows = [row for row in merged(said) if row.path == str(path)]
        if taking and not rows:
            raise Ends(EXIT_REJECTED, f"there is neither a directory nor an image {path} in {options.target.cluster.label}")
    if not taking:
        raise Ends(
            EXIT_REJECTED, f"no node of {options.target.cluster.label} has a directory {path}: {await _what_there_is(asking, found)}"
        )
    display.hide()
    unreached = [node.name for node in found.nodes if node.identity is None and (node.dirs is None or path.key in node.dirs)]
    everywhere = [*taking, *unreached]
    if options.json:
        for base, images in bases.items():
            write_json(around.stdout, {"type": "base_dir", "path": base, "images": images})
        for row in rows:
            write_json(around.stdout, _as_json(row, everywhere))
        write_json(around.stdout, _summary(found, len(rows)))
        return EXIT_DONE
    for base, images in bases.items():
        write_line(around.stdout, f"{base}/  {count(images, 'image')}")
    if rows:
        for line in columns(
            [("PATH", "IMAGE", "SIGNED", "BY", "NODES"), *(_row(row, everywhere, options.common.verbosity) for row in rows)]
        ):
            write_line(around.stdout, line)
    elif not bases:
        display.say(f"{path} is empty on all nodes that answered")
    return EXIT_DONE


async def _listed(
    asking: Survey, base: VPath, found: Found, display: Display
) -> tuple[list[str], dict[str, int], list[tuple[str, Sequence[Version]]]]:
    """The nodes that have the directory, the base dirs below it, and what each node has in it."""

    async def ask(node: Seen) -> tuple[Seen, tuple[tuple[Version, ...], tuple[tuple[str, int], ...]] | None]:
        try:
            return node, await asking.versions(node, base)
        except CiruelaError as error:
            display.problem(node.name, str(error))
            return node, ((), ())

    said = await each(found.answering, ask)
    bases: dict[str, int] = {}
    for _, one in said:
        for path, images in one[1] if one else ():
            bases[path] = max(images, bases.get(path, 0))
    return [node.name for node, one in said if one], dict(sorted(bases.items())), [(node.name, one[0]) for node, one in said if one]


async def _what_there_is(asking: Survey, found: Found) -> str:
    keys: set[str] = set()
    for node in found.answering:
        try:
            keys.update(f"/{one.key}" for one in await asking.dirs(node))
        except CiruelaError:
            continue
    return f"there are {names(sorted(keys), MOST_NAMES)}" if keys else "there is none at all"


def _row(row: Listed, everywhere: Sequence[str], verbosity: int) -> tuple[str, ...]:
    long = verbosity > 1
    signers = list(row.signers) or ["?"]
    shown = signers[0] if long else signers[0][:SHORT_KEY]
    where = f"{len(row.on)}/{len(everywhere)}"
    if row.coming:
        where += f", {len(row.coming)} on the way"
    lacking = [name for name in everywhere if name not in row.on]
    if long and lacking:
        where += f", not on {names(lacking, MOST_NAMES)}"
    return (
        row.path,
        row.image if long else row.image[:SHORT_ID],
        _when(row.signed_ms),
        shown if len(signers) == 1 else f"{shown} and {len(signers) - 1} more",
        where,
    )


def _when(stamp_ms: int) -> str:
    try:
        return stamp(stamp_ms) if stamp_ms else "?"
    except (OverflowError, ValueError, OSError):
        return "?"


def _as_json(row: Listed, everywhere: Sequence[str]) -> dict[str, object]:
    return {
        "type": "image",
        "path": row.path,
        "image": row.image,
        "signed_ms": row.signed_ms,
        "signers": list(row.signers),
        "nodes": row.on,
        "downloading": row.coming,
        "lacking": [name for name in everywhere if name not in row.on],
    }


def _summary(found: Found, listed: int) -> dict[str, object]:
    missing = [node.name for node in found.nodes if node.identity is None]
    code = EXIT_DONE if found.answering else EXIT_NETWORK
    return {"type": "summary", "listed": listed, "nodes": len(found.nodes), "unreachable": missing, "exit_code": code}
