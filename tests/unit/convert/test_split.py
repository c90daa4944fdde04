from regimen.convert.split import task_position, validation_tasks

TASKS = [f"environment/{index}" for index in range(1000)]


def test_the_position_is_a_fixed_hash():
    # sha256(b"0\x00environment/0") begins with these eight bytes, read as a fraction of 2**64.
    import hashlib

    first = int(hashlib.sha256(b"0\x00environment/0").hexdigest()[:16], 16) / 2**64
    assert task_position("environment/0", 0) == first
    assert 0 <= first < 1
    assert task_position("environment/0", 1) != first


def test_about_the_fraction_validates():
    assert 70 <= len(validation_tasks(TASKS, 0.1, 0)) <= 130


def test_a_task_keeps_its_side_when_tasks_are_added():
    few, many = validation_tasks(TASKS[:200], 0.1, 7), validation_tasks(TASKS, 0.1, 7)
    assert few == many & set(TASKS[:200])


def test_order_and_repeats_do_not_matter():
    assert validation_tasks(TASKS[::-1] * 2, 0.1, 0) == validation_tasks(TASKS, 0.1, 0)


def test_each_side_gets_a_task_when_there_are_two():
    for seed in range(50):
        assert len(validation_tasks(["a", "b"], 0.01, seed)) == 1
        assert len(validation_tasks(["a", "b"], 0.99, seed)) == 1


def test_one_task_or_no_fraction_validates_nothing():
    assert validation_tasks(["a"], 0.5, 0) == frozenset()
    assert validation_tasks(TASKS, 0.0, 0) == frozenset()
