"""``ciruela ls``: the directories of a cluster, or the images in one, put together from what every node says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from ciruela.client.contacts import each
from ciruela.client.context import AppContext, make_display
from ciruela.client.crawl import MOST_ANSWERS
from ciruela.client.errors import CommandError, columns, write_json, write_line
from ciruela.client.options.reading import LsOptions
from ciruela.client.options.signing import Keys
from ciruela.client.origin import NodeRequests, real_reach
from ciruela.client.progress import Display, names
from ciruela.client.schema import Dir, ImageVersion
from ciruela.client.survey import ClusterView, Survey, SurveyedNode, real_survey
from ciruela.client.text import count, stamp
from ciruela.client.tracker import EXIT_DONE, EXIT_NETWORK, EXIT_REJECTED
from ciruela.client.trust import Proof, fingerprint_of, my_trust, shown, signed_state
from ciruela.model.errors import CiruelaError
from ciruela.model.ids import parse_image_id
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BaseDirData, GetBaseDir

SHORT_ID = 12
SHORT_KEY = 20
"""Characters of an id and of a fingerprint where a line should fit on a terminal."""

MOST_NAMES = 20


@dataclass(slots=True)
class ListedImage:
    """One image at one path, by all nodes. ``signers`` are what they say, ``proof`` is what a trusted key signed."""

    path: str
    image: str
    signed_ms: int = 0
    signers: dict[str, None] = field(default_factory=dict)
    on: list[str] = field(default_factory=list)
    coming: list[str] = field(default_factory=list)
    proof: Proof | None = None


def merged(said: Iterable[tuple[str, Sequence[ImageVersion]]]) -> list[ListedImage]:
    """Merges what the nodes (name, images) say, by path; of two images at one path the one signed later comes first."""
    found: dict[tuple[str, str], ListedImage] = {}
    for node, versions in said:
        for version in versions:
            one = found.setdefault((version.path, version.image), ListedImage(version.path, version.image))
            one.signed_ms = max(one.signed_ms, version.signed_ms)
            one.signers.update(dict.fromkeys(version.signers))
            (one.on if version.committed else one.coming).append(node)
    return sorted(found.values(), key=lambda one: (one.path.split("/"), -one.signed_ms, one.image))


async def ls(options: LsOptions, around: AppContext, survey: Survey | None = None, nodes: NodeRequests | None = None) -> int:
    """``ciruela ls``. Gives the exit code; raises Ends."""
    asking = survey or real_survey(options.common, around)
    asked = nodes or real_reach(options.common, around).nodes
    display = make_display(options.common, around, None)
    display.show(lambda: f"Asking the nodes of {options.target.cluster.label}")
    try:
        found = await asking.find(options.target.cluster)
        tell_missing(found, display)
        if options.target.vpath is None:
            return await _dirs(options, asking, found, around, display)
        return await _versions(options, options.target.vpath, asking, asked, found, around, display)
    finally:
        display.hide()
        await asked.stop()


def tell_missing(found: ClusterView, display: Display) -> None:
    """Reports what did not answer: the list may be shorter than the truth."""
    for name, problem in found.names.items():
        display.problem(name, problem)
    for node in found.nodes:
        if node.identity is None and node.problem not in found.names.values():
            display.problem(node.name, node.problem)


# -- directories --------------------------------------------------------------------------------------------------------------


async def _dirs(options: LsOptions, asking: Survey, found: ClusterView, around: AppContext, display: Display) -> int:
    async def ask(node: SurveyedNode) -> tuple[SurveyedNode, tuple[Dir, ...]] | None:
        try:
            return node, await asking.dirs(node)
        except CiruelaError as error:
            display.problem(node.name, str(error))
            return None

    told = await each(found.answering, ask)
    said = [one for one in told if one is not None]
    display.hide()
    if not said:
        raise CommandError(EXIT_NETWORK, f"no node of {options.target.cluster.label} says which directories it has")
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


async def _versions(
    options: LsOptions, path: VPath, asking: Survey, nodes: NodeRequests, found: ClusterView, around: AppContext, display: Display
) -> int:
    base = path
    listing = await _listed(asking, base, found, display)
    rows = merged(listing.said)
    if not listing.taking and not listing.failed and path.level:  # an image itself
        base = path.base
        listing = await _listed(asking, base, found, display)
        rows = [row for row in merged(listing.said) if row.path == str(path)]
        if listing.taking and not listing.failed and not rows:
            raise CommandError(EXIT_REJECTED, f"there is neither a directory nor an image {path} in {options.target.cluster.label}")
    bases, taking = listing.bases, listing.taking
    if listing.failed and not rows and not bases:  # guard: K3.6
        raise CommandError(EXIT_NETWORK, f"what is in {path} is not known: {names(listing.failed, MOST_NAMES)} did not say")
    if not taking:
        raise CommandError(
            EXIT_REJECTED, f"no node of {options.target.cluster.label} has a directory {path}: {await _what_there_is(asking, found)}"
        )
    await _prove(rows, base, [node for node in found.answering if node.name in taking], nodes, options, around, display)
    display.hide()
    unreached = [node.name for node in found.nodes if node.identity is None and (node.dirs is None or path.key in node.dirs)]
    everywhere = [*taking, *listing.failed, *unreached]
    if options.json:
        for below, images in bases.items():
            write_json(around.stdout, {"type": "base_dir", "path": below, "images": images})
        for row in rows:
            write_json(around.stdout, _as_json(row, everywhere))
        write_json(around.stdout, _summary(found, len(rows)))
        return EXIT_DONE
    for below, images in bases.items():
        write_line(around.stdout, f"{below}/  {count(images, 'image')}")
    if rows:
        for line in columns(
            [("PATH", "IMAGE", "SIGNED", "BY", "NODES", ""), *(_row(row, everywhere, options.common.verbosity) for row in rows)]
        ):
            write_line(around.stdout, line)
    elif not bases:
        display.say(f"{path} is empty on all nodes that answered")
    return EXIT_DONE


@dataclass(frozen=True, slots=True)
class _Listing:
    """Listing of one base dir: the nodes that have it, the base dirs below it, and what is in it; ``failed`` are nodes that do not say."""

    taking: tuple[str, ...]
    bases: Mapping[str, int]
    said: tuple[tuple[str, Sequence[ImageVersion]], ...]
    failed: tuple[str, ...]


async def _listed(asking: Survey, base: VPath, found: ClusterView, display: Display) -> _Listing:
    failed: list[str] = []

    async def ask(node: SurveyedNode) -> tuple[SurveyedNode, tuple[tuple[ImageVersion, ...], tuple[tuple[str, int], ...]] | None]:
        try:
            return node, await asking.versions(node, base)
        except CiruelaError as error:
            display.problem(node.name, str(error))
            failed.append(node.name)
            return node, None

    answers = await each(found.answering, ask)
    having = [(node.name, one) for node, one in answers if one is not None]
    bases: dict[str, int] = {}
    for _, (_, below) in having:
        for path, images in below:
            bases[path] = max(images, bases.get(path, 0))
    said = tuple((name, versions) for name, (versions, _) in having)
    return _Listing(tuple(name for name, _ in having), dict(sorted(bases.items())), said, tuple(failed))


async def _prove(
    rows: Sequence[ListedImage],
    base: VPath,
    having: Sequence[SurveyedNode],
    nodes: NodeRequests,
    options: LsOptions,
    around: AppContext,
    display: Display,
) -> None:
    """Look for a signature of a trusted key on each image; nodes are asked for what they would show each other."""
    trust = await my_trust(options.trusting, Keys(), around, display)
    if not trust.keys or not rows:
        return

    async def ask(node: SurveyedNode) -> BaseDirData | None:
        try:
            answer = await nodes.ask(node.address, GetBaseDir(str(base)))
        except CiruelaError as error:
            display.problem(node.name, str(error))
            return None
        return answer if isinstance(answer, BaseDirData) else None

    answers = [one for one in await each(having[:MOST_ANSWERS], ask) if one is not None]

    def look() -> None:
        for row in rows:
            try:
                vpath = VPath.parse(row.path)
            except ValueError:
                continue  # it came from the network, and nobody can have signed it
            row.proof = trust.proof(vpath, signed_state(answers, vpath.entry, parse_image_id(row.image)))

    await around.in_thread(look)


async def _what_there_is(asking: Survey, found: ClusterView) -> str:
    keys: set[str] = set()
    silent: list[str] = []
    for node in found.answering:
        try:
            keys.update(f"/{one.key}" for one in await asking.dirs(node))
        except CiruelaError:
            silent.append(node.name)
    untold = f"; {names(silent, MOST_NAMES)} did not say" if silent else ""
    return (f"there are {names(sorted(keys), MOST_NAMES)}" if keys else "there is none on those that say") + untold


def _row(row: ListedImage, everywhere: Sequence[str], verbosity: int) -> tuple[str, ...]:
    long = verbosity > 1
    signers = list(row.signers) or ["?"]
    key = signers[0] if long else signers[0][:SHORT_KEY]
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
        key if len(signers) == 1 else f"{key} and {len(signers) - 1} more",
        where,
        shown(row.proof)[: None if long else len("verified by ") + SHORT_KEY],
    )


def _when(stamp_ms: int) -> str:
    try:
        return stamp(stamp_ms) if stamp_ms else "?"
    except (OverflowError, ValueError, OSError):
        return "?"


def _as_json(row: ListedImage, everywhere: Sequence[str]) -> dict[str, object]:
    return {
        "type": "image",
        "path": row.path,
        "image": row.image,
        "signed_ms": row.signed_ms,
        "signers": list(row.signers),
        "verified_by": fingerprint_of(row.proof),
        "nodes": row.on,
        "downloading": row.coming,
        "lacking": [name for name in everywhere if name not in row.on],
    }


def _summary(found: ClusterView, listed: int) -> dict[str, object]:
    missing = [node.name for node in found.nodes if node.identity is None]
    code = EXIT_DONE if found.answering else EXIT_NETWORK
    return {"type": "summary", "listed": listed, "nodes": len(found.nodes), "unreachable": missing, "exit_code": code}
