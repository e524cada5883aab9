"""Keys that sign an upload, and signing with all of them (protocol section 7.2).

Keys that the user named with ``-i`` or ``-k`` must all be usable. Otherwise whatever is found in the usual places signs, and what cannot
be used is left out with a note; one key of another kind must not stop everything (protocol section 12, C34).
"""

from __future__ import annotations

import getpass
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from ciruela.interfaces import InThread
from ciruela.keys.public import (
    PassphraseNeeded,
    PrivateKey,
    PublicKey,
    UnknownCipher,
    WrongPassphrase,
    looks_public,
    parse_private,
    parse_public,
)
from ciruela.model.errors import BadKey
from ciruela.model.values import dataclass
from ciruela.net.agent import LIST_TIMEOUT_S, AgentFailed, AgentKey, AgentKeys

DEFAULT_VARIABLE = "CIRUELA_KEY"
DEFAULT_FILES = (".ssh/id_ed25519", ".ssh/id_ciruela", ".ciruela/id_ed25519")
AGENT_VARIABLE = "SSH_AUTH_SOCK"

MOST_SIGNATURES = 16
"""Servers look at no more signatures of one request (threats A15)."""

MAX_KEY_FILE_BYTES = 64 * 1024
"""No key file comes near this; a wrong path might."""

HURRY_S = 2.0
"""Time that an agent may take to list its keys when there is a key already that signs without it."""

PASSPHRASE_TRIES = 3
"""As OpenSSH does it."""

ReadFile = Callable[[str], bytes]
AskPassphrase = Callable[[str], str]
Exposed = Callable[[str], str | None]
AskAgent = Callable[[str, float], Deferred[AgentKeys]]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key that signs. ``origin`` says where it comes from; ``required`` that the user named it."""

    public: PublicKey
    origin: str
    required: bool
    sign: Callable[[bytes], Deferred[bytes]]


@dataclass(frozen=True, slots=True)
class Identities:
    """All keys that sign, and what the user should know about keys that do not."""

    keys: tuple[SigningKey, ...]
    notes: tuple[str, ...]

    _log = Logger()

    def describe(self) -> list[str]:
        """A line per key: fingerprint, comment, origin."""
        return [" ".join(filter(None, (key.public.fingerprint(), key.public.comment, f"({key.origin})"))) for key in self.keys]

    def sign_all(self, signed: bytes) -> Deferred[tuple[tuple[PublicKey, bytes], ...]]:
        """The signature of each key over ``signed``, one key after the other.

        A key that the user did not name and that fails (an agent that is gone) is left out with a warning. Fails with BadKey when a named
        key fails, or when there are keys but none could sign.
        """
        return Deferred.fromCoroutine(self._sign_all(signed))

    async def _sign_all(self, signed: bytes) -> tuple[tuple[PublicKey, bytes], ...]:
        made = []
        failures = []
        for key in self.keys:
            try:
                made.append((key.public, await key.sign(signed)))
            except BadKey as error:
                if key.required:
                    raise
                failures.append(str(error))
                self._log.warn("The key {key} does not sign: {reason}", key=key.public.fingerprint(), reason=str(error))
        if failures and not made:
            raise BadKey("no key could sign: " + "; ".join(failures))
        return tuple(made)


def load_identities(
    files: Sequence[str],
    variables: Sequence[str],
    *,
    environ: Mapping[str, str],
    home: str | None,
    read_file: ReadFile,
    ask_passphrase: AskPassphrase | None,
    agent: AskAgent,
    in_thread: InThread,
    exposed: Exposed = lambda _: None,
) -> Deferred[Identities]:
    """The keys of ``-i`` (``files``) and ``-k`` (``variables``), or those of the usual places when both are empty.

    ``read_file`` raises OSError; ``ask_passphrase`` shows a prompt, blocks, and gives "" for no answer, it is None without a terminal;
    both are called in a thread. ``agent`` lists the keys of the agent at a socket path, within so many seconds. ``exposed`` tells why a key
    file is not its owner's alone: that is a note and no mistake as it is for ssh, because build servers often mount secrets so.
    Fails with BadKey, naming the file or variable.
    """
    loader = _Loader(environ, home, read_file, ask_passphrase, agent, in_thread, exposed)
    return Deferred.fromCoroutine(loader.named(files, variables) if files or variables else loader.usual())


def read_key_file(path: str) -> bytes:
    """The content of a key file. Raises OSError, also for what is not a regular file or far too big to be a key."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "it is not a regular file", path)
        data = file.read(MAX_KEY_FILE_BYTES + 1)
    if len(data) > MAX_KEY_FILE_BYTES:
        raise OSError(0, f"it is larger than {MAX_KEY_FILE_BYTES // 1024} KiB, so it is not a key", path)
    return data


