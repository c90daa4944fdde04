"""What is suggested where training does not fit."""

from __future__ import annotations

import pytest

from regimen.diagnosis.memory import GenerationLoad, Workload, estimate_memory
from regimen.diagnosis.plan import changes_to_fit

MODEL = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "tie_word_embeddings": True,
}
WORK = Workload(tokens=4096, precision="float32", on_gpu=False)


def total(**changes: object) -> int:
    fields = {name: getattr(WORK, name) for name in WORK.__struct_fields__}
    estimate = estimate_memory(MODEL, Workload(**{**fields, **changes}))
    assert estimate is not None
    return estimate.total


def settings(work: Workload, available: int, longest: int = 100) -> dict[str, bool]:
    changes = changes_to_fit(MODEL, work, available, longest=longest)
    return {" ".join(change.settings): change.fits for change in changes}


def test_the_largest_half_that_fits_and_what_else_helps() -> None:
    found = settings(WORK, total(tokens=1024))
    assert found["policy.train_micro_batch_tokens=1024"] is True
    assert found["policy.activation_checkpointing=true"] is (total(checkpointing=True) <= total(tokens=1024))
    assert "policy.precision=bfloat16" in found
    assert not any(name.startswith(("loss_fn", "policy.generation", "checkpointing")) for name in found)


def test_a_micro_batch_is_not_made_smaller_than_the_longest_sequence() -> None:
    (first, *_) = changes_to_fit(MODEL, WORK, total(tokens=512), longest=3000)
    assert (first.settings, first.total, first.fits) == (
        ["policy.train_micro_batch_tokens=3000"],
        total(tokens=3000),
        False,
    )
    assert "policy.train_micro_batch_tokens" not in str(settings(WORK, 0, longest=4096))


def test_all_together_where_none_is_enough_alone() -> None:
    changes = changes_to_fit(MODEL, WORK, total(tokens=3000, checkpointing=True, precision="bfloat16"), longest=3000)
    assert [change.fits for change in changes] == [False, False, False, True]
    assert changes[-1].settings == [
        "policy.train_micro_batch_tokens=3000",
        "policy.activation_checkpointing=true",
        "policy.precision=bfloat16",
    ]
    assert not any(change.fits for change in changes_to_fit(MODEL, WORK, 1, longest=100))


@pytest.mark.parametrize(
    ("fields", "setting"),
    [
        ({"reference": "held"}, "loss_fn.reference_policy_kl_penalty=0"),
        ({"tokens": 8, "copies": True}, "checkpointing.is_async=false"),
        ({"is_sharded": True, "on_gpu": True}, "policy.dtensor_cfg.cpu_offload=true"),
        (
            {"tokens": 8, "generation": GenerationLoad(precision="float32", rows=64, positions=4096)},
            "policy.generation.max_batch_size=1",
        ),
    ],
)
def test_what_a_run_has_can_be_left_out(fields: dict[str, object], setting: str) -> None:
    work = Workload(**{"tokens": 4096, **fields})  # type: ignore[arg-type]
    assert setting in settings(work, 0, longest=work.tokens)
