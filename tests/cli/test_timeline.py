"""bgpool timeline: from what a run directory holds to a table, JSON and a picture, and nothing else needed for it."""

from __future__ import annotations

import builtins
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from bgpool.cli.app import app
from bgpool.cli.timeline.curves import Curve, Mark, Step, curve_of, sum_of
from bgpool.cli.timeline.scale import ticks
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Snapshot, TimelineEntry
from bgpool.core.timeline import HEARD
from bgpool.lab.trial import Trial
from bgpool.monitor import samples
from bgpool.monitor.samples import WorkerSample, WorkerSamples
from bgpool.segment import history
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.table import ERRORS

MS = 1_000_000
DAY_NS = 1_800_000_000 * 1000 * MS
SVG = "{http://www.w3.org/2000/svg}"
COMPLETED = (
    ("CREATED", -60_000, ""),
    ("PREPARATION", -2000, ""),
    ("IN_PROGRESS", 0, ""),
    ("POST", 1523, "green promoted"),
    ("Blue DNS updated", 18_600, ""),
    ("COMPLETED", 54_700, "DNS"),
)
ROLLED_BACK = (("PREPARATION", 0, ""), ("IN_PROGRESS", 2000, ""), ("CREATED (rollback)", 4500, ""))


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    prepare_run_dir(tmp_path / "run")
    return RunFiles.of(tmp_path / "run", "ledger")


def write(
    files: RunFiles,
    events: tuple[tuple[str, int, str], ...] = COMPLETED,
    later_ms: int = 0,
    bg_id: str = "ledger",
) -> None:
    """A switchover with two workers, as the monitor leaves it behind."""
    timeline = tuple(
        TimelineEntry((ms + later_ms + 10**6) * MS, DAY_NS + (ms + later_ms) * MS, event, evidence)
        for event, ms, evidence in events
    )
    back = events is ROLLED_BACK
    hosts = (Host("db.example.com", 5432, Role.SOURCE, ("10.0.0.1",)),)
    phase = Phase.CREATED if back else Phase.COMPLETED
    history.keep(files, Snapshot(bg_id, phase, rolled_back=back, hosts=hosts, timeline=timeline))
    told = [
        [
            *(ms, 3 * (0 <= ms < 1500), 0, ms + 8000, int(ms >= 500), 2, 2 * (ms >= 1000), 4 * (ms >= 1500)),
            *(int(ms >= 500), 0, 3 * (ms >= 1000), 0, 0, 0, 0),
        ]
        for ms in range(-8000, 9000, 250)
    ]
    workers = [{"pid": pid, "samples": told} for pid in (4711, 4712)]
    samples.keep(files, timeline[0].wall_ns, workers, 0, lambda: True)


@pytest.fixture
def timeline(files: RunFiles) -> Callable[..., Result]:
    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["timeline", "--run-dir", str(files.directory), *map(str, arguments)])

    return call


def test_the_last_one_as_a_table(files: RunFiles, timeline: Callable[..., Result]) -> None:
    write(files)
    write(files, ROLLED_BACK, later_ms=10**7)
    result = timeline()
    assert result.exit_code == 0
    assert "bg_id 'ledger': rolled back" in result.stdout
    assert "held for 2.500 s from IN_PROGRESS; evidence of the release: metadata: back to blue" in result.stdout
    result = timeline(2, "--bg-id", " Ledger")
    assert "bg_id 'ledger': completed" in result.stdout
    assert re.search(r" 1523 ms +POST \(green promoted\)\n", result.stdout)
    assert "held for 1.523 s from IN_PROGRESS; evidence of the release: green promoted" in result.stdout
    assert "workers 2, callers held at most 6, failed checkouts 2, cut connections 4" in result.stdout
    told = "2 SwitchoverHoldTimeout, 6 SwitchoverInterrupted; units of work that were run again: 8\n"
    assert f"errors of bgpool that reached the application: {told}" in result.stdout


def test_the_same_as_json(files: RunFiles, timeline: Callable[..., Result]) -> None:
    write(files)
    (told,) = json.loads(timeline("--json").stdout)
    assert (told["bg_id"], told["outcome"], told["hold_ms"]) == ("ledger", "completed", 1523.0)
    assert told["evidence"] == "green promoted"
    assert [event["event"] for event in told["events"]][2:4] == ["IN_PROGRESS", "POST"]
    assert [worker["pid"] for worker in told["workers"]] == [4711, 4712]
    assert told["workers"][0]["samples"][32] == {
        "offset_ms": 0, "held": 3, "waiting": 0, "served": 8000, "failed": 0, "drained": 2, "cut": 0,
        "repeated": 0, **dict.fromkeys(ERRORS, 0),
    }  # fmt: skip
    assert told["errors"] == {"SwitchoverHoldTimeout": 2, "SwitchoverInterrupted": 6}


