"""``ciruela edit`` and ``ciruela put-file`` as stories: one file of an image is changed, on every node (protocol sections 6.6 and 7.1).

An image is read, its index gets another file, and the new image takes the place of exactly the one that was read: compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ciruela.client import editor
from ciruela.client.clusters import ClusterUploads, SyncRun, exit_code, to_its_end
from ciruela.client.contacts import RunContext
from ciruela.client.context import AppContext, identities_of, make_display, real_world
from ciruela.client.editor import LocalFile
from ciruela.client.entrance import together
from ciruela.client.errors import CommandError
from ciruela.client.fetch import NothingThere, PathContent, Reading, Relay
from ciruela.client.identities import Identities
from ciruela.client.options.edit import EditOptions, PutFileOptions, What
from ciruela.client.options.signing import ClusterNames
from ciruela.client.options.sync import Mode
from ciruela.client.orders import Conflict, Intent, LocalProblem, Signer
from ciruela.client.pathview import claimed_signers
from ciruela.client.preflight import Preflight
from ciruela.client.progress import Display
from ciruela.client.survey import real_survey
from ciruela.client.text import size, stamp
from ciruela.client.tracker import EXIT_CONFLICT, meaning_of, refusal_code
from ciruela.client.trust import Proof, ShownImage, TrustedKeys, insist_on_proof, shown, trust_of
from ciruela.index.emit import NoPlace, emit, find, put
from ciruela.index.parse import parse
from ciruela.index.tree import File, Index
from ciruela.keys.signed import signed_check_bytes
from ciruela.model.errors import RemoteError
from ciruela.model.ids import ImageId
from ciruela.model.upload import RejectReason
from ciruela.model.values import dataclass
from ciruela.proto.messages import CheckUpload

_NEVER = frozenset(
    {RejectReason.DIR_IS_APPEND_ONLY, RejectReason.SIGNATURE_MISMATCH, RejectReason.NO_CONFIG, RejectReason.CONFIG_LEVEL_MISMATCH}
)
"""Refusals that are the same for whatever is uploaded there."""

MOST_EDITED_BYTES = 16 * 1024 * 1024
"""Larger files nobody wants in an editor; they would be kept in memory, too."""


@dataclass
class _EditTarget:
    """One cluster, what is there now, and the file of it that is about to change, if there is one."""

    names: ClusterNames
    reading: Reading
    seen: PathContent
    file: File | None


@dataclass(frozen=True, slots=True)
class _PlannedEdit:
    """Plan of the edit of one cluster: the new file and the new index."""

    target: _EditTarget
    file: File
    index: Index
    data: bytes


class EditSession:
    """One change of one file, on some clusters. ``close`` ends its connections."""

    def __init__(
        self, what: What, around: AppContext, world: RunContext | None, display: Display, identities: Identities, trust: TrustedKeys
    ) -> None:
        self._what = what
        self._around = around
        self._display = display
        self._identities = identities
        self._trust = trust
        self._world = world or real_world(what.common, around)
        self._survey = real_survey(what.common, around) if world is None else None
        self._readings = [Reading(one.label, one.names, self._world, around.in_thread, display.problem) for one in what.clusters]
        self.targets: list[_EditTarget] = []

    def close(self) -> None:
        """End the connections that were made for reading."""
        for reading in self._readings:
            reading.close()

    async def look(self) -> None:
        """See what every cluster has, before anything is changed on one of them, and whether that is what somebody signed.

        Raises what ``Reading.look`` raises; NothingThere; Ends for an image that no trusted key signed for the path, and where nothing may
        be replaced.
        """
        what = self._what
        for names, reading in zip(what.clusters, self._readings, strict=True):
            self._display.show(lambda reading=reading: f"Asking {reading.label} for {what.path}")  # type: ignore[misc]
            try:
                seen = await reading.look(str(what.path))
            finally:
                self._display.hide()
            try:
                file = await self._around.in_thread(find, seen.place.index, what.file)
            except NoPlace as error:
                raise NothingThere(f"{reading.label} {what.path}: {error}") from None
            target = _EditTarget(names, reading, seen, file)
            await self._prove(target)
            await self._ask_leave(reading, seen)
            self.targets.append(target)

    async def _prove(self, target: _EditTarget) -> None:
        """Tell who signed what was seen. Raises Ends unless that is a trusted key, and Conflict when something else is there by now."""
        path, reading, image = self._what.path, target.reading, target.seen.image
        state, untold = await reading.signed(target.seen)
        proof: Proof | None = await self._around.in_thread(self._trust.proof, path, state)
        if proof is not None:
            self._display.say(f"{reading.label} {path} is {image.hex()}, signed {stamp(proof.timestamp_ms)}, {shown(proof)}")
            return
        await self._still(reading, image)
        self._display.say(f"{reading.label} {path} is {image.hex()}, {shown(proof)}")
        claimed = await claimed_signers(target.names, path, image, self._survey)
        found = ShownImage(reading.label, path, state, claimed, untold)
        insist_on_proof(found, proof, self._trust, self._what.trusting, self._display.problem)  # guard: S1, insist_on_proof -> print

    async def _ask_leave(self, reading: Reading, seen: PathContent) -> None:
        """Ask whether a replacement would be taken at all: nobody should type a text, or wait for a hash, that cannot be uploaded.

        Raises Ends when no node would take any. What they refuse for what is there is left to the upload: it may be otherwise then.
        """
        path, stamp_ms = str(self._what.path), self._around.now_ms()
        signed = await self._identities.sign_all(signed_check_bytes(path, seen.image, stamp_ms))
        request = CheckUpload(path, True, seen.image, seen.image, stamp_ms, tuple(signature for _, signature in signed))
        answers = await reading.judged(request)
        refusals = [answer for answer in answers if answer.reject_reason in _NEVER]
        if refusals and len(refusals) == len(answers):  # guard: W1
            reason, detail = refusals[0].reject_reason or "", refusals[0].detail
            said = f"{meaning_of(reason)}{f' ({detail})' if detail else ''}"
            raise CommandError(refusal_code(reason), f"{reading.label} {path}: no node would take a change: {said}; nothing was sent")

    async def content(self, target: _EditTarget) -> bytes | None:
        """Reads the file on a cluster, every block verified; None when there is no such file. Raises RemoteError."""
        file, place = target.file, target.seen.place
        if file is None:
            return None
        got = 0

        def progressed(amount: int) -> None:
            nonlocal got
            got += amount

        number = place.index.files.index(file)
        numbers = place.blocks.numbers_of(number)
        problems: list[str] = []
        self._display.show(lambda: f"Fetching {file.path} from {target.reading.label}: {size(got)} of {size(file.size)}")
        try:
            found = await target.reading.blocks(place, numbers, progressed, problems.append)
        finally:
            self._display.hide()
        if len(found) < len(numbers):
            reason = "; ".join(problems) or "nobody has all of it"
            raise RemoteError(f"{target.reading.label} {place.path}: {file.path} cannot be fetched: {reason}")
        return b"".join(found[number] for number in numbers)

    async def publish(self, local: LocalFile, executable: Callable[[File | None], bool]) -> int:
        """Put ``local`` into the image of each cluster, and wait until it is there. Gives the exit code.

        ``executable`` tells, for the file that was there, whether the new one is. Raises Conflict when something else is there now.
        """
        changes = []
        for target in self.targets:
            change = await self._changed(target, local, executable(target.file))
            if change.index.image == target.seen.image:
                self._display.say(f"{target.reading.label} {self._what.path}: {self._what.file} is so already; nothing to do")
            else:
                self._display.say(f"{target.reading.label} {self._what.path} becomes {change.index.image.hex()}")
                changes.append(change)
        for change in changes:
            await self._look_again(change)
        return await self._upload(changes, local) if changes else 0

    async def _changed(self, target: _EditTarget, local: LocalFile, executable: bool) -> _PlannedEdit:
        old = target.seen.place.index
        done = 0

        def progressed(amount: int) -> None:
            nonlocal done
            done = amount

        self._display.show(lambda: f"Hashing {local.name}: {size(done)} of {size(local.size)}")
        try:
            hashes = await local.hashes(old.kind, self._around.in_thread, progressed)
        finally:
            self._display.hide()
        file = File(self._what.file, executable, local.size, hashes)

        def made() -> tuple[Index, bytes]:
            image, data = emit(old.kind, put(old, file))
            return parse(data, image), data

        index, data = await self._around.in_thread(made)
        return _PlannedEdit(target, file, index, data)

    async def _look_again(self, change: _PlannedEdit) -> None:
        """Whoever changed the directory while it was being edited shall not find that undone.

        The nodes compare, too; but one that has nothing at the path has nothing to compare with, and would take the new image.
        """
        await self._still(change.target.reading, change.target.seen.image, change.index.image)

    async def _still(self, reading: Reading, *images: ImageId) -> None:
        """Raises Conflict unless one of ``images``, of which the first was seen, is there."""
        now = await reading.look(str(self._what.path))
        if now.image not in images:  # guard: F54
            was, new = images[0].hex()[:16], now.image.hex()[:16]
            where = f"{reading.label} {self._what.path}"
            raise Conflict(f"{where} was changed by somebody else meanwhile: it was {was}, now it is {new}; nothing was uploaded")

    async def _upload(self, changes: Sequence[_PlannedEdit], local: LocalFile) -> int:
        around, what = self._around, self._what
        path = str(what.path)
        signer = Signer(self._identities)
        signed_ms = around.now_ms()
        preflights = [Preflight(change.target.names, (), what.rule, self._world, signer, around) for change in changes]
        clusters: list[ClusterUploads] = []
        run = SyncRun(clusters)
        try:
            await together([one.entrance.reach() for one in preflights])
            for preflight, change in zip(preflights, changes, strict=True):
                target = change.target
                image, old_image = change.index.image, target.seen.image  # guard: F54, -> (change.index.image, None)
                await preflight.decide([Intent(Mode.REPLACE, path, image, old_image, change.index.total_bytes, signed_ms)])
                relay = Relay(
                    target.seen,
                    change.index,
                    change.data,
                    change.file,
                    local,
                    target.reading,
                    run.source_changed,
                )
                clusters += await preflight.runs(relay, self._display)
            rows = await to_its_end(run, self._display)
        finally:
            run.stop()
            for preflight in preflights:
                preflight.close()
        code = exit_code(rows)
        reasons = {reason for row in rows for _, reason in row.standing.failed}
        if code == EXIT_CONFLICT and reasons != {RejectReason.STALE_TIMESTAMP.value}:
            self._display.problem("", f"{path} was changed by somebody else meanwhile; run the command again, to change what is there now")
        return code


async def _session(what: What, around: AppContext, world: RunContext | None, display: Display) -> EditSession:
    """With the user's keys, which are also the first that he trusts. Raises BadKey."""
    identities = await identities_of(what.keys, around, display)
    trust = await trust_of(what.trusting, [key.public for key in identities.keys], around, display.problem)
    return EditSession(what, around, world, display, identities, trust)


