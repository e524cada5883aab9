"""``ciruela explain-cleanup``: what each node's page says of the images of a base dir, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ciruela.client.contacts import each
from ciruela.client.context import AppContext, make_display
from ciruela.client.ls import tell_missing
from ciruela.client.options.reading import ExplainOptions
from ciruela.client.progress import Display
from ciruela.client.survey import NoPage, Survey, SurveyedNode, real_survey
from ciruela.client.text import clean
from ciruela.client.tracker import EXIT_DONE, EXIT_NETWORK, EXIT_REJECTED
from ciruela.model.errors import CiruelaError, RemoteError
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath

PAGE_S = 60.0
"""A node that has to look for a keep list on a network file system takes its time."""

IMAGE_DIGITS = 12

_CAUSES = {
    "starting": "the daemon has run for less than ten minutes, or was suspended; it looks around first",
    "peers": "not more than half of the other nodes were heard",
    "clock": "its clock was set, or is not what was recorded or what the other nodes have",
    "config": "its configuration has a mistake, or a change that does not count yet: reload or restart it",
    "directory": "the directory cannot be opened, or is another one than at the start: is the disk mounted?",
    "keep_list": "the keep list cannot be read, or is in doubt",
    "protect": "a protected link leads nowhere, or cannot be followed in time",
}
"""Meanings, for people, of the words by which a node says why it removes nothing."""

_OF_THE_START = frozenset({"peers"})
"""Causes that every node has while it is starting, because there was no time yet: they are at fault only afterwards."""

_RULES = {
    "few": "there are no more images than that here, so none goes: keep-min-directories is {keep_min_directories}",
    "recent": "its newest signature is younger than that: keep-recent is {keep_recent}",
    "protected": "one of the symbolic links under protect leads to it or above it",
    "listed": "the file keep-list-file names it",
    "minimum": "it fills up the number of those that stay in any case: keep-min-directories is {keep_min_directories}",
    "newest": "the newest image always stays",
    "in_use": "another node fetches from it, or it is being mended; it goes when that is over",
    "old": "no rule keeps it, and its newest signature is older than that: keep-recent is {keep_recent}",
    "surplus": "as many newer ones are recent already: keep-max-directories is {keep_max_directories}",
    "not_cleaned": "nothing is ever removed here",
}
"""Meanings of the rules, with the settings that they go by."""

Page = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RetentionLine:
    """One image, as some nodes see it. ``not_before`` is the earliest of theirs."""

    name: str
    image: str
    signed: str
    keeps: bool
    why: str
    not_before: str
    nodes: tuple[str, ...]


def lines(pages: Mapping[str, Page]) -> list[RetentionLine]:
    """All images, the newest first; those of which nodes say different things have a line for each."""
    found: dict[tuple[str, str, str, bool, str], list[tuple[str, str]]] = {}
    for node, page in pages.items():
        for one in page["images"]:
            row = (str(one["signed"]), str(one["name"]), str(one["image_id"]), bool(one["keeps"]), str(one["why"]))
            found.setdefault(row, []).append((node, str(one["not_before"] or "")))
    ordered = sorted(found.items(), key=lambda item: item[0][:3], reverse=True)
    return [
        RetentionLine(name, image, signed, keeps, why, min(when for _, when in said), tuple(node for node, _ in said))
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


def legend(pages: Mapping[str, Page]) -> list[str]:
    """Explains each rule that stands in the table, a line each."""
    found: dict[str, tuple[str, str]] = {}
    for page in pages.values():
        for one in page["images"]:
            rule = str(one.get("rule"))
            if rule in _RULES:
                found.setdefault(rule, (clean(str(one["why"])), _RULES[rule]))
    values = {name: _values(pages, name) for name in ("keep_min_directories", "keep_max_directories")}
    values["keep_recent"] = _values(pages, "keep_recent_s")
    return [f"{why}: {meaning.format(**values)}" for why, meaning in found.values()]


def _values(pages: Mapping[str, Page], name: str) -> str:
    """A setting as the nodes have it: all their values where they differ."""
    found = {}
    for page in pages.values():
        settings = page.get("settings")
        value = settings.get(name) if isinstance(settings, dict) else None
        if isinstance(value, int):
            found[value] = _duration(value) if name.endswith("_s") else f"{value:,}"
    return " or ".join(found[value] for value in sorted(found)) or "?"


def _duration(seconds: int) -> str:
    """Seconds as a configuration has them: ``2days 1h``."""
    parts = []
    for size_s, unit in ((86_400, "day"), (3600, "h"), (60, "min"), (1, "s")):
        number, seconds = divmod(seconds, size_s)
        if number:
            parts.append(f"{number:,} {unit}{'s' if unit == 'day' and number != 1 else ''}")
    return " ".join(parts) or "0 s"


def at_fault(blocked: Sequence[object]) -> list[str]:
    """The words of ``blocked`` that are really why nothing is removed, each with what it means."""
    words = [str(word) for word in blocked]
    if "starting" in words:
        words = [word for word in words if word not in _OF_THE_START]
    return [f"{clean(word, 40)} ({_CAUSES[word]})" if word in _CAUSES else clean(word, 40) for word in words]


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


async def explain(options: ExplainOptions, around: AppContext) -> int:
    """``ciruela explain-cleanup``. Gives the exit code; raises Ends when no node answers."""
    display = make_display(options.common, around, None)
    base = options.base
    survey = real_survey(options.common, around)
    found = await survey.find(options.cluster)
    tell_missing(found, display)
    pages, failed = await _pages(survey, found.answering, base, display)
    if options.json:
        around.stdout.write(json.dumps({"nodes": pages}, ensure_ascii=True, indent=1) + "\n")
    elif pages:
        for text in (*_heads(base, pages), *table(pages), *legend(pages)):
            display.result(text)
    if failed or found.names or len(found.answering) < len(found.nodes):
        return EXIT_NETWORK
    if not pages:
        display.problem("", f"no node has a directory {base} with images in it (with num-levels 2 name /KEY/dir, with 1 /KEY)")
        return EXIT_REJECTED
    return EXIT_DONE


def _heads(base: VPath, pages: Mapping[str, Page]) -> list[str]:
    """Builds the lines before the table: what concerns whole nodes."""
    found = [f"{base} on {', '.join(clean(node, 80) for node in pages)}"]
    for node, page in pages.items():
        if not page.get("auto_clean"):
            found.append(f"{clean(node, 80)}: auto-clean is off, nothing is removed")
        elif page["blocked"]:
            found.append(f"{clean(node, 80)}: nothing is removed at present: {'; '.join(at_fault(page['blocked']))}")
    settings = {json.dumps(page.get("settings"), sort_keys=True) for page in pages.values()}
    if len(settings) > 1:
        found.append("the nodes have different settings; they should be the same")
    return found


async def _pages(survey: Survey, nodes: Sequence[SurveyedNode], base: VPath, display: Display) -> tuple[dict[str, Page], bool]:
    """The pages of all nodes that have such a directory, by node; and whether one did not answer."""
    path = f"/api/v1/retention{quote(str(base), safe='/')}"
    failed: list[str] = []

    async def ask(node: SurveyedNode) -> Page | None:
        try:
            return checked(await survey.page(node, path, PAGE_S))
        except NoPage:
            return None
        except CiruelaError as error:
            failed.append(node.name)
            display.problem(node.name, str(error))
            return None

    found = await each(nodes, ask)
    return {node.name: page for node, page in zip(nodes, found, strict=True) if page is not None}, bool(failed)