def test_the_picture_is_whole_and_needs_nothing(
    files: RunFiles, timeline: Callable[..., Result], tmp_path: Path
) -> None:
    write(files)
    svg, html = tmp_path / "a.svg", tmp_path / "a.html"
    assert timeline("--svg", svg, "--html", html).exit_code == 0
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"PREPARATION", "IN_PROGRESS", "POST", "pid 4711", "pid 4712", "all 2 workers"} <= set(words)
    assert "Held for 1.523 s. Evidence of the release: green promoted." in words
    assert "seconds from IN_PROGRESS" in words
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles.count("3 SwitchoverInterrupted, 2 cut at +1.00 s") == 2
    assert titles.count("1 SwitchoverHoldTimeout at +0.50 s") == 2
    assert any((text or "").startswith("Errors of bgpool that reached the application: 2 Switchover") for text in words)
    page = html.read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    for tag in ("<script", "<link", "<img", "<iframe", "url(", "@import", "href="):
        assert tag not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_a_rollback_and_a_switchover_without_samples_are_drawn(
    files: RunFiles, timeline: Callable[..., Result], tmp_path: Path
) -> None:
    write(files, ROLLED_BACK)
    for left in files.all_samples():
        left.unlink()
    assert timeline("--svg", tmp_path / "a.svg").exit_code == 0
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert "seconds from PREPARATION" in text
    assert "No samples of workers were kept." in text


def test_a_switchover_without_a_hold_is_drawn(files: RunFiles, timeline: Callable[..., Result], tmp_path: Path) -> None:
    write(files, (("PREPARATION", 0, ""), ("POST", 900, "DNS"), ("COMPLETED", 900, "DNS")))
    result = timeline("--svg", tmp_path / "a.svg", "--html", tmp_path / "a.html")
    assert "no caller was held: IN_PROGRESS was never read" in result.stdout
    ElementTree.fromstring((tmp_path / "a.svg").read_text(encoding="utf-8"))


@pytest.mark.parametrize("phase", ["PREPARATION", "IN_PROGRESS", "POST"])
def test_that_it_was_heard_from_the_fleet_changes_nothing_else(
    files: RunFiles, timeline: Callable[..., Result], tmp_path: Path, phase: str
) -> None:
    write(files)
    (own,) = json.loads(timeline("--json").stdout)
    number = next(number for number, (event, _, _) in enumerate(COMPLETED, 1) if event == phase)
    write(files, (*COMPLETED[:number], (HEARD, COMPLETED[number - 1][1], ""), *COMPLETED[number:]))
    result = timeline("--json", "--svg", tmp_path / "a.svg")
    (heard,) = json.loads(result.stdout)
    assert heard["events"].pop(number)["event"] == HEARD
    assert heard == {**own, "totals": heard["totals"]}
    root = ElementTree.fromstring((tmp_path / "a.svg").read_text(encoding="utf-8"))
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert words.count(HEARD) == 1
    assert "Held for 1.523 s. Evidence of the release: green promoted." in words
    assert re.search(rf" ms +{HEARD}\n", timeline().stdout)


def test_what_is_no_record_is_passed_over_and_what_is_hostile_is_escaped(
    files: RunFiles, timeline: Callable[..., Result], tmp_path: Path
) -> None:
    write(files)
    (good,) = history.read(files)
    hostile = json.loads(json.dumps(good))
    hostile["bg_id"] = "</svg><script>alert(1)</script>\x1b[2J"
    hostile["events"][3]["evidence"] = "<img src=x onerror=alert(1)>"
    bad: list[Any] = [
        {}, {**good, "events": []}, {**good, "events": [{}]}, {**good, "outcome": "<b>"}, {**good, "bg_id": 7},
        {**good, "events": [{**good["events"][0], "offset_ms": 1e300}]},
        {**good, "events": [{**good["events"][0], "at_unix_ns": -1}]},
    ]  # fmt: skip
    files.history.write_text(json.dumps([hostile, *bad]))
    html = tmp_path / "a.html"
    result = timeline(20, "--html", html)
    assert result.exit_code == 0
    assert result.stdout.count("bg_id '") == 1
    assert result.stderr == f"7 of 8 records in {files.history} cannot be read and are left out\n"
    assert "\x1b" not in result.stdout
    page = html.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img" not in page


def test_every_way_to_fail_says_why(files: RunFiles, timeline: Callable[..., Result], tmp_path: Path) -> None:
    result = timeline()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no switchover is recorded in" in result.stderr
    assert timeline("--bg-id", "ledger").exit_code == 1
    write(files)
    result = timeline("--bg-id", "ledgre")
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        result.stderr
        == f"no switchover of bg_id 'ledgre' is recorded in {files.directory}; there are some of 'ledger'\n"
    )
    result = timeline("--html", tmp_path / "nowhere" / "a.html")
    assert result.exit_code == 2
    assert "cannot be written: No such file or directory" in result.stderr
    odd = RunFiles.of(files.directory, "all orders")
    write(odd, bg_id="all orders")
    result = timeline()
    assert result.exit_code == 2
    assert "choose one with --bg-id; there are 'ledger', 'all orders'" in result.stderr
    assert timeline("--bg-id", "all orders").exit_code == 0
    odd.history.write_text("[]")
    result = timeline("--bg-id", "all orders")
    assert result.exit_code == 1
    assert result.stderr.endswith("; there are some of 'ledger'\n")


