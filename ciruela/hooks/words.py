"""What a hook is told, what its end means, and when it is tried again: pure functions."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from ciruela.model.dirconfig import DirConfig
from ciruela.model.hooks import AFTER, CommandHook, Due, HookKind, Webhook
from ciruela.model.ids import MachineId
from ciruela.model.printable import logged
from ciruela.model.units import format_duration
from ciruela.seams import Ended

LONGEST_PAUSE_MS = 3_600_000
"""Longest pause between two tries: an hour, so that what was down over night runs soon after. Our own choice."""

_MOST_DOUBLINGS = 32
"""Beyond it any pause is the longest one."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where a hook finds programs, whatever the daemon was started with."""

OK_CODES = range(200, 300)
"""Status codes of HTTP that mean that a call was heard."""


def hook_of(config: DirConfig, kind: HookKind) -> CommandHook | Webhook | None:
    """The hook of a kind that ``config`` names."""
    match kind:
        case HookKind.CHECK:
            return config.check_before_commit
        case HookKind.COMMAND:
            return config.on_commit
        case HookKind.WEBHOOK:
            return config.webhook


def kinds_after(config: DirConfig) -> tuple[HookKind, ...]:
    """The hooks that ``config`` wants to run when an image is visible, in order."""
    return tuple(kind for kind in AFTER if hook_of(config, kind) is not None)


def rfc3339(stamp_ms: int) -> str:
    """A time in UTC with milliseconds, ``2026-11-22T07:30:01.123Z``; of one that no calendar has, the milliseconds."""
    seconds, rest_ms = divmod(stamp_ms, 1000)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ms:03d}Z"
    except (OverflowError, ValueError, OSError):
        return f"{stamp_ms} ms"


def environment(due: Due, kind: HookKind, directory: str) -> dict[str, str]:
    """All that a command finds in its environment; nothing comes from the daemon's own."""
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "HOME": "/",
        "CIRUELA_HOOK": kind.value,
        "CIRUELA_PATH": str(due.vpath),
        "CIRUELA_IMAGE_ID": due.image.hex(),
        "CIRUELA_OLD_IMAGE_ID": "" if due.old_image is None else due.old_image.hex(),
        "CIRUELA_DIRECTORY": directory,
        "CIRUELA_SIGNED_AT": rfc3339(due.signed_ms),
        "CIRUELA_SIGNED_AT_MS": str(due.signed_ms),
        "CIRUELA_KEY": due.key,
    }


def body(due: Due, directory: str, machine: MachineId, hostname: str) -> bytes:
    """What a web address is sent."""
    fields = {
        "event": "committed",
        "path": str(due.vpath),
        "image_id": due.image.hex(),
        "old_image_id": None if due.old_image is None else due.old_image.hex(),
        "directory": directory,
        "signed_at": rfc3339(due.signed_ms),
        "signed_at_ms": due.signed_ms,
        "key": due.key,
        "machine_id": machine.hex(),
        "hostname": hostname,
    }
    return json.dumps(fields, sort_keys=True).encode("utf-8")


def why_failed(ended: Ended, timeout_ms: int) -> str:
    """Why a command that has ended did not go well; empty when it did. What it wrote is made harmless."""
    if ended.late:
        what = f"took longer than {format_duration(timeout_ms)}"
    elif ended.signal is not None:
        what = f"was killed by signal {ended.signal}"
    elif ended.code != 0:
        what = f"exited with {ended.code}"
    else:
        return ""
    return logged(f"{what}: {ended.line}" if ended.line else what)


def why_refused(code: int) -> str:
    """Why a call with this status code did not go well; empty when it did."""
    return "" if code in OK_CODES else f"was answered with {code}"


def pause_s(hook: CommandHook | Webhook, tries: int) -> float | None:
    """Seconds until a hook that has failed ``tries`` times is tried again: each time twice as long. None: not at all."""
    if tries > hook.retries:
        return None
    return float(min(hook.backoff_ms << min(tries - 1, _MOST_DOUBLINGS), LONGEST_PAUSE_MS)) / 1000
