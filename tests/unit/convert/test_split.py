import hashlib

from regimen.convert.split import task_position

TASKS = [f"environment/{index}" for index in range(1000)]


def test_the_position_is_a_fixed_hash():
    # sha256(b"0\x00environment/0") begins with these eight bytes, read as a fraction of 2**64.
    first = int(hashlib.sha256(b"0\x00environment/0").hexdigest()[:16], 16) / 2**64
    assert task_position("environment/0", 0) == first
    assert 0 <= first < 1
    assert task_position("environment/0", 1) != first


def test_about_the_fraction_lies_below_it():
    assert 70 <= sum(task_position(task, 0) < 0.1 for task in TASKS) <= 130
