"""Hook scheduler: runs the hooks of the operator, records those that are due, and reports their ends.

Before a commit the check runs, and what is to run afterwards is recorded on the disk; so it runs whatever happens in between, at least
once. In one directory one hook runs at a time. A hook of an image that is not at its path any more is dropped.

The environment of a hook, the meaning of its end, and the time of the next try are pure functions.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from datetime import UTC, datetime

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Caller, Ended, NodeContext, Runner, Staging
from ciruela.model.config import DirConfig
from ciruela.model.errors import CiruelaError, DownloadFailed, HookFailed
from ciruela.model.hooks import AFTER, CommandHook, Due, HookKind, HookReport, HookState, Webhook
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.units import format_duration, logged
from ciruela.model.upload import AbortReason
from ciruela.model.values import dataclass
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.runtime import later
from ciruela.tracking.ledger import Ledger

LONGEST_PAUSE_MS = 3_600_000
"""Longest pause between two tries: an hour, so that what was down over night runs soon after. Our own choice."""

_MOST_DOUBLINGS = 32
"""Beyond it any pause is the longest one."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Search path for programs of a hook, whatever the daemon was started with."""

OK_CODES = range(200, 300)
"""Status codes of HTTP that mean that a call was heard."""


def hook_of(config: DirConfig, kind: HookKind) -> CommandHook | Webhook | None:
    """The hook of a kind that ``config`` names."""
    match kind:
        case HookKind.CHECK:
            return config.check_before_commit
        case HookKind.COMMAND:
            return config.on_commit
        case HookKind.WEBHOOK:
            return config.webhook


def kinds_after(config: DirConfig) -> tuple[HookKind, ...]:
    """The hooks that ``config`` wants to run when an image is visible, in order."""
    return tuple(kind for kind in AFTER if hook_of(config, kind) is not None)


def rfc3339(stamp_ms: int) -> str:
    """A time in UTC with milliseconds, ``2026-11-22T07:30:01.123Z``; of one that no calendar has, the milliseconds."""
    seconds, rest_ms = divmod(stamp_ms, 1000)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ms:03d}Z"
    except (OverflowError, ValueError, OSError):
        return f"{stamp_ms} ms"


def environment(due: Due, kind: HookKind, directory: str) -> dict[str, str]:
    """All that a command finds in its environment; nothing comes from the daemon's own."""
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "HOME": "/",
        "CIRUELA_HOOK": kind.value,
        "CIRUELA_PATH": str(due.vpath),
        "CIRUELA_IMAGE_ID": due.image.hex(),
        "CIRUELA_OLD_IMAGE_ID": "" if due.old_image is None else due.old_image.hex(),
        "CIRUELA_DIRECTORY": directory,
        "CIRUELA_SIGNED_AT": rfc3339(due.signed_ms),
        "CIRUELA_SIGNED_AT_MS": str(due.signed_ms),
        "CIRUELA_KEY": due.key,
    }


def body(due: Due, directory: str, machine: MachineId, hostname: str) -> bytes:
    """Builds the JSON body of a call of a web address."""
    fields = {
        "event": "committed",
        "path": str(due.vpath),
        "image_id": due.image.hex(),
        "old_image_id": None if due.old_image is None else due.old_image.hex(),
        "directory": directory,
        "signed_at": rfc3339(due.signed_ms),
        "signed_at_ms": due.signed_ms,
        "key": due.key,
        "machine_id": machine.hex(),
        "hostname": hostname,
    }
    return json.dumps(fields, sort_keys=True).encode("utf-8")


def why_failed(ended: Ended, timeout_ms: int) -> str:
    """Says why a command that has ended failed; empty when it did not. Control characters in its output are escaped."""
    if ended.late:
        what = f"took longer than {format_duration(timeout_ms)}"
    elif ended.signal is not None:
        what = f"was killed by signal {ended.signal}"
    elif ended.code != 0:
        what = f"exited with {ended.code}"
    else:
        return ""
    return logged(f"{what}: {ended.line}" if ended.line else what)  # guard: A27, -> f'{what}: {ended.line}' if ended.line else what


