"""The small model made for real: a folder that transformers loads, with its tokenizer, that answers."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from regimen.pipelines.small_model import small_model

    return small_model(tmp_path_factory.mktemp("cache"))


def test_shape_and_precision(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_tokenizer_is_that_of_the_weights_file(folder: Path) -> None:
    from transformers import AutoTokenizer

    from regimen.pipelines.small_model import weights_path
    from regimen.tokens.template import shipped_template

    saved = AutoTokenizer.from_pretrained(folder)
    original = AutoTokenizer.from_pretrained(weights_path().parent, gguf_file=weights_path().name)
    for text in ("What is 47 × 23?", " 1,081\n\n  x", "<|im_start|>user\nHi<|im_end|>\n", "héllo\tdef f(x):"):
        ids = saved(text)["input_ids"]
        assert ids == original(text)["input_ids"]
        assert saved.decode(ids) == text
    assert saved.chat_template == shipped_template()
    assert (saved.eos_token, saved.eos_token_id) == ("<|im_end|>", 2)


def test_it_knows_the_capital_of_france(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
