"""The pages below ``/api/v1/``: what the reading commands of the client ask of a node (``docs/reference/status.rst``).

Read-only values. No path of this host, no comment of a key and no address of a client is ever in them. What needs files is asked at most
once in some seconds, however many ask.

The page that tells why each image of a base dir stays or goes, and when.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from twisted.internet.defer import Deferred, DeferredLock, fail, succeed

from ciruela._version import __version__
from ciruela.cleanup.health import Explained
from ciruela.daemon.authority import Signature, Signers
from ciruela.daemon.listings import config_hash
from ciruela.daemon.node import Node
from ciruela.daemon.status import disk_page, rfc3339
from ciruela.interfaces import Address
from ciruela.membership.members import PeerStatus
from ciruela.membership.servers import Stranger
from ciruela.model.config import DirConfig
from ciruela.model.errors import DiskError
from ciruela.model.hooks import HookReport, HookState
from ciruela.model.versions import State
from ciruela.model.vpath import VPath
from ciruela.web.pages import Json

FRESH_S = 5.0
"""So long a page is given again as it is."""

NOT_CLEANED = "auto-clean is off"
"""Reason why everything stays where nothing is cleaned up."""


class Retention:
    """Makes the pages. Each is kept for a moment, so that who asks again and again has no files read for it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._turn = DeferredLock()
        self._made: dict[VPath, tuple[float, Json]] = {}

    async def page(self, base: VPath) -> Json | None:
        """The page of ``base``; None when it is no base dir that holds something here. Raises DiskError when too many wait already."""
        node = self._node
        config = node.context.configs.get(base.key)
        if config is None or base not in node.ledger.base_hashes():
            return None
        if len(self._turn.waiting) >= MOST_WAITING:
            raise DiskError("what was asked for before is not found out yet")
        await self._turn.acquire()
        try:
            now_s = node.context.clock.seconds()
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
        "machine_id": node.context.me.hex(),
        "hostname": node.context.hostname,
        "base_dir": str(base),
        "auto_clean": explained is not None,
        "settings": _settings(config),
        "blocked": blocked,
        "next_cycle": rfc3339(explained.next_ms) if explained is not None and explained.next_ms is not None else None,
        "images": _images(explained) if explained is not None else _all_stay(node, base),
    }


def _settings(config: DirConfig) -> dict[str, Json]:
    """Gives the settings of the keep rules, without paths of this host."""
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


API = 1
"""The number of this contract; what is added does not change it."""

MOST_VERSIONS = 5000
"""Images that one page lists, the newest first."""

MOST_HOOKS = 20
"""Failed hooks that one page names."""

MOST_WAITING = 64
"""Pages that wait for one look at the file systems; with more of them, one of these hangs."""

ROOM_FRESH_S = 5.0
"""The free space of a directory is looked up at most so often."""

Room = Callable[[str], Deferred[tuple[int, int, int]]]
"""``Store.room``: bytes free, size, and reserve of the file system of a directory."""


