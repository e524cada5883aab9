"""``http://`` and ``https://``: a page that lists the nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred

from ciruela.net.discovery.fetch import MOST_REDIRECTS, Fetch
from ciruela.net.discovery.lists import read_list


def http(url: str, fetch: Fetch) -> Callable[[], Deferred[Sequence[str]]]:
    """What to ask: see ``lists.read_list`` for what the page may look like."""

    def ask() -> Deferred[Sequence[str]]:
        page = fetch(url, {"Accept": "application/json, text/plain;q=0.9"}, redirects=MOST_REDIRECTS)
        return page.addCallback(lambda found: read_list(found.body))

    return ask
