"""Which keys the user has, by their public halves alone: nothing is signed and no passphrase is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ciruela.client.identities import AGENT_VARIABLE, DEFAULT_FILES, DEFAULT_VARIABLE, read_key_file
from ciruela.client.surroundings import Surroundings
from ciruela.keys.private import PassphraseNeeded, parse_private
from ciruela.keys.public import PublicKey, looks_public, parse_public
from ciruela.model.errors import BadKey
from ciruela.net.agent import AgentFailed, agent_keys

Note = Callable[[str, str], None]


async def my_keys(files: Sequence[str], variables: Sequence[str], around: Surroundings, note: Note) -> list[str]:
    """The fingerprints of the named keys, or of those in the usual places when none is named.

    Raises BadKey for a named key that cannot be read; ``note`` is told of others.
    """
    return [key.fingerprint() for key in await my_public_keys(files, variables, around, note)]


async def my_public_keys(files: Sequence[str], variables: Sequence[str], around: Surroundings, note: Note) -> list[PublicKey]:
    """As :func:`my_keys`, the keys themselves."""
    found: dict[PublicKey, None] = {}
    for file in files:
        try:
            found[await around.in_thread(_in_file, file)] = None
        except OSError as error:
            raise BadKey(f"{file}: it cannot be read: {error.strerror or error}") from None
        except BadKey as error:
            raise BadKey(f"{file}: {error}") from None
    for variable in variables:
        try:
            found[await around.in_thread(_public, around.environ.get(variable, ""))] = None
        except BadKey as error:
            raise BadKey(f"${variable}: {error}") from None
    return list(found) if files or variables else await _usual(around, note)


async def _usual(around: Surroundings, note: Note) -> list[PublicKey]:
    found: dict[PublicKey, None] = {}
    home, environ = around.environ.get("HOME"), around.environ
    if environ.get(DEFAULT_VARIABLE):
        try:
            found[await around.in_thread(_public, environ[DEFAULT_VARIABLE])] = None
        except BadKey as error:
            note(f"${DEFAULT_VARIABLE}", str(error))
    for file in (f"{home}/{name}" for name in DEFAULT_FILES if home):
        try:
            found[await around.in_thread(_in_file, file)] = None
        except FileNotFoundError:
            continue
        except (OSError, BadKey) as error:
            note(file, str(error))
    if environ.get(AGENT_VARIABLE):
        try:
            held = await agent_keys(around.reactor, environ[AGENT_VARIABLE])
            found.update((key.public, None) for key in held.keys)
        except AgentFailed as error:
            note("ssh-agent", str(error))
    return list(found)


def _in_file(path: str) -> PublicKey:
    """In a thread. Raises OSError, BadKey."""
    return _public(read_key_file(path).decode("utf-8", "replace"))


def _public(text: str) -> PublicKey:
    """In a thread. Raises BadKey."""
    if looks_public(text.strip().partition(" ")[0]):
        return parse_public(text)
    try:
        return parse_private(text, None).public
    except PassphraseNeeded as needed:
        return needed.public
