"""Key files of a server: ``master.key`` and ``keys/NAME.key``, written like OpenSSH's ``authorized_keys`` (protocol section 5.2).

Unlike the reference, every line counts: a bad one is reported and hides nothing (protocol section 12, C34).
"""

from __future__ import annotations

import re

from ciruela.keys.public import PublicKey, looks_public, parse_public, visible
from ciruela.model.errors import BadKey

_HARMLESS = frozenset(
    {"restrict"} | {no + what for no in ("", "no-") for what in ("pty", "agent-forwarding", "port-forwarding", "user-rc", "x11-forwarding")}
)
"""Options that limit only a login; what they forbid does not exist here."""

_EXPIRY = "expiry-time"
_OPTION = re.compile(r'([A-Za-z0-9-]+)(?:="((?:[^"\\]|\\.)*)")?')
_TIME = re.compile(
    r"((?:19|[2-9]\d)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))"  # year, month, day
    r"((?:[01]\d|2[0-3])[0-5]\d)?"  # hour, minute
    r"([0-5]\d)?Z",
    re.ASCII,
)


def parse_authorized(text: str, source: str, now_utc: str) -> tuple[list[PublicKey], list[str]]:
    """The keys of a key file that are valid now, and a line ``source:LINE: reason`` for each line that gave none.

    ``now_utc`` is the present time as ``YYYYMMDDHHMMSS``, so that times of expiry compare as text.
    Options are honored (``expiry-time``) or harmless here (those that limit a login); a line with any other option is refused, because
    whoever wrote it wanted less than everything.
    """
    keys: list[PublicKey] = []
    problems: list[str] = []
    inside_private = False
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = raw.strip()
        if inside_private:
            inside_private = not line.startswith("-----END")
            continue
        if not line or line.startswith("#"):
            continue
        try:
            if line.startswith("-----BEGIN"):
                inside_private = "PRIVATE" in line
                raise BadKey("this is not a public key (put the line of the .pub file here, and keep private keys off servers)")
            keys.append(_key(line, now_utc))
        except BadKey as error:
            problems.append(f"{source}:{number}: {error}")
    return keys, problems


def _key(line: str, now_utc: str) -> PublicKey:
    line = line.replace("\t", " ")
    if looks_public(line.partition(" ")[0]):
        return parse_public(line)
    options, rest = _options(line)
    for name, value in options:
        if name == _EXPIRY:
            _check_expiry(value, now_utc)
        elif name not in _HARMLESS:  # guard: A16 F8
            raise BadKey(f"the option {name[:40]} is not supported for uploads (remove it, or the line)")
        elif value is not None:
            raise BadKey(f"the option {name[:40]} takes no value")
    return parse_public(rest)


def _options(line: str) -> tuple[list[tuple[str, str | None]], str]:
    """The options before the key type, names in lower case, and the rest of the line."""
    options: list[tuple[str, str | None]] = []
    position = 0
    while True:
        option = _OPTION.match(line, position)
        if option is None:
            break
        options.append((option[1].lower(), option[2]))
        position = option.end()
        if line[position : position + 1] == " ":
            return options, line[position:].lstrip()
        if line[position : position + 1] != ",":
            break
        position += 1
    first = visible(line.partition(" ")[0])[:40]
    raise BadKey(f'"{first}" is neither a key type nor a list of options (a line is "ssh-ed25519 BASE64 COMMENT")')


def _check_expiry(value: str | None, now_utc: str) -> None:
    parts = _TIME.fullmatch(value or "")
    if parts is None or (parts[3] and not parts[2]):
        raise BadKey(f'{_EXPIRY}="{visible(value or "")[:40]}" is not a time in UTC (write YYYYMMDDZ, YYYYMMDDHHMMZ or YYYYMMDDHHMMSSZ)')
    if now_utc >= parts[1] + (parts[2] or "0000") + (parts[3] or "00"):  # guard: A16 F8
        raise BadKey(f"the key expired at {parts[0]}")
