"""The totals of a run: they survive a checkpoint, and the environments add up to them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from regimen.pipelines.result import TrainResult
from regimen.pipelines.run_ledger import RunLedger


def two_steps() -> RunLedger:
    ledger = RunLedger({})
    ledger.add({"words": Counter(trained=2, zero_variance=1), "sums": Counter(trained=3)})
    ledger.add({"words": Counter(trained=1), "maps": Counter(no_tokens=2)})
    return ledger


TOTAL = {"trained": 6, "zero_variance": 1, "no_tokens": 2}
BY_ENVIRONMENT = {"maps": {"no_tokens": 2}, "sums": {"trained": 3}, "words": {"trained": 3, "zero_variance": 1}}


def test_steps_add_up_by_environment(tmp_path: Path) -> None:
    ledger = two_steps()
    assert (ledger.total, ledger.environments) == (TOTAL, BY_ENVIRONMENT)
    ledger.write(tmp_path)
    assert json.loads((tmp_path / "ledger.json").read_text()) == {"episodes": TOTAL, "environments": BY_ENVIRONMENT}


def test_a_checkpoint_keeps_all_of_it() -> None:
    ledger = RunLedger({})
    ledger.restore(json.loads(json.dumps(two_steps().record())))
    assert (ledger.total, ledger.environments) == (TOTAL, BY_ENVIRONMENT)
    ledger.add({"maps": Counter(trained=1)})
    assert ledger.total["trained"] == 7


def test_a_checkpoint_without_environments_keeps_its_total() -> None:
    ledger = RunLedger({})
    ledger.restore({"ledger": {"trained": 5}})
    ledger.add({"maps": Counter(trained=1)})
    assert (ledger.total, ledger.environments) == ({"trained": 6}, {"maps": {"trained": 1}})


def test_rows_of_data_files_have_a_file_already(tmp_path: Path) -> None:
    ledger = RunLedger({"trained": 8, "validation": 3})
    ledger.restore(ledger.record())
    assert (ledger.total, ledger.environments) == ({"trained": 8, "validation": 3}, {})
    ledger.write(tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_result_tells_environments_where_there_are_several() -> None:
    ledger = two_steps()
    result = TrainResult(Path("run"), None, 2, {}, ledger.total, environments=ledger.environments)
    assert "rows: 2 no_tokens, 6 trained, 1 zero_variance\n  of maps: 2 no_tokens\n  of sums: 3 trained" in str(result)
    assert "of sums" not in str(TrainResult(Path("run"), None, 2, {}, {"trained": 3}, environments={"sums": {}}))
