import pytest

from regimen.config.load import load_train_config
from regimen.tracking.redact import REDACTED, redacted


@pytest.mark.parametrize(
    "name",
    ["api_key", "apiKey", "OPENAI_API_KEY", "hf_token", "token", "password", "db_passwd", "client_secret", "key"],
)
def test_values_under_names_of_secrets_are_left_out(name):
    tree = {"env": {"search": {"options": [{name: "abc123"}], name: 42}}}
    assert redacted(tree) == {"env": {"search": {"options": [{name: REDACTED}], name: REDACTED}}}


@pytest.mark.parametrize(
    "text",
    [
        "sk-abcdefghijklmnop1234",
        "hf_abcdefghijklmnop1234",
        "ghp_abcdefghijklmnop1234",
        "github_pat_abcdefghijklmnop1234",
        "AKIAABCDEFGHIJKLMNOP",
        "eyJhbGciOi.eyJzdWIi.abc",
    ],
)
def test_texts_in_the_shape_of_a_key_are_left_out(text):
    assert redacted({"note": f"use {text} here", "list": [text]}) == {
        "note": f"use {REDACTED} here",
        "list": [REDACTED],
    }


def test_users_in_addresses_are_left_out():
    assert redacted({"uri": "https://me:pass@host:5000/x"}) == {"uri": f"https://{REDACTED}@host:5000/x"}


def test_nothing_else_is_touched():
    """Of a whole configuration, every value stays."""
    data = [f"data.{split}.{key}" for split in ("train", "validation") for key in ("dataset_name=openai_format",)]
    paths = [f"data.{split}.data_path={split}.jsonl" for split in ("train", "validation")]
    tree = load_train_config("sft", [*data, *paths]).model_dump()
    assert redacted(tree) == tree
    given = {"api_key": None, "save_token": True, "eos_token_id": 3, "tokens": 5, "monkey": "banana"}
    assert redacted(given) == given
