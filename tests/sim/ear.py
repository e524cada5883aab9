"""Listens to everything that is logged during a run: what is an error and not expected is a violation of I8."""

from __future__ import annotations

from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

EXPECTED = (
    "{file} is bad ({reason}), it is kept as {backup}",
    "machine id {machine} is used by two nodes, at {address} and {other}: give each its own (--override-machine-id)",
    "what was removed from {base} elsewhere stays here: {why}",
    "what was removed from {vpath} elsewhere stays here, it is tried again: {why}",
    "{image} for {vpath} given up: {reason} {detail}",
    "conflict at append-only {vpath}: image {image}, which was appended first, takes its place",
    "conflict at append-only {vpath}: another node has {image}, here {kept} stays (on-append-conflict: freeze)",
    "{request} of {link}: {reason}",
    "{vpath} cannot be taken over: {reason}",
    "{vpath}: a block of {image} is missing or wrong, it is looked through",
    "{vpath} is damaged, it is mended from other nodes: {count} damages, {sample}",
    "{vpath} could not be mended, what is left of it stays: {reason}",
    "{vpath}: recording failed, the old content is put back",
    "{vpath}: {error}; it is left as it is until the next start",
    "debris cannot be looked for in {base}: {error}",
    "debris {name} cannot be removed now, it is tried again each hour: {error}",
    "{name} cannot be removed: {error}",
    "the old content of {vpath} cannot be removed now{then}: {error}",
    "{place}: something stood there of which nothing is recorded; it is kept as {aside}: look through it, then delete it",
    "{address} has {image} at {vpath}, signed by no key that is configured here: compare the keys of the nodes",
)
"""What is told to the operator as an error, and is one: of the world, not of the program."""


class Ear:
    """Collects errors. ``expected`` counts those that are in order, by their text."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []
        self.expected: dict[str, int] = {}

    def open(self) -> None:
        """Begin to listen."""
        globalLogPublisher.addObserver(self._heard)

    def close(self) -> None:
        """Stop listening."""
        globalLogPublisher.removeObserver(self._heard)

    def _heard(self, event: LogEvent) -> None:
        level = event.get("log_level")
        if level is None or level < LogLevel.error:
            return
        text = event.get("log_format") or ""
        if text in EXPECTED and "log_failure" not in event:
            self.expected[text] = self.expected.get(text, 0) + 1
            return
        failure = event.get("log_failure")
        where = "" if failure is None else f" [{failure.type.__name__}: {failure.getErrorMessage()}]\n{failure.getTraceback()[-1500:]}"
        self.unexpected.append(f"{formatEvent(event)}{where}")
