"""The connections of clients: each one's subscriptions, wishes and images to give, and the notifications that they get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from ciruela.hooks.service import Hooks
from ciruela.interfaces import Connection, NodeContext
from ciruela.membership.packets import Hooked
from ciruela.model.hooks import AFTER, HookReport, HookState
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.upload import AbortReason
from ciruela.model.values import dataclass
from ciruela.model.versions import State
from ciruela.model.vpath import VPath
from ciruela.proto.messages import AbortedImage, HookResult, ReceivedImage, RemovedImage
from ciruela.tracking.subscriptions import Subscriptions, Wishes


@dataclass(eq=False)
class Clients:
    """Notes what clients said on their connections, and tells them what becomes of the paths and images that they named.

    ``watching`` is told that somebody began to wait for a path, ``giving`` that somebody can give an image now.
    """

    # required parameters
    context: NodeContext
    watches: Subscriptions
    hooks: Hooks
    watching: Callable[[VPath], None]
    giving: Callable[[ImageId], None]

    # internal state
    wishes: Wishes = field(init=False, default_factory=Wishes)
    published_refused: int = field(init=False, default=0)
    _open: set[Connection] = field(init=False, default_factory=set)

    # -- what they say ------------------------------------------------------------------------------------------------------------

    def connected(self, link: Connection) -> None:
        """Note that ``link`` is open: only what is said on an open connection is remembered, so that all of it is forgotten again."""
        self._open.add(link)

    def lost(self, link: Connection) -> None:
        """Forget what the connection said."""
        self._open.discard(link)
        self.watches.lost(link)
        self.wishes.lost(link)

    def publish(self, link: Connection, image: ImageId) -> None:
        """Note that a client says it can give an image."""
        if not self.watches.publish(link, image):
            self.published_refused += 1
        elif link in self.watches.sources(image):
            self.giving(image)

    def accepted(self, link: Connection, vpath: VPath, image: ImageId, *, began: bool) -> None:
        """An upload that ``link`` asked for was accepted; ``began``: it was not on its way before."""
        # guard: I6, -> True
        if link in self._open:  # else nobody would forget it again
            self.wishes.accepted(link, vpath, image, began=began)
            if self.watches.accept(link, image):
                self.giving(image)

    def watch(self, link: Connection, vpath: VPath) -> None:
        """Note that ``link`` waits for ``vpath``, unless it went while its order was judged: nobody would forget that again."""
        if link in self._open:
            self.watches.watch(link, vpath)
            self.watching(vpath)

    # -- what they are told of this node ------------------------------------------------------------------------------------------

    def received(self, vpath: VPath, state: State) -> None:
        """Tells clients that an image has arrived, the due hooks first: who waits for those must not leave when the image is there."""
        for link in self.watches.interested(vpath, state.image):
            for report in self.hooks.of(vpath, state.image):
                self._tell_hook(link, vpath, report)
        for link in self.watches.interested(vpath, state.image):
            link.tell(ReceivedImage(state.image, str(vpath), self.context.me, self.context.hostname, False))

    def gave_up(self, vpath: VPath, image: ImageId, word: str) -> None:
        """A download ended without an image."""
        for link in self.watches.interested(vpath, image):
            link.tell(AbortedImage(image, str(vpath), self.context.me, self.context.hostname, False, word))

    def conflicted(self, vpath: VPath, image: ImageId, detail: str) -> None:
        """An append-only path has two images in the cluster: tell the clients that brought this one, and not those that watch the path."""
        word = f"{AbortReason.CONFLICT.value}: {detail}"
        for link in self.watches.sources(image):
            link.tell(AbortedImage(image, str(vpath), self.context.me, self.context.hostname, False, word))

    def gone(self, vpath: VPath, image: ImageId) -> None:
        """An image was removed here."""
        self._tell_bulk(RemovedImage(image, str(vpath), self.context.me, self.context.hostname, False), vpath)

    def hooked(self, vpath: VPath, report: HookReport) -> None:
        """A hook has ended here."""
        for link in self.watches.interested(vpath, report.image):
            self._tell_hook(link, vpath, report)

    def _tell_hook(self, link: Connection, vpath: VPath, report: HookReport) -> None:
        me, hostname = self.context.me, self.context.hostname
        if link.bulk:
            link.tell(HookResult(report.image, str(vpath), me, hostname, False, report.kind.value, report.state.value, report.message))

    # -- what they are told of a peer ---------------------------------------------------------------------------------------------

    def received_by(self, machine: MachineId, hostname: str, vpath: VPath, image: ImageId) -> None:
        """A peer has the image."""
        for link in self.watches.interested(vpath, image):
            link.tell(ReceivedImage(image, str(vpath), machine, hostname, True))

    def gone_from(self, machine: MachineId, hostname: str, vpath: VPath, image: ImageId) -> None:
        """A peer has removed the image."""
        self._tell_bulk(RemovedImage(image, str(vpath), machine, hostname, True), vpath)

    def hooks_due_on(self, machine: MachineId, hostname: str, vpath: VPath, image: ImageId, bits: int) -> None:
        """A peer has the image, and hooks to run (``packets.Complete``)."""
        for number, kind in enumerate(AFTER):
            if bits >> number & 1:
                self._tell_bulk(HookResult(image, str(vpath), machine, hostname, True, kind.value, HookState.PENDING.value, ""), vpath)

    def hooked_on(self, machine: MachineId, hostname: str, hooked: Hooked) -> None:
        """A hook of a peer has ended; one of a kind that is not known here is not told."""
        if hooked.kind <= len(AFTER):
            kind, state = AFTER[hooked.kind - 1].value, HookState.OK if hooked.ok else HookState.FAILED
            where = str(hooked.vpath)
            self._tell_bulk(HookResult(hooked.image, where, machine, hostname, True, kind, state.value, hooked.message), hooked.vpath)

    def _tell_bulk(self, note: HookResult | RemovedImage, vpath: VPath) -> None:
        """Tell the clients that wait for ``vpath`` and know what such a notification means."""
        for link in self.watches.interested(vpath, note.image):
            if link.bulk:
                link.tell(note)
