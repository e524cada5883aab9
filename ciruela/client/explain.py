"""``ciruela explain-cleanup``: what each node's page says of the images of a base dir, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ciruela.client.book import EXIT_DONE, EXIT_NETWORK, EXIT_REJECTED
from ciruela.client.ls import tell_missing
from ciruela.client.options.explaining import ExplainOptions
from ciruela.client.pages import NoPage, Pages
from ciruela.client.progress import Display
from ciruela.client.surroundings import Surroundings, make_display
from ciruela.client.survey import Seen, each, real_survey
from ciruela.client.text import clean
from ciruela.model.errors import CiruelaError, RemoteError
from ciruela.model.vpath import VPath

PAGE_S = 60.0
"""A node that has to look for a keep list on a network file system takes its time."""

IMAGE_DIGITS = 12

Page = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One image, as some nodes see it. ``not_before`` is the earliest of theirs."""

    name: str
    image: str
    signed: str
    keeps: bool
    why: str
    not_before: str
    nodes: tuple[str, ...]


def lines(pages: Mapping[str, Page]) -> list[Line]:
    """All images, the newest first; those of which nodes say different things have a line for each."""
    found: dict[tuple[str, str, str, bool, str], list[tuple[str, str]]] = {}
    for node, page in pages.items():
        for one in page["images"]:
            row = (str(one["signed"]), str(one["name"]), str(one["image_id"]), bool(one["keeps"]), str(one["why"]))
            found.setdefault(row, []).append((node, str(one["not_before"] or "")))
    ordered = sorted(found.items(), key=lambda item: item[0][:3], reverse=True)
    return [
        Line(name, image, signed, keeps, why, min(when for _, when in said), tuple(node for node, _ in said))
        for (signed, name, image, keeps, why), said in ordered
    ]


def table(pages: Mapping[str, Page]) -> list[str]:
    """The lines for people, in columns. Nodes are named where not all say the same."""
    rows = [("NAME", "IMAGE", "SIGNED", "", "RULE", "NOT BEFORE", "")]
    for one in lines(pages):
        some = "" if len(one.nodes) == len(pages) else "on " + ", ".join(clean(node, 80) for node in one.nodes)
        keeps = "keeps" if one.keeps else "drops"
        cells = (clean(one.name), clean(one.image[:IMAGE_DIGITS]), _short(one.signed), keeps, clean(one.why), _short(one.not_before), some)
        rows.append(cells)
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _short(text: str) -> str:
    """A time without its fraction of a second."""
    return clean(f"{text.partition('.')[0]}Z" if "." in text else text, 40)


def checked(value: object) -> Page:
    """A page that has the form it should have. Raises RemoteError: it came from the network."""
    if isinstance(value, dict) and isinstance(value.get("images"), list) and isinstance(value.get("blocked"), list):
        names = {"name", "image_id", "signed", "keeps", "why", "not_before"}
        if all(isinstance(one, dict) and names <= one.keys() for one in value["images"]):
            return value
    raise RemoteError("the page has another form than this program knows")


async def explain(options: ExplainOptions, around: Surroundings) -> int:
    """``ciruela explain-cleanup``. Gives the exit code; raises Ends when no node answers."""
    display = make_display(options.common, around, None)
    base = options.base
    found = await real_survey(options.common, around).find(options.cluster)
    tell_missing(found, display)
    pages, failed = await _pages(found.answering, base, around, display)
    if options.json:
        around.stdout.write(json.dumps({"nodes": pages}, ensure_ascii=True, indent=1) + "\n")
    elif pages:
        for text in (*_heads(base, pages), *table(pages)):
            display.result(text)
    if failed or found.names or len(found.answering) < len(found.nodes):
        return EXIT_NETWORK
    if not pages:
        display.problem("", f"no node has a directory {base} with images in it (with num-levels 2 name /KEY/dir, with 1 /KEY)")
        return EXIT_REJECTED
    return EXIT_DONE


def _heads(base: VPath, pages: Mapping[str, Page]) -> list[str]:
    """What concerns whole nodes, before the table."""
    found = [f"{base} on {', '.join(clean(node, 80) for node in pages)}"]
    for node, page in pages.items():
        if not page.get("auto_clean"):
            found.append(f"{clean(node, 80)}: auto-clean is off, nothing is removed")
        elif page["blocked"]:
            found.append(f"{clean(node, 80)}: nothing is removed at present: {', '.join(clean(str(word), 40) for word in page['blocked'])}")
    settings = {json.dumps(page.get("settings"), sort_keys=True) for page in pages.values()}
    if len(settings) > 1:
        found.append("the nodes have different settings; they should be the same")
    return found


async def _pages(nodes: Sequence[Seen], base: VPath, around: Surroundings, display: Display) -> tuple[dict[str, Page], bool]:
    """The pages of all nodes that have such a directory, by node; and whether one did not answer."""
    reader = Pages(around.reactor, around.in_thread)
    path = f"/api/v1/retention{quote(str(base), safe='/')}"
    failed: list[str] = []

    async def ask(node: Seen) -> Page | None:
        try:
            return checked(await reader.get(node.address, path, PAGE_S))
        except NoPage:
            return None
        except CiruelaError as error:
            failed.append(node.name)
            display.problem(node.name, str(error))
            return None

    found = await each(nodes, ask)
    return {node.name: page for node, page in zip(nodes, found, strict=True) if page is not None}, bool(failed)
