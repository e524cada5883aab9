"""``ciruela sync --dry-run`` and ``--exit-code``: every server is asked, and what would become of the upload is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ciruela.client.book import EXIT_NOTHING, EXIT_PARTIAL, Rule, worst
from ciruela.client.check import Forecast, Fresh, Reply, Says, Survey, forecast
from ciruela.client.entrance import together
from ciruela.client.options.sync import SyncOptions
from ciruela.client.orders import Check
from ciruela.client.preflight import Preflight
from ciruela.client.progress import FINAL_NAMES, Display
from ciruela.client.report import Report, code_of
from ciruela.client.scanning import Scans
from ciruela.client.surroundings import Surroundings
from ciruela.client.text import clean, count, size
from ciruela.disk.scan import Scan
from ciruela.index.tree import Index
from ciruela.model.ids import ImageId

_SHOWN = {
    Says.TAKES: "would take it",
    Says.HAS: "has it",
    Says.HOLDS: "has other content, which is as good",
    Says.NO_CONFIG: "has no such directory",
    Says.REFUSES: "would refuse",
    Says.FAILS: "would fail",
    Says.UNREACHABLE: "cannot be asked",
    Says.CANNOT_TELL: "cannot tell without uploading",
}


def _headline(survey: Survey, check: Check, found: Forecast, new: Fresh | None, scan: Scan) -> str:
    word = "WOULD FAIL" if found.exit_code else "WOULD BE DONE" if found.takers == found.expected else "WOULD BE EARLY"
    parts = [
        f"{clean(survey.cluster.label, 80)} {clean(check.request.path)}",
        "NOTHING TO DO" if found.nothing else word,
        f"{found.takers}/{found.expected} nodes",
        f"id {check.request.image.hex()[:16]}",
    ]
    if not found.nothing and found.takers:
        if new is not None and new.compared:
            parts.append(f"new: {new.files:,} of {count(scan.files, 'file')}, {size(new.bytes)} of {size(scan.bytes)}")
        else:
            parts.append(f"new: {count(scan.files, 'file')}, {size(scan.bytes)}")
    if found.why:
        parts.append(f"({clean(found.why)})")
    return "  ".join(parts)


def _node_line(one: Reply, image: ImageId) -> str:
    parts = [f"  {clean(one.host, 80)}  {_SHOWN[one.says]}"]
    if one.code and one.says in (Says.REFUSES, Says.FAILS):
        parts.append(clean(one.code))
    if one.message:
        parts.append(clean(one.message))
    if one.there is not None and one.there != image:
        parts.append(f"there: {one.there.hex()[:16]}")
    if one.coming is not None:
        parts.append(f"on its way: {one.coming.hex()[:16]}")
    if one.free_bytes is not None and one.says is Says.TAKES:
        parts.append(f"{size(one.free_bytes)} free")
    return "  ".join(parts)


def _fields(survey: Survey, check: Check, found: Forecast, new: Fresh | None, scan: Scan) -> dict[str, object]:
    return {
        "cluster": survey.cluster.label,
        "path": check.request.path,
        "image": check.request.image.hex(),
        "exit_code": found.exit_code,
        "code": "nothing-to-do" if found.nothing else code_of(found.exit_code),
        "message": found.why,
        "takers": found.takers,
        "expected": found.expected,
        "files": scan.files,
        "bytes": scan.bytes,
        "new_files": None if new is None else new.files,
        "new_bytes": None if new is None else new.bytes,
    }


def _report_node(report: Report, survey: Survey, check: Check, one: Reply) -> None:
    report.write(
        "node",
        cluster=survey.cluster.label,
        path=check.request.path,
        host=clean(one.host, 300),
        machine_id=None if one.machine is None else one.machine.hex(),
        state=one.says.value,
        code=clean(one.code),
        message=clean(one.message),
        there=None if one.there is None else one.there.hex(),
        coming=None if one.coming is None else one.coming.hex(),
        free_bytes=one.free_bytes,
    )


async def survey_all(preflights: Sequence[Preflight], display: Display) -> None:
    """Ask all other nodes of all clusters that were asked, too."""
    surveys = [one.survey for one in preflights if one.rulings]
    display.show(lambda: f"Asking: {count(sum(one.answered for one in surveys), 'node')} answered")
    try:
        await together([one.ask_all() for one in surveys])
    finally:
        display.hide()


def nothing_to_do(preflights: Sequence[Preflight], rule: Rule) -> bool:
    """Whether every node of every cluster has exactly what would be uploaded."""
    return all(one.rulings and all(fate_of(one.survey, number, rule).nothing for number in range(len(one.rulings))) for one in preflights)


def fate_of(survey: Survey, number: int, rule: Rule) -> Forecast:
    """The verdict on one upload; never a good one while servers share a machine id, nor that all have it while some may not be known."""
    found = forecast(survey.replies[number], rule)
    if found.nothing and (untold := survey.untold()):
        found = replace(found, nothing=False, why=untold)
    complaint = survey.complaint(number)
    return replace(found, exit_code=EXIT_PARTIAL, why=complaint, nothing=False) if complaint and not found.exit_code else found


async def show_forecast(preflights: Sequence[Preflight], scans: Scans, options: SyncOptions, around: Surroundings, display: Display) -> int:
    """Show what would become of every upload, by what was answered. Gives the exit code that the upload would likely have."""
    report = around.report
    found: list[Forecast] = []
    uploads: list[dict[str, object]] = []
    for preflight in preflights:
        survey = preflight.survey
        for number, (ruling, check) in enumerate(zip(preflight.rulings, survey.checks, strict=True)):
            scan = scans.with_image(ruling.intent.image)
            fate, new = fate_of(survey, number, options.rule), None
            if not fate.nothing:
                new = await survey.compare(number, await around.in_thread(_index_of, scan), around.in_thread)
                fate = fate_of(survey, number, options.rule)  # some may have no room for it
            if ruling.refusal:
                fate = replace(fate, exit_code=ruling.exit_code, why=f"{ruling.refusal}; nothing would be sent")
            replies = survey.replies[number]
            found.append(fate)
            uploads.append(_fields(survey, check, fate, new, scan))
            display.answer(_headline(survey, check, fate, new, scan))
            told = [one for one in replies if one.says is not Says.HAS][:FINAL_NAMES]
            for one in replies if options.common.verbosity > 1 else told:
                display.answer(_node_line(one, check.request.image))
            if report is not None:
                for one in replies:
                    _report_node(report, survey, check, one)
    code = worst(one.exit_code for one in found)
    if options.exit_code and not code and all(one.nothing for one in found):
        code = EXIT_NOTHING
    display.say("Nothing was uploaded: this was a dry run")
    if report is not None:
        report.end(code, "dry-run", uploads)
    return code


def _index_of(found: Scan) -> Index:
    """In a thread: the first use parses."""
    return found.index