class NodeApi:
    """Implements ``web.pages.Api``."""

    def __init__(self, node: Node, signers: Signers, room: Room, config: Callable[[], Json] = lambda: None) -> None:
        """``config`` tells how the last reload went (``status.config_status``)."""
        self._node = node
        self._config_status = config
        self._signers = signers
        self._room = room
        self._retention = Retention(node)
        self._rooms: dict[str, tuple[float, dict[str, Json]]] = {}
        self._turn = DeferredLock()
        self._began_s = node.context.clock.seconds()

    def find(self, parts: tuple[str, ...]) -> Deferred[Json | None]:
        """As ``web.pages.Api.find``."""
        match parts:
            case ("status",):
                return succeed(self._status())
            case ("peers",):
                return succeed(self._peers())
            case ("keys",):
                return Deferred.fromCoroutine(self._keys())
            case ("dirs",):
                if len(self._turn.waiting) >= MOST_WAITING:
                    return fail(DiskError("the file systems do not answer"))
                return self._turn.run(lambda: Deferred.fromCoroutine(self._dirs()))
            case ("dirs", *names) if names:
                return Deferred.fromCoroutine(self._dir(names))
            case ("images", *names) if names:
                return Deferred.fromCoroutine(self._image(names))
            case ("retention", *names) if names:
                path, _ = self._taken(names)
                return succeed(None) if path is None else Deferred.fromCoroutine(self._retention.page(path))
        return succeed(None)

    def _status(self) -> Json:
        node = self._node
        return {
            "api": API,
            "machine_id": node.context.me.hex(),
            "hostname": node.context.hostname,
            "version": __version__,
            "now_ms": node.context.now_ms(),
            "uptime_s": round(node.context.clock.seconds() - self._began_s, 1),
            "epoch_ms": node.context.epoch,
            "ready": node.ready,
            "images": len(node.ledger),
            "downloads": len(node.downloads.running()),
            "damaged": len(node.scrub.ill),
            "config": self._config_status(),
            "failed_hooks": self._failed_hooks(),
            "disk": disk_page(node),
        }

    def _failed_hooks(self) -> list[Json]:
        """The hooks that failed for images that are here now, the latest first."""
        failed = []
        for vpath, report in self._node.hooks.ended(0):
            state = self._node.ledger.committed(vpath)
            if report.state is HookState.FAILED and state is not None and state.image == report.image:
                failed.append((vpath, report))
        failed.sort(key=lambda one: (-one[1].at_ms, one[0]))
        return [{"path": str(vpath), "image": report.image.hex(), **_hook(report)} for vpath, report in failed[:MOST_HOOKS]]

    def _peers(self) -> Json:
        """The other nodes: those that are configured, then those that speak here although they are not. Seconds are None for never."""
        cluster = self._node.gossip.cluster
        now_s = self._node.context.clock.seconds()
        rows: list[Json] = [_peer_row(peer) for peer in cluster.peers() if not peer.own]
        rows += [_stranger_row(source, one, now_s) for source, one in cluster.strangers()]
        shared: list[Json] = [{"machine_id": one.machine.hex(), "addresses": list(one.addresses)} for one in cluster.shared_ids()]
        return {"api": API, "peers": rows, "shared_ids": shared}

    async def _keys(self) -> Json:
        """The fingerprints of the keys that may upload, by directory."""
        found: dict[str, Json] = {}
        for key, config in sorted(self._node.context.configs.items()):
            fingerprints, _ = await self._signers.of(config, ())
            found[key] = list(fingerprints)
        return {"api": API, "dirs": found}

    async def _dirs(self) -> Json:
        return {
            "api": API,
            "dirs": [self._config(config) | await self._space(key) for key, config in sorted(self._node.context.configs.items())],
        }

    def _config(self, config: DirConfig) -> dict[str, Json]:
        return {
            "key": config.key,
            "append_only": config.append_only,
            "num_levels": config.num_levels,
            "auto_clean": config.auto_clean,
            "config_hash": config_hash(config).hex(),
            "images": self._node.ledger.count(config.key),
        }

    async def _space(self, key: str) -> dict[str, Json]:
        now_s = self._node.context.clock.seconds()
        kept = self._rooms.get(key)
        if kept is None or now_s - kept[0] >= ROOM_FRESH_S:
            try:
                free, size, reserve = await self._room(key)
            except DiskError:
                kept = now_s, {"usable": False, "free_bytes": None, "size_bytes": None, "reserve_bytes": None}
            else:
                kept = now_s, {"usable": True, "free_bytes": free, "size_bytes": size, "reserve_bytes": reserve}
            self._rooms[key] = kept
        return kept[1]

    async def _dir(self, names: Sequence[str]) -> Json | None:
        """The base dirs below a path, and the images right in it."""
        path, config = self._taken(names)
        if path is None or config is None or path.level > max(config.num_levels - 1, 0):
            return None
        ledger = self._node.ledger
        bases = [base for base in ledger.base_hashes() if base != path and base.parts[: len(path.parts)] == path.parts]
        entries = sorted(ledger.entries(path).items(), key=lambda item: item[1].version, reverse=True)[:MOST_VERSIONS]
        shown = [(path.image_at(entry), state) for entry, state in entries]
        _, made = await self._signers.of(config, [one for vpath, state in shown for one in _signatures(vpath, state)])
        return {
            "api": API,
            "path": str(path),
            "base_dirs": [{"path": str(base), "images": len(ledger.entries(base))} for base in sorted(bases)[:MOST_VERSIONS]],
            "versions": [self._version(vpath, state, made) for vpath, state in shown],
        }

    def _version(self, vpath: VPath, state: State, made: Mapping[Signature, str | None]) -> dict[str, Json]:
        """One image. ``key`` of a signature is None when no key of today made it, or nobody has tried yet."""
        pending = self._node.ledger.pending(vpath)
        return {
            "path": str(vpath),
            "image": state.image.hex(),
            "signed_ms": state.version.timestamp_ms,
            "state": "committed" if pending is None else "downloading",
            "signatures": [
                {"signed_ms": entry.timestamp_ms, "key": made.get((str(vpath), state.image, entry))} for entry in state.signatures
            ],
        }

    async def _image(self, names: Sequence[str]) -> Json | None:
        """Describes one path at this node. ``taken``: this node has the directory, with paths of this depth."""
        path, config = self._taken(names)
        if path is None:
            return None
        if config is None or path.level != config.num_levels:
            return {"api": API, "path": str(path), "taken": False, "committed": None, "pending": None, "refused": None, "hooks": []}
        with suppress(DiskError):  # then the records say what they can
            await self._node.presence.there(path)
        ledger = self._node.ledger
        committed, pending = ledger.committed(path), ledger.pending(path)
        states = [state for state in (committed, pending.state if pending else None) if state is not None]
        _, made = await self._signers.of(config, [one for state in states for one in _signatures(path, state)])
        return {
            "api": API,
            "path": str(path),
            "taken": True,
            "committed": None if committed is None else self._version(path, committed, made) | {"state": "committed"},
            "pending": None if pending is None else self._version(path, pending.state, made) | self._progress(path),
            "refused": self._refused(path),
            "hooks": [] if committed is None else [_hook(report) for report in self._node.hooks.of(path, committed.image)],
        }

    def _progress(self, path: VPath) -> dict[str, Json]:
        download = self._node.downloads.get(path)
        if download is None:
            return {"phase": None, "done": None, "stalled": False, "age_s": None}
        blocks = None if download.index is None else download.index.block_count
        missing = None if download.plan is None else download.plan.missing
        return {
            "phase": download.phase.value,
            "done": None if missing is None or blocks is None else round(1 - missing / blocks, 4) if blocks else 1.0,
            "stalled": download.stalled,
            "age_s": round(self._node.context.clock.seconds() - download.began_s, 1),
        }

    def _refused(self, path: VPath) -> Json:
        refusal = self._node.refusals.at(path)
        if refusal is None:
            return None
        return {
            "image": refusal.image.hex(),
            "reason": refusal.word,
            "rejected": refusal.rejected,
            "age_s": round(self._node.context.clock.seconds() - refusal.at_s, 1),
        }

    def _taken(self, names: Sequence[str]) -> tuple[VPath | None, DirConfig | None]:
        try:
            path = VPath.parse("/" + "/".join(names))
        except ValueError:
            return None, None
        return path, self._node.context.configs.get(path.key)