async def put_file(options: PutFileOptions, around: AppContext, world: RunContext | None = None) -> int:
    """``ciruela put-file``. Gives the exit code; raises what keeps it from sending anything."""
    display = make_display(options.what.common, around, options.what.print_progress_s)
    local = await around.in_thread(LocalFile, options.source)
    try:
        session = await _session(options.what, around, world, display)

        def executable(before: File | None) -> bool:
            if options.executable is not None:
                return options.executable
            return local.executable if before is None else before.executable

        try:
            await session.look()
            return await session.publish(local, executable)
        finally:
            session.close()
    finally:
        local.close()


async def edit(options: EditOptions, around: AppContext, world: RunContext | None = None, run_editor: editor.RunEditor = editor.run) -> int:
    """``ciruela edit``. Gives the exit code; raises what keeps it from sending anything. What was typed is never thrown away."""
    display = make_display(options.what.common, around, options.what.print_progress_s)
    words = await around.in_thread(editor.choose, options.editor, around.environ)
    session = await _session(options.what, around, world, display)
    try:
        await session.look()
        text = await _to_edit(session, options.what)
        draft: editor.Draft = await around.in_thread(editor.Draft, options.what.file.rpartition("/")[2], text)
        kept = True
        try:
            code = await _edited(words, draft, session, around, display, run_editor)
            kept = code != 0
            return code
        finally:
            _leave(draft, kept, display)
    finally:
        session.close()


