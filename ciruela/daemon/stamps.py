"""Times as the pages show them."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(stamp_ms: int) -> str:
    """A time as the reference writes it: 9 fractional digits unless it is a whole second."""
    seconds, rest_ms = divmod(stamp_ms, 1000)
    try:
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{stamp_ms} ms"
    return f"{text}.{rest_ms:03d}000000Z" if rest_ms else f"{text}Z"
