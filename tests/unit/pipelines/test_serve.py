from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from regimen.cli.main import main
from regimen.cli.serve import options_of
from regimen.config.schema_policy import SamplingConfig
from regimen.errors import RequestError, UsageError
from regimen.pipelines.serve import ServeConfig, application, check, weights_reader
from regimen.serving.guard import Guard


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ServeConfig(), "nothing to serve"),
        (ServeConfig(model="m", model_url="http://x"), "served there already"),
        (ServeConfig(environment="calculator", model_url="http://x"), "no name"),
        (ServeConfig(environment="calculator", with_token_ids=True), "for a model elsewhere"),
        (ServeConfig(model="m", weights_folder=Path("gone")), "no such folder"),
    ],
    ids=str,
)
def test_contradictions_are_refused(config: ServeConfig, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check(config)


def test_the_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve"]) == 2
    assert "nothing to serve" in capsys.readouterr().err
    assert main(["serve", "--environment", "calculator", "--token-file", str(tmp_path / "gone")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["serve", "--environment", "calculatr", "--port", "0"]) == 2
    assert "did you mean 'calculator'" in capsys.readouterr().err


def test_options_of_an_environment() -> None:
    assert options_of(["a=1", "b=text", 'c=["x"]', "d=a=b"]) == {"a": 1, "b": "text", "c": ["x"], "d": "a=b"}
    with pytest.raises(UsageError, match="KEY=VALUE"):
        options_of(["alone"])


def paths_of(config: ServeConfig) -> set[str]:
    return {route.path for route in application(config).routes}  # type: ignore[attr-defined]


def test_what_is_served() -> None:
    assert {"/seed_session", "/verify", "/{tool}"} <= paths_of(ServeConfig(environment="calculator"))
    assert "/run" not in paths_of(ServeConfig(environment="calculator"))
    agent = ServeConfig(environment="calculator", model="m", model_url="http://127.0.0.1:1/v1")
    assert {"/run", "/v1/responses", "/global_config_dict_yaml"} <= paths_of(agent)


def test_weights_are_read_from_inside_the_folder_only(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "step_1", root / "empty", outside):
        folder.mkdir(parents=True)
    for folder in (root / "step_1", outside):
        save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    (root / "link").symlink_to(outside)
    read = weights_reader(root)
    assert [(name, tensor.tolist()) for name, tensor in read("step_1")] == [("w", [1.0, 1.0])]
    for name in ("empty", "gone", "link", "..", ".", "../outside", str(outside)):
        with pytest.raises(RequestError, match="no weights of that name"):
            read(name)


async def test_a_real_model_answers_openais_client_and_takes_new_weights(
    tiny: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    other = tiny.tiny_model(seed=1)
    (tmp_path / "step_7").mkdir()
    tensors = {name: tensor.detach().clone() for name, tensor in other.named_parameters()}
    save_file(tensors, tmp_path / "step_7" / "model.safetensors")
    sampling = SamplingConfig(max_new_tokens=8, precision="float32")
    app = application(ServeConfig(model=str(tiny_folder), name="tiny", weights_folder=tmp_path, generation=sampling))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Guard(app)), base_url="http://127.0.0.1") as http:
        client = openai.AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=http)
        asked: Any = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0,
            "logprobs": True,
            "extra_body": {"return_token_ids": True},
        }
        first: Any = await client.chat.completions.create(**asked)
        assert (await http.post("/weights", json={"folder": "step_7", "version": 7})).json() == {"weight_version": 7}
        second: Any = await client.chat.completions.create(**asked)
    assert (first.weight_version, second.weight_version) == (0, 7)
    for model, answer in ((tiny.tiny_model(), first), (other, second)):
        message = answer.choices[0].message
        prompt, sampled = message.prompt_token_ids, message.generation_token_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + sampled])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)
        assert logprobs.argmax(-1).tolist() == sampled
        expected = logprobs.max(-1).values.tolist()
        assert message.generation_log_probs == pytest.approx(expected, abs=1e-4)
        assert [entry.logprob for entry in answer.choices[0].logprobs.content] == message.generation_log_probs
