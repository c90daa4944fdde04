import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from regimen.errors import UsageError
from regimen.evaluation.compare import compare
from regimen.evaluation.metrics import Observation, score
from regimen.evaluation.records import (
    Curve,
    Episode,
    Example,
    LedgerTable,
    ModelResult,
    ReportData,
    Series,
    StageTime,
    Turn,
    curve_of,
    examples_of,
)
from regimen.evaluation.report import (
    duration_text,
    environment_tables,
    known_ks,
    number_text,
    render_html,
    terminal_table,
    write_report,
)
from regimen.rollouts.records import Source, rollout_from_row

ATTACK = "<script>alert('x')</script>"


def results(num_base=60, num_model=180, num_tasks=200):
    def rows(num_right):
        return [
            Observation(task_id=str(task), reward=float(task < num_right), metrics={"used_tool": 1.0})
            for task in range(num_tasks)
        ]

    base, model = rows(num_base), rows(num_model)
    comparison = compare(model, base, label="sft", against="base")
    return [
        ModelResult(score=score(base, label="base")),
        ModelResult(score=score(model, label="sft"), comparison=comparison),
    ]


def full_data():
    turns = [Turn(role="assistant", text=ATTACK), Turn(role="tool call", text='calculator({"expression": "2*3"})')]
    episodes = [Episode(label=ATTACK, reward=None, outcome="timed_out", turns=turns)]
    return ReportData(
        title=f"A run {ATTACK}",
        summary="It got better.",
        models=results(),
        curves=[
            Curve(title="loss", series=[Series(name="train", points=[(1, 2.0), (2, 1.0)])]),
            Curve(title="reward", series=[Series(name=name, points=[(1, 0.1)]) for name in ("train", "validation")]),
        ],
        stages=[StageTime(name="collect", seconds=65, detail="384 episodes"), StageTime(name="train", seconds=3600)],
        ledgers=[LedgerTable(title="SFT rows", unit="rows", buckets={"used": 43, "below threshold": 341})],
        examples=[Example(task_id="t/1", question=ATTACK, episodes=episodes)],
        facts={"torch": "2.13"},
        config="sft:\n  max_num_epochs: 2\n",
        notes=["All figures are of this run."],
    )


class Checker(HTMLParser):
    """Collects tags and outside references, and sees that tags close in order."""

    VOID = {"meta", "line", "circle", "polyline", "path", "br"}

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.references = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def checked(page):
    checker = Checker()
    checker.feed(page)
    assert checker.stack == []
    return checker


def test_the_page_is_whole_and_needs_nothing_else():
    page = render_html(full_data())
    checker = checked(page)
    assert checker.references == []
    assert "script" not in checker.tags
    assert "http" not in page
    assert "@import" not in page
    assert checker.tags.count("svg") == 3
    assert "prefers-color-scheme: dark" in page


def test_the_page_says_what_was_measured():
    page = render_html(full_data())
    for text in (
        "+0.600 [+0.532, +0.668]",
        "120 won, 80 tied, 0 lost<br>on 200 tasks",
        "better",
        "0.300 [0.236, 0.364]",
        "used_tool",
        "1 min 05 s",
        "1 h 01 min",
        "384",
        "reward –, timed_out",
        "max_num_epochs",
        "All figures are of this run.",
    ):
        assert text in page, text


def test_an_empty_report_is_a_page_too():
    page = render_html(ReportData(title="Nothing yet"))
    checked(page)
    assert "<h2>" not in page


def test_a_report_without_scores_draws_no_intervals():
    nothing = score([Observation(task_id="a", reward=None)], label="broken")
    page = render_html(ReportData(title="t", models=[ModelResult(score=nothing)]))
    assert "no score" in page
    assert "<svg" not in page
    assert "1 of 1 episodes failed and enter no mean; 1 tasks have no score at all." in page


def test_the_file_is_written_once(tmp_path):
    path = write_report(full_data(), tmp_path / "run" / "report.html")
    with pytest.raises(UsageError, match="the file exists"):
        write_report(full_data(), path)
    write_report(ReportData(title="new \ud800"), path, overwrite=True)
    assert "<h1>new ?</h1>" in path.read_text()
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_the_same_table(width):
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal_table(results()))
    text = console.file.getvalue()
    for figure in ("0.300", "[0.236, 0.364]", "+0.600", "[+0.532, +0.668]", "better"):
        assert figure in text
    assert "…" not in text


def test_a_lone_model_has_no_column_for_a_difference():
    headers = [column.header for column in terminal_table(results()[:1]).columns]
    assert headers == ["model", "tasks", "mean reward\n\\[95%]", "truncated\n/ failed"]


