"""``ciruela remove``: look, show, ask, sign, and wait until it is gone."""

from __future__ import annotations

from ciruela.client.clusters import SyncRun, exit_code, to_its_end
from ciruela.client.contacts import RunContext
from ciruela.client.context import AppContext, identities_of, make_display, real_world
from ciruela.client.errors import CommandError
from ciruela.client.identities import terminal_line
from ciruela.client.listener import Listener
from ciruela.client.options.common import Common
from ciruela.client.options.removing import PathTarget, RemoveOptions
from ciruela.client.pathview import NotTold, PathView, claimed_signers, levels_of, look, wrong_depth
from ciruela.client.progress import Display
from ciruela.client.report import Reporting
from ciruela.client.source import ImageSource
from ciruela.client.survey import Survey, real_survey
from ciruela.client.sync import ClusterRun, EntryPoints
from ciruela.client.text import stamp
from ciruela.client.tracker import EXIT_DONE, EXIT_LOCAL, EXIT_NETWORK, EXIT_REJECTED, CompletionRule
from ciruela.client.trust import Proof, ShownImage, insist_on_proof, my_trust, shown, signed_state, signing_time_ms
from ciruela.client.uploadrun import Upload
from ciruela.keys.signed import removal_bytes
from ciruela.model.errors import ConfigError
from ciruela.model.ids import ImageId
from ciruela.model.versions import State
from ciruela.proto.messages import RemoveDir

YES = frozenset({"y", "yes"})


def described(state: State, proof: Proof | None) -> str:
    """One version, for people."""
    signed_ms = state.version.timestamp_ms if proof is None else proof.timestamp_ms
    return f"{state.image.hex()}, signed {stamp(signed_ms)}, {shown(proof)}"


async def agreed(question: str, sure: bool, around: AppContext) -> bool:
    """Asks the user to confirm, unless ``sure``. Raises ConfigError when nobody can be asked."""
    if sure:
        return True
    ask = terminal_line()
    if ask is None:
        raise ConfigError("there is no terminal to ask on: give --yes")
    return (await around.in_thread(ask, f"{question} [y/N] ")).strip().lower() in YES


async def run_one(
    target: PathTarget, upload: Upload, rule: CompletionRule, lines_every_s: float, common: Common, around: AppContext, net: RunContext
) -> int:
    """Send one signed wish to the cluster and wait for its end. Gives the exit code."""
    display, report = make_display(common, around, lines_every_s), around.report
    source = ImageSource((), around.in_thread, lambda _image, _text: None)
    listener: Listener = display if report is None else Reporting(display, report)
    run = SyncRun([ClusterRun(EntryPoints(target.entry_point, [target.entry_point]), [upload], rule, net, source, listener)])
    if report is None:
        return exit_code(await to_its_end(run, display))
    report.watch(run, around.reactor, lines_every_s)
    try:
        rows = await to_its_end(run, display)
    finally:
        report.rest()
    code = exit_code(rows)
    report.summary(code, rows)
    return code


async def seen(target: PathTarget, net: RunContext, survey: Survey | None, display: Display) -> PathView:
    """Asks some nodes what they say of the path. Raises what keeps all of them from saying it; Ends when no image can be at such a path."""
    try:
        sight = await look(target.entry_point, target.vpath, net)
    except NotTold:
        if survey is not None and (levels := await levels_of(target.cluster, target.vpath, survey)) not in (None, target.vpath.level):
            raise CommandError(EXIT_REJECTED, wrong_depth(target.vpath, levels)) from None
        raise
    for problem in sight.problems:
        (display.problem if sight.silent else display.note)(target.entry_point, problem)
    return sight


async def remove(options: RemoveOptions, around: AppContext, world: RunContext | None = None, survey: Survey | None = None) -> int:
    """``ciruela remove``. Gives the exit code. Raises what keeps it from sending anything."""
    display = make_display(options.common, around, None)
    net = world or real_world(options.common, around)
    asking = survey or (real_survey(options.common, around) if world is None else None)
    target = options.target
    trust = await my_trust(options.trusting, options.keys, around, display)
    sight = await seen(target, net, asking, display)
    image = options.image or (None if sight.newest is None else sight.newest.image)
    if image is None:
        return _nothing(target, sight, around, display)
    state = signed_state(sight.answers.values(), target.vpath.entry, image)
    proof: Proof | None = await around.in_thread(trust.proof, target.vpath, state)
    display.say(_what(target, image, sight, proof))
    # guard: S1
    if options.image is None:  # else it is the user who says which one
        claimed = await claimed_signers(target.cluster, target.vpath, image, asking) if proof is None else ()
        insist_on_proof(ShownImage(target.entry_point, target.vpath, state, claimed), proof, trust, options.trusting, display.problem)
    if not await agreed("Remove it from all nodes?", options.sure, around):
        raise CommandError(EXIT_LOCAL, "nothing was removed")
    identities = await identities_of(options.keys, around, display)
    timestamp_ms = signing_time_ms(around.now_ms(), [sight.states[name].version.timestamp_ms for name in sight.with_image(image)])
    path = str(target.vpath)
    signatures = tuple(signature for _, signature in await identities.sign_all(removal_bytes(path, image, timestamp_ms)))
    request = RemoveDir(path, image, timestamp_ms, signatures, options.force)
    return await run_one(target, Upload(request, False, 0), options.rule, options.print_progress_s, options.common, around, net)


def _nothing(target: PathTarget, sight: PathView, around: AppContext, display: Display) -> int:
    """Nothing is there, on no node. Raises Ends where some node may have something and did not say."""
    if sight.silent:  # guard: K3.6
        raise CommandError(
            EXIT_NETWORK,
            f"{target.entry_point} {target.vpath}: {', '.join(sight.answers)} have nothing there, but {', '.join(sight.silent)} did not "
            "say; name the image with --image to have its removal recorded",
        )
    display.result(f"{target.entry_point} {target.vpath}  nothing is there")
    if around.report is not None:
        around.report.end(EXIT_DONE, "done", [])
    return EXIT_DONE


def _what(target: PathTarget, image: ImageId, sight: PathView, proof: Proof | None) -> str:
    """Describes the removal that is about to be signed, in a line."""
    here = sight.with_image(image)
    if not here:
        return f"Removing {target.vpath}: {image.hex()}, which none of the nodes that were asked has"
    newest = max((sight.states[name] for name in here), key=lambda state: state.version)
    others = len(sight.answers) - len(here)
    note = f"; {others} of the {len(sight.answers)} nodes that were asked have something else there, or nothing" if others else ""
    return f"Removing {target.vpath}: {described(newest, proof)}{note}"