@pytest.mark.parametrize(("mode", "text"), [(0o600, "are damaged"), (0o644, "are refused: ")])
def test_samples_that_cannot_be_used_are_said(
    files: RunFiles, timeline: Callable[..., Result], tmp_path: Path, mode: int, text: str
) -> None:
    write(files)
    (path,) = files.all_samples()
    path.write_text("<b>")
    path.chmod(mode)
    result = timeline("--svg", tmp_path / "a.svg")
    assert result.exit_code == 0
    assert result.stderr.startswith(f"the samples {text}")
    assert f"the samples {text}" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_a_recording_of_an_earlier_version_has_no_types(files: RunFiles, timeline: Callable[..., Result]) -> None:
    write(files)
    (path,) = files.all_samples()
    found = json.loads(path.read_text(encoding="utf-8"))
    found["columns"] = found["columns"][:7]
    for worker in found["workers"]:
        worker["samples"] = [values[:7] for values in worker["samples"]]
    path.write_text(json.dumps(found))
    result = timeline()
    assert "failed checkouts 2" in result.stdout
    assert "errors of bgpool that reached the application: not recorded by type" in result.stdout


def test_png_without_its_library_says_what_to_install(
    files: RunFiles, timeline: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(files)
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "cairosvg":
            raise ModuleNotFoundError("No module named 'cairosvg'", name="cairosvg")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    result = timeline("--png", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "pip install 'bgpool[png]'" in result.stderr


def test_png(files: RunFiles, timeline: Callable[..., Result], tmp_path: Path) -> None:
    write(files)
    try:
        import cairosvg  # noqa: F401  # whether it can be imported
    except (ImportError, OSError) as error:
        pytest.skip(f"cairosvg: {error}")
    assert timeline("--png", tmp_path / "a.png").exit_code == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_rates_are_what_the_worker_itself_counted() -> None:
    rows = [(0, 0, 0, 0), (250, 25, 2, 0), (250, 25, 2, 0), (1250, 25, 0, 1), (9250, 500, 0, 1)]
    worker = WorkerSamples(7, tuple(WorkerSample(ms, held, 0, n, failed, 0, 0) for ms, n, held, failed in rows))
    curve = curve_of(worker)
    assert curve.steps == (Step(0.0, 0.25, 100.0, 0), Step(0.25, 1.25, 0.0, 2)), "the time of a long silence is unknown"
    assert curve.marks == (Mark(1.25, ("1 failed",), 0),)
    other = Curve("pid 8", (Step(0.0, 1.0, 50.0, 1),), ())
    both = sum_of([curve, other], 0.0, 2.0, 8)
    assert [(step.rate, step.held) for step in both.steps] == [(150, 1), (50, 3), (50, 3), (50, 3), (0, 2)]


@pytest.mark.parametrize(("begin_s", "end_s"), [(-0.001, 0.002), (-5.0, 60.0), (0.0, 180.0), (-3.2, 9.7)])
def test_ticks_are_round_and_few(begin_s: float, end_s: float) -> None:
    found = ticks(begin_s, end_s)
    assert 4 <= len(found) <= 13
    assert all(begin_s - 1e-9 <= at_s <= end_s + 1e-9 for at_s, _ in found)
    assert len({words for _, words in found}) == len(found)


@pytest.mark.lab
@pytest.mark.full
def test_a_real_switchover_can_be_drawn(tmp_path: Path) -> None:
    """The monitor's samples of real workers show checkouts before and after, and held callers in between."""
    with Trial(workers=2, threads=2) as trial:
        report = trial.run()
        assert report.verdict.clean
        files = RunFiles.of(trial.run_dir, "demo")
        deadline = time.monotonic() + 20
        while not files.all_samples():
            assert time.monotonic() < deadline, "the monitor has kept no samples"
            time.sleep(0.05)
        arguments = ["timeline", "--run-dir", str(trial.run_dir)]
        (told,) = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
        html = tmp_path / "a.html"
        assert CliRunner().invoke(app, [*arguments, "--html", str(html)]).exit_code == 0
        secret = trial.pair.app_password
    assert {worker["pid"] for worker in told["workers"]} == {worker.pid for worker in trial.crew}
    for worker in told["workers"]:
        before = [s for s in worker["samples"] if s["offset_ms"] <= 0]
        within = [s for s in worker["samples"] if 0 < s["offset_ms"] < told["hold_ms"]]
        after = [s for s in worker["samples"] if s["offset_ms"] > told["hold_ms"]]
        assert max(s["held"] for s in within) == 2
        assert before[-1]["served"] > before[0]["served"]
        assert after[-1]["served"] > within[-1]["served"]
    page = html.read_text(encoding="utf-8")
    assert f"Held for {told['hold_ms'] / 1000:.3f} s." in page
    assert all(f"pid {worker.pid}" in page for worker in trial.crew)
    assert secret not in page
    assert secret not in json.dumps(told)