def why_refused(code: int) -> str:
    """Says why a call with this status code failed; empty when it did not."""
    return "" if code in OK_CODES else f"was answered with {code}"


def pause_s(hook: CommandHook | Webhook, tries: int) -> float | None:
    """Seconds until a hook that has failed ``tries`` times is tried again: each time twice as long. None: not at all."""
    if tries > hook.retries:
        return None
    return float(min(hook.backoff_ms << min(tries - 1, _MOST_DOUBLINGS), LONGEST_PAUSE_MS)) / 1000


MOST_REPORTS = 4096
"""Paths whose last results are remembered; beyond it the oldest that is over is forgotten."""

SUPERSEDED = "another image has taken the place of this one"

Told = Callable[[VPath, HookReport], None]
"""Hears of each change of a hook that runs when its image is visible."""


@dataclass(slots=True)
class HookCounts:
    """Of one kind since the start: tries, and hooks that went well or failed for good."""

    tries: int = 0
    ok: int = 0
    failed: int = 0


@dataclass(slots=True)
class _HookRun:
    """One hook of one image."""

    due: Due
    kind: HookKind
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Outside:
    """Executors of the hooks."""

    runner: Runner
    caller: Caller


@dataclass(eq=False)
class Hooks:
    """The hooks of this node. Also the gate of the downloads (``download.steps.Gate``).

    Without ``outside`` nothing is ever run: for simulations.
    """

    _log = Logger()

    # required parameters
    context: NodeContext
    ledger: Ledger
    outside: Outside | None
    told: Told

    # internal state
    _checks: dict[str, DeferredLock] = field(init=False, default_factory=dict)
    _noted: dict[VPath, Due] = field(init=False, default_factory=dict)
    _left: dict[tuple[VPath, ImageId], Due] = field(init=False, default_factory=dict)
    _queues: dict[str, deque[_HookRun]] = field(init=False, default_factory=dict)
    _busy: set[str] = field(init=False, default_factory=set)
    _running: dict[str, Deferred[None]] = field(init=False, default_factory=dict)
    _waiting: dict[tuple[VPath, HookKind], IDelayedCall] = field(init=False, default_factory=dict)
    _stopped: bool = field(init=False, default=False)
    reports: dict[VPath, dict[HookKind, HookReport]] = field(init=False, default_factory=dict)
    counts: dict[HookKind, HookCounts] = field(init=False, default_factory=lambda: {kind: HookCounts() for kind in HookKind})

    # -- before a commit ----------------------------------------------------------------------------------------------------------

    def gated(self, vpath: VPath) -> bool:
        """Tells whether anything is to be done before an image is committed at ``vpath``."""
        config = self.context.configs[vpath.key]
        return self.outside is not None and (config.check_before_commit is not None or bool(kinds_after(config)))

    def admit(self, vpath: VPath, state: State, staging: Staging) -> Deferred[None]:
        """Check an image that is whole, and record what is to run when it is committed.

        Fails with DownloadFailed(CHECK_FAILED) when the operator's check says no. Cancel to kill the check.
        """
        config = self.context.configs[vpath.key]
        before = self.ledger.committed(vpath)
        due = Due(vpath, state.image, before.image if before else None, state.version.timestamp_ms, "", kinds_after(config))
        return (
            self._signer(config, vpath, state)
            .addCallback(lambda key: self._check(config.check_before_commit, replace(due, key=key), staging))
            .addCallback(self._note)
        )

    def _signer(self, config: DirConfig, vpath: VPath, state: State) -> Deferred[str]:
        """The fingerprint of the key that signed last. An empty one when nobody can tell: the upload was judged long ago."""

        def newest(found: Mapping[SigEntry, str]) -> str:
            return found[max(found)] if found else ""

        def unknown(failure: Failure) -> str:
            failure.trap(CiruelaError)
            self._log.warn("{vpath}: who signed it cannot be told: {why}", vpath=str(vpath), why=logged(failure.getErrorMessage()))
            return ""

        verified = self.context.authority.verified(config, vpath, state.image, state.signatures[::-1])
        return verified.addCallbacks(newest, unknown)

    def _check(self, hook: CommandHook | None, due: Due, staging: Staging) -> Deferred[Due]:
        if hook is None:
            return succeed(due)
        turn = self._checks.setdefault(due.vpath.key, DeferredLock())
        return staging.prepare().addCallback(lambda directory: turn.run(self._run_check, hook, due, directory)).addCallback(lambda _: due)

    def _run_check(self, hook: CommandHook, due: Due, directory: str) -> Deferred[None]:
        self.counts[HookKind.CHECK].tries += 1

        def judged(why: str) -> None:
            counts = self.counts[HookKind.CHECK]
            counts.failed, counts.ok = counts.failed + bool(why), counts.ok + (not why)
            self._report(due.vpath, HookReport(due.image, HookKind.CHECK, HookState.FAILED if why else HookState.OK, why, 1))
            if why:
                raise DownloadFailed(AbortReason.CHECK_FAILED, why)  # guard: I1

        return self._command(hook, due, HookKind.CHECK, directory).addErrback(self._not_run).addCallback(judged)

    def _note(self, due: Due) -> Deferred[None]:
        if not due.kinds:
            return succeed(None)
        self._noted[due.vpath] = due
        return self.context.disk.write_due(due)  # guard: A43, -> succeed(None)

    def gave_up(self, vpath: VPath, image: ImageId) -> None:
        """The image will not be committed."""
        due = self._noted.get(vpath)
        committed = self.ledger.committed(vpath)
        if due is None or due.image != image:
            return
        del self._noted[vpath]
        if committed is None or committed.image != image:
            self._drop(due)

    # -- after a commit -----------------------------------------------------------------------------------------------------------

    def arrived(self, vpath: VPath, image: ImageId) -> None:
        """The image is visible: run what is due."""
        due = self._noted.get(vpath)
        if due is not None and due.image == image:
            del self._noted[vpath]
            self._begin(due)

    def resume(self, found: Sequence[Due]) -> None:
        """Run what an earlier process has left; to be called once the ledger is filled."""
        for due in found:
            config = self.context.configs.get(due.vpath.key)
            committed, pending = self.ledger.committed(due.vpath), self.ledger.pending(due.vpath)
            kinds = tuple(kind for kind in due.kinds if config is not None and kind in kinds_after(config))
            if kinds and committed is not None and committed.image == due.image:
                self._begin(replace(due, kinds=kinds))
            elif pending is None or pending.state.image != due.image:  # else its commit records them anew
                self._drop(due)

    def leave(self, key: str) -> None:
        """A directory is configured no more: what is due there waits on the disk until it is again. A hook that runs is let run."""
        self._queues.pop(key, None)
        for vpath, kind in [waiting for waiting in self._waiting if waiting[0].key == key]:
            self._waiting.pop((vpath, kind)).cancel()
        self._left = {left: due for left, due in self._left.items() if left[0].key != key}
        self._noted = {vpath: due for vpath, due in self._noted.items() if vpath.key != key}
        self.reports = {vpath: kinds for vpath, kinds in self.reports.items() if vpath.key != key}

    def _begin(self, due: Due) -> None:
        if self.outside is None:
            return
        for other in [other for other in self._left.values() if other.vpath == due.vpath and other.image != due.image]:
            self._supersede(other)
        self._left[due.vpath, due.image] = due
        queue = self._queues.setdefault(due.vpath.key, deque())
        for kind in due.kinds:
            self._not_again(due.vpath, kind)
            queue.append(_HookRun(due, kind))
            self._tell(due.vpath, HookReport(due.image, kind, HookState.PENDING))
        self._soon(due.vpath.key)  # not in the turn in which others hear that the image is here

    def _soon(self, key: str, delay_s: float = 0.0) -> IDelayedCall:
        return later(self.context.clock, delay_s, "running hooks", lambda: self._pump(key))

    def _pump(self, key: str) -> None:
        queue = self._queues.get(key)
        while queue and key not in self._busy and not self._stopped:
            job = queue.popleft()
            if not self._current(job.due):
                self._supersede(job.due)
                continue
            self._busy.add(key)
            work = self._try(job).addErrback(self._broken, job).addBoth(self._free, key)
            if key in self._busy:
                self._running[key] = work

    def _free(self, _: None, key: str) -> None:
        self._busy.discard(key)
        self._running.pop(key, None)
        if not self._stopped:
            self._soon(key)

    def _current(self, due: Due) -> bool:
        """Tells whether the image is still the one at its path, and this hook still due."""
        committed = self.ledger.committed(due.vpath)
        known = due.vpath.key in self.context.configs and (due.vpath, due.image) in self._left
        return known and committed is not None and committed.image == due.image

    def _try(self, job: _HookRun) -> Deferred[None]:
        hook = hook_of(self.context.configs[job.due.vpath.key], job.kind)
        job.tries += 1
        self.counts[job.kind].tries += 1
        return maybeDeferred(self._work, hook, job).addErrback(self._not_run).addCallback(self._ended, job, hook)

    def _work(self, hook: CommandHook | Webhook | None, job: _HookRun) -> Deferred[str]:
        due = job.due
        directory = self.context.disk.where(due.vpath)
        match hook:
            case CommandHook():
                return self._command(hook, due, job.kind, directory)
            case Webhook():
                assert self.outside is not None
                data = body(due, directory, self.context.me, self.context.hostname)
                return self.outside.caller.post(hook.url, data, hook.timeout_ms / 1000).addCallback(why_refused)
            case None:
                return succeed("")

    def _command(self, hook: CommandHook, due: Due, kind: HookKind, directory: str) -> Deferred[str]:
        """Run a command. Fires with why it failed, empty when it did not."""
        assert self.outside is not None
        run = self.outside.runner.run(hook.command, environment(due, kind, directory), hook.timeout_ms / 1000)
        return run.addCallback(why_failed, hook.timeout_ms)

    @staticmethod
    def _not_run(failure: Failure) -> str:
        failure.trap(HookFailed)
        return logged(failure.getErrorMessage())

    # -- what became of it --------------------------------------------------------------------------------------------------------

    def _ended(self, why: str, job: _HookRun, hook: CommandHook | Webhook | None) -> Deferred[None] | None:
        due, counts = job.due, self.counts[job.kind]
        counts.ok += not why
        if not self._current(due):
            self._supersede(due)  # what is told of its successor stays
            return None
        if not why:
            self._tell(due.vpath, HookReport(due.image, job.kind, HookState.OK, "", job.tries))
            return self._done(job)
        pause = None if hook is None else pause_s(hook, job.tries)
        if pause is None:
            counts.failed += 1
            self._say("{hook} of {image} at {vpath} failed for good: {why}", job, why)
            self._tell(due.vpath, HookReport(due.image, job.kind, HookState.FAILED, why, job.tries))
        else:
            self._say("{hook} of {image} at {vpath} failed, it is tried again in {pause_s} s: {why}", job, why, pause)
            self._report(due.vpath, HookReport(due.image, job.kind, HookState.PENDING, why, job.tries))
            self._waiting[due.vpath, job.kind] = later(self.context.clock, pause, "trying a hook again", lambda: self._again(job))
        return None

    def _say(self, text: str, job: _HookRun, why: str, pause: float = 0.0) -> None:
        fields = {"hook": job.kind.value, "image": job.due.image.hex(), "vpath": str(job.due.vpath)}
        self._log.warn(text, why=why, pause_s=pause, **fields)

    def _again(self, job: _HookRun) -> None:
        del self._waiting[job.due.vpath, job.kind]
        self._queues[job.due.vpath.key].append(job)
        self._pump(job.due.vpath.key)

    def _done(self, job: _HookRun) -> Deferred[None]:
        """Note on the disk what is left. Should that fail, the hook runs once more after a restart."""
        vpath, image = job.due.vpath, job.due.image
        left = self._left.get((vpath, image))
        if left is None:
            return succeed(None)
        left = replace(left, kinds=tuple(kind for kind in left.kinds if kind is not job.kind))
        if left.kinds:
            self._left[vpath, image] = left
            written = self.context.disk.write_due(left)
        else:
            del self._left[vpath, image]
            written = self.context.disk.drop_due(vpath, image)
        return written.addErrback(self._not_written, vpath)

    def _supersede(self, due: Due) -> None:
        """The image is not at its path any more."""
        left = self._left.pop((due.vpath, due.image), None)
        if left is None:
            return
        for kind in left.kinds:
            self._not_again(due.vpath, kind)
            self._tell(due.vpath, HookReport(due.image, kind, HookState.FAILED, SUPERSEDED))
        self._drop(due)

    def _not_again(self, vpath: VPath, kind: HookKind) -> None:
        call = self._waiting.pop((vpath, kind), None)
        if call is not None:
            call.cancel()

    def _drop(self, due: Due) -> None:
        self.context.disk.drop_due(due.vpath, due.image).addErrback(self._not_written, due.vpath)

    def _not_written(self, failure: Failure, vpath: VPath) -> None:
        failure.trap(CiruelaError)
        self._log.error("{vpath}: which hooks are due cannot be recorded: {why}", vpath=str(vpath), why=failure.getErrorMessage())

    def _broken(self, failure: Failure, job: _HookRun) -> None:
        if self._stopped and failure.check(CancelledError):
            return
        self._log.failure("{hook} of {vpath} could not be run", failure, hook=job.kind.value, vpath=str(job.due.vpath))
        self.counts[job.kind].failed += 1
        if self._current(job.due):
            self._tell(job.due.vpath, HookReport(job.due.image, job.kind, HookState.FAILED, "internal error", job.tries))

    def _tell(self, vpath: VPath, report: HookReport) -> None:
        self.told(vpath, self._report(vpath, report))

    def _report(self, vpath: VPath, report: HookReport) -> HookReport:
        """Remember how a hook stands. What is said of an image that was superseded does not hide what is said of its successor."""
        stamped = replace(report, at_ms=self.context.now_ms())
        known = self.reports.pop(vpath, {})
        before = known.get(report.kind)
        if report.message != SUPERSEDED or before is None or before.image == report.image:
            known[report.kind] = stamped
        self.reports[vpath] = known
        if len(self.reports) > MOST_REPORTS:
            over = (one for one, kinds in self.reports.items() if all(kind.state is not HookState.PENDING for kind in kinds.values()))
            del self.reports[next(over, next(iter(self.reports)))]
        return stamped

    # -- questions ----------------------------------------------------------------------------------------------------------------

    def of(self, vpath: VPath, image: ImageId) -> list[HookReport]:
        """Gives the states of the hooks that run when ``image`` is visible at ``vpath``."""
        return [one for one in self.reports.get(vpath, {}).values() if one.image == image and one.kind is not HookKind.CHECK]

    def ended(self, since_ms: int) -> list[tuple[VPath, HookReport]]:
        """The hooks that run when an image is visible and have ended after ``since_ms``."""
        return [
            (vpath, one)
            for vpath, kinds in self.reports.items()
            for one in kinds.values()
            if one.kind is not HookKind.CHECK and one.state is not HookState.PENDING and one.at_ms > since_ms
        ]

    @property
    def due(self) -> int:
        """Images with hooks that have not run well."""
        return len(self._left)

    def stop(self) -> None:
        """Kill what runs; what has not run well runs after the next start."""
        self._stopped = True
        for call in self._waiting.values():
            call.cancel()
        self._waiting.clear()
        for work in list(self._running.values()):
            work.cancel()
