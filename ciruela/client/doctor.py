"""``ciruela doctor``: what is wrong with a cluster, as its nodes see it, and what to do about it.

Each check is a pure function over what was read. Datagrams are checked where they matter: every node tells when it last heard each of its
peers, so nothing has to answer datagrams of strangers, who could aim such answers at others (threats A35).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from ciruela.client.contacts import each
from ciruela.client.context import AppContext, make_display
from ciruela.client.errors import columns, write_json, write_line
from ciruela.client.options.reading import DoctorOptions
from ciruela.client.progress import Display, names
from ciruela.client.schema import Dir
from ciruela.client.servers import SHARED_REMEDY
from ciruela.client.survey import ClusterView, Survey, SurveyedNode, real_survey
from ciruela.client.text import count, size
from ciruela.client.tracker import EXIT_DONE, EXIT_LOCAL
from ciruela.client.trust import my_keys
from ciruela.model.errors import CiruelaError
from ciruela.model.values import dataclass

SILENT_S = 90.0
PAIR_S = 5.0
"""A peer that was not heard for so long, or for so long times the number of nodes: each node speaks to four others in a second, at random
(``membership.notify``), so by chance that happens less than once in a million times."""

MOST_PAIRED = 50
"""In larger clusters two nodes may not speak to each other for longer than is remembered: then only many silent peers are a fault."""

YOUNG_S = 30.0
"""A node that has just started has not heard of everybody yet."""

SKEW_FAIL_MS = 60_000
SKEW_NOTE_MS = 2_000
"""Clocks that are this far from ours: what is signed by a clock that is ahead wins over what is newer (``uploads.decision``)."""

LITTLE = 0.1
"""Less than this part of a file system free beyond the reserve deserves a note."""

MOST_NAMES = 10


class Level(Enum):
    """Severity of a finding."""

    OK = "ok"
    NOTE = "note"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: of what, about whom, what was found, and what to do."""

    level: Level
    topic: str
    about: str
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Directories and keys of one node, by its own word; ``keys`` None where it does not tell."""

    node: SurveyedNode
    dirs: tuple[Dir, ...]
    keys: Mapping[str, tuple[str, ...]] | None


def check_names(found: ClusterView, entries: Sequence[str]) -> list[Finding]:
    """The entry points."""
    remedy = "mend the name (DNS, /etc/hosts), or leave it out"
    wrong = [Finding(Level.FAIL, "name", name, found.names[name], remedy) for name in entries if name in found.names]
    return wrong or [Finding(Level.OK, "name", ", ".join(entries), "leads to nodes that answer")]


def check_connections(found: ClusterView) -> list[Finding]:
    """TCP to every node that is known, and whether it serves."""
    checks = []
    for node in found.nodes:
        where = f"port {node.address.port} of {node.address.host}"
        if node.identity is None:
            remedy = f"start the daemon there, open TCP {where} to clients and nodes, or take the node out of peers.txt everywhere"
            checks.append(Finding(Level.FAIL, "tcp", node.name, node.problem, remedy))
        elif not node.identity.ready:
            checks.append(Finding(Level.FAIL, "tcp", node.name, "answers, but does not serve yet", "its log and /healthz tell why"))
        elif node.identity.damaged:
            text = f"{count(node.identity.damaged, 'image')} damaged on its disk"
            checks.append(Finding(Level.FAIL, "disk", node.name, text, "its log names the files; look after the disk"))
    return checks or [Finding(Level.OK, "tcp", count(len(found.nodes), "node"), "all answer")]


def check_disks(found: ClusterView) -> list[Finding]:
    """Lists what is not as it should be in the directories of the nodes."""
    checks = []
    for node in (one for one in found.answering if one.identity is not None):
        assert node.identity is not None
        disk = node.identity.disk
        for level, about, text, remedy in (
            (
                Level.FAIL,
                [f"/{key}" for key in disk.unseen],
                "cannot look at {}: nobody can tell whether its images are there",
                "mount it, or mend its config; its log tells why",
            ),
            (
                Level.FAIL,
                [f"/{key}" for key in disk.protect],
                "cannot follow a protected link of {}: nothing is cleaned up there",
                "its log names the link; let it lead somewhere, or take it out of protect:",
            ),
            (
                Level.NOTE,
                [f"{path} as {name}" for path, name in disk.set_aside],
                "set aside what stood without a record: {}",
                "look through it, beside the image, then delete it",
            ),
            (
                Level.NOTE,
                [count(disk.debris, "tree")] if disk.debris else [],
                "cannot delete {} that nobody needs",
                "it is tried again each hour; its log tells what is in the way",
            ),
        ):
            if about:
                checks.append(Finding(level, "disk", node.name, text.format(names(about, 3)), remedy))
    return checks


def check_datagrams(found: ClusterView) -> list[Finding]:
    """UDP between all pairs of nodes that answer, as the one that should hear it tells."""
    checks = []
    ours = [node for node in found.answering if node.identity is not None and node.identity.ours]
    patience_s = max(SILENT_S, len(ours) * PAIR_S)
    for node in ours:
        heard: dict[str | None, float | None] = {
            one.machine: one.udp_heard_s for one in node.neighbours if one.machine is not None and one.configured
        }
        tcp = {one.machine for one in node.neighbours if one.reached == "tcp"}
        speaking = {one.machine for one in node.neighbours if not one.configured}
        listed = {one.address for one in node.neighbours if one.configured}
        unknown, speakers, never, silent, young, only_tcp = [], [], [], [], [], []
        for other in (one for one in ours if one.machine != node.machine):
            silent_s = heard.get(other.machine)
            if silent_s is not None and silent_s < patience_s:
                continue
            if other.machine in speaking:
                speakers.append(other.name)
            elif min(_uptime_s(node), _uptime_s(other)) < YOUNG_S:
                young.append(other.name)
            elif other.machine in tcp:
                only_tcp.append(other.name)
            elif other.machine not in heard and other.address not in listed:
                unknown.append(other.name)
            elif silent_s is None:
                never.append(other.name)
            else:
                silent.append(other.name)
        port = f"UDP port {node.address.port}"
        large = len(ours) > MOST_PAIRED and len(never) + len(silent) < len(ours) // 2
        level = Level.NOTE if large else Level.FAIL
        for about, text, remedy, kind in (
            (unknown, "does not know", f"name them in peers.txt of {node.name}", Level.FAIL),
            (speakers, "is spoken to by, and does not have configured,", f"name them in peers.txt of {node.name}", Level.FAIL),
            (
                only_tcp,
                "hears no datagrams of, and reaches by TCP only,",
                f"open {port} of {node.address.host} for what they send: UDP from them to {node.name} is closed",
                level,
            ),
            (
                never,
                "hears no datagrams of",
                f"open {port} from them to {node.name}; its peers.txt must name the addresses they send from",
                level,
            ),
            (silent, "has not heard lately", f"look for what drops {port} between them and {node.name}", level),
            (young, "has not heard yet", "one of the two has just started: run this again in a minute", Level.NOTE),
        ):
            if about:
                checks.append(Finding(kind, "udp", node.name, f"{text} {names(about, MOST_NAMES)}", remedy))
    others = [node.name for node in found.answering if node not in ours]
    if others:
        checks.append(Finding(Level.NOTE, "udp", names(others, MOST_NAMES), "do not tell whom they hear"))
    words = "every node hears every other" if len(ours) > 1 else "there is no other node to hear"
    return checks or [Finding(Level.OK, "udp", count(len(ours), "node"), words)]


def check_machine_ids(found: ClusterView) -> list[Finding]:
    """Servers that cannot be told from each other, because a disk was cloned."""
    checks = []
    for one in found.servers().view().shared:
        text = f"have one machine id, {one.machine.hex()}"
        checks.append(Finding(Level.FAIL, "machine-id", " and ".join(one.addresses), text, SHARED_REMEDY))
    return checks


def check_reloads(found: ClusterView) -> list[Finding]:
    """Nodes that refused what is in their configuration now."""
    checks = []
    for node in found.answering:
        if node.identity is not None and node.identity.config_mistakes:
            places = names([place for place in node.identity.config_mistakes if place], MOST_NAMES)
            text = f"refused its last reload{f' ({places})' if places else ''}: it will not survive its next restart"
            remedy = "twistd ciruela --check-config on that host names the mistakes; mend them, then have it reload (SIGHUP)"
            checks.append(Finding(Level.FAIL, "reload", node.name, text, remedy))
    return checks


def check_hooks(found: ClusterView) -> list[Finding]:
    """Hooks that failed for images that are there now."""
    checks = []
    for node in found.answering:
        if node.identity is not None and node.identity.failed_hooks:
            failed = node.identity.failed_hooks
            text = f"{count(len(failed), 'hook')} failed: {names([f'{path} {why}' for path, why in failed], 3)}"
            remedy = "its log tells more; mend what they need, and start the daemon again: it runs them again"
            checks.append(Finding(Level.FAIL, "hooks", node.name, text, remedy))
    return checks


def _uptime_s(node: SurveyedNode) -> float:
    return (node.identity.uptime_s if node.identity is not None else None) or 0.0


def check_clocks(found: ClusterView) -> list[Finding]:
    """The clocks of the nodes against ours."""
    skews = [(node, node.skew_ms) for node in found.answering if node.skew_ms is not None]
    checks = []
    for node, skew_ms in skews:
        surely_ms = max(0, abs(skew_ms) - node.doubt_ms)
        if surely_ms >= SKEW_NOTE_MS:
            way = "ahead of" if skew_ms > 0 else "behind"
            level = Level.FAIL if surely_ms >= SKEW_FAIL_MS else Level.NOTE
            text = f"its clock is {surely_ms / 1000:.1f} s {way} this host's"
            checks.append(Finding(level, "clock", node.name, text, "let NTP (chrony, systemd-timesyncd) set it"))
    if len(skews) > 1 and len(checks) == len(skews) and max(s for _, s in skews) - min(s for _, s in skews) < SKEW_NOTE_MS:
        worst = checks[0]
        return [Finding(worst.level, "clock", "this host", f"all nodes agree, and {worst.text}", "let NTP set the clock of this host")]
    return checks or [Finding(Level.OK, "clock", count(len(skews), "node"), f"within {SKEW_NOTE_MS // 1000} s of this host")]


def check_versions(found: ClusterView) -> list[Finding]:
    """The versions that run."""
    versions = Counter(node.identity.version for node in found.answering if node.identity is not None)
    shown = ", ".join(f"{version} on {count(number, 'node')}" for version, number in versions.most_common())
    if len(versions) > 1:
        return [Finding(Level.NOTE, "version", "cluster", shown, "fine while you upgrade; bring all to one version")]
    return [Finding(Level.OK, "version", "cluster", shown)]


def check_dirs(told: Sequence[NodeConfig]) -> list[Finding]:
    """Checks whether the nodes that take a directory agree how."""
    checks = []
    for key in sorted({one.key for said in told for one in said.dirs}):
        having = [(said.node.name, one) for said in told for one in said.dirs if one.key == key]
        for what, values in (
            ("append-only", {name: str(one.append_only).lower() for name, one in having}),
            ("num-levels", {name: str(one.num_levels) for name, one in having}),
            ("cleanup", {name: one.config_hash[:8] for name, one in having if one.config_hash is not None}),
        ):
            if len(set(values.values())) > 1:
                text = f"{what} differs: {_by_value(values)}"
                level = Level.NOTE if what == "cleanup" else Level.FAIL
                checks.append(Finding(level, "config", f"/{key}", text, f"make configs/{key}.yaml the same on all of them"))
                break
    return checks or [Finding(Level.OK, "config", "cluster", "the nodes agree on every directory")]


def check_keys(told: Sequence[NodeConfig], mine: Sequence[str]) -> list[Finding]:
    """Checks whether the nodes agree who may upload, and where the user's own keys may."""
    checks = []
    telling = [said for said in told if said.keys is not None]
    keys = sorted({key for said in telling for key in said.keys or {}})
    for key in keys:
        having = {said.node.name: frozenset(said.keys[key]) for said in telling if said.keys is not None and key in said.keys}
        common = frozenset.intersection(*having.values())
        for name, fingerprints in having.items():
            extra = sorted(fingerprints - common)
            if extra:
                text = f"{name} takes {names(extra, 2)}, and others do not"
                checks.append(Finding(Level.FAIL, "keys", f"/{key}", text, "bring the same key files to all nodes"))
        if not any(having.values()):
            checks.append(
                Finding(Level.FAIL, "keys", f"/{key}", "no key may upload there", "put a public key into master.key or keys/NAME.key")
            )
        accepted = [one for one in mine if any(one in fingerprints for fingerprints in having.values())]
        if accepted:
            checks.append(Finding(Level.OK, "keys", f"/{key}", f"you may upload with {names(accepted, 2)}"))
        elif mine:
            remedy = "have its public half added to a key file of the nodes, or name another with -i"
            checks.append(Finding(Level.NOTE, "keys", f"/{key}", "none of your keys may upload there", remedy))
    if not mine:
        checks.append(Finding(Level.NOTE, "keys", "you", "no key of yours was found", "make one with: ciruela keygen"))
    silent = [said.node.name for said in told if said.keys is None]
    if silent:
        checks.append(Finding(Level.NOTE, "keys", names(silent, MOST_NAMES), "do not tell whose keys they take"))
    return checks


