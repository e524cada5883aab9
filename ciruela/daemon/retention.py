"""The page that tells why each image of a base dir stays or goes, and when."""

from __future__ import annotations

from twisted.internet.defer import DeferredLock

from ciruela.cleanup.health import Explained
from ciruela.daemon.node import Node
from ciruela.daemon.stamps import rfc3339
from ciruela.model.dirconfig import DirConfig
from ciruela.model.errors import DiskError
from ciruela.model.vpath import VPath
from ciruela.web.status import Json

FRESH_S = 5.0
"""So long a page is given again as it is."""

MOST_WAITING = 64
"""Who waits for a page; with more of them, a keep list or a link hangs."""

NOT_CLEANED = "auto-clean is off"
"""Why everything stays where nothing is cleaned up."""


class Retention:
    """Makes the pages. Each is kept for a moment, so that who asks again and again has no files read for it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._turn = DeferredLock()
        self._made: dict[VPath, tuple[float, Json]] = {}

    async def page(self, base: VPath) -> Json | None:
        """The page of ``base``; None when it is no base dir that holds something here. Raises DiskError when too many wait already."""
        node = self._node
        config = node.world.configs.get(base.key)
        if config is None or base not in node.ledger.base_hashes():
            return None
        if len(self._turn.waiting) >= MOST_WAITING:
            raise DiskError("what was asked for before is not found out yet")
        await self._turn.acquire()
        try:
            now_s = node.world.clock.seconds()
            self._made = {known: made for known, made in self._made.items() if made[0] > now_s}
            if base not in self._made:
                explained = None if node.cleanup is None else await node.cleanup.explain(base)
                self._made[base] = (now_s + FRESH_S, _page(node, base, config, explained))
            return self._made[base][1]
        finally:
            self._turn.release()


def _page(node: Node, base: VPath, config: DirConfig, explained: Explained | None) -> Json:
    blocked: list[Json] = [] if explained is None else [*sorted({one.cause.value for one in explained.blocked})]
    return {
        "machine_id": node.world.me.hex(),
        "hostname": node.world.hostname,
        "base_dir": str(base),
        "auto_clean": explained is not None,
        "settings": _settings(config),
        "blocked": blocked,
        "next_cycle": rfc3339(explained.next_ms) if explained is not None and explained.next_ms is not None else None,
        "images": _images(explained) if explained is not None else _all_stay(node, base),
    }


def _settings(config: DirConfig) -> dict[str, Json]:
    """What the rules go by, without paths of this host."""
    return {
        "keep_min_directories": config.keep_min_directories,
        "keep_max_directories": config.keep_max_directories,
        "keep_recent_s": config.keep_recent_ms // 1000,
        "keep_list": config.keep_list_file is not None,
        "protect": len(config.protect),
        "keep_replaced": config.keep_replaced,
    }


def _images(explained: Explained) -> list[Json]:
    return [
        {
            "name": one.ruling.entry,
            "image_id": one.ruling.version.image.hex(),
            "signed": rfc3339(one.ruling.version.timestamp_ms),
            "keeps": one.ruling.keeps,
            "rule": one.ruling.rule.name.lower(),
            "why": one.ruling.rule.value,
            "not_before": None if one.not_before_ms is None else rfc3339(one.not_before_ms),
        }
        for one in explained.outlooks
    ]


def _all_stay(node: Node, base: VPath) -> list[Json]:
    versions = sorted(((state.version, vpath.entry or base.name) for vpath, state in node.ledger.committed_in(base)), reverse=True)
    return [
        {
            "name": entry,
            "image_id": version.image.hex(),
            "signed": rfc3339(version.timestamp_ms),
            "keeps": True,
            "rule": "not_cleaned",
            "why": NOT_CLEANED,
            "not_before": None,
        }
        for version, entry in versions
    ]
