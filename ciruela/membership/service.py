"""Gossip as a service: the beat of each second, news at once, and what is done about what is heard.

What a datagram can cause is listed in ``docs/reference/gossip.rst``, "What hearing may cause".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import field
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ciruela.interfaces import Address, NodeContext
from ciruela.membership import cluster as heard
from ciruela.membership.broadcast import HOOK_KINDS, Composer, Fact, FactKind, Filling, LocalState
from ciruela.membership.confirm import Claim, Confirmations
from ciruela.membership.members import PacketRefusal
from ciruela.membership.notify import (
    FAN_OUT,
    REPEAT_FAN_OUT,
    AnswerCache,
    HashRepeater,
    HookRetransmitter,
    ProbeRotation,
    ReliableNotifier,
    beat_targets,
    choose,
    fan_out,
)
from ciruela.membership.packets import (
    MAX_TEXT_BYTES,
    Ack,
    BaseHash,
    Complete,
    Envelope,
    Header,
    Item,
    NullKeyring,
    Packet,
    RemovedFact,
    Unopened,
    WatchFact,
    body,
    decode,
)
from ciruela.membership.pushpull import RANDOM_S, Exchanges
from ciruela.model.errors import FormatError, RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath
from ciruela.proto.messages import MOST_PULLED, MOST_PUSHED, PushPull, PushPullData
from ciruela.runtime import PeriodicTask, RateLimitedLog, TokenBucket, later

BEAT_S = 1.0
LOOKED_THROUGH = 1000
"""Addresses for each of which it is looked at most once a beat who has fallen silent; of more, at so many times longer intervals."""

PROGRESS_S = 0.1
MOST_PROGRESS_S = 0.25
"""News of one download's progress is sent at most this often: after a tenth of the time that it has been going on, between these two.

