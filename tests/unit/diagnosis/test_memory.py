"""The estimate against numbers worked out by hand, and against a model's real size."""

import pytest

from regimen.diagnosis.memory import CHUNK_BYTES, LoraShape, estimate_memory

MODEL = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "tie_word_embeddings": True,
}
# 100 x 8 + 2 (8 x 2 x (8 + 4) + 3 x 8 x 16 + 16) + 8
PARAMETERS = 800 + 2 * (192 + 384 + 16) + 8
# 6 x 8 + 2 x 2 (4 + 4) + 2 x 4 + 4 x 16
LAYER = 48 + 32 + 8 + 64


def test_the_parts_by_hand():
    found = estimate_memory(MODEL, tokens=10, precision="float32")
    assert found.parameters == PARAMETERS == 1992
    assert (found.weights, found.gradients, found.optimiser) == (4 * 1992, 4 * 1992, 8 * 1992)
    assert (found.reference, found.generation) == (0, 0)
    assert found.activations == 10 * 2 * LAYER * 4
    assert found.vocabulary == 3 * 4 * 10 * 100 + 4 * 100 * 8
    assert found.total == 16 * 1992 + found.activations + found.vocabulary


def test_what_the_settings_change():
    found = estimate_memory(
        MODEL, tokens=10, precision="bfloat16", checkpointing=True, has_reference=True, generation_precision="bfloat16"
    )
    assert (found.weights, found.reference, found.generation) == (6 * 1992, 4 * 1992, 2 * 1992)
    assert found.activations == 10 * (2 * 8 + LAYER) * 2
    assert estimate_memory(MODEL, tokens=10**9, precision="float32").vocabulary == 3 * CHUNK_BYTES + 3200


@pytest.mark.parametrize(
    ("lora", "trained"),
    [
        # In each of two layers: q 8 + 8, k and v 8 + 4, o 8 + 8; gate, up and down 8 + 16
        (LoraShape(4), 4 * 2 * (16 + 12 + 12 + 16 + 3 * 24)),
        (LoraShape(4, targets=("q_proj", "*.mlp.*")), 4 * 2 * (16 + 3 * 24)),
        (LoraShape(2, excluded=("*.layers.0.*", "up_proj")), 2 * (16 + 12 + 12 + 16 + 2 * 24)),
    ],
)
def test_adapters_alone_have_gradients_and_moments(lora, trained):
    found = estimate_memory(MODEL, tokens=10, precision="bfloat16", has_reference=True, lora=lora)
    assert (found.gradients, found.optimiser, found.reference) == (4 * trained, 8 * trained, 0)
    assert found.weights == 2 * 1992 + 4 * trained
    assert found.vocabulary == 3 * 4 * 10 * 100
    four = estimate_memory(MODEL, tokens=10, precision="bfloat16", lora=LoraShape(4, in_4bit=True))
    assert four.weights == 996 + 4 * 4 * 2 * 128


def test_untied_words_and_experts():
    assert estimate_memory({**MODEL, "tie_word_embeddings": False}, tokens=1, precision="float32").parameters == 2792
    experts = {**MODEL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6}
    found = estimate_memory(experts, tokens=1, precision="float32")
    assert found.parameters == 800 + 2 * (192 + 3 * 8 * 6 * 4 + 8 * 4 + 16) + 8
    assert found.activations == 2 * (48 + 32 + 8 + 4 * 6 * 2) * 4


def test_the_text_part_of_a_larger_model_counts():
    assert estimate_memory({"text_config": MODEL}, tokens=1, precision="float32").parameters == 1992


@pytest.mark.parametrize("changes", [{"hidden_size": None}, {"intermediate_size": None}, {"vocab_size": "many"}])
def test_other_names_give_no_estimate(changes):
    assert estimate_memory({**MODEL, **changes}, tokens=1, precision="float32") is None


def test_the_real_size_of_a_model(tiny):
    model = tiny.tiny_model()
    real = sum(parameter.numel() for parameter in model.parameters())
    assert estimate_memory(model.config.to_dict(), tokens=1, precision="float32").parameters == real
