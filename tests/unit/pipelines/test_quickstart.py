"""What the quickstart says at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from regimen.pipelines.evaluate import Evaluation
from regimen.pipelines.quickstart import Quickstart


def test_the_table_tells_the_temperature_that_was_used() -> None:
    evaluation = Evaluation(models=[], sources={}, settings={"generation": {"temperature": 0.35}})
    text = str(Quickstart(Path("out"), evaluation, cast("Any", None), {}, {}, {"collect": 3.0}))
    assert "unseen test tasks, temperature 0.35" in text
    assert "report: out/report.html" in text