def _hook(report: HookReport) -> dict[str, Json]:
    return {"kind": report.kind.value, "state": report.state.value, "message": report.message}


def _peer_row(peer: PeerStatus) -> dict[str, Json]:
    """One configured address, with what is remembered where nobody was heard lately."""
    known = peer.known
    machine = peer.machine or (known.machine if known else None)
    return {
        "machine_id": None if machine is None else machine.hex(),
        "hostname": peer.hostname or (known.hostname if known else "") or None,
        "name": peer.name,
        "address": str(peer.address),
        "addresses": [str(peer.address)],
        "heard_s": None if peer.silent_s is None else round(peer.silent_s, 1),
        "udp_heard_s": None if peer.udp_s is None else round(peer.udp_s, 1),
        "reached": peer.reached,
        "configured": True,
        "dirs": list(peer.keys or (known.keys if known else None) or ()),
    }


def _stranger_row(source: Address, one: Stranger, now_s: float) -> dict[str, Json]:
    """One node that speaks here although no list of peers names it, as it told of itself."""
    return {
        "machine_id": one.machine.hex(),
        "hostname": one.hostname or None,
        "name": one.hostname or source.host,
        "address": str(source),
        "addresses": [str(source)],
        "heard_s": round(max(0.0, now_s - one.at_s), 1),
        "udp_heard_s": None,
        "reached": None,
        "configured": False,
        "dirs": [*sorted(one.keys or ())],
    }


def _signatures(vpath: VPath, state: State) -> list[Signature]:
    return [(str(vpath), state.image, entry) for entry in state.signatures]
