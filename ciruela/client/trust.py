"""Keys that a user trusts, and the proof by their signatures: that an image was signed for a path before.

A client signs what a server shows only with such a proof: whoever answers at the entry point would else have it sign an image of his own,
and could upload that with the signature (SECURITY.md, "What your client signs").

The user's own keys are found by their public halves alone: nothing is signed and no passphrase is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from ciruela.client.context import AppContext
from ciruela.client.errors import CommandError
from ciruela.client.identities import AGENT_VARIABLE, DEFAULT_FILES, DEFAULT_VARIABLE, HURRY_S, read_key_file
from ciruela.client.options.signing import Keys, Trusting
from ciruela.client.progress import Display
from ciruela.client.text import count, interval, stamp
from ciruela.client.tracker import EXIT_REJECTED
from ciruela.keys.authorized import parse_authorized
from ciruela.keys.public import PassphraseNeeded, PublicKey, looks_public, parse_private, parse_public, verify
from ciruela.keys.signed import signed_bytes
from ciruela.model.errors import BadKey
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.model.versions import State
from ciruela.model.vpath import VPath
from ciruela.net.agent import LIST_TIMEOUT_S, AgentFailed
from ciruela.net.agentclient import agent_keys
from ciruela.proto.messages import BaseDirData
from ciruela.uploads.decision import FUTURE_LIMIT_MS

Note = Callable[[str, str], None]


async def my_keys(files: Sequence[str], variables: Sequence[str], around: AppContext, note: Note) -> list[str]:
    """The fingerprints of the named keys, or of those in the usual places when none is named.

    Raises BadKey for a named key that cannot be read; ``note`` is told of others.
    """
    return [key.fingerprint() for key in await my_public_keys(files, variables, around, note)]


async def my_public_keys(files: Sequence[str], variables: Sequence[str], around: AppContext, note: Note) -> list[PublicKey]:
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


async def _usual(around: AppContext, note: Note) -> list[PublicKey]:
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
            held = await agent_keys(around.reactor, environ[AGENT_VARIABLE], HURRY_S if found else LIST_TIMEOUT_S)
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


MOST_KEYS = 1000
"""Trusted keys: to try one on a signature takes 55 us."""

PINNED = "ciruela/trusted_keys"
"""The file of pinned keys, in the directory for configuration (XDG base directory specification)."""

UNVERIFIED = "unverified"

Problem = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Proof:
    """That the trusted ``key`` signed an image for a path, at ``timestamp_ms``."""

    key: PublicKey
    timestamp_ms: int

    def __str__(self) -> str:
        return f"verified by {self.key.fingerprint()}"


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """The keys that a user trusts: his own, those that he named, and the pinned ones."""

    keys: tuple[PublicKey, ...] = ()

    def proof(self, vpath: VPath, state: State) -> Proof | None:
        """The newest of the signatures of ``state`` that a trusted key made for this path. In a thread: each try takes 55 us."""
        path = str(vpath)
        for entry in sorted(state.signatures, reverse=True):
            signed = signed_bytes(path, state.image, entry.timestamp_ms)
            for key in self.keys:
                if verify(key, signed, entry.signature):  # guard: S1, -> True
                    return Proof(key, entry.timestamp_ms)
        return None


def shown(proof: Proof | None) -> str:
    """``verified by SHA256:...``, or that it is not."""
    return UNVERIFIED if proof is None else str(proof)


def fingerprint_of(proof: Proof | None) -> str | None:
    """For programs."""
    return None if proof is None else proof.key.fingerprint()


def signed_state(answers: Iterable[BaseDirData], entry: str, image: ImageId) -> State:
    """``image`` with all signatures that nodes show for it at ``entry`` of a base dir, be it there or kept."""
    found = State(image, ())
    for answer in answers:
        there = answer.dirs.get(entry)
        kept = next((state for state in answer.kept_signed.get(entry, ()) if state.image == image), None)
        for state in (there, kept):
            if state is not None and state.image == image:
                found = found.merged(state.signatures)
    return found


# -- whose keys ---------------------------------------------------------------------------------------------------------------


def pinned_file(environ: Mapping[str, str]) -> str | None:
    """Gives the path of the pinned keys; None without a home directory."""
    named = environ.get("XDG_CONFIG_HOME", "")
    if named.startswith("/"):
        return f"{named.rstrip('/')}/{PINNED}"
    home = environ.get("HOME", "")
    return f"{home.rstrip('/')}/.config/{PINNED}" if home.startswith("/") else None


async def trust_of(trusting: Trusting, own: Iterable[PublicKey], around: AppContext, problem: Problem) -> TrustedKeys:
    """The ``own`` keys, those of the named files, and the pinned ones; ``problem`` is told of lines that hold none.

    Raises BadKey for a named file that cannot be read, or has no key.
    """
    found = dict.fromkeys(own)
    now_utc = datetime.fromtimestamp(around.now_ms() / 1000, UTC).strftime("%Y%m%d%H%M%S")

    async def take(file: str) -> int:
        data: bytes = await around.in_thread(read_key_file, file)
        keys, problems = parse_authorized(data.decode("utf-8", "replace"), file, now_utc)
        for text in problems:
            problem("", f"{text}; this key is not trusted")
        found.update(dict.fromkeys(keys))
        return len(keys)

    for file in trusting.files:
        try:
            if not await take(file):
                raise BadKey(f"{file}: there is no key in it that could be trusted")
        except OSError as error:
            raise BadKey(f"{file}: it cannot be read: {error.strerror or error}") from None
    pinned = pinned_file(around.environ)
    if pinned is not None:
        try:
            await take(pinned)
        except (FileNotFoundError, NotADirectoryError):
            pass  # nobody needs to have one
        except OSError as error:
            problem("", f"{pinned}: it cannot be read: {error.strerror or error}; no key of it is trusted")
    if len(found) > MOST_KEYS:
        raise BadKey(f"{len(found):,} keys would be trusted, at most {MOST_KEYS:,} are tried: name fewer")
    return TrustedKeys(tuple(found))


async def my_trust(trusting: Trusting, keys: Keys, around: AppContext, display: Display) -> TrustedKeys:
    """As :func:`trust_of` with the public halves of the user's ``keys``: no passphrase is asked for. Raises BadKey."""
    return await trust_of(trusting, await my_public_keys(keys.files, keys.variables, around, display.note), around, display.problem)


