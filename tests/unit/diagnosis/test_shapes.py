"""Sizes from config.json against numbers worked out by hand, and against a model's real size."""

import pytest

from regimen.diagnosis.shapes import shape_of

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


def test_the_parameters_by_hand():
    shape = shape_of(MODEL)
    assert (shape.outer, shape.products, shape.rest) == (808, 576, 16)
    assert shape.parameters == PARAMETERS == 1992


def test_untied_words_and_experts():
    assert shape_of({**MODEL, "tie_word_embeddings": False}).parameters == 2792
    experts = {**MODEL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6}
    shape = shape_of(experts)
    assert shape.parameters == 800 + 2 * (192 + 3 * 8 * 6 * 4 + 8 * 4 + 16) + 8
    assert (shape.experts, shape.used_experts) == (4, 2)


def test_the_text_part_of_a_larger_model_counts():
    assert shape_of({"text_config": MODEL}).parameters == 1992


@pytest.mark.parametrize("changes", [{"hidden_size": None}, {"intermediate_size": None}, {"vocab_size": "many"}])
def test_other_names_give_no_shape(changes):
    assert shape_of({**MODEL, **changes}) is None


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_the_real_size_of_a_model(tiny, kind):
    model = tiny.tiny_model(kind)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert shape_of(model.config.to_dict()).parameters == real
