"""Public ed25519 keys in OpenSSH's forms, and checking a signature with one.

Private keys of a user in OpenSSH's format (protocol section 7.2, appendix C).

Those without a passphrase are read here, ``cryptography`` opens the others. The part in clear at the front names the key, so that a message
can say what kind of key it is, and an agent can be asked for it, without a passphrase.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import field

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from ciruela.model.errors import BadKey
from ciruela.model.units import logged
from ciruela.model.values import dataclass

KEY_TYPE = "ssh-ed25519"
KEY_BYTES = 32
SIGNATURE_BYTES = 64

_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class PublicKey:
    """32 raw bytes of an ed25519 key. The comment is for people: two keys that differ only in it are equal."""

    raw: bytes
    comment: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise BadKey(f"an ed25519 public key has {KEY_BYTES} bytes, this one has {len(self.raw)}")

    @property
    def blob(self) -> bytes:
        """The key as ssh-agent and the base64 of a key file have it."""
        return put_string(KEY_TYPE.encode()) + put_string(self.raw)

    def fingerprint(self) -> str:
        """``SHA256:...``, as ``ssh-keygen -l`` prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def authorized_line(self) -> str:
        """The line that goes into a server's key file, without a newline."""
        return f"{KEY_TYPE} {base64.b64encode(self.blob).decode()} {self.comment}".rstrip()


def put_string(data: bytes) -> bytes:
    """``data`` with its length before it (RFC 4251, section 5)."""
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


def take_string(data: bytes, start: int) -> tuple[bytes, int]:
    """The length-prefixed string at ``start`` and the position behind it (RFC 4251, section 5). Raises BadKey at a cut."""
    begin = start + _LENGTH_BYTES
    end = begin + int.from_bytes(data[start:begin], "big")
    if begin > len(data) or end > len(data):
        raise BadKey("the key data is cut off")
    return data[begin:end], end


def blob_type(blob: bytes) -> str:
    """The key type that a public key blob names, at most 80 characters. Raises BadKey."""
    return visible(take_string(blob, 0)[0].decode("ascii", "replace"))[:80]


def parse_blob(blob: bytes, comment: str = "") -> PublicKey:
    """The key in a public key blob. Raises BadKey for other types and for data that is not exactly one key."""
    kind = blob_type(blob)
    if kind != KEY_TYPE:
        raise BadKey(f"it is {describe_type(kind)}, only {KEY_TYPE} keys are used")
    _, position = take_string(blob, 0)
    raw, end = take_string(blob, position)
    if end != len(blob):
        raise BadKey("there is data behind the key")
    return PublicKey(raw, visible(comment))


def parse_public(line: str) -> PublicKey:
    """The key in a line ``TYPE BASE64 [COMMENT]``, without options. Raises BadKey with the reason."""
    kind, _, rest = line.strip().partition(" ")
    encoded, _, comment = rest.strip().partition(" ")
    if not looks_public(kind):
        raise BadKey(f'"{visible(kind)[:40]}" is not a key type (a line is "{KEY_TYPE} BASE64 COMMENT")')
    if kind != KEY_TYPE:
        raise BadKey(f"it is {describe_type(kind)}, only {KEY_TYPE} keys are used")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise BadKey("the base64 of the key is damaged (copy the whole line again)") from None
    if not blob:
        raise BadKey(f'there is no key after "{KEY_TYPE}"')
    return parse_blob(blob, comment.strip())


def looks_public(word: str) -> bool:
    """Tells whether a line that begins with ``word`` is meant to be a public key."""
    return word.startswith(("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-")) and word.isascii() and word.isprintable()


def describe_type(kind: str) -> str:
    """A key type in words, for messages: ``an RSA key``."""
    if "-cert-" in kind:
        return f"a certificate ({visible(kind)[:40]})"
    if kind.startswith("sk-"):
        return f"a FIDO security key ({visible(kind)[:40]}), whose signatures cover more than the upload"
    for begin, words in (("ssh-rsa", "an RSA key"), ("ssh-dss", "a DSA key"), ("ecdsa-", "an ECDSA key")):
        if kind.startswith(begin):
            return words
    return f"a key of type {visible(kind)[:40]}"


