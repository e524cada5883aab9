"""The routes of the status pages, under the reference's paths, and ``/healthz``.

Ports to the node follow. Every method returns fresh values that ``json`` can write.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NOT_ALLOWED, NOT_FOUND, OK, SERVICE_UNAVAILABLE
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from ciruela._version import __version__
from ciruela.model.errors import CiruelaError

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


class Status(Protocol):
    """A node, seen from a page. Ids and hashes are lower-case hex, virtual paths text, times milliseconds unless named otherwise."""

    def health(self) -> tuple[bool, Json]:
        """Tells whether the node has read its disk and serves, with a few words about it."""

    def status(self) -> Json:
        """Describes this node, its process and its metrics."""

    def downloading(self) -> Json:
        """Lists the downloads of this node, by path."""

    def base_dirs(self) -> Json:
        """The base dirs that hold something, with their hashes."""

    def configs(self) -> Json:
        """The directory configs, by key."""

    def deleted(self) -> Json:
        """Uploads given up lately, as pairs of path and image."""

    def watching(self) -> Json:
        """The paths that clients of this node wait for."""

    def watched(self) -> Json:
        """The paths that anybody waits for: the image that is here, or ``absent``."""

    def peers(self) -> Json:
        """The peers that have spoken, by machine id."""

    def list_dir(self, path: str) -> Json:
        """The images of a base dir with their signatures; empty when there is no such base dir."""

    def cluster(self, topic: str) -> Json | None:
        """Gives peers' words on ``downloading``, ``complete``, ``deleted``, ``watching``, ``dirs``, ``configs``; None for others."""


class Api(Protocol):
    """A node, seen from the pages below ``/api/v1/``."""

    def find(self, parts: tuple[str, ...]) -> Deferred[Json | None]:
        """The page of a path, by its components; None when there is none. Fails with CiruelaError for what cannot be told now."""


LIST_DIR = "/list-dir/"
CLUSTER = "/cluster/"
API = "/api/v1/"


class Pages(Resource):
    """All pages, as one leaf: paths must match exactly, with the slash at the end (protocol section 8)."""

    isLeaf = True  # noqa: N815  the name is Twisted's

    _log = Logger()

    def __init__(self, status: Status, api: Api | None = None) -> None:
        super().__init__()
        self._status = status
        self._api = api
        self._routes: dict[str, Callable[[], Json]] = {
            "/status/": status.status,
            "/downloading/": status.downloading,
            "/base-dirs/": status.base_dirs,
            "/configs/": status.configs,
            "/deleted/": status.deleted,
            "/watching/": status.watching,
            "/watched/": status.watched,
            "/peers/": status.peers,
        }

    def render(self, request: Request) -> bytes | int:
        """Answer GET and HEAD; nothing here changes anything."""
        request.setHeader("Server", f"ciruela/{__version__}")
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader("Allow", "GET, HEAD")
            return self._answer(request, NOT_ALLOWED, {"error": "the status pages are read-only"})
        if self._api is not None and request.path.startswith(API.encode("ascii")):
            return self._ask(request, self._api)
        return self._answer(request, *self._find(request.path))

    def _ask(self, request: Request, api: Api) -> bytes | int:
        """A page that may have to look at files: it is written when it is there, unless nobody waits any more."""
        try:
            path = unquote_to_bytes(request.path).decode("utf-8")
        except UnicodeDecodeError:
            return self._answer(request, NOT_FOUND, {"error": "the path is not UTF-8"})
        asked = Deferred.fromCoroutine(_found(api, path))
        left: list[Failure] = []
        request.notifyFinish().addErrback(left.append)

        def write(answer: tuple[int, Json] | Failure) -> None:
            if isinstance(answer, Failure):
                self._log.failure("the page {page} could not be made", answer, page=path)
                answer = SERVICE_UNAVAILABLE, {"error": "the page could not be made, the log of this node tells why"}
            if not left:
                request.write(self._answer(request, *answer, compact=True))
                request.finish()

        asked.addBoth(write)
        return NOT_DONE_YET

    def _find(self, raw: bytes) -> tuple[int, Json]:
        try:
            path = unquote_to_bytes(raw).decode("utf-8")
        except UnicodeDecodeError:
            return NOT_FOUND, {"error": "the path is not UTF-8"}
        if path in ("/healthz", "/healthz/"):
            well, words = self._status.health()
            return (OK if well else SERVICE_UNAVAILABLE), words
        if path in self._routes:
            return OK, self._routes[path]()
        if path.startswith(LIST_DIR):
            return OK, self._status.list_dir("/" + path.removeprefix(LIST_DIR).strip("/"))
        if path.startswith(CLUSTER) and path.endswith("/"):
            found = self._status.cluster(path.removeprefix(CLUSTER).rstrip("/"))
            if found is not None:
                return OK, found
        return NOT_FOUND, {"error": "not found", "pages": [*sorted(self._routes), LIST_DIR + "KEY/..", *_cluster_pages(), "/healthz"]}

    def _answer(self, request: Request, code: int, value: Json, *, compact: bool = False) -> bytes:
        """``compact`` for pages that may be long: with line ends it takes ten times as long to write them."""
        body = json.dumps(value, ensure_ascii=False, indent=None if compact else 1).encode("utf-8", "backslashreplace") + b"\n"
        request.setResponseCode(code)
        request.setHeader("Content-Type", "application/json")
        request.setHeader("Cache-Control", "no-store")
        request.setHeader("X-Content-Type-Options", "nosniff")
        request.setHeader("Content-Length", str(len(body)))
        return b"" if request.method == b"HEAD" else body


async def _found(api: Api, path: str) -> tuple[int, Json]:
    try:
        page = await api.find(tuple(path.removeprefix(API).rstrip("/").split("/")))
    except CiruelaError:
        return SERVICE_UNAVAILABLE, {"error": "this cannot be told now, the log of this node tells why"}
    return (NOT_FOUND, {"error": "there is no such page, or no such directory here"}) if page is None else (OK, page)


def _cluster_pages() -> list[Json]:
    return [f"{CLUSTER}{topic}/" for topic in ("downloading", "complete", "deleted", "watching", "dirs", "configs")]
