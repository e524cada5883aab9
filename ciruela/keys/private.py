"""Private keys of a user in OpenSSH's format (protocol section 7.2, appendix C).

``cryptography`` reads them. Only the part in clear at the front is looked at here: it names the key, so that a message can say what kind
of key it is, and an agent can be asked for it, without a passphrase.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from nacl.signing import SigningKey

from ciruela.keys.public import PublicKey, blob_type, describe_type, looks_public, parse_blob, take_string
from ciruela.model.errors import BadKey
from ciruela.model.printable import logged

_BEGIN = "-----BEGIN OPENSSH PRIVATE KEY-----"
_END = "-----END OPENSSH PRIVATE KEY-----"
_MAGIC = b"openssh-key-v1\0"
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]*)PRIVATE KEY-----")
_PUBLIC = re.compile(r"-+ ?BEGIN [A-Z0-9 ]*PUBLIC KEY")
_CIPHERS = frozenset({"aes256-ctr", "aes256-cbc", "aes256-gcm@openssh.com"})
"""Ciphers that ``cryptography`` knows in all releases that are supported: nothing need be tried before a passphrase is asked for."""

_MAKE_ONE = "make a key with: ssh-keygen -t ed25519"


class PassphraseNeeded(BadKey):
    """The key is encrypted and no passphrase was given. ``public`` tells which key it is."""

    def __init__(self, public: PublicKey) -> None:
        super().__init__(f"the key {public.fingerprint()} needs its passphrase (add it to ssh-agent, or run in a terminal to be asked)")
        self.public = public


class UnknownCipher(PassphraseNeeded):
    """The key is encrypted in a way that no passphrase helps against; an agent may hold it all the same."""

    def __init__(self, public: PublicKey, cipher: str) -> None:
        BadKey.__init__(
            self,
            f"it is encrypted with {logged(cipher)}, which cannot be read "
            "(run: ssh-keygen -p -Z aes256-ctr -f FILE, or add it to ssh-agent)",
        )
        self.public = public


class WrongPassphrase(BadKey):
    """The passphrase does not open the key."""


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """An ed25519 key that can sign. The seed never appears in a repr."""

    seed: bytes = field(repr=False)

    @property
    def public(self) -> PublicKey:
        """Its public half."""
        return PublicKey(bytes(SigningKey(self.seed).verify_key))

    def sign(self, data: bytes) -> bytes:
        """64 bytes: the plain ed25519 signature over ``data``."""
        return SigningKey(self.seed).sign(data).signature


@dataclass(frozen=True, slots=True)
class _Envelope:
    """The part of a key file that is not encrypted (OpenSSH, PROTOCOL.key)."""

    cipher: str
    public: PublicKey


def parse_private(text: str, passphrase: bytes | None = None) -> PrivateKey:
    """The key in the content of a key file, or of an environment variable in which any white space stands for the newlines.

    A passphrase is ignored when the key is not encrypted. Raises PassphraseNeeded, WrongPassphrase, or BadKey with what it is instead of
    a usable key. It takes a tenth of a second and more when there is a passphrase, so call it in a thread.
    """
    stripped = text.removeprefix("\ufeff").strip()
    if not stripped.startswith(_BEGIN):
        raise BadKey(_what_instead(stripped))
    end = stripped.find(_END)
    if end < 0:
        raise BadKey("the key is cut off: its END line is missing (copy the whole file)")
    body = "".join(stripped[len(_BEGIN) : end].split())
    envelope = _envelope(body)
    encrypted = envelope.cipher != "none"
    if encrypted and passphrase is None and envelope.cipher in _CIPHERS:
        raise PassphraseNeeded(envelope.public)
    pem = f"{_BEGIN}\n{body}\n{_END}\n".encode("ascii")
    try:
        key = load_ssh_private_key(pem, (passphrase or b"") if encrypted else None)  # also finds out whether a rare cipher is known
    except UnsupportedAlgorithm:
        raise UnknownCipher(envelope.public, envelope.cipher) from None
    except (InvalidTag, ValueError, TypeError):
        if encrypted and passphrase is None:
            raise PassphraseNeeded(envelope.public) from None
        if encrypted:
            raise WrongPassphrase(f"the passphrase of the key {envelope.public.fingerprint()} is wrong") from None
        raise BadKey("the key is damaged (copy the whole file again)") from None
    if not isinstance(key, Ed25519PrivateKey) or key.public_key().public_bytes_raw() != envelope.public.raw:
        raise BadKey("the key is damaged: its private half does not belong to its public half (restore the file)")
    return PrivateKey(key.private_bytes_raw())


def _envelope(body: str) -> _Envelope:
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise BadKey("the key is damaged: its base64 cannot be read (copy the whole file again)") from None
    if not data.startswith(_MAGIC):
        raise BadKey("the key is damaged: it does not begin like an OpenSSH key")
    cipher, position = take_string(data, len(_MAGIC))
    _, position = take_string(data, position)
    _, position = take_string(data, position)
    count = int.from_bytes(data[position : position + 4], "big")
    blob, position = take_string(data, position + 4)
    kind = blob_type(blob)
    if kind != "ssh-ed25519":
        raise BadKey(f"it is {describe_type(kind)}; uploads are signed with ed25519 keys ({_MAKE_ONE})")
    if count != 1:
        raise BadKey(f"the file holds {count} keys, it must hold one")
    take_string(data, position)
    return _Envelope(cipher.decode("ascii", "replace"), parse_blob(blob))


def _what_instead(text: str) -> str:
    """Why ``text`` is no OpenSSH private key, in words."""
    if not text:
        return f"it is empty ({_MAKE_ONE})"
    if looks_public(text.split(None, 1)[0]) or _PUBLIC.match(text):
        return "it is a public key; the private one is in the file without .pub"
    pem = _PEM.match(text)
    if pem is not None:
        kind = pem[1].strip()
        named = {"RSA": "an RSA key", "EC": "an ECDSA key", "DSA": "a DSA key"}.get(kind, "a key")
        return f"it is {named} in PEM form, not an ed25519 key in OpenSSH's own form ({_MAKE_ONE})"
    if text.startswith("PuTTY-User-Key-File"):
        return "it is a key in PuTTY's form (convert it with: puttygen FILE -O private-openssh-new -o NEWFILE)"
    return f"it is not a private key at all: it does not begin with {_BEGIN}"
