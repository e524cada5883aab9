"""``ciruela keygen``: an ed25519 key pair in OpenSSH's format. The private half is readable by its owner alone from the first byte on."""

from __future__ import annotations

import errno
import getpass
import os
import socket
from collections.abc import Callable

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ciruela.client.context import AppContext, make_display
from ciruela.client.errors import write_line
from ciruela.client.identities import DEFAULT_FILES, AskPassphrase, terminal
from ciruela.client.options.local import KeygenOptions
from ciruela.client.orders import LocalProblem
from ciruela.client.tracker import EXIT_DONE
from ciruela.keys.public import PublicKey
from ciruela.model.errors import BadKey

DEFAULT_FILE = DEFAULT_FILES[-1]
"""Below the home directory; other commands look for keys there."""

LEAST_PASSPHRASE = 5
"""As ssh-keygen has it."""


async def keygen(options: KeygenOptions, around: AppContext, ask: Callable[[], AskPassphrase | None] = terminal) -> int:
    """``ciruela keygen``. Gives the exit code; raises LocalProblem for files that cannot be written, BadKey without a passphrase."""
    display = make_display(options.common, around, None)
    path = options.file or _default(around)
    await around.in_thread(_check_free, path)
    passphrase = b""
    if options.passphrase:
        asking = ask()
        if asking is None:
            raise BadKey("there is no terminal to ask for a passphrase (a key without one: --no-passphrase)")
        passphrase = await around.in_thread(_asked, asking, path)
    public, text = await around.in_thread(_made, passphrase, options.comment or _comment())
    await around.in_thread(write, path, text, f"{public.authorized_line()}\n".encode())
    display.say(f"the private key is in {path}, the public one in {path}.pub: {public.fingerprint()}")
    display.say("To let it upload, put this line into master.key (all directories) or keys/NAME.key of the config directory of every node:")
    write_line(around.stdout, public.authorized_line())
    return EXIT_DONE


def _default(around: AppContext) -> str:
    home = around.environ.get("HOME")
    if not home:
        raise LocalProblem("HOME is not set: name the FILE")
    return os.path.join(home, DEFAULT_FILE)


def _comment() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return "ciruela"


def _check_free(path: str) -> None:
    """Before anybody is asked for a passphrase. Writing checks again."""
    for name in (path, f"{path}.pub"):
        if os.path.lexists(name):
            raise LocalProblem(f"{name} exists and is not overwritten: name another FILE, or move it away")


def _asked(ask: AskPassphrase, path: str) -> bytes:
    """In a thread. Raises BadKey."""
    first = ask(f"Passphrase for {path}: ")
    if len(first) < LEAST_PASSPHRASE:
        raise BadKey(f"the passphrase must have at least {LEAST_PASSPHRASE} characters (a key without one: --no-passphrase)")
    if ask("The same again: ") != first:
        raise BadKey("the two passphrases are different, nothing was written")
    return first.encode()


def _made(passphrase: bytes, comment: str) -> tuple[PublicKey, bytes]:
    """In a thread: encrypting takes a while."""
    key = Ed25519PrivateKey.generate()
    how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, how)
    return PublicKey(key.public_key().public_bytes_raw(), comment), text


def write(path: str, private: bytes, public: bytes) -> None:
    """Both files or none. Raises LocalProblem."""
    folder = os.path.dirname(path)
    try:
        if folder and not os.path.isdir(folder):
            os.mkdir(folder, 0o700)
        _create(path, private, 0o600)
        try:
            _create(f"{path}.pub", public, 0o644)
        except OSError:
            os.unlink(path)
            raise
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise LocalProblem(f"{error.filename} exists and is not overwritten: name another FILE, or move it away") from None
        raise LocalProblem(f"{error.filename or path} cannot be written: {error.strerror}") from None


def _create(path: str, data: bytes, mode: int) -> None:
    """A new file that nobody can open before it has its mode. Nothing is left of it after an error."""
    # guard: F3, os.O_EXCL | os.O_NOFOLLOW -> os.O_NOFOLLOW
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.unlink(path)
        raise