# -- before something is signed -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShownImage:
    """Image that a cluster shows at a path.

    ``claimed`` are the fingerprints of those who signed it, as the servers give them; ``untold`` says why some of these did not tell.
    """

    where: str
    vpath: VPath
    state: State
    claimed: Sequence[str] = ()
    untold: Sequence[str] = ()


def insist_on_proof(seen: ShownImage, proof: Proof | None, trust: TrustedKeys, trusting: Trusting, problem: Problem) -> None:
    """Raises Ends unless there is a ``proof``, or the user vouches for the image himself, which is told."""
    if proof is not None:
        return
    image = seen.state.image.hex()
    if trusting.unverified:  # guard: S1, -> True
        problem(
            seen.where, f"{seen.vpath}: NOT VERIFIED: no key that you trust signed {image} for this path; going on, as --unverified says"
        )
        return
    signatures = len(seen.state.signatures)
    those = f"{count(signatures, 'signature')}, none of them by a trusted key for this path" if signatures else "no signature for it"
    if seen.untold:
        those += f" ({'; '.join(seen.untold)})"
    claimed = f" The servers say that {', '.join(seen.claimed)} signed it." if seen.claimed else ""
    raise CommandError(
        EXIT_REJECTED,
        f"{seen.where} {seen.vpath}: {image} is not verified, so nothing was signed: {seen.where} shows {those} "
        f"({count(len(trust.keys), 'key')} trusted).{claimed} If you know whose it is, trust that public key with --trusted-keys FILE, "
        "or put it into ~/.config/ciruela/trusted_keys; --unverified insists without a proof",
    )


def signing_time_ms(now_ms: int, there_ms: Iterable[int]) -> int:
    """The time to sign for: now, or right after what is there. Raises Ends where that is later than servers may take.

    What is signed for a later time could be kept by somebody, and sent to the servers when the time has come.
    """
    wanted_ms = max([now_ms, *(one + 1 for one in there_ms)])
    if wanted_ms > now_ms + FUTURE_LIMIT_MS:  # guard: S1
        ahead = interval((wanted_ms - now_ms) / 1000)
        raise CommandError(
            EXIT_REJECTED,
            f"what is there is said to be signed {ahead} from now, by the clock of this host ({stamp(now_ms)}), so nothing was signed: "
            "set this clock, or that of whoever signed it",
        )
    return wanted_ms
