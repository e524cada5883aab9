"""``consul:SERVICE``: the instances of a service, by blocking queries (Consul's API documentation, "Health" and "Blocking Queries").

A question carries the index of the last answer; the agent answers when something has changed since, or after the time that was asked for.
Instances that fail their checks are asked for too: gossip finds out itself who is silent, and cleanup has to know of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from ciruela.interfaces import InThread
from ciruela.model.errors import FormatError
from ciruela.net.discovery.fetch import Fetch, Page, consul_nodes

WAIT_S = 300
"""Time in s for which the agent may hold a question back; its default."""

ANSWER_S = WAIT_S * 17 / 16 + 30
"""It adds up to a sixteenth to that; and some time for the way."""

PAUSE_S = 1.0
"""Between an answer and the next question, so that a service that changes all the time does not keep the agent busy."""

MAX_TOKEN_BYTES = 4096


class Consul:
    """Watch on the nodes of a service of the Consul agent at ``url``. ``token_file`` is read anew for each question; empty for none."""

    def __init__(self, url: str, service: str, default_port: int, fetch: Fetch, in_thread: InThread, token_file: str = "") -> None:
        self._url = f"{url.rstrip('/')}/v1/health/service/{quote(service, safe='')}"
        self._default_port = default_port
        self._fetch = fetch
        self._in_thread = in_thread
        self._token_file = token_file
        self.index = 0

    def ask(self) -> Deferred[Sequence[str]]:
        """All instances. With an index from before this takes up to :data:`ANSWER_S`."""
        token = self._in_thread(_token, self._token_file) if self._token_file else succeed("")
        return token.addCallback(self._query).addCallback(self._answered).addErrback(self._failed)

    def _query(self, token: str) -> Deferred[Page]:
        query = f"?index={self.index}&wait={WAIT_S}s" if self.index else ""
        headers = {"Accept": "application/json"} | ({"X-Consul-Token": token} if token else {})
        return self._fetch(self._url + query, headers, wanted="X-Consul-Index")

    def _answered(self, page: Page) -> Sequence[str]:
        names = consul_nodes(page.body, self._default_port)
        self.index = next_index(self.index, page.header)
        return names

    def _failed(self, failure: Failure) -> Failure:
        """The next question is answered at once."""
        self.index = 0
        return failure


def next_index(before: int, header: str) -> int:
    """The index for the next question; 0, for an answer at once, when it went back or is none, as after a restore of the servers."""
    found = int(header) if header.isascii() and header.isdigit() and len(header) <= 20 else 0
    return found if found >= max(before, 1) else 0


def _token(path: str) -> str:
    """The token in the file. Raises FormatError or OSError."""
    with Path(path).open("rb") as file:
        data = file.read(MAX_TOKEN_BYTES + 1)
    text = data.decode("ascii", "replace").strip()
    if not text or len(data) > MAX_TOKEN_BYTES or not text.isascii() or not text.isprintable():
        raise FormatError(f"{path}: there is no token in it (one line of printable ASCII)")
    return text
