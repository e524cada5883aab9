"""What has to hold after each move, and in the end. Each function is named for its row and yields what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ciruela.download.peers import MOST_PEERS
from ciruela.model.ids import ImageId
from ciruela.model.versions import Version
from ciruela.model.vpath import VPath
from ciruela.tracking.ledger import MAX_ABORTS
from ciruela.tracking.subscriptions import MAX_PER_LINK
from ciruela.uploads.decision import FUTURE_LIMIT_MS
from tests.sim.universe import START_MS, Host, Universe, rank

PATIENCE_MS = 60_000
"""What was too new for its clock is asked for again by a node after 20 s."""

MOST_TIMERS = 2_000
"""Timers of one node: a few duties, a few for each connection and request."""

MOST_TIMERS_QUIET = 40
"""The same when nobody wants anything: the duties, and connections that are about to be closed."""

TIMERS_PER_DOWNLOAD = 4 + 3 * MOST_PEERS
"""A download without a source: its own, and for each peer a question of ours with its deadlines, and one of theirs that waits here."""


def i1_whole(host: Host) -> Iterator[str]:
    """A visible directory is an image that stood there by right, and nothing else."""
    for vpath in host.universe.vpaths:
        if vpath.key not in host.shelf.configs:
            continue
        seen = host.shelf.tree(vpath)
        if seen is None:
            continue
        tree, damaged = seen
        images = [host.universe.pictures[image] for image in host.images.get(vpath, ())]
        if not any(_same(tree, picture.tree, damaged) for picture in images):
            yield f"{vpath} is none of the {len(images)} images that were committed there: {sorted(tree)[:6]}"


def _same(tree: dict[str, bytes], wanted: dict[str, bytes], damaged: frozenset[str]) -> bool:
    if tree.keys() - {"", "/"} != wanted.keys() - {"", "/"}:
        return False
    return all(tree[at] == content or at in damaged for at, content in wanted.items() if at != "/")


def i2_acked(host: Host) -> Iterator[str]:
    """I2, I9, I10: what was committed is still recorded as committed, or something newer, or it was deleted by rule."""
    if not host.ready:
        return
    for vpath, high in list(host.high.items()):
        version = high.version
        state = host.node.ledger.committed(vpath)
        tombstone = host.node.ledger.burials(vpath.base).tombstones.get(vpath.entry)
        if state is None and host.doomed.get(vpath) == version and tombstone is not None and tombstone.version == version:
            host.buried[vpath] = host.high.pop(vpath).version
        elif state is None or rank(vpath, state) < rank(vpath, high):
            yield f"{vpath}: {version.image.hex()[:8]} was committed, and now there is {state and state.image.hex()[:8]}"


def i4_signed(host: Host) -> Iterator[str]:
    """Each state has a signature that a key of this host made when it was shown."""
    if not host.ready:
        return
    for base in host.node.ledger.base_hashes():
        for vpath, state in host.node.ledger.committed_in(base):
            if not any((vpath, state.image, entry) in host.blessed for entry in state.signatures):
                yield f"{vpath}: no key of this host made a signature of {state.image.hex()[:8]}"


def i6_bounded(host: Host) -> Iterator[str]:
    """Nothing grows without an end."""
    if not host.ready:
        return
    node = host.node
    links = {link for vpath in node.watches.paths() for link in node.watches.interested(vpath, ImageId(bytes(32)))}
    sizes = {
        "aborts": (len(node.ledger.abandoned()), MAX_ABORTS),
        "watches": (len(node.watches.paths()), MAX_PER_LINK * max(1, len(links))),
        "downloads": (len(node.downloads.running()), len(host.universe.vpaths)),
        "timers": (sum(1 for timer in host.timers.getDelayedCalls()), MOST_TIMERS),
    }
    for what, (size, most) in sizes.items():
        if size > most:
            yield f"{size} {what}, at most {most}"


def i6_quiet(host: Host) -> Iterator[str]:
    """Without clients and faults nothing is left of them."""
    if not host.ready:
        return
    node = host.node
    busy = len(node.downloads.running())
    left = {
        "watched paths": len(node.watches.paths()),
        "uploads that are judged": len(node.uploads._turns),
        f"timers with {busy} downloads": max(0, len(host.timers.getDelayedCalls()) - MOST_TIMERS_QUIET - TIMERS_PER_DOWNLOAD * busy),
    }
    for what, count in left.items():
        if count:
            yield f"{count} {what} are left"


def i11_clean(host: Host) -> Iterator[str]:
    """Beside the images stands nothing that no upload needs."""
    if host.ready:
        pendings = {pending.vpath: pending.state.image for pending in host.node.ledger.pendings()}
        yield from host.shelf.debris(pendings)
    else:
        yield "is not up"


def acknowledged(universe: Universe) -> Iterator[str]:
    """What a client was told that every server has, in an append-only directory, is on every one of them in the end.

    Left out are paths where something was deleted, those of which every record was lost since, and those to which a host brought back an
    image that had been there before: its claim is the earlier one, and stays by rule.
    """
    for vpath, (image, at_s) in universe.acked.items():
        hosts = [host for host in universe.ready() if vpath.key in host.shelf.configs]
        if any(vpath in known for host in universe.everybody() for known in (host.buried, host.removed, host.doomed)):
            continue
        if all(host.wiped_s >= at_s or host.lost_s >= at_s for host in hosts):
            continue
        for host in hosts:
            state = host.node.ledger.committed(vpath)
            older = state is not None and universe.first_s.get((vpath, state.image), at_s) < at_s
            if not older and (state is None or state.image != image):
                yield f"n{host.number} {vpath}: every server had {image.hex()[:8]}, now there is {state and state.image.hex()[:8]}"


Look = Callable[[Host], Iterator[str]]
ALWAYS: tuple[tuple[str, Look], ...] = (("I1", i1_whole), ("I2", i2_acked), ("I4", i4_signed), ("I6", i6_bounded))
quiet: tuple[tuple[str, Look], ...] = (("I6", i6_quiet), ("I11", i11_clean))
"""What has to hold besides when all faults are over and all clients are gone."""


def check(universe: Universe, *more: tuple[str, Look]) -> None:
    """Note every invariant that does not hold now; with ``more`` those of a cluster that has come to rest."""
    if more:
        for what in acknowledged(universe):
            universe.violated("K2.1", what)
    for host in universe.everybody():
        for row, look in (*ALWAYS, *more):
            for what in look(host):
                universe.violated(row, f"n{host.number} {what}")
    for address in universe.hub.spoken_to - universe.known.keys():
        universe.violated("I12", f"{address} was spoken to, which nobody configured")
    for text in universe.ear.unexpected:
        universe.violated("I8", f"logged: {text}")
    universe.ear.unexpected.clear()


def views(universe: Universe) -> dict[str, dict[int, dict[VPath, Version]]]:
    """What each host with the directory holds, by key and number.

    Left out everywhere are paths where one host deleted something, for each node may clean on its own; those where an upload waits that no
    node has: it is waited for, for an hour; and those with an image that was signed for a time to come, which a host took whose clock was
    fast: the others take it when they get there.
    """
    gone = {vpath for host in universe.everybody() for vpath in (*host.buried, *host.doomed)}
    committed = {
        (vpath, state.image)
        for host in universe.ready()
        for base in host.node.ledger.base_hashes()
        for vpath, state in host.node.ledger.committed_in(base)
    }
    pendings = {(pending.vpath, pending.state.image) for host in universe.ready() for pending in host.node.ledger.pendings()}
    gone |= {vpath for vpath, _ in pendings - committed}
    soon_ms = universe.now_ms() + FUTURE_LIMIT_MS - PATIENCE_MS
    gone |= {vpath for host in universe.ready() for vpath, high in host.high.items() if high.version.timestamp_ms > soon_ms}
    found: dict[str, dict[int, dict[VPath, Version]]] = {}
    for host in universe.ready():
        for key in host.shelf.configs:
            found.setdefault(key, {})[host.number] = {}
        for base in host.node.ledger.base_hashes():
            for vpath, state in host.node.ledger.committed_in(base):
                if vpath not in gone:
                    found[vpath.key][host.number][vpath] = state.version
    return found


def agree(universe: Universe) -> bool:
    """I5: everybody is up, and all that take a directory hold the same versions."""
    if len(universe.ready()) < len(universe.hosts):
        return False
    for key, by_host in views(universe).items():
        if universe.freezes and key == "logs":
            continue
        first, *others = by_host.values()
        if any(other != first for other in others):
            return False
    return True


def shown(vpath: VPath, version: Version) -> str:
    """For people: times are milliseconds since the universe began."""
    return f"{vpath}:{version.image.hex()[:6]}@{version.timestamp_ms - START_MS}"


def differences(universe: Universe) -> str:
    """In what they do not agree."""
    found = []
    for key, by_host in views(universe).items():
        if len({tuple(sorted(held.items())) for held in by_host.values()}) > 1:
            texts = (f"n{number} {' '.join(shown(*one) for one in sorted(held.items()))}" for number, held in by_host.items())
            found.append(f"{key}: {'; '.join(texts)}")
    return " | ".join(found)[:2000]
