"""Sizes from config.json against numbers worked out by hand, and against a model's real size."""

import pytest
from small_shape import MODEL, PARAMETERS

from regimen.diagnosis.shapes import shape_of


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