async def _to_edit(session: EditSession, what: What) -> bytes | None:
    """The text that all clusters have, None when it is a new file.

    Raises NothingThere for what cannot be edited, Conflict when the clusters have different texts: nobody could see what he overwrites.
    """
    first, *others = session.targets
    for target in session.targets:
        if target.file is not None and target.file.size > MOST_EDITED_BYTES:
            most = size(MOST_EDITED_BYTES)
            raise NothingThere(f"{what.file} has {size(target.file.size)}, at most {most} can be edited; replace it with ciruela put-file")
    text = await session.content(first)
    for other in others:
        if await session.content(other) != text:
            raise Conflict(
                f"{what.file} is not the same in {what.path} of {first.reading.label} and {other.reading.label}; "
                "edit it on one cluster at a time, or put one file on all with ciruela put-file"
            )
    if text is not None and b"\0" in text:
        raise NothingThere(f"{what.file} is no text; replace it with ciruela put-file")
    return text


async def _edited(
    words: Sequence[str], draft: editor.Draft, session: EditSession, around: AppContext, display: Display, run_editor: editor.RunEditor
) -> int:
    for stream in (around.stdout, around.stderr):
        stream.flush()
    with editor.terminal_given_away():
        code = await run_editor(around.reactor, words, draft.path)
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        raise LocalProblem(f"the editor {words[0]} {how}; nothing was uploaded")
    if not await around.in_thread(draft.changed):
        display.say("The file is unchanged; nothing to do")
        return 0
    if not await around.in_thread(draft.exists):
        raise LocalProblem("the editor removed the file; nothing was uploaded (a file cannot be removed so)")
    local: LocalFile = await around.in_thread(LocalFile, draft.path)
    try:
        return await session.publish(local, lambda before: before is not None and before.executable)
    finally:
        local.close()


def _leave(draft: editor.Draft, kept: bool, display: Display) -> None:
    """Remove the draft, unless it is the only place where a text is. At the very end, also of a command that is interrupted: at once."""
    try:
        kept = kept and draft.exists() and draft.changed()
    except LocalProblem:
        kept = True
    if kept:
        display.problem("", f"your text is kept in {draft.path}")
    else:
        draft.remove()
