"""``ciruela rollback``: a replace by an image that the nodes still have, signed anew. Nothing is uploaded."""

from __future__ import annotations

from collections.abc import Mapping

from ciruela.client.contacts import RunContext
from ciruela.client.context import AppContext, identities_of, make_display, real_world
from ciruela.client.errors import CommandError
from ciruela.client.options.removing import PathTarget, RollbackOptions
from ciruela.client.pathview import PathView, claimed_signers
from ciruela.client.progress import Display
from ciruela.client.removing import agreed, described, run_one, seen
from ciruela.client.survey import Survey, real_survey
from ciruela.client.text import stamp
from ciruela.client.tracker import EXIT_DONE, EXIT_LOCAL, EXIT_NETWORK, EXIT_REJECTED
from ciruela.client.trust import (
    Proof,
    ShownImage,
    TrustedKeys,
    fingerprint_of,
    insist_on_proof,
    my_trust,
    shown,
    signed_state,
    signing_time_ms,
)
from ciruela.client.uploadrun import Upload
from ciruela.keys.signed import signed_bytes
from ciruela.model.ids import ImageId
from ciruela.model.versions import State
from ciruela.proto.messages import ReplaceDir

Proofs = Mapping[ImageId, Proof | None]
"""For each image that is there or kept, that a trusted key signed it for the path."""


def proofs_of(sight: PathView, trust: TrustedKeys) -> Proofs:
    """Verifies what is proved of the images of ``sight``. Blocks: runs in a thread."""
    images = [*sight.kept, *([] if sight.newest is None else [sight.newest.image])]
    return {image: trust.proof(sight.vpath, _signed(sight, image)) for image in images}


def _signed(sight: PathView, image: ImageId) -> State:
    return signed_state(sight.answers.values(), sight.vpath.entry, image)


def candidates(sight: PathView, proofs: Proofs) -> list[str]:
    """A line for each image that can be gone back to, the one that was replaced last first."""
    asked = len(sight.answers)
    return [
        f"{image.hex()}  signed {stamp(version.timestamp_ms if (proof := proofs.get(image)) is None else proof.timestamp_ms)}  "
        f"kept by {len(names)} of {asked} nodes that were asked  {shown(proof)}"
        for image, (version, names) in sight.kept.items()
    ]


def chosen(image: ImageId | None, sight: PathView) -> tuple[ImageId | None, str]:
    """The image to go back to, or None and a sentence why there is none."""
    current = sight.newest
    kept = sight.kept
    why = ""
    if current is None:
        why = "nothing is there, so there is nothing to go back from (upload with ciruela sync)"
    elif image is not None and image == current.image:
        why = f"{image.hex()} is there already"
    elif image is not None and image not in kept:
        why = f"none of the nodes that were asked keeps {image.hex()}"
    elif not kept:
        why = "none of the nodes that were asked keeps a replaced image (keep-replaced says how many are kept from now on)"
    elif any(sight.vpath.entry in answer.pending for answer in sight.answers.values()):
        why = "an upload is on its way there (try again when it is done)"
    elif image is None and not _agree(sight):
        why = "the nodes do not agree which image was replaced last: name one"
    return (None, why) if why else (image or next(iter(kept)), "")


def _agree(sight: PathView) -> bool:
    """Tells whether all nodes that keep something name the same image first."""
    current = sight.newest
    entry = sight.vpath.entry
    rows = [[one.image for one in answer.kept.get(entry, ())] for answer in sight.answers.values()]
    first = {next((image for image in row if current is None or image != current.image), None) for row in rows}
    return len(first - {None}) == 1


def _refused(image: ImageId | None, why: str, target: PathTarget, sight: PathView) -> CommandError:
    """Builds the error that says why there is no way back. What is not there may be on a node that did not say: then it is not known."""
    current, kept = sight.newest, sight.kept
    absent = current is None or (not kept if image is None else image != current.image and image not in kept)
    if absent and sight.silent:
        return CommandError(EXIT_NETWORK, f"{target.entry_point} {target.vpath}: {why}; but {', '.join(sight.silent)} did not say")
    return CommandError(EXIT_REJECTED, f"{target.entry_point} {target.vpath}: {why}")


async def rollback(options: RollbackOptions, around: AppContext, world: RunContext | None = None, survey: Survey | None = None) -> int:
    """``ciruela rollback``. Gives the exit code. Raises what keeps it from sending anything."""
    display = make_display(options.common, around, None)
    net = world or real_world(options.common, around)
    asking = survey or (real_survey(options.common, around) if world is None else None)
    target = options.target
    trust = await my_trust(options.trusting, options.keys, around, display)
    sight = await seen(target, net, asking, display)
    proofs: Proofs = await around.in_thread(proofs_of, sight, trust)
    if options.listing:
        return _list(target, sight, proofs, around, display)
    image, why = chosen(options.image, sight)
    current = sight.newest
    if image is None or current is None:
        for line in candidates(sight, proofs):
            display.say(f"  can be gone back to: {line}")
        raise _refused(options.image, why, target, sight)
    display.say(f"Now at {target.vpath}: {described(current, proofs[current.image])}")
    display.say(f"Going back to: {next(line for line in candidates(sight, proofs) if line.startswith(image.hex()))}")
    claimed = await claimed_signers(target.cluster, target.vpath, image, asking) if proofs[image] is None else ()
    found = ShownImage(target.entry_point, target.vpath, _signed(sight, image), claimed)
    insist_on_proof(found, proofs[image], trust, options.trusting, display.problem)  # guard: S1, insist_on_proof -> print
    if not await agreed("Go back?", options.sure, around):
        raise CommandError(EXIT_LOCAL, "nothing was changed")
    identities = await identities_of(options.keys, around, display)
    timestamp_ms = signing_time_ms(around.now_ms(), [current.version.timestamp_ms])
    path = str(target.vpath)
    signatures = tuple(signature for _, signature in await identities.sign_all(signed_bytes(path, image, timestamp_ms)))
    request = ReplaceDir(path, image, current.image, timestamp_ms, signatures)
    upload = Upload(request, weak=False, total_bytes=0)
    return await run_one(target, upload, options.rule, options.print_progress_s, options.common, around, net)


def _list(target: PathTarget, sight: PathView, proofs: Proofs, around: AppContext, display: Display) -> int:
    current, report = sight.newest, around.report
    if current is not None:
        display.say(f"Now at {target.vpath}: {described(current, proofs[current.image])}")
    for line in () if report is not None else candidates(sight, proofs):
        display.result(line)
    if report is not None:
        for image, (version, names) in sight.kept.items():
            signed_ms = version.timestamp_ms if (proof := proofs[image]) is None else proof.timestamp_ms
            verified_by = fingerprint_of(proof)
            report.write("kept", path=str(target.vpath), image=image.hex(), signed_ms=signed_ms, nodes=names, verified_by=verified_by)
        report.end(EXIT_DONE, "done", [])
    return EXIT_DONE
