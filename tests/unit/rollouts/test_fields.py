"""The places of a record's fields are those that the list of fields gives them."""

import pytest

from regimen.rollouts import fields


@pytest.mark.parametrize(
    "name",
    ["number", "file", "environment", "flags", "task", "rollout", "reward", "prompt", "num_sampled", "alike"],
)
def test_a_place_is_that_of_its_field(name):
    assert fields.FIELDS[getattr(fields, name.upper())][0] == name