def check_space(told: Sequence[NodeConfig]) -> list[Finding]:
    """Free space below every directory."""
    checks = []
    measured: set[str] = set()
    telling: set[str] = set()
    for said in told:
        for one in said.dirs:
            about = f"{said.node.name} /{one.key}"
            if not one.usable:
                checks.append(
                    Finding(Level.FAIL, "space", about, "its directory cannot be opened", "mount it, or mend its config; see the log")
                )
            if one.free_bytes is None or one.size_bytes is None:
                continue
            measured.add(one.key)
            telling.add(said.node.name)
            left = one.free_bytes - (one.reserve_bytes or 0)
            if left <= 0:
                text = f"{size(one.free_bytes)} free, which is the reserve: no upload fits"
                checks.append(Finding(Level.FAIL, "space", about, text, "delete something, or let auto-clean do it"))
            elif left < one.size_bytes * LITTLE:
                text = f"{size(left)} of {size(one.size_bytes)} free beyond the reserve"
                checks.append(Finding(Level.NOTE, "space", about, text, "make room before the next large upload"))
    where = f"{count(len(measured), 'directory', 'directories')} on {count(len(telling), 'node')}"
    return checks or [Finding(Level.OK, "space", where, "room everywhere")]


def _by_value(values: Mapping[str, str]) -> str:
    found: dict[str, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return "; ".join(f"{value} on {names(having, 3)}" for value, having in sorted(found.items(), key=lambda item: -len(item[1])))


# -- the command --------------------------------------------------------------------------------------------------------------


async def doctor(options: DoctorOptions, around: AppContext, survey: Survey | None = None) -> int:
    """``ciruela doctor``. Gives the exit code; raises Ends when no node answers, BadKey for a key that was named and cannot be read."""
    asking = survey or real_survey(options.common, around)
    display = make_display(options.common, around, None)
    mine = await my_keys(options.keys.files, options.keys.variables, around, display.note)
    display.show(lambda: f"Asking the nodes of {options.cluster.label}")
    try:
        found = await asking.find(options.cluster)
        told, silent = await _told(asking, found, display)
    finally:
        display.hide()
    checks = [
        *check_names(found, options.cluster.names),
        *check_connections(found),
        *check_disks(found),
        *silent,
        *check_machine_ids(found),
        *check_datagrams(found),
        *check_reloads(found),
        *check_hooks(found),
        *check_clocks(found),
        *check_versions(found),
        *check_dirs(told),
        *check_keys(told, mine),
        *check_space(told),
    ]
    return _show(checks, options, around)


async def _told(asking: Survey, found: ClusterView, display: Display) -> tuple[list[NodeConfig], list[Finding]]:
    silent: list[Finding] = []

    async def ask(node: SurveyedNode) -> NodeConfig | None:
        try:
            return NodeConfig(node, await asking.dirs(node), await asking.keys(node))
        except CiruelaError as error:
            display.note(node.name, str(error))
            silent.append(Finding(Level.FAIL, "pages", node.name, str(error), "its log tells why"))
            return None

    said = await each(found.answering, ask)
    return [one for one in said if one is not None], silent


def _show(checks: Iterable[Finding], options: DoctorOptions, around: AppContext) -> int:
    shown = list(checks)
    counts = Counter(check.level for check in shown)
    code = EXIT_LOCAL if counts[Level.FAIL] else EXIT_DONE
    if options.json:
        for check in shown:
            value = {"type": "check", "level": check.level.value.lower(), "check": check.topic, "about": check.about}
            write_json(around.stdout, {**value, "text": check.text, "remedy": check.remedy})
        total = {level.value.lower(): counts[level] for level in Level}
        write_json(around.stdout, {"type": "summary", **total, "exit_code": code})
        return code
    lines = columns([(check.level.value, check.topic, check.about, check.text) for check in shown])
    for check, line in zip(shown, lines, strict=True):
        write_line(around.stdout, line)
        if check.remedy and check.level is not Level.OK:
            write_line(around.stdout, f"      -> {check.remedy}")
    failed, noted = counts[Level.FAIL], counts[Level.NOTE]
    write_line(around.stdout, f"{count(failed, 'check')} failed, {count(noted, 'note')}" if failed or noted else "all is well")
    return code
