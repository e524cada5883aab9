"""Hooks of the operator, run when an image comes to a directory of his: commands, and calls of a web address."""

from __future__ import annotations

from enum import Enum

from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath


class HookKind(Enum):
    """The hooks, by their names in a config and on the wire."""

    CHECK = "check-before-commit"
    COMMAND = "on-commit"
    WEBHOOK = "webhook"


AFTER = (HookKind.COMMAND, HookKind.WEBHOOK)
"""The hooks that run when an image is visible, in this order."""


class HookState(Enum):
    """State of a hook: due or running, run well, or failed for good."""

    PENDING = "pending"
    OK = "ok"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class CommandHook:
    """A program with its arguments, never a line for a shell. ``retries`` is how often it is run again after a failure."""

    command: tuple[str, ...]
    timeout_ms: int = 30_000
    retries: int = 0
    backoff_ms: int = 0


@dataclass(frozen=True, slots=True)
class Webhook:
    """A web address that is told in JSON. It may hold a secret: it is never shown to others than the operator."""

    url: str
    timeout_ms: int = 10_000
    retries: int = 3
    backoff_ms: int = 3_000


@dataclass(frozen=True, slots=True)
class Due:
    """Hooks that are still to run for an image that is committed, or about to be. Recorded on the disk until all have run well.

    ``signed_ms`` is the time of the newest signature, ``key`` the fingerprint of who made it (empty when his key is not there any more).
    """

    vpath: VPath
    image: ImageId
    old_image: ImageId | None
    signed_ms: int
    key: str
    kinds: tuple[HookKind, ...]


@dataclass(frozen=True, slots=True)
class HookReport:
    """State of one hook of one image. ``message`` is the reason of a failure, in few words; ``tries`` counts, ``at_ms`` is wall time."""

    image: ImageId
    kind: HookKind
    state: HookState
    message: str = ""
    tries: int = 0
    at_ms: int = 0
