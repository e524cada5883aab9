"""The routes of the status pages, under the reference's paths, and ``/healthz``."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import INTERNAL_SERVER_ERROR, NOT_ALLOWED, NOT_FOUND, OK, SERVICE_UNAVAILABLE
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from ciruela import __version__
from ciruela.web.status import Json, Status

LIST_DIR = "/list-dir/"
CLUSTER = "/cluster/"
DIRS = "/api/v1/dirs/"
RETENTION = "/retention"

_log = Logger()


class Pages(Resource):
    """All pages, as one leaf: paths must match exactly, with the slash at the end (protocol section 8)."""

    isLeaf = True  # noqa: N815  the name is Twisted's

    def __init__(self, status: Status) -> None:
        super().__init__()
        self._status = status
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
        base = _retention_of(request.path)
        if base is not None:
            return self._later(request, self._status.retention(base))
        return self._answer(request, *self._find(request.path))

    def _later(self, request: Request, waiting: Deferred[Json | None]) -> int:
        """Answer when ``waiting`` has fired, unless the other side has gone."""

        def found(value: Json | None) -> None:
            missing: Json = {"error": "not found"}
            request.write(self._answer(request, NOT_FOUND if value is None else OK, missing if value is None else value))
            request.finish()

        def failed(failure: Failure) -> None:
            if not failure.check(CancelledError):
                _log.failure("a page could not be made", failure)
                request.write(self._answer(request, INTERNAL_SERVER_ERROR, {"error": "internal error"}))
                request.finish()

        request.notifyFinish().addErrback(lambda _: waiting.cancel())
        waiting.addCallback(found).addErrback(failed)
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

    def _answer(self, request: Request, code: int, value: Json) -> bytes:
        body = json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace") + b"\n"
        request.setResponseCode(code)
        request.setHeader("Content-Type", "application/json")
        request.setHeader("Cache-Control", "no-store")
        request.setHeader("X-Content-Type-Options", "nosniff")
        request.setHeader("Content-Length", str(len(body)))
        return b"" if request.method == b"HEAD" else body


def _retention_of(raw: bytes) -> str | None:
    """The path of the base dir whose retention is asked for; None for any other page."""
    try:
        path = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        return None
    if not path.startswith(DIRS) or not path.endswith(RETENTION):
        return None
    return "/" + path[len(DIRS) : -len(RETENTION)]


def _cluster_pages() -> list[Json]:
    return [f"{CLUSTER}{topic}/" for topic in ("downloading", "complete", "deleted", "watching", "dirs", "configs")]
