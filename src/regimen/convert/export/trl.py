"""A folder that TRL trains from as it stands: the rows, settings.json, train.py and, for GRPO, the rewards.

In: an export request. Out: the files, and the changes in the request's notes.
Refuses: what the rows refuse.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from regimen.config.schema import DatasetConfig
from regimen.convert.export.request import ExportRequest
from regimen.convert.export.trl_rows import write_data
from regimen.convert.export.trl_settings import lora_settings, trl_settings

# Columns that hold objects of any keys; they are declared, so that `datasets` neither merges nor fills them.
FEATURES = {"answer": "Value('string')", "task": "Value('string')", "chat_template_kwargs": "Json()"}
# In the template that Regimen ships: where an assistant's turn begins and ends.
TURN_BEGINS = "<|im_start|>assistant\n{% if message.reasoning_content %}"
TURN_ENDS = "{%- endfor -%}<|im_end|>\n{% elif"


def export_trl(request: ExportRequest) -> None:
    """Write the folder."""
    columns = write_data(request)
    config = request.config
    settings = trl_settings(request, request.rows["data/train.jsonl"], "validation" in columns)
    if request.chat_template is not None:
        request.write_text("chat_template.jinja", _marked(request.chat_template))
    files = {name: f"data/{name}.jsonl" for name in columns}
    lora = lora_settings(request)
    written: dict[str, Any] = {
        "model": config.policy.model_name,
        "tokenizer": config.policy.tokenizer_name,
        "trust_remote_code": config.policy.trust_remote_code,
        "data_files": files,
        "arguments": settings,
        "lora": lora,
    }
    request.write_text("settings.json", json.dumps(written, indent=2) + "\n")
    features = ", ".join(f"{name!r}: {FEATURES.get(name, 'List(Json())')}" for name in columns["train"])
    request.write_text("train.py", _template(f"train_{config.algorithm}").replace("FEATURES", f"{{{features}}}"))
    if lora is not None:
        request.write_text("adapters.py", _template("adapters"))
    if config.grpo is not None:
        _write_rewards(request)
    request.write_text("README.md", _readme(request, "" if lora is None else " peft"))


def _template(name: str) -> str:
    """A script that ships as text, as the packages that it imports are not Regimen's."""
    return resources.files("regimen.convert.export").joinpath("trl_scripts", f"{name}.txt").read_text(encoding="utf-8")


def _marked(template: str) -> str:
    """Regimen's template with the assistant's turns marked, which TRL needs to train on them alone."""
    if TURN_BEGINS not in template or TURN_ENDS not in template:
        return template
    begins = TURN_BEGINS.replace("{% if", "{% generation %}{% if")
    ends = '{%- endfor -%}<|im_end|>{% endgeneration %}{{ "\\n" }}\n{%- elif'
    return template.replace(TURN_BEGINS, begins).replace(TURN_ENDS, ends)


def _write_rewards(request: ExportRequest) -> None:
    entry: DatasetConfig | None = request.config.data.train
    assert entry is not None  # the configuration's rules hold it
    if entry.dataset_name == "ResponseDataset":
        request.write_text("reward_funcs.py", _template("reward_answer"))
        return
    name = entry.env_name
    script = _template("reward_environment").replace("ENVIRONMENT_NAME", repr(name))
    options = request.config.env.get(name, {}) if name else {}
    request.write_text("reward_funcs.py", script.replace("ENVIRONMENT_OPTIONS", repr(options)))


def _readme(request: ExportRequest, adapters: str) -> str:
    algorithm = request.config.algorithm
    changes = "\n".join(f"- {note}" for note in request.notes) or "Nothing."
    listed = "\n".join(f"- `{name}`: {rows:,} rows" for name, rows in request.rows.items())
    rewards = ""
    if algorithm == "grpo":
        listed += "\n- `reward_funcs.py`: the reward"
        rewards = " regimen-rl"
    if adapters:
        listed += "\n- `adapters.py`: which layers get adapters"
    return f"""# {algorithm.upper()} with TRL

```bash
pip install 'trl>=1.16' 'datasets>=5.2' accelerate{adapters}{rewards}
python train.py
```

On several GPUs, with `gradient_accumulation_steps` in `settings.json` divided by their number:

```bash
accelerate launch --num_processes 8 train.py
```

## What is here

- `train.py`: loads the rows and trains
- `settings.json`: the model, and the arguments of TRL's configuration
{listed}
- `manifest.json`: where all this comes from, with hashes

`train.py` declares the columns, so that `datasets` keeps messages, tools and arguments of tool calls as they are.

## What was changed on the way

{changes}
"""