Those that take something from this node hear by their connections how far it is; this is for all others.
"""

TROUBLE_S = 10.0
"""A peer that is reached by TCP and not by UDP for so long is worth a warning."""

UNKNOWN_S = 3600.0
MOST_UNKNOWN = 5
"""An unknown source is named in the log once an hour, and so many of them."""

STRANGE_RATE, STRANGE_BURST = 2.0, 64.0
"""Exchanges a second with nodes that are not configured, and at once; more hear nothing."""

MOST_STRANGE = 4
"""Bodies that are read of one such exchange."""

MOST_OWED = 256
"""Answers that wait for an exchange with one peer."""

LATELY_S = 60.0
"""Completions are acknowledged for so long after the last own client stopped waiting: as long as others believe in the watch."""


@dataclass(slots=True)
class DatagramCounts:
    """Datagrams since the start. ``refused`` by the words of ``PacketRefusal`` and ``Unopened``, and ``failed``: an error of our own."""

    sent: int = 0
    sent_bytes: int = 0
    send_errors: int = 0
    heard: int = 0
    refused: dict[str, int] = field(
        default_factory=lambda: {reason.value: 0 for reasons in (PacketRefusal, Unopened) for reason in reasons} | {"failed": 0}
    )


@dataclass(eq=False)
class Gossip:
    """Tells other nodes what is here, and listens. ``cluster`` answers what is known of them.

    ``exchanges`` and ``confirmations`` are the second way to hear, and the proof of what was heard.

    Raises ValueError for a host name that cannot be told.
    """

    _log = Logger()

    # required parameters
    context: NodeContext
    cluster: heard.Cluster
    local: LocalState
    listener: heard.MembershipListener
    envelope: Envelope = field(default_factory=NullKeyring)

    # internal state
    counts: DatagramCounts = field(init=False, default_factory=DatagramCounts)
    exchanges: Exchanges = field(init=False)
    confirmations: Confirmations = field(init=False)
    _seq: int = field(init=False, default=0)
    _needing: dict[Address, None] = field(init=False, default_factory=dict)
    _owed: dict[Address, dict[Item, None]] = field(init=False, default_factory=dict)
    _pushed: dict[Address, list[tuple[VPath, MachineId, ImageId]]] = field(init=False, default_factory=dict)
    _pulled: dict[Address, MachineId | None] = field(init=False, default_factory=dict)
    _trouble: dict[Address, str] = field(init=False, default_factory=dict)
    _tellings: ReliableNotifier = field(init=False, default_factory=ReliableNotifier)
    _repeats: HookRetransmitter = field(init=False, default_factory=HookRetransmitter)
    _answers: AnswerCache = field(init=False, default_factory=AnswerCache)
    _look_s: float = field(init=False, default=0.0)
    _known: dict[Address, None] = field(init=False, default_factory=dict)
    _silent: dict[Address, None] = field(init=False, default_factory=dict)
    _lately: dict[VPath, float] = field(init=False, default_factory=dict)
    _news: dict[Fact, None] = field(init=False, default_factory=dict)
    _direct: dict[Address, dict[Item, None]] = field(init=False, default_factory=dict)
    _flush: IDelayedCall | None = field(init=False, default=None)
    _progress_s: dict[VPath, tuple[float, float]] = field(init=False, default_factory=dict)
    _late: dict[VPath, IDelayedCall] = field(init=False, default_factory=dict)
    _running: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        context, clock = self.context, self.context.clock
        hostname = context.hostname
        if len(hostname.encode("utf-8", "replace")) > MAX_TEXT_BYTES or not hostname.isprintable():
            raise ValueError(f"host name {hostname[:80]!r} is longer than {MAX_TEXT_BYTES} bytes or cannot be printed")
        self.exchanges = Exchanges(clock, context.rng, context.wire, self._speak, self._answered)
        self.confirmations = Confirmations(clock, context.wire, self._waited_for, self._confirmed, self._have_confirmed)
        self._composer = Composer(context.me, hostname, self.local, self.cluster, context.now_ms, self._oversized)
        self._probes = ProbeRotation(context.rng)
        self._hashes = HashRepeater(clock, self._say_again)
        self._unknown = RateLimitedLog(clock, MOST_UNKNOWN, UNKNOWN_S)
        self._strange = TokenBucket(clock, STRANGE_RATE, STRANGE_BURST)
        self._hush = RateLimitedLog(clock, 20)
        self._beat = PeriodicTask(clock, context.rng, BEAT_S, self._on_beat, "gossip")
        self._exchange = PeriodicTask(clock, context.rng, RANDOM_S, self.exchanges.at_random, "push and pull of gossip")

    # -- life -----------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to send and to listen."""
        self._running = True
        self._beat.start()
        self._exchange.start()
        self.exchanges.begin(self.cluster.roster.others())

    def stop(self) -> None:
        """End; nothing is sent any more, what still comes in is ignored."""
        self._running = False
        self._beat.stop()
        self._exchange.stop()
        self.exchanges.stop()
        self.confirmations.stop()
        self._hashes.stop()
        for call in (self._flush, *self._late.values()):
            if call is not None and call.active():
                call.cancel()
        self._flush = None
        self._late.clear()

    def configured(self, names: Mapping[Address, str]) -> None:
        """The addresses of the cluster, each with its name as written; may be called again when they change. Own ones do no harm."""
        self.cluster.configured(names, self.context.clock.seconds())
        tables: tuple[dict[Address, Any], ...] = (self._owed, self._pushed, self._pulled, self._trouble)
        for table in tables:
            for address in [address for address in table if address not in names]:
                del table[address]
        new = self.exchanges.configured(self.cluster.roster.others())
        self._look_around()
        if self._running:
            self.exchanges.begin(new)

    # -- news -----------------------------------------------------------------------------------------------------------------

    def news_base(self, base: VPath) -> None:
        """The hash of a base dir has changed."""
        self._say((FactKind.BASE, base))

    def news_download(self, vpath: VPath) -> None:
        """A download has begun, got further, stalled, or found a source."""
        if not self._running or vpath in self._late:
            return
        now_s = self.context.clock.seconds()
        began_s, next_s = self._progress_s.get(vpath, (now_s, now_s))
        if next_s > now_s:
            self._late[vpath] = later(self.context.clock, next_s - now_s, "gossip of a download", lambda: self._say_late(vpath))
        else:
            self._progress_s[vpath] = began_s, now_s + min(max(PROGRESS_S, (now_s - began_s) / 10), MOST_PROGRESS_S)
            self._say((FactKind.DOWNLOAD, vpath))

    def _say_late(self, vpath: VPath) -> None:
        del self._late[vpath]
        self.news_download(vpath)

    def news_complete(self, vpath: VPath) -> None:
        """An image was committed or removed, or a client asked for one that is there already."""
        self._progress_s.pop(vpath, None)
        if not self._running:
            return
        item = self._composer.completion(vpath)
        if item is not None:
            for machine in self.cluster.watchers(vpath):
                self._tellings.begin(vpath, machine, _told(item), self.context.clock.seconds())
        self._say((FactKind.COMPLETE, vpath))

    def news_hook(self, vpath: VPath) -> None:
        """A hook for what is committed at ``vpath`` is due, or has ended."""
        if not self._running:
            return
        for number in HOOK_KINDS:
            self._say((FactKind.HOOK, (vpath, number)))
        for machine in self.cluster.watchers(vpath):
            self._repeats.begin(vpath, machine, self.context.clock.seconds(), news=True)

    def news_watch(self, vpath: VPath) -> None:
        """A client began to wait for ``vpath``. What others have completed there is told to the ears in the next reactor turn."""
        self._lately[vpath] = self.context.clock.seconds() + LATELY_S
        self._say((FactKind.WATCH, (vpath, self.context.me)))

    def _say(self, fact: Fact) -> None:
        if self._running:
            self._news[fact] = None
            self._soon()

    def _soon(self) -> None:
        if self._flush is None:
            self._flush = later(self.context.clock, 0, "gossip of news", self._send_news)

    def _send_news(self) -> None:
        """All news of one reactor turn: one datagram for each target where that is enough."""
        self._flush = None
        now_s = self.context.clock.seconds()
        news, self._news = self._news, {}
        self._composer.refresh(now_s, len(self._known))
        facts: dict[Address, list[Fact]] = {}
        targets = self._targets(news)
        for fact in news:
            self._composer.put(fact)
            item = self._composer.render(fact)
            if item is None:
                continue
            if isinstance(item, BaseHash):
                self._hashes.changed(item.base, item.hash)
            needing = self.cluster.fetching(item.vpath, item.image) if isinstance(item, Complete) else []  # guard: G5, -> []
            if isinstance(item, RemovedFact):
                needing = self.cluster.fetching(item.vpath, item.image)
            for address in dict.fromkeys((*targets[_path_of(fact).key], *choose(self.context.rng, needing, ()))):
                facts.setdefault(address, []).append(fact)
            if isinstance(item, WatchFact):
                self._recall(item.vpath)
        self._collect_tellings(now_s)
        if news:
            for address in choose(self.context.rng, list(self._needing), (), 2 * FAN_OUT):  # guard: K4
                self.exchanges.want(address)
        direct, self._direct = self._direct, {}
        for address in dict.fromkeys((*facts, *direct)):
            filling = Filling.NEWS if address in facts else Filling.NOTHING
            self._send(address, self._composer.datagrams(facts.get(address, ()), tuple(direct.get(address, ())), filling))

    def _targets(self, news: Iterable[Fact]) -> dict[str, list[Address]]:
        """Chooses who hears the ``news`` of each directory; steps of downloads alone are news to few."""
        wide = fan_out(len(self._known))
        counts: dict[str, int] = {}
        for fact in news:
            key = _path_of(fact).key
            counts[key] = max(counts.get(key, 0), FAN_OUT if fact[0] is FactKind.DOWNLOAD else wide)
        chosen = {}
        for key, count in counts.items():
            taking = self.cluster.taking(key)
            others = [*self._known, *self._silent] if len(taking) < count else ()
            chosen[key] = choose(self.context.rng, taking, others, count)
        return chosen

    def _say_again(self, said: Mapping[VPath, Set[Address]]) -> None:
        """Say the hashes of base dirs to a few that did not say them all themselves."""
        self._composer.refresh(self.context.clock.seconds(), len(self._known))
        for key in dict.fromkeys(base.key for base in said):
            bases = [base for base in said if base.key == key]
            agreeing = frozenset.intersection(*(frozenset(said[base]) for base in bases))
            chosen = choose(self.context.rng, self.cluster.taking(key), (), REPEAT_FAN_OUT + len(agreeing))
            for address in [address for address in chosen if address not in agreeing][:REPEAT_FAN_OUT]:
                self._send(address, self._composer.datagrams([(FactKind.BASE, base) for base in bases], (), Filling.NOTHING))

    def _recall(self, vpath: VPath) -> None:
        """Tell what is known already, as far as it is proved, to the client that has just begun to wait."""
        for claim in self._claims(vpath):
            if self.confirmations.proved(claim):
                self._tell(claim)
        for heard_of in self.cluster.hooks(vpath):
            self.listener.hooked(heard_of.hooked, heard_of.machine, heard_of.hostname)
        self._have_confirmed(vpath)

    def _have_confirmed(self, vpath: VPath) -> None:
        for claim in self._claims(vpath):
            if not self.confirmations.proved(claim):
                self.confirmations.ask(claim)

    def _claims(self, vpath: VPath) -> list[Claim]:
        return [*self.cluster.completed(vpath), *self.cluster.removed(vpath)]

    def _tell(self, claim: Claim) -> None:
        if isinstance(claim, heard.RemovedHeard):
            self.listener.gone(claim.item, claim.machine, claim.hostname)
            return
        if claim.due:
            self.listener.hooks_due(claim.vpath, claim.image, claim.machine, claim.hostname, claim.due)
        self.listener.completed(claim.vpath, claim.image, claim.machine, claim.hostname)

    def _collect_tellings(self, now_s: float) -> None:
        waits = self.cluster.waits
        for vpath, machine in self._tellings.due(now_s, waits):
            address = self.cluster.address_of(machine)
            item = self._composer.completion(vpath)
            if address is not None and item is not None:
                in_vain = self._tellings.told(vpath, machine, now_s)
                self._direct.setdefault(address, {})[item] = None
                if in_vain or address in self._needing:
                    self.exchanges.want(address)
        for vpath, machine in self._repeats.due(now_s, waits):
            address = self.cluster.address_of(machine)
            results = self._composer.results(vpath)
            if address is not None and results:
                self._direct.setdefault(address, {}).update(dict.fromkeys(results))
                if address in self._needing:
                    self.exchanges.want(address)

    # -- beat -----------------------------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        now_s = self.context.clock.seconds()
        known, silent = self.cluster.roster.reachable(now_s)
        self._known, self._silent = dict.fromkeys(known), dict.fromkeys(silent)
        self.exchanges.configured(self.cluster.roster.others())
        self._needing = dict.fromkeys((*self.cluster.roster.unheard(now_s), *self.exchanges.deaf()))
        for address in [address for address in self._trouble if address not in self._needing]:
            del self._trouble[address]
            self._hush.info(self._log, "heard again", address, "UDP between this node and {address} works again", address=str(address))
        self._look_s = now_s + BEAT_S * ((len(known) + len(silent)) // LOOKED_THROUGH)

    def _on_beat(self) -> None:
        now_s = self.context.clock.seconds()
        self._answers.expire(now_s)
        if now_s >= self._look_s:  # guard: G2, -> True
            self.cluster.expire(now_s)
            self._look_around()
        for vpath in self.local.watching():
            self._lately[vpath] = now_s + LATELY_S
        self._lately = {vpath: until_s for vpath, until_s in self._lately.items() if until_s > now_s}
        self._progress_s = {vpath: known for vpath, known in self._progress_s.items() if known[1] + MOST_PROGRESS_S > now_s}
        self._composer.refresh(now_s, len(self._known))
        if not self._composer.complete_list:
            text = "more directories are configured than gossip can tell of; other nodes do not learn of the last ones"
            self._hush.error(self._log, "directories", "", text)
        self.exchanges.beat(self._needing)
        self.confirmations.beat()
        self._collect_tellings(now_s)
        direct, self._direct = self._direct, {}
        targets = beat_targets(self.context.rng, self._probes, self._known, self._silent)
        for address in targets:
            self._send(address, self._composer.beat(tuple(direct.pop(address, ()))))
        for address, items in direct.items():
            self._send(address, self._composer.datagrams((), tuple(items), Filling.NOTHING))

    def _send(self, address: Address, groups: Iterable[list[bytes]]) -> None:
        if not self.cluster.roster.is_configured(address):  # guard: A32 I12
            return
        for made in self._bodies(groups):
            data = self.envelope.seal(made)
            try:
                self.context.datagrams.send(data, address)
            except OSError as error:  # guard: I8
                self.counts.send_errors += 1
                self._complain("send", address, "gossip to {address} could not be sent: {detail}", detail=str(error))
            else:
                self.counts.sent += 1
                self.counts.sent_bytes += len(data)

    def _bodies(self, groups: Iterable[list[bytes]]) -> Iterable[bytes]:
        """A body for each group of encoded items, each with the next number."""
        for group in groups:
            made = body(Header(self.context.me, self.context.epoch, self._seq), group)
            self._seq += 1
            yield made

    def _oversized(self, item: Item) -> None:
        kind = type(item).__name__
        self._hush.error(self._log, "oversized", kind, "a gossip item of kind {kind} fits into no datagram and is not sent", kind=kind)

    def _complain(self, kind: str, address: Address, text: str, **fields: object) -> None:
        self._hush.warn(self._log, kind, address, text, address=str(address), **fields)

    # -- hearing --------------------------------------------------------------------------------------------------------------

    def received(self, data: bytes, source: Address) -> None:
        """Take in a datagram. Never raises; whatever is wrong with it is counted and nothing is sent back."""
        if not self._running:
            return
        try:
            self._receive(data, source)
        # guard: I8
        except Exception:  # noqa: BLE001  a datagram must never end the socket's protocol
            self.counts.refused["failed"] += 1
            self._hush.failure(self._log, "failed", source, "a gossip datagram from {address} could not be dealt with", address=str(source))

    def _receive(self, data: bytes, source: Address) -> None:
        if not self.cluster.roster.is_configured(source):  # guard: A30 A32 I12 F23
            self.counts.refused[PacketRefusal.UNKNOWN_SOURCE.value] += 1
            self._unknown.warn(
                self._log,
                "unknown",
                source.host,
                "gossip comes from {address}, which no list of peers names: if that is a peer with several addresses, name this one, too",
                address=str(source),
            )
            return
        opened = self.envelope.open(data)
        if isinstance(opened, Unopened):
            self.counts.refused[opened.value] += 1
            self._complain(opened.value, source, "gossip from {address} was not opened: {reason}", reason=opened.value)
            return
        try:
            packet = decode(opened)
        except FormatError as error:
            self.counts.refused[Unopened.MALFORMED.value] += 1
            self._complain("malformed", source, "gossip from {address} does not follow the format: {detail}", detail=str(error))
            return
        self._take_in(source, packet, connected=False)

    def _take_in(self, source: Address, packet: Packet, *, connected: bool) -> bool:
        """Takes in a packet with everything that follows from it; tells whether it was listened to."""
        effects = self.cluster.heard(source, packet, self.context.clock.seconds(), connected=connected)
        listened = not any(isinstance(effect, heard.PacketRefused) for effect in effects)
        if heard.PacketRefused(PacketRefusal.OWN) in effects:
            self._silent.pop(source, None)
        self.counts.heard += listened and not connected
        if listened and source in self._needing:
            self.exchanges.alive(source)
        for effect in effects:
            self._act(effect)
        return listened

    def _act(self, effect: heard.Effect) -> None:
        match effect:
            case heard.PacketRefused() | heard.Dropped():
                self.counts.refused[effect.reason.value] += 1
            case heard.Doubtful():
                self.exchanges.want(effect.address)
            case heard.Double():
                self._complain(
                    "double",
                    effect.address,
                    "machine id {machine} is used by two nodes, at {address} and {other}: give each its own (--override-machine-id)",
                    machine=effect.machine.hex(),
                    other=str(effect.other) if effect.other != effect.address else "this node",
                )
            case heard.NewPeer():
                self._tellings.started_anew(effect.machine)
                self.exchanges.alive(effect.address, anew=True)
                self._known[effect.address] = None
                self._silent.pop(effect.address, None)
                fields = {"machine": effect.machine.hex(), "address": str(effect.address)}
                self._hush.info(self._log, "peer", effect.address, "peer {machine} speaks at {address}", **fields)
            case heard.BaseHeard():
                self._compare(effect)
            case heard.Completed():
                self._on_completed(effect)
            case heard.RemovedHeard():
                self._on_removed(effect)
            case heard.Acked():
                self._tellings.acked(effect.vpath, effect.machine, effect.image)
            case heard.DownloadHeard():
                self._on_download(effect)
            case heard.WatchHeard():
                self._on_watch(effect)
            case heard.HookHeard() if effect.hooked.vpath in self.local.watching():
                self.listener.hooked(effect.hooked, effect.machine, effect.hostname)
            case heard.MemberHeard():
                self._composer.put((FactKind.MEMBER, (effect.machine, effect.part)))

    def _compare(self, effect: heard.BaseHeard) -> None:
        self._hashes.heard(effect.base, effect.hash, effect.address)
        if effect.base.key in self.local.keys() and self.local.base_hashes().get(effect.base) != effect.hash:  # noqa: SIM118  not a dict
            self.listener.differs(effect.base, effect.hash, effect.address)

    def _on_completed(self, effect: heard.Completed) -> None:
        if effect.news:
            self.listener.progressed(effect.vpath)
        self._on_claim(effect, effect.vpath)

    def _on_removed(self, effect: heard.RemovedHeard) -> None:
        if effect.news:
            self.listener.removal_heard(effect.item, effect.address)
        self._on_claim(effect, effect.item.vpath)

    def _on_claim(self, claim: Claim, vpath: VPath) -> None:
        """Acknowledge what is proved; a client hears of it once, and of nothing else."""
        watched = vpath in self.local.watching()
        if watched and claim.proved and not self.confirmations.proved(claim):  # guard: S5, without 2
            self.confirmations.prove(claim)
            self._tell(claim)
        if watched and not self.confirmations.proved(claim):
            self.confirmations.ask(claim)
        elif watched or vpath in self._lately:
            self._acknowledge(claim)

    def _acknowledge(self, claim: Claim) -> None:
        if isinstance(claim, heard.RemovedHeard):
            self._answer(claim.address, Ack(claim.item.vpath, claim.item.token))
        else:
            self._answer(claim.address, Ack(claim.vpath, claim.image))

    def _waited_for(self, vpath: VPath) -> bool:
        return vpath in self.local.watching()

    def _confirmed(self, claim: Claim) -> None:
        """A node was asked and has what was said of it."""
        if self._running:
            self._tell(claim)
            self._acknowledge(claim)

    def _on_download(self, effect: heard.DownloadHeard) -> None:
        if effect.news:
            self.listener.progressed(effect.vpath)
        item = self._composer.completion(effect.vpath)
        address = self.cluster.address_of(effect.machine)
        if item is None or item.image != effect.image or address is None:
            return
        if self._answers.due(effect.machine, effect.vpath, effect.image, self.context.clock.seconds()):
            self._answer(address, item)

    def _on_watch(self, effect: heard.WatchHeard) -> None:
        self._composer.put((FactKind.WATCH, (effect.vpath, effect.machine)))
        item = self._composer.completion(effect.vpath)
        now_s = self.context.clock.seconds()
        if item is not None and self._tellings.begin(effect.vpath, effect.machine, _told(item), now_s):
            self._soon()
        if self._composer.results(effect.vpath) and self._repeats.begin(effect.vpath, effect.machine, now_s, news=False):
            self._soon()

    def _answer(self, address: Address, item: Item) -> None:
        self._direct.setdefault(address, {})[item] = None
        if address in self._needing:
            owed = self._owed.setdefault(address, {})
            if len(owed) < MOST_OWED:
                owed[item] = None
            self.exchanges.want(address)
        self._soon()

    # -- over connections -----------------------------------------------------------------------------------------------------

    def _speak(self, address: Address) -> PushPull:
        """Builds the request of one exchange with the node at ``address``."""
        facts, self._pushed[address] = self._facts_for(address, MOST_PUSHED)
        return PushPull(self.context.here.port, self._heard_ms(address), facts)

    def _heard_ms(self, address: Address) -> int | None:
        udp_s = self.cluster.roster.udp_s(address, self.context.clock.seconds())
        return None if udp_s is None else round(udp_s * 1000)

    def _facts_for(self, address: Address, most: int) -> tuple[tuple[bytes, ...], list[tuple[VPath, MachineId, ImageId]]]:
        """Bodies for one peer: what it has not acknowledged, what is owed to it, everything else. And what is to be acknowledged."""
        now_s = self.context.clock.seconds()
        self._composer.refresh(now_s, len(self._known))
        machine = self.cluster.roster.machine_at(address)
        waiting = [] if machine is None else [(vpath, machine, image) for vpath, image in self._tellings.open(machine)]
        completions = [self._composer.completion(vpath) for vpath, _, _ in waiting]
        items = dict.fromkeys((*(item for item in completions if item is not None), *self._owed.pop(address, {})))
        facts = tuple(self._bodies(self._composer.exchange(tuple(items), most, whole=most > MOST_PUSHED)))
        if address in self._needing or self.cluster.roster.udp_s(address, now_s) is None:
            self._send(address, self._composer.beat(()))
        return facts, waiting

    def _answered(self, address: Address, answer: PushPullData) -> None:
        """The node at ``address`` has answered an exchange."""
        waiting = self._pushed.pop(address, [])
        self._learn(address, self._read(address, answer.facts), answer.heard_ms)
        if answer.taken:  # guard: K4, -> True
            for vpath, machine, image in waiting:
                self._tellings.acked(vpath, machine, image)
        elif not self.cluster.roster.is_own(address):
            text = "the node at {address} takes nothing from this one: name an address of this node in the list of peers there"
            self._complain("not taken", address, text)

    def pushed(self, host: str, request: PushPull) -> PushPullData:
        """Take in what a node at ``host`` says over a connection, and answer it. Raises RemoteError while this node does not gossip."""
        if not self._running:
            raise RemoteError("the node is starting, try again in a moment")
        try:
            source = Address.of(host, request.port)
        except ValueError:
            raise RemoteError("it is not known where this connection comes from") from None
        if not self.cluster.roster.is_configured(source):
            return self._answer_stranger(source, request)
        self.exchanges.answered(source)
        packets = self._read(source, request.facts)
        met = source in self._pulled  # else no datagram of ours can have come there yet: that it heard none says nothing
        taken = self._learn(source, packets, request.heard_ms if met else 0) or not packets
        machine = self.cluster.roster.machine_at(source)
        most = MOST_PUSHED if source in self._pulled and self._pulled[source] == machine else MOST_PULLED
        self._pulled[source] = machine
        self.exchanges.answered(source)
        return PushPullData(taken, self._heard_ms(source), self._facts_for(source, most)[0])

    def _read(self, source: Address, bodies: Sequence[bytes]) -> list[Packet]:
        """The packets in these bodies, up to the first that does not follow the format."""
        packets = []
        for data in bodies:
            try:
                packets.append(decode(data))
            except FormatError as error:
                self.counts.refused[Unopened.MALFORMED.value] += 1
                self._complain("malformed", source, "gossip from {address} does not follow the format: {detail}", detail=str(error))
                break
        return packets

    def _learn(self, address: Address, packets: Sequence[Packet], heard_ms: int | None) -> bool:
        """Take in what a configured peer said over a connection. Whether it was believed."""
        if not self._running:
            return False
        taken = [self._take_in(address, packet, connected=True) for packet in packets]
        if self.cluster.roster.is_own(address):
            return True
        self.exchanges.alive(address, anew=True)
        deaf = heard_ms is None or heard_ms > self.cluster.roster.unheard_s * 1000
        if self.exchanges.told(address, deaf=deaf) and deaf:
            self._needing[address] = None
        self._warn_of_udp(address)
        return any(taken)

    def _warn_of_udp(self, address: Address) -> None:
        """Say once in the log that only connections work between this node and ``address``."""
        roster = self.cluster.roster
        silent_s = roster.unheard_for_s(address, self.context.clock.seconds())
        if silent_s >= max(TROUBLE_S, roster.unheard_s):
            kind = "unheard"
            text = "{name} ({address}) is configured, not heard by UDP for {silent} s, reached by TCP: open UDP port {own} here for it"
        elif self.exchanges.deaf_for_s(address) >= TROUBLE_S:
            kind = "deaf"
            text = "{name} ({address}) is reached by TCP, and does not hear this node by UDP: open UDP port {port} there for this node"
        else:
            return
        if self._trouble.get(address) != kind:
            self._trouble[address] = kind
            fields = {"name": roster.name(address), "port": address.port, "own": self.context.here.port, "silent": round(silent_s)}
            self._complain(kind, address, text, **fields)

    def _answer_stranger(self, source: Address, request: PushPull) -> PushPullData:
        """Nothing is taken from somebody who is not configured; he may name us, so he hears what is here, as long as few ask."""
        if not self._strange.take():
            return PushPullData(False, None, ())
        now_s = self.context.clock.seconds()
        self._note_stranger(source, self._read(source, request.facts[:MOST_STRANGE]))
        self._composer.refresh(now_s, len(self._known))
        return PushPullData(False, None, tuple(self._bodies(self._composer.exchange((), MOST_PUSHED))))

    def _note_stranger(self, source: Address, packets: Sequence[Packet]) -> None:
        stranger = self.cluster.stranger(source, packets, self.context.clock.seconds())
        if stranger is not None and stranger.machine != self.context.me:
            self._unknown.warn(
                self._log,
                "stranger",
                source.host,
                "{name} (machine id {machine}) speaks from {address}, which no list of peers names here: nothing is taken from it",
                name=stranger.hostname or source.host,
                machine=stranger.machine.hex(),
                address=str(source),
            )


def _told(item: Complete | RemovedFact) -> ImageId:
    """Gives the token by which ``item`` is acknowledged."""
    return item.image if isinstance(item, Complete) else item.token


def _path_of(fact: Fact) -> VPath:
    """The path that a piece of news is about."""
    key = fact[1]
    vpath = key[0] if isinstance(key, tuple) else key
    assert isinstance(vpath, VPath)
    return vpath
