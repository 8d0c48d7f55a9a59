"""Draw a switchover as SVG: phases as bands, workers as lanes, and events as a numbered list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from bgpool.cli.timeline.curves import Curve, Mark, curve_of, sum_of
from bgpool.cli.timeline.scale import Scale, ticks
from bgpool.cli.timeline.switchover import Band, RecordedSwitchover, told_errors
from bgpool.core.phase import Phase
from bgpool.core.timeline import CREATED_AGAIN
from bgpool.report.reading import utc

__all__ = ["WIDTH", "draw"]

WIDTH: Final = 980
_LEFT: Final = 118
_RIGHT: Final = WIDTH - 84
_CLASSES: Final = {
    Phase.PREPARATION.name: "preparation",
    Phase.IN_PROGRESS.name: "progress",
    Phase.POST.name: "post",
    Phase.COMPLETED.name: "completed",
    CREATED_AGAIN: "back",
}
#: With more workers than this, lanes are lower.
_MANY: Final = 12
#: The width of a character of a phase's name in its band, in pixels.
_NAME_PX: Final = 8.6
_SMALL_NAME_PX: Final = 7.0
#: The time around the hold that is enlarged, in seconds.
_BEFORE_S: Final = 2.0
_AFTER_S: Final = 4.0

_STYLE: Final = """
.page{fill:#ffffff}.ink{fill:#1f2328}.dim{fill:#59636e}.line{stroke:#d1d9e0}.event{stroke:#8c959f}
.rate{fill:#4a7fc1}.held{fill:#e08a00}.failed{stroke:#b3001b}.cut{fill:#8250df}
.preparation{fill:#b5851f}.progress{fill:#d1434b}.post{fill:#3f9a57}.completed{fill:#7a8aa0}.back{fill:#4a7fc1}
.wash{opacity:.13}.onband{fill:#ffffff}.badge{fill:#ffffff;stroke:#59636e}
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;font-size:12px}
.title{font-size:17px;font-weight:600}.small{font-size:10.5px}.end{text-anchor:end}.middle{text-anchor:middle}
.mono{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:11.5px}
@media (prefers-color-scheme: dark){
.page{fill:#0d1117}.ink{fill:#e6edf3}.dim{fill:#9198a1}.line{stroke:#30363d}.event{stroke:#6e7681}
.rate{fill:#6ea8e8}.held{fill:#f0a53a}.failed{stroke:#ff7b83}.cut{fill:#c297ff}.badge{fill:#0d1117;stroke:#9198a1}
.wash{opacity:.24}}
"""


class _Sheet:
    """The elements of a drawing, from top to bottom."""

    def __init__(self) -> None:
        self.y = 0.0
        self.parts: list[str] = []

    def add(self, markup: str) -> None:
        self.parts.append(markup)

    def text(self, x: float, y: float, words: str, kind: str) -> None:
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str, title: str = "") -> None:
        inner = f"<title>{escape(title)}</title>" if title else ""
        self.add(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}" class="{kind}">'
            f"{inner}</rect>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str, more: str = "") -> None:
        self.add(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}" {more}/>')


def draw(stories: Sequence[RecordedSwitchover]) -> str:
    """Return one SVG with all *stories*, one below the other. It loads nothing, and runs nothing."""
    sheet = _Sheet()
    for story in stories:
        _draw_story(sheet, story)
    height = round(sheet.y + 12)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img"><style>{_STYLE}</style><rect width="{WIDTH}" height="{height}" class="page"/>'
        + "\n".join(sheet.parts)
        + "</svg>\n"
    )


def _draw_story(sheet: _Sheet, story: RecordedSwitchover) -> None:
    _head(sheet, story)
    whole, near = _ranges(story)
    if near != whole:
        scale = Scale(*whole, _LEFT, _RIGHT)
        _strip(sheet, story, scale)
        # The part that is enlarged below.
        left, right = scale.x(near[0]), scale.x(near[1])
        sheet.add(f'<path d="M{left:.1f},{sheet.y + 2:.1f}v6H{right:.1f}v-6" fill="none" class="event"/>')
        _axis(sheet, scale, "")
        sheet.y += 10
    scale = Scale(*near, _LEFT, _RIGHT)
    _strip(sheet, story, scale)
    top = sheet.y
    _lanes(sheet, story, scale)
    _washes(sheet, story, scale, top)
    _events(sheet, story, scale, top)
    _axis(sheet, scale, f"seconds from {story.zero}")
    _legend(sheet, story)
    _list(sheet, story)


def _head(sheet: _Sheet, story: RecordedSwitchover) -> None:
    sheet.y += 34
    sheet.text(20, sheet.y, f"Switchover of bg_id {story.bg_id!r}: {story.outcome}", "title ink")
    sheet.y += 21
    sheet.text(20, sheet.y, utc(story.events[0].wall_ns if not story.bands else _first_ns(story)), "dim")
    sheet.y += 18
    hold_s = story.hold_s
    if hold_s is None:
        sheet.text(20, sheet.y, "No caller was held: IN_PROGRESS was never read.", "ink")
    else:
        sheet.text(20, sheet.y, f"Held for {hold_s:.3f} s. Evidence of the release: {story.evidence}.", "ink")
    if told := told_errors(story.recording):
        sheet.y += 18
        sheet.text(20, sheet.y, f"{told[0].upper()}{told[1:]}.", "ink")
    sheet.y += 16


def _first_ns(story: RecordedSwitchover) -> int:
    return next(entry.wall_ns for entry in story.events if entry.event == story.bands[0].phase)


def _ranges(story: RecordedSwitchover) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ranges to draw, in seconds: the whole switchover, and the part around the hold, if much shorter."""
    offsets = [sample.offset_ms / 1000 for worker in story.recording.workers for sample in worker.samples]
    times = [band.begin_s for band in story.bands] + [entry.mono_ns / 1e9 for entry in story.events[-1:]]
    begin_s, end_s = min(times), max([*times, *offsets])
    begin_s = max(min([begin_s - 1, *offsets]), begin_s - 5)
    whole = (begin_s, max(end_s, begin_s + 1))
    hold_s = story.hold_s
    if hold_s is None:
        return whole, whole
    release = story.release
    released_s = release.mono_ns / 1e9 if release is not None else hold_s
    near = (max(whole[0], released_s - hold_s - _BEFORE_S), min(whole[1], released_s + max(_AFTER_S, hold_s)))
    return (whole, near) if whole[1] - whole[0] > 1.5 * (near[1] - near[0]) else (whole, whole)


def _shown(story: RecordedSwitchover, scale: Scale) -> Iterator[tuple[Band, float, float]]:
    """Return the visible phases with their ranges; the last phase extends to the end."""
    bands = story.bands
    for number, band in enumerate(bands, 1):
        end_s = band.end_s if number < len(bands) else scale.end_s
        left, right = scale.x(band.begin_s), scale.x(end_s)
        if right > left:
            yield band, left, right


def _strip(sheet: _Sheet, story: RecordedSwitchover, scale: Scale) -> None:
    """Draw the phases as one coloured strip."""
    sheet.y += 8
    for band, left, right in _shown(story, scale):
        sheet.rect(left, sheet.y, right - left, 22, _CLASSES[band.phase], f"{band.phase} from {band.begin_s:+.3f} s")
        for kind, name_px in (("onband middle", _NAME_PX), ("onband middle small", _SMALL_NAME_PX)):
            if right - left > name_px * len(band.phase):
                sheet.text((left + right) / 2, sheet.y + 15.5, band.phase, kind)
                break
    sheet.y += 22


def _washes(sheet: _Sheet, story: RecordedSwitchover, scale: Scale, top: float) -> None:
    """Draw the phases' colours behind the lanes; inserted before them."""
    behind = _Sheet()
    for band, left, right in _shown(story, scale):
        behind.rect(left, top, right - left, sheet.y - top, f"{_CLASSES[band.phase]} wash")
    at = sheet.parts.index(_LANES)
    sheet.parts[at : at + 1] = behind.parts


#: The position of the lanes among the elements.
_LANES: Final = "<!-- lanes -->"


def _lanes(sheet: _Sheet, story: RecordedSwitchover, scale: Scale) -> None:
    sheet.add(_LANES)
    curves = [curve_of(worker) for worker in story.recording.workers]
    curves = [curve for curve in curves if curve.steps]
    sheet.y += 4
    if not curves:
        told = story.recording.problem or "No samples of workers were kept."
        sheet.text((_LEFT + _RIGHT) / 2, sheet.y + 26, told, "dim middle")
        sheet.y += 44
        return
    if len(curves) > 1:
        _lane(sheet, sum_of(curves, scale.begin_s, scale.end_s, 250), scale, 62, marks=False)
        sheet.y += 4
    top_rate, top_held = max(curve.top_rate for curve in curves), max(curve.top_held for curve in curves)
    for curve in curves:
        _lane(sheet, curve, scale, 40 if len(curves) <= _MANY else 20, tops=(top_rate, top_held))
    sheet.y += 2


def _lane(
    sheet: _Sheet,
    curve: Curve,
    scale: Scale,
    height: float,
    *,
    tops: tuple[float, float] | None = None,
    marks: bool = True,
) -> None:
    """Draw checkouts per second above a line, and held callers below it."""
    top_rate, top_held = tops or (curve.top_rate, curve.top_held)
    rate_px, held_px = height * 0.62, height * 0.26
    base = sheet.y + rate_px + 2
    for kind, values, pixels, top in (
        ("rate", [step.rate for step in curve.steps], -rate_px, top_rate),
        ("held", [step.held for step in curve.steps], held_px, top_held),
    ):
        path = "".join(
            f"M{scale.x(step.begin_s):.1f},{base:.1f}v{pixels * value / top:.1f}H{scale.x(step.end_s):.1f}V{base:.1f}Z"
            for step, value in zip(curve.steps, values, strict=True)
            if top and value and scale.sees(step.begin_s, step.end_s)
        )
        sheet.add(f'<path d="{path}" class="{kind}"/>')
    sheet.line(_LEFT, base, _RIGHT, base, "line")
    middle = sheet.y + height / 2
    sheet.text(_LEFT - 8, middle + 4, curve.label, "ink end" if height > 20 else "ink end small")
    sheet.text(_RIGHT + 6, base - rate_px / 2 + 4, f"≤ {curve.top_rate:.0f}/s", "dim small")
    if curve.top_held and height > 20:
        sheet.text(_RIGHT + 6, base + held_px, f"≤ {curve.top_held:.0f} held", "dim small")
    if marks:
        for mark in curve.marks:
            if scale.sees(mark.at_s, mark.at_s):
                _mark(sheet, mark, scale.x(mark.at_s), base)
    sheet.y += height


def _mark(sheet: _Sheet, mark: Mark, x: float, base: float) -> None:
    what = [*mark.errors, *[f"{mark.cut} cut"] * (mark.cut > 0)]
    sheet.add(f"<g><title>{escape(', '.join(what))} at {mark.at_s:+.2f} s</title>")
    if mark.cut:
        sheet.add(_cut_at(x, base))
    if mark.errors:
        sheet.add(_failed_at(x, base - 8 * (mark.cut > 0)))
    sheet.add("</g>")


def _cut_at(x: float, y: float) -> str:
    return f'<path d="M{x:.1f},{y - 5:.1f}l4.5,5l-4.5,5l-4.5,-5z" class="cut"/>'


def _failed_at(x: float, y: float) -> str:
    return f'<path d="M{x - 4:.1f},{y - 4:.1f}l8,8m0,-8l-8,8" fill="none" stroke-width="2" class="failed"/>'


def _events(sheet: _Sheet, story: RecordedSwitchover, scale: Scale, top: float) -> None:
    """Draw a line through the lanes for each event, with its number in the list."""
    ends = [float("-inf")] * 3
    used = 0
    for number, entry in enumerate(story.events, 1):
        at_s = entry.mono_ns / 1e9
        if not scale.sees(at_s, at_s):
            continue
        x = scale.x(at_s)
        row = next((row for row, end in enumerate(ends) if x - end > 17), 0)
        ends[row], used = x, max(used, row)
        y = sheet.y + 11 + 17 * row
        sheet.line(x, top, x, y - 8, "event", 'stroke-dasharray="2 3"')
        sheet.add(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7.5" class="badge"/>')
        sheet.text(x, y + 3.6, str(number), "ink middle small")
    sheet.y += 22 + 17 * used


def _axis(sheet: _Sheet, scale: Scale, label: str) -> None:
    sheet.y += 10 if not label else 2
    sheet.line(scale.left, sheet.y, scale.right, sheet.y, "line")
    for at_s, words in ticks(scale.begin_s, scale.end_s):
        sheet.line(scale.x(at_s), sheet.y, scale.x(at_s), sheet.y + 4, "line")
        sheet.text(scale.x(at_s), sheet.y + 16, words, "dim middle small")
    sheet.y += 18
    if label:
        sheet.text((scale.left + scale.right) / 2, sheet.y + 14, label, "dim middle")
        sheet.y += 20


def _legend(sheet: _Sheet, story: RecordedSwitchover) -> None:
    sheet.y += 16
    x = float(_LEFT)
    top = sheet.y - 10
    for kind, words in (
        ("rate", "checkouts per second"),
        ("held", "callers held"),
        ("failed", "errors"),
        ("cut", "connections cut after the grace"),
    ):
        if kind == "failed":
            sheet.add(_failed_at(x + 5, top + 6))
        elif kind == "cut":
            sheet.add(_cut_at(x + 5, top + 6))
        else:
            sheet.rect(x, top, 11, 11, kind)
        sheet.text(x + 16, sheet.y, words, "dim")
        x += 34 + 6.6 * len(words)
    if story.recording.left_out:
        sheet.text(x, sheet.y, f"{story.recording.left_out} more workers were not sampled", "dim")
    sheet.y += 10


def _list(sheet: _Sheet, story: RecordedSwitchover) -> None:
    """Draw the summary table, with the events' numbers."""
    sheet.y += 8
    for number, entry in enumerate(story.events, 1):
        sheet.y += 18
        sheet.add(f'<circle cx="{_LEFT + 4}" cy="{sheet.y - 4:.1f}" r="7.5" class="badge"/>')
        sheet.text(_LEFT + 4, sheet.y - 0.4, str(number), "ink middle small")
        sheet.text(_LEFT + 130, sheet.y, f"{entry.mono_ns / 1e6:+,.0f} ms", "ink end mono")
        sheet.text(_LEFT + 150, sheet.y, utc(entry.wall_ns), "dim mono")
        told = f"{entry.event} — told by: {entry.evidence}" if entry.evidence else entry.event
        sheet.text(_LEFT + 340, sheet.y, told, "ink")
