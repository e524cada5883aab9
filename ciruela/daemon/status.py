"""A node as its status pages show it (protocol section 8): copies of live values, made for one request each.

Times as the pages show them.
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from ciruela._version import __version__
from ciruela.cleanup.service import words
from ciruela.daemon.node import Node
from ciruela.daemon.reload import Reloads
from ciruela.membership.packets import Complete, Deleted, DownloadFact
from ciruela.model.versions import State
from ciruela.model.vpath import VPath
from ciruela.net.discovery.source import PeerSource
from ciruela.runtime import PeriodicTask
from ciruela.web.pages import Json


def rfc3339(stamp_ms: int) -> str:
    """A time as the reference writes it: 9 fractional digits unless it is a whole second."""
    seconds, rest_ms = divmod(stamp_ms, 1000)
    try:
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{stamp_ms} ms"
    return f"{text}.{rest_ms:03d}000000Z" if rest_ms else f"{text}Z"


HOOK_COUNTS = ("tries", "ok", "failed")
"""Counters of each kind of hook."""


def memory() -> dict[str, Json]:
    """Bytes in use by this process, as the kernel counts them."""
    names = {
        "VmRSS": "memory_rss",
        "VmSize": "memory_virtual",
        "VmSwap": "memory_swap",
        "VmHWM": "memory_rss_peak",
        "VmPeak": "memory_virtual_peak",
    }
    found: dict[str, Json] = {}
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        for line in lines:
            word, _, rest = line.partition(":")
            if word in names:
                found[names[word]] = int(rest.split()[0]) * 1024
    return found


class NodeStatus:
    """Implements ``web.pages.Status``. ``extra`` gives further metrics: (group, metric, type, value); ``told`` further fields."""

    def __init__(
        self, node: Node, extra: Callable[[], list[tuple[str, str, str, int]]], told: Callable[[], dict[str, Json]] = dict
    ) -> None:
        self._node = node
        self._extra = extra
        self._told = told
        self._began_ms = node.context.now_ms()

    def health(self) -> tuple[bool, Json]:
        """Tells whether this node serves."""
        node = self._node
        if node.broken:
            return False, {"status": "broken", "reason": node.broken, "version": __version__}
        told: dict[str, Json] = {"status": "ok" if node.ready else "starting", "version": __version__}
        problems = [
            f"machine id {one.machine.hex()} is used by several servers, at {' and '.join(one.addresses)}: give each its own "
            "(remove its machine-id file, or --override-machine-id) and restart it"
            for one in node.gossip.cluster.shared_ids()
        ]
        return node.ready, told | ({"problems": list(problems)} if problems else {})

    def status(self) -> Json:
        """Identity, process, metrics."""
        context = self._node.context
        times = os.times()
        return {
            "machine_id": context.me.hex(),
            "hostname": context.hostname,
            "version": __version__,
            "durability": context.tuning.fsync.value,
            "process": {
                "timestamp": context.now_ms(),
                "start_time": self._began_ms,
                "cpu_user_s": times.user,
                "cpu_system_s": times.system,
                "cpu_since_s": time.process_time(),
                **memory(),
            },
            "cleanup": self._cleanup(),
            "scrub": self._scrub(),
            "disk": disk_page(self._node),
            **self._told(),
            "hooks": self._hooks(),
            "threads": {thread.name: {} for thread in threading.enumerate()},
            "metrics": [[{"group": group, "metric": metric}, [kind, value]] for group, metric, kind, value in self._metrics()],
        }

    def _cleanup(self) -> Json:
        """Describes cleanup, by base dir; the reasons why it deletes nothing are without files of this host: those are in the log."""
        cleanup = self._node.cleanup
        if cleanup is None:
            return {}
        return {
            str(base): {
                "last_cycle": rfc3339(report.ended_ms) if report.ended_ms else None,
                "blocked": sorted({*words(report), *(("protect",) if base.key in cleanup.doubtful else ())}),
                "deleted": report.deleted,
                "failed": report.faults,
            }
            for base, report in cleanup.reports.items()
        }

    def _scrub(self) -> Json:
        """Describes how far the scrub is, and what is damaged. No names inside images: they are in the log."""
        scrub = self._node.scrub
        return {
            "images": scrub.cycle_total,
            "images_left": scrub.left,
            "current": None if scrub.at is None else str(scrub.at),
            "last_full_cycle": None if scrub.last_full_ms is None else rfc3339(scrub.last_full_ms),
            "damaged": {
                str(vpath): {
                    "image_id": ill.image.hex(),
                    "since": rfc3339(ill.since_ms),
                    "damages": ill.count,
                    "mending": ill.mending,
                    "failed": bool(ill.failure),
                }
                for vpath, ill in scrub.ill.items()
            },
        }

    def _hooks(self) -> Json:
        """The last result of each hook, by path. A message may be the last line of what a command of the operator wrote."""
        return {
            str(vpath): {
                kind.value: {
                    "image_id": report.image.hex(),
                    "state": report.state.value,
                    "tries": report.tries,
                    "message": report.message,
                    "at": rfc3339(report.at_ms),
                }
                for kind, report in kinds.items()
            }
            for vpath, kinds in self._node.hooks.reports.items()
        }

    def _metrics(self) -> list[tuple[str, str, str, int]]:
        node = self._node
        counts = node.gossip.counts
        totals = node.downloads.totals
        scrub = node.scrub
        return [
            ("tracking.images", "downloading", "level", len(node.downloads.running())),
            ("tracking.images", "tracking", "level", len(node.ledger)),
            ("tracking.images", "base_dirs", "level", len(node.ledger.base_hashes())),
            ("tracking.images", "download_failed", "counter", totals.failed),
            ("tracking.images", "blocks_failed", "counter", totals.bad_blocks),
            ("tracking.reconciliation", "backlog", "level", node.reconciler.backlog()),
            ("disk.committed", "images", "counter", totals.committed),
            ("disk.committed", "bytes", "counter", totals.committed_bytes),
            ("disk.hardlinks", "files", "counter", totals.reused_files),
            ("disk.hardlinks", "bytes", "counter", totals.reused_bytes),
            ("blocks", "received_bytes", "counter", totals.received_bytes),
            ("blocks", "sent_blocks", "counter", node.blocks.sent_blocks),
            ("blocks", "sent_bytes", "counter", node.blocks.sent_bytes),
            ("cleanup", "images", "counter", 0 if node.cleanup is None else node.cleanup.deleted),
            ("cleanup", "indexes", "counter", 0 if node.cleanup is None else node.cleanup.collected),
            ("scrub", "damaged_now", "level", len(scrub.ill)),
            ("scrub", "images", "counter", scrub.looked),
            ("scrub", "bytes", "counter", scrub.bytes),
            ("scrub", "damaged", "counter", scrub.damaged),
            ("scrub", "healed", "counter", scrub.healed),
            ("scrub", "failed", "counter", scrub.failed),
            ("disk", "set_aside", "level", len(node.context.disk.set_aside())),
            ("disk", "missing", "counter", node.presence.lost),
            ("disk", "unseen", "level", len(node.presence.unseen)),
            ("disk", "debris", "level", node.presence.litter),
            ("hooks", "due", "level", node.hooks.due),
            *(
                ("hooks", f"{kind.value}_{what}", "counter", getattr(count, what))
                for kind, count in node.hooks.counts.items()
                for what in HOOK_COUNTS
            ),
            ("gossip", "known_peers", "level", sum(1 for peer in node.gossip.cluster.peers() if peer.machine is not None and not peer.own)),
            ("gossip", "datagrams_sent", "counter", counts.sent),
            ("gossip", "bytes_sent", "counter", counts.sent_bytes),
            ("gossip", "datagrams_heard", "counter", counts.heard),
            ("gossip", "exchanges", "counter", node.gossip.exchanges.done),
            ("gossip", "exchanges_failed", "counter", node.gossip.exchanges.failed),
            ("gossip", "claims_refuted", "counter", node.gossip.confirmations.refuted),
            *(("gossip", f"refused_{reason}", "counter", count) for reason, count in counts.refused.items()),
            ("requests", "slowed", "counter", node.counterpart.slowed + node.uploads.quotas.slowed),
            ("requests", "published_refused", "counter", node.clients.published_refused),
            ("duties", "failed", "counter", PeriodicTask.failures),
            *self._extra(),
        ]

    def downloading(self) -> Json:
        """Downloads by path. ``mask`` is ours: 256 slices (``model.bitfield``), bit 0 the first."""
        return {
            str(one.vpath): {
                "image_id": one.image.hex(),
                "phase": one.phase.value,
                "mask": f"{one.mask or 0:064x}",
                "missing_blocks": None if one.plan is None else one.plan.missing,
                "blocks": None if one.index is None else one.index.block_count,
                "stalled": one.stalled,
                "source": bool(self._node.watches.sources(one.image)),
                "age_s": round(self._node.context.clock.seconds() - one.began_s, 1),
            }
            for one in self._node.downloads.running()
        }

    def base_dirs(self) -> Json:
        """Base dirs with their hashes and sizes."""
        ledger = self._node.ledger
        return {
            str(base): {
                "hash": hash_.hex(),
                "num_subdirs": len(ledger.entries(base)),
                "num_downloading": sum(1 for one in self._node.downloads.running() if one.vpath.base == base),
            }
            for base, hash_ in ledger.base_hashes().items()
        }

    def configs(self) -> Json:
        """Directory configs, without keys and paths of the host."""
        return {
            key: {"append_only": config.append_only, "num_levels": config.num_levels, "auto_clean": config.auto_clean}
            for key, config in self._node.context.configs.items()
        }

    def deleted(self) -> Json:
        """Uploads given up lately."""
        return [[str(one.vpath), one.image.hex()] for one in self._node.ledger.abandoned()]

    def watching(self) -> Json:
        """Paths that clients here wait for."""
        return [str(vpath) for vpath in sorted(self._node.watches.paths())]

    def watched(self) -> Json:
        """Paths that clients here wait for, with what is there."""
        found: dict[str, Json] = {}
        for vpath in sorted(self._node.watches.paths()):
            state = self._node.ledger.committed(vpath)
            found[str(vpath)] = "absent" if state is None else state.image.hex()
        return found

    def peers(self) -> Json:
        """Peers by machine id; addresses that have not spoken yet under their configured name."""
        found: dict[str, Json] = {}
        for peer in self._node.gossip.cluster.peers():
            if peer.own:
                continue
            found[peer.name if peer.machine is None else peer.machine.hex()] = {
                "id": None if peer.machine is None else peer.machine.hex(),
                "addr": str(peer.address),
                "hostname": peer.hostname,
                "name": peer.name,
                "silent_s": None if peer.silent_s is None else round(peer.silent_s, 1),
                "udp_heard_s": None if peer.udp_s is None else round(peer.udp_s, 1),
                "reached": peer.reached,
                "configs": [f"/{key}" for key in peer.keys],
            }
        return found

    def list_dir(self, path: str) -> Json:
        """The images of a base dir, those on their way included; ``committed`` (ours) tells which are visible."""
        try:
            base = VPath.parse(path)
        except ValueError:
            return {}
        ledger = self._node.ledger
        return {
            entry or base.name: _state(state) | {"committed": ledger.pending(base.image_at(entry)) is None}
            for entry, state in sorted(ledger.entries(base).items())
        }

    def cluster(self, topic: str) -> Json | None:
        """Gives what peers said on ``topic``; None for one that does not exist."""
        cluster = self._node.gossip.cluster
        match topic:
            case "dirs":
                taking: dict[str, list[Json]] = {}
                for peer in cluster.peers():
                    if peer.machine is not None and not peer.own:
                        for key in peer.keys:
                            taking.setdefault(f"/{key}", []).append(peer.machine.hex())
                return {key: sorted(machines, key=str) for key, machines in sorted(taking.items())}
            case "configs":
                return {
                    peer.machine.hex(): {"configs": [f"/{key}" for key in peer.keys]}
                    for peer in cluster.peers()
                    if peer.machine is not None and not peer.own
                }
            case "watching":
                watching: dict[str, list[Json]] = {}
                for vpath, machine in cluster.watches():
                    watching.setdefault(machine.hex(), []).append(str(vpath))
                return {machine: sorted(paths, key=str) for machine, paths in watching.items()}
            case "downloading":
                running: dict[str, dict[str, Json]] = {}
                for machine, item in cluster.stances():
                    if isinstance(item, DownloadFact):
                        running.setdefault(machine.hex(), {})[str(item.vpath)] = {
                            "image_id": item.image.hex(),
                            "mask": f"{item.mask or 0:064x}",
                            "stalled": item.stalled,
                            "source": item.source,
                        }
                return dict(running)
            case "complete":
                return self._pairs(Complete)
            case "deleted":
                return self._pairs(Deleted)
        return None

    def _pairs(self, kind: type[Complete | Deleted]) -> Json:
        found: dict[str, list[Json]] = {}
        for machine, item in self._node.gossip.cluster.stances():
            if isinstance(item, kind):
                found.setdefault(machine.hex(), []).append([str(item.vpath), item.image.hex()])
        return dict(found)


def disk_page(node: Node) -> dict[str, Json]:
    """Lists what is not as it should be in the directories of images; without paths of this host, which are in the log.

    ``set_aside``: what stood at the name of an image without a record, by its hidden name beside it. ``unseen``: directories that cannot be
    looked at. ``protect``: directories of which a protected link cannot be followed. ``missing`` images were found gone since the start.
    """
    return {
        "set_aside": [
            {"path": one.path, "name": one.where.rpartition("/")[2], "since": rfc3339(one.since_ms)}
            for one in node.context.disk.set_aside()
        ],
        "unseen": [*sorted(node.presence.unseen)],
        "protect": [] if node.cleanup is None else [*sorted(node.cleanup.doubtful)],
        "missing": node.presence.lost,
        "debris": node.presence.litter,
    }


def config_status(reloads: Reloads) -> Json:
    """Describes the last reload: it tells where the mistakes were; what they were stands in the log."""
    last = reloads.last
    return {
        "last_reload": None if last is None else rfc3339(last.at_ms),
        "ok": last is None or not last.mistakes,
        "mistakes": 0 if last is None else len(last.mistakes),
        "places": [] if last is None else list(last.places(reloads.plan.config_dir)),
        "restart_needed": [] if last is None else list(last.waiting),
    }


def sources_status(sources: Sequence[PeerSource]) -> Json:
    """The places that know the peers, without paths of this host, and without queries of URLs, which may hold a secret."""
    return [
        {
            "source": f"file:{source.text.rpartition('/')[2]}" if source.text.startswith("file:") else source.text.partition("?")[0],
            "names": len(source.names or ()),
            "ok": not source.doubtful,
        }
        for source in sources
    ]


def _state(state: State) -> dict[str, Json]:
    return {
        "image": state.image.hex(),
        "signatures": [
            {"timestamp": rfc3339(entry.timestamp_ms), "signature": "ssh-ed25519 " + base64.b64encode(entry.signature).decode("ascii")}
            for entry in state.signatures
        ],
    }
