"""What every environment promises, on every environment that ships; the checks are those of `regimen test environment`.

A new environment adds nothing here.
"""

from __future__ import annotations

import pytest

from regimen.gym.conformance import PROMISES
from regimen.gym.environment import SPLITS, load_environment, shipped_environments

NUM_TASKS = 60


@pytest.fixture(params=shipped_environments())
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("promise", PROMISES)
async def test_the_promise_is_kept(name, promise):
    assert await PROMISES[promise](load_environment(name), NUM_TASKS) is None


def test_the_name_is_the_folder(name):
    environment = load_environment(name)
    assert environment.name == name
    assert environment.max_turns >= 1


@pytest.mark.parametrize("split", SPLITS)
def test_another_one_has_the_same_tasks(name, split):
    first, second = (load_environment(name).tasks(split, NUM_TASKS) for _ in range(2))
    assert [task.row for task in first] == [task.row for task in second]


def test_an_unknown_option_is_refused(name):
    with pytest.raises(Exception, match="no_such_option"):
        load_environment(name, {"no_such_option": 1})