def exposed(path: str) -> str | None:
    """Says why a private key file of this user is not his alone, and what to do; None when it is, or when nobody can tell."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if found.st_uid != os.geteuid() or not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):  # guard: W1, -> True
        return None
    others = "everybody" if found.st_mode & stat.S_IRWXO else f"group {found.st_gid}"
    return f"the private key is open to {others}, mode {stat.S_IMODE(found.st_mode):04o} (run: chmod 600 {path})"


def terminal() -> AskPassphrase | None:
    """Gives the function that asks for a passphrase, or None when this process has no terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return None
    return _ask_terminal


def terminal_line() -> Callable[[str], str] | None:
    """Gives the function that asks for a visible line, or None when stdin is no terminal. It blocks; an end of input is an empty line."""
    if not os.isatty(0):
        return None

    def ask(prompt: str) -> str:
        sys.stderr.write(prompt)
        sys.stderr.flush()
        return sys.stdin.readline()

    return ask


def _ask_terminal(prompt: str) -> str:
    try:
        return getpass.getpass(prompt)
    except EOFError:
        return ""


@dataclass(frozen=True, slots=True)
class _KeySource:
    """A place a key may be in. ``path`` is set for files."""

    name: str
    required: bool
    path: str | None = None


class _Loader:
    """One run over all places; asks the agent at most once."""

    def __init__(
        self,
        environ: Mapping[str, str],
        home: str | None,
        read_file: ReadFile,
        ask_passphrase: AskPassphrase | None,
        agent: AskAgent,
        in_thread: InThread,
        exposed: Exposed,
    ) -> None:
        self._environ = environ
        self._home = home
        self._read_file = read_file
        self._ask_passphrase = ask_passphrase
        self._agent = agent
        self._in_thread = in_thread
        self._exposed = exposed
        self._held: tuple[AgentKey, ...] | None = None
        self._found: dict[PublicKey, SigningKey] = {}
        self._notes: list[str] = []

    async def named(self, files: Sequence[str], variables: Sequence[str]) -> Identities:
        for path in files:
            source = _KeySource(path, required=True, path=path)
            await self._take(source, await self._content(source))
        for variable in variables:
            await self._take(_KeySource(f"${variable}", required=True), self._environ.get(variable, ""))
        return self._done()

    async def usual(self) -> Identities:
        if self._environ.get(DEFAULT_VARIABLE):
            await self._take(_KeySource(f"${DEFAULT_VARIABLE}", required=False), self._environ[DEFAULT_VARIABLE])
        for name in DEFAULT_FILES if self._home else ():
            path = os.path.join(self._home or "", name)
            source = _KeySource(path, required=False, path=path)
            content = await self._content(source)
            if content is not None:
                await self._take(source, content)
        for key in await self._agent_keys(HURRY_S if self._found else LIST_TIMEOUT_S):
            self._add(SigningKey(key.public, "ssh-agent", False, key.sign))
        if not self._found:
            places = ", ".join([f"${DEFAULT_VARIABLE}", *(f"~/{name}" for name in DEFAULT_FILES), "ssh-agent"])
            self._notes.append(f"no key was found in {places} (make one with: ssh-keygen -t ed25519, or name one with -i)")
        return self._done()

    def _done(self) -> Identities:
        """The first keys that servers look at, those that the user named before all others."""
        found = sorted(self._found.values(), key=lambda key: not key.required)
        keys, rest = found[:MOST_SIGNATURES], found[MOST_SIGNATURES:]  # guard: K7.4, -> (found, found[MOST_SIGNATURES:])
        if rest:
            left_out = ", ".join(f"{key.public.fingerprint()} ({' '.join(filter(None, (key.public.comment, key.origin)))})" for key in rest)
            self._notes.append(
                f"there are {len(found)} keys, and servers look at {MOST_SIGNATURES} signatures; left out: {left_out} (choose keys with -i)"
            )
        return Identities(tuple(keys), tuple(self._notes))

    def _add(self, identity: SigningKey) -> None:
        self._found.setdefault(identity.public, identity)

    async def _content(self, source: _KeySource) -> str | None:
        """The text of a key file; None when one that nobody named is not there or cannot be read."""
        assert source.path is not None
        try:
            data = await self._in_thread(self._read_file, source.path)
        except OSError as error:
            reason = f"{source.name}: it cannot be read: {error.strerror or error}"
            if source.required:
                raise BadKey(reason) from None
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                self._notes.append(reason)
            return None
        return data.decode("utf-8", "replace")

    async def _take(self, source: _KeySource, text: str | None) -> None:
        try:
            if not text:
                raise BadKey("it is empty" if source.path or source.name[1:] in self._environ else "it is not set")
            self._add(await self._identity(source, text))
        except BadKey as error:
            if source.required:
                raise BadKey(f"{source.name}: {error}") from None
            self._notes.append(f"{source.name}: {error}; this key is left out")

    async def _identity(self, source: _KeySource, text: str) -> SigningKey:
        if looks_public(text.strip().partition(" ")[0]):
            public = parse_public(text)
            held = await self._agent_key(public)
            if held is None:
                raise BadKey("it is a public key, and no ssh-agent holds its private half (name the private key, or run: ssh-add)")
            return SigningKey(held.public, f"{source.name}, ssh-agent", source.required, held.sign)
        try:
            key: PrivateKey = await self._in_thread(parse_private, text, None)
        except PassphraseNeeded as needed:
            held = await self._agent_key(needed.public)
            if held is not None:
                return SigningKey(held.public, f"{source.name}, ssh-agent", source.required, held.sign)
            key = await self._unlock(source, text, needed)
        if source.path is not None and (open_to := await self._in_thread(self._exposed, source.path)) is not None:
            self._notes.append(f"{source.name}: {open_to}")
        public = PublicKey(key.public.raw, await self._comment(source, key.public))
        return SigningKey(public, source.name, source.required, lambda data: succeed(key.sign(data)))

    async def _unlock(self, source: _KeySource, text: str, needed: PassphraseNeeded) -> PrivateKey:
        if self._ask_passphrase is None or isinstance(needed, UnknownCipher):  # guard: W1, without 2
            raise needed
        for _ in range(PASSPHRASE_TRIES):
            answer: str = await self._in_thread(self._ask_passphrase, f"Passphrase of {source.name}: ")
            if not answer:
                raise BadKey("no passphrase was given")
            try:
                key: PrivateKey = await self._in_thread(parse_private, text, answer.encode())
            except WrongPassphrase:
                continue
            return key
        raise WrongPassphrase(f"the passphrase was wrong {PASSPHRASE_TRIES} times")

    async def _comment(self, source: _KeySource, public: PublicKey) -> str:
        """The comment in the ``.pub`` file beside a key file: a label for people, so anything that is wrong with it means no label."""
        if source.path is None:
            return ""
        try:
            data: bytes = await self._in_thread(self._read_file, source.path + ".pub")
            beside = parse_public(data.decode("utf-8", "replace"))
        except (OSError, BadKey):
            return ""
        return beside.comment if beside == public else ""

    async def _agent_key(self, public: PublicKey) -> AgentKey | None:
        return next((key for key in await self._agent_keys() if key.public == public), None)

    async def _agent_keys(self, timeout_s: float = LIST_TIMEOUT_S) -> tuple[AgentKey, ...]:
        if self._held is None:
            self._held = ()
            path = self._environ.get(AGENT_VARIABLE)
            if path:
                try:
                    answer = await self._agent(path, timeout_s)
                except AgentFailed as error:
                    self._notes.append(str(error))
                else:
                    self._held = answer.keys
                    self._notes.extend(answer.notes)
        return self._held