def test_pass_at_1_is_shown_only_where_it_is_not_the_mean():
    continuous = score([Observation(task_id="a", reward=0.5), Observation(task_id="b", reward=1.0)])
    assert known_ks([ModelResult(score=continuous)]) == [1]
    assert known_ks(results()) == []


def by_environment(repeats=1):
    """Two environments; the rewards of the second one are no shares, and 1 of its 4 tasks passes."""
    rewards = {str(task): reward for task, reward in enumerate([0.25, 0.5, 0.5, 1.0])}
    essays = [Observation(task_id=task, reward=reward) for task, reward in rewards.items()] * repeats
    alone = score(essays, label="base")
    compared = ModelResult(score=score(essays, label="sft"), comparison=compare(essays, essays))
    return {"sums [1]": results(10, 20, 40), "<essays>": [ModelResult(score=alone), compared]}


def test_the_page_has_a_table_of_environments():
    page = render_html(ReportData(title="t", models=results(), environments=by_environment()))
    checked(page)
    table = page[page.index("<h2>Environments</h2>") :]
    table = table[: table.index("</table>")]
    assert table.count("<tr>") == 5  # the heading, and two models on each
    assert '<td rowspan="2">sums [1]</td>' in table
    assert '<td rowspan="2">&lt;essays&gt;</td>' in table
    for text in ("pass@1 [95%]", "<td>40<", "<td>4<", "0.250 [0.110, 0.390]", "0.500 [0.338, 0.662]", "+0.250 ["):
        assert text in table, text
    assert "<td>0.250<" in table  # the pass rate of essays; its mean reward is 0.5625
    assert "0.562 [" in table
    assert "<h2>Environments</h2>" not in render_html(full_data())


def test_the_terminal_has_a_table_for_each_environment():
    console = Console(file=io.StringIO(), width=80)
    for table in environment_tables(by_environment(repeats=4)):  # with pass@2 and pass@4, for which there is no room
        console.print(table)
    text = console.file.getvalue()
    for figure in ("environment sums [1]", "environment <essays>", "0.250", "0.562", "+0.250", "[+0.110, +0.390]"):
        assert figure in text
    assert text.count("pass@1") == 2
    assert text.count("difference [95%]") == 2
    assert "pass@2" not in text
    assert "…" not in text


@pytest.mark.parametrize("seconds, text", [(4.21, "4.2 s"), (185, "3 min 05 s"), (4320, "1 h 12 min")])
def test_durations(seconds, text):
    assert duration_text(seconds) == text


def test_numbers():
    assert [number_text(value) for value in (0.5, -12.3456, 1234567.0, None)] == ["0.500", "-12.346", "1.235e+06", "–"]


def test_curves_come_from_metrics_and_leave_gaps_out():
    rows = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": None}, {"step": 2, "validation/loss": 1.5}]
    found = curve_of("loss", rows, {"train/loss": "train", "validation/loss": "validation", "x": "x"})
    assert [(series.name, series.points) for series in found.series] == [
        ("train", [(1, 2)]),
        ("validation", [(2, 1.5)]),
    ]
    assert curve_of("loss", rows, {"x": "x"}) is None


def rollout(index, reward):
    row = {
        "responses_create_params": {"input": [{"role": "user", "content": f"question {index}"}]},
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "function_call", "name": "add", "arguments": "{}", "call_id": "c"},
            {"type": "function_call_output", "call_id": "c", "output": "3"},
            {"type": "message", "role": "assistant", "content": "three"},
        ],
        "reward": reward,
        "_ng_task_index": index,
    }
    return rollout_from_row(row, Source("a.jsonl", index + 1))


def test_examples_show_wins_and_also_a_loss():
    before = [rollout(index, reward) for index, reward in enumerate([0, 0, 0, 0, 1, 1])]
    after = [rollout(index, reward) for index, reward in enumerate([1, 1, 1, 1, 1, 0])]
    found = examples_of({"base": before, "sft": after}, num_examples=4)
    assert [example.task_id for example in found] == ["task/0", "task/1", "task/2", "task/5"]
    assert found[0].question == "question 0"
    assert [episode.label for episode in found[0].episodes] == ["base", "sft"]
    assert [(turn.role, turn.text) for turn in found[0].episodes[1].turns] == [
        ("reasoning", "hm"),
        ("tool call", "add({})"),
        ("tool", "3"),
        ("assistant", "three"),
    ]


def test_examples_of_one_model_begin_with_its_failures():
    rollouts = [rollout(index, reward) for index, reward in enumerate([1, 0, 1])]
    assert [example.task_id for example in examples_of({"base": rollouts}, 2)] == ["task/1", "task/0"]
