from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.convert.ledger import Ledger
from regimen.convert.options import ConvertOptions
from regimen.convert.pairs import Leftover, pair_across_tasks, pair_group


def _paired(group, **changes):
    ledger = Ledger()
    done = pair_group(group, ConvertOptions(**changes), ledger)
    return done, [ledger.bucket_of(episode.key) for episode in group], ledger


def _rewards(done):
    return [(pair.chosen.reward, pair.rejected.reward) for pair in done.pairs]


def _texts(done):
    return [tuple(side.completion[0]["content"] for side in (pair.chosen, pair.rejected)) for pair in done.pairs]


def test_halves_pair_the_top_with_the_bottom_by_rank(make_episode):
    group = [make_episode("t", f"answer {reward}", reward) for reward in (0.2, 1.0, 0.5, 0.8, 0.0)]
    done, buckets, _ = _paired(group, strategy="halves")
    # Top 1.0 and 0.8, bottom 0.2 and 0.0; the middle one meets nobody.
    assert _rewards(done) == [(1.0, 0.2), (0.8, 0.0)]
    assert buckets == [None, None, "not_paired", None, None]


def test_halves_leave_out_pairs_that_are_too_near(make_episode):
    group = [make_episode("t", f"answer {reward}", reward) for reward in (1.0, 0.9, 0.85, 0.0)]
    done, buckets, _ = _paired(group, strategy="halves")
    # 1.0 - 0.85 is under the gap of 0.2; both have wide partners elsewhere, but not by rank.
    assert _rewards(done) == [(0.9, 0.0)]
    assert buckets == ["not_paired", None, "not_paired", None]


def test_length_matched_takes_the_nearest_length(make_episode):
    group = [
        make_episode("t", "a" * 10, 1.0),
        make_episode("t", "b" * 30, 0.9),
        make_episode("t", "c" * 28, 0.0),
        make_episode("t", "d" * 13, 0.1),
        make_episode("t", "e" * 11, 0.85),
    ]
    done, buckets, _ = _paired(group, strategy="length_matched")
    # e is one character from a, but its reward is too near. Closest lengths first: b-c and e-d by 2, a-d by 3.
    assert [(one[0], other[0]) for one, other in _texts(done)] == [("b", "c"), ("e", "d"), ("a", "d")]
    assert buckets == [None] * 5


def _walk(*words):
    messages = []
    for word in words:
        messages += [{"role": "assistant", "content": word}, {"role": "user", "content": f"after {word}"}]
    return messages[:-1]


def test_branches_prefer_the_pair_that_diverges_latest(make_episode):
    group = [
        make_episode("t", completion=_walk("a", "b", "c"), reward=1.0),
        make_episode("t", completion=_walk("x"), reward=0.0),
        make_episode("t", completion=_walk("a", "b", "d"), reward=0.5),
        make_episode("t", completion=_walk("a", "y"), reward=0.2),
    ]
    done, buckets, _ = _paired(group, strategy="branches", max_pairs_per_task=2)
    # The prompt and four messages are shared by 1.0 and 0.5; the prompt and two by the pairs with 0.2.
    assert _rewards(done) == [(1.0, 0.5), (1.0, 0.2)]
    assert buckets == [None, "capped", None, None]


def test_stratified_pairs_high_with_low_each_once(make_episode):
    rewards = (0.9, 0.7, 0.5, 0.4, 0.1, 0.0)
    group = [make_episode("t", f"answer {reward}", reward) for reward in rewards]
    done, buckets, _ = _paired(group, strategy="stratified")
    assert _rewards(done) == [(0.9, 0.0), (0.7, 0.1)]
    assert buckets == [None, None, "between_thresholds", "no_partner", None, None]
    wider, buckets, _ = _paired(group, strategy="stratified", high_threshold=0.5, low_threshold=0.45)
    # 0.5 is high and 0.4 low now, but they are nearer than the gap of 0.2.
    assert _rewards(wider) == [(0.9, 0.0), (0.7, 0.1)]
    assert buckets == [None, None, "no_partner", "no_partner", None, None]


def test_stratified_skips_identical_answers_and_keeps_to_the_limit(make_episode):
    group = [
        make_episode("t", "same", 1.0),
        make_episode("t", "same", 0.0),
        make_episode("t", "other", 0.1),
        make_episode("t", "good", 0.9),
        make_episode("t", "bad", 0.2),
    ]
    done, buckets, ledger = _paired(group, strategy="stratified", max_pairs_per_task=1)
    assert _texts(done) == [("same", "other")]
    assert buckets == [None, "capped", None, "capped", "no_partner"]
    assert ledger.close(3, 6).uses == {"pairs_over_the_limit": 1}


def test_stratified_rows_wait_for_other_tasks_only_when_asked(make_episode):
    group = [make_episode("t", "x", 1.0), make_episode("t", "y", 0.9), make_episode("t", "z", 0.6)]
    done, buckets, _ = _paired(group, strategy="stratified", across_tasks=True)
    assert (done.pairs, done.left) == ([], group[:2])
    assert buckets == [None, None, "between_thresholds"]
    assert _paired(group, strategy="stratified")[1] == ["no_partner", "no_partner", "between_thresholds"]
    assert _paired(group[:1], strategy="stratified")[1] == ["alone_in_task"]


LEFT = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.sampled_from([0.0, 0.3, 0.8, 1.0])), max_size=40)


@settings(deadline=None)
@given(LEFT, st.sampled_from([0.2, 0.6]))
def test_pairs_across_tasks(rows, gap):
    left = [
        Leftover(environment, f"{environment}/{task}", ("r", line), reward)
        for line, (environment, task, reward) in enumerate(rows)
    ]
    options = ConvertOptions(strategy="stratified", across_tasks=True, min_gap=gap, validation_fraction=0.3)
    pairs = pair_across_tasks(left, options)
    by_key = {row.key: row for row in left}
    used = [key for pair in pairs for key in pair]
    assert len(used) == len(set(used))
    for chosen, rejected in ((by_key[one], by_key[other]) for one, other in pairs):
        assert chosen.environment == rejected.environment
        assert chosen.task_id != rejected.task_id
        assert chosen.reward >= 0.7 > 0.4 >= rejected.reward
        assert chosen.reward - rejected.reward >= gap - 1e-9
    assert pair_across_tasks(left[::-1], options) == pairs


def test_across_tasks_pairs_all_it_can():
    high = [Leftover("e", f"e/{index}", ("r", index), 1.0) for index in range(50)]
    low = [Leftover("e", f"e/{index + 100}", ("r", index + 100), 0.0) for index in range(30)]
    options = ConvertOptions(strategy="stratified", across_tasks=True, validation_fraction=0)
    pairs = pair_across_tasks([*high, *low], options)
    assert len(pairs) == 30
    other = ConvertOptions(strategy="stratified", across_tasks=True, validation_fraction=0, seed=1)
    assert pair_across_tasks([*high, *low], other) != pairs