def visible(text: str) -> str:
    """``text`` with a question mark for each character that a terminal would not print."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def verify(public: PublicKey, signed: bytes, signature: bytes) -> bool:
    """Tells whether ``signature`` is ``public``'s ed25519 signature over ``signed``. Never raises, whatever the signature is."""
    if len(signature) != SIGNATURE_BYTES:  # guard: A11
        return False
    try:
        VerifyKey(public.raw).verify(signed, signature)
    except BadSignatureError:
        return False  # guard: A11 I4 F8, -> True
    return True


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
class _KeyEnvelope:
    """The content of a key file (OpenSSH, PROTOCOL.key). ``private``: the part that may be encrypted."""

    cipher: str
    public: PublicKey
    private: bytes = field(repr=False)


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
    if envelope.cipher == "none":
        seed = _plain_seed(envelope)
    elif passphrase is None and envelope.cipher in _CIPHERS:
        raise PassphraseNeeded(envelope.public)
    else:
        seed = _locked_seed(envelope, f"{_BEGIN}\n{body}\n{_END}\n".encode("ascii"), passphrase)
    key = PrivateKey(seed)
    if key.public != envelope.public:
        raise BadKey("the key is damaged: its private half does not belong to its public half (restore the file)")
    return key


def _plain_seed(envelope: _KeyEnvelope) -> bytes:
    """The seed in a private part that is not encrypted: two equal numbers, type, public half, seed and public half, comment, padding."""
    part = envelope.private
    kind, position = take_string(part, 8)
    public, position = take_string(part, position)
    secret, position = take_string(part, position)
    _, position = take_string(part, position)
    padding = part[position:]
    whole = part[:4] == part[4:8] and kind == KEY_TYPE.encode() and len(secret) == 2 * KEY_BYTES and secret[KEY_BYTES:] == public
    if not whole or len(part) % 8 or padding != bytes(range(1, len(padding) + 1)):
        raise BadKey("the key is damaged (copy the whole file again)")
    return secret[:KEY_BYTES]


def _locked_seed(envelope: _KeyEnvelope, pem: bytes, passphrase: bytes | None) -> bytes:
    """The seed in an encrypted private part. Without a passphrase it finds out whether a rare cipher is known."""
    from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm  # here, because most keys of uploads are not locked
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key = load_ssh_private_key(pem, passphrase or b"")
    except UnsupportedAlgorithm:
        raise UnknownCipher(envelope.public, envelope.cipher) from None
    except (InvalidTag, ValueError, TypeError):
        if passphrase is None:
            raise PassphraseNeeded(envelope.public) from None
        raise WrongPassphrase(f"the passphrase of the key {envelope.public.fingerprint()} is wrong") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadKey("the key is damaged: its private half is of another type (restore the file)")
    return key.private_bytes_raw()


def _envelope(body: str) -> _KeyEnvelope:
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise BadKey("the key is damaged: its base64 cannot be read (copy the whole file again)") from None
    if not data.startswith(_MAGIC):
        raise BadKey("the key is damaged: it does not begin like an OpenSSH key")
    cipher, position = take_string(data, len(_MAGIC))
    derivation, position = take_string(data, position)
    salt, position = take_string(data, position)
    count = int.from_bytes(data[position : position + 4], "big")
    blob, position = take_string(data, position + 4)
    kind = blob_type(blob)
    if kind != "ssh-ed25519":
        raise BadKey(f"it is {describe_type(kind)}; uploads are signed with ed25519 keys ({_MAKE_ONE})")
    if count != 1:
        raise BadKey(f"the file holds {count} keys, it must hold one")
    private, position = take_string(data, position)
    if cipher == b"none" and (derivation != b"none" or salt or position != len(data)):
        raise BadKey("the key is damaged (copy the whole file again)")
    return _KeyEnvelope(cipher.decode("ascii", "replace"), parse_blob(blob), private)


def _what_instead(text: str) -> str:
    """Says in words why ``text`` is no OpenSSH private key."""
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
