"""Faults, as exceptions; a refusal is a value (``model.upload.RejectReason``), not an exception.

::

    CiruelaError
    +-- FormatError     bytes or text that do not follow their format
    |   +-- BadIndex    an index that is not canonical, or not the one asked for
    |       +-- UnfitIndex  the one asked for, and nobody can take it
    +-- ConfigError     a configuration file with a mistake: file, line, what to do
    +-- BadKey          a key that cannot be read or used
    +-- RemoteError     the other side answered with an error
    |   +-- Busy        it may be asked again later
    +-- LinkLost        the connection ended before the answer came
    |   +-- NoAnswer    it did not come in time
    +-- DownloadFailed  a download cannot go on; carries the word for the client
    +-- DiskError       a file operation of one image failed
    +-- HookFailed      a hook of the operator could not be run
"""

from __future__ import annotations

from ciruela.model.upload import AbortReason


class CiruelaError(Exception):
    """Root of all faults that this program raises itself."""


class FormatError(CiruelaError):
    """Bytes or text that do not follow their format. The message says what and where, never quotes more than 80 characters."""


class BadIndex(FormatError):
    """An index that is not canonical, breaks a limit, or is not the one that was asked for."""


class UnfitIndex(BadIndex):
    """The very index that was asked for, by its hash, and not canonical: it is refused wherever it comes from."""


class ConfigError(CiruelaError):
    """A configuration file with a mistake: ``FILE:LINE: what is wrong (what to do)``."""


class BadKey(CiruelaError):
    """A key or key file that cannot be used; the message says which, why, and what to do."""


class RemoteError(CiruelaError):
    """The other side answered a request with ``Error``, or with something that does not fit the request."""


class NoImages(RemoteError):
    """The server is known to have no image at the path, without being asked."""


SLOW_DOWN = "too many requests, slow down"
"""Prefix of the text of an ``Error`` that means :class:`Busy`. Other programs take it for any error, and ask again later as well."""


class Busy(RemoteError):
    """More was asked for than one may have at a time; nothing has changed. Raised by us, its text goes to the other side."""


class LinkLost(CiruelaError):
    """The connection ended, or never came up, before the answer arrived."""


class NoAnswer(LinkLost):
    """The answer did not come within the time that was given."""


class DownloadFailed(CiruelaError):
    """A download cannot go on."""

    def __init__(self, reason: AbortReason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason
        self.detail = detail


class DiskError(CiruelaError):
    """A file operation failed; local to one image or state. The message names the operation and the error."""


class OtherContent(DiskError):
    """Something stands at a path of which nothing is recorded, and it is not the image that was named, or nobody can tell."""


class HookFailed(CiruelaError):
    """A command could not be started, or a web address not be reached. The message says why, without secrets."""
