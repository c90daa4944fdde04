"""Progress lines of a log: when they come and what they say."""

from __future__ import annotations

from regimen.cli import progress
from regimen.cli.progress import LineReport, PatientReport, clock, line_of, shown_progress


def test_line_says_how_long_still() -> None:
    assert line_of("train", 10, 40, 30.0, "loss 0.51") == "train: 10/40, 0:30 so far, 1:30 left, loss 0.51"


def test_line_of_a_finished_stage_has_no_time_left() -> None:
    assert line_of("train", 40, 40, 130.0) == "train: 40/40, 2:10 so far"


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 9.9, 61, 3600)] == ["0:00", "0:09", "1:01", "60:00"]


def test_lines_come_every_twenty_seconds_and_at_the_end(monkeypatch, capsys) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    report = LineReport()
    for done, seconds in ((0, 0), (1, 5), (2, 25), (3, 30), (4, 31)):
        now[0] = 100.0 + seconds
        report("collect", done, 4)
    assert capsys.readouterr().err == "collect: 2/4, 0:25 so far, 0:25 left\ncollect: 4/4, 0:31 so far\n"


def test_a_log_gets_lines(capsys) -> None:
    with shown_progress() as report:
        report("evaluate", 2, 2, "reward 0.5")
    assert capsys.readouterr().err == "evaluate: 2/2, 0:00 so far, reward 0.5\n"


def test_quick_stages_are_not_told(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    told = []
    report = PatientReport(lambda label, done, total, note="": told.append((label, done, total)))
    for seconds, label, done in ((1, "index", 1), (1.5, "index", 2), (2, "convert", 1), (4, "convert", 2)):
        now[0] = 100.0 + seconds
        report(label, done, 2)
    assert told == [("convert", 2, 2)]  # the second stage began when the first ended, at 1.5 seconds
