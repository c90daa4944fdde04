"""`regimen serve`: an environment, an agent or a model over HTTP.

In: what to serve and where. Out: a server that runs until it is interrupted; on the screen its address, and once the
token that was made for it. Refuses what the pipeline refuses; errors are left to the command line's one place for them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from regimen.config.schema_policy import SamplingConfig
from regimen.errors import UsageError


def _option(text: str, **settings: Any) -> Any:
    return typer.Option(help=text, show_default=bool(settings.pop("shown", False)), **settings)


def serve(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Model folder or hub name.", show_default=False)
    ] = None,
    environment: Annotated[str | None, _option("Name, or path/to/file.py:ClassName.")] = None,
    option: Annotated[list[str] | None, _option("KEY=VALUE of the environment; may be repeated.")] = None,
    model_url: Annotated[str | None, _option("OpenAI-compatible endpoint of the agent's MODEL.")] = None,
    host: Annotated[str, _option("Address; other than loopback needs a token.", shown=True)] = "127.0.0.1",
    port: Annotated[int, _option("0 takes a free one.", shown=True, min=0, max=65535)] = 8000,
    token_file: Annotated[Path | None, _option("File that holds the token clients must send.")] = None,
    name: Annotated[str | None, _option("What clients call the model. (default MODEL)")] = None,
    chat_template: Annotated[str | None, _option("Template where the model's own will not do, like 'tools'.")] = None,
    temperature: Annotated[float, _option("Where a request has none.", shown=True, min=0)] = 1.0,
    max_new_tokens: Annotated[int, _option("Where a request has no limit.", shown=True, min=1)] = 256,
    max_sequence_length: Annotated[int | None, _option("Prompt and answer. (default the model's)", min=2)] = None,
    max_turns: Annotated[int | None, _option("Model calls of one episode. (default the environment's)", min=1)] = None,
    max_batch_size: Annotated[int, _option("Answers computed at once.", shown=True, min=1)] = 64,
    seed: Annotated[int, _option("Seed of the agent's episodes.", shown=True)] = 0,
    token_ids: Annotated[
        bool, typer.Option("--token-ids", help="Token ids in every answer; with --model-url in every episode.")
    ] = False,
    weights_folder: Annotated[Path | None, _option("Folder of folders whose weights /weights may swap in.")] = None,
    max_requests: Annotated[int, _option("Requests under way at once.", shown=True, min=1)] = 1024,
    max_sessions: Annotated[int, _option("Open sessions.", shown=True, min=1)] = 4096,
    max_body_mb: Annotated[int, _option("Size of a request.", shown=True, min=1)] = 32,
) -> None:
    """Serve a model, or an environment, or with both an agent that plays the environment.

    A model answers OpenAI's requests, an environment and its agent NeMo Gym's. The token of other addresses than
    loopback comes from --token-file, from the variable REGIMEN_SERVER_TOKEN, or is made and shown once. The key for
    --model-url stands in REGIMEN_MODEL_KEY.
    """
    from regimen.pipelines.serve import ServeConfig, ServerLimits
    from regimen.pipelines.serve import serve as run

    config = ServeConfig(
        model=model,
        model_url=model_url,
        environment=environment,
        environment_options=options_of(option or []),
        name=name,
        host=host,
        port=port,
        token_file=token_file,
        chat_template=chat_template,
        max_sequence_length=max_sequence_length,
        max_turns=max_turns,
        seed=seed,
        with_token_ids=token_ids,
        weights_folder=weights_folder,
        generation=SamplingConfig(
            temperature=temperature, max_new_tokens=max_new_tokens, max_batch_size=max_batch_size
        ),
        limits=ServerLimits(requests=max_requests, sessions=max_sessions, body_bytes=max_body_mb << 20),
    )
    run(config, show)


def options_of(words: list[str]) -> dict[str, Any]:
    """The environment's options; a value that is JSON is taken as such, another as text."""
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"--option {word} is no setting", expected="KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def show(ready: Any) -> None:
    """Say what is served where, and a new token once."""
    typer.echo(f"{ready.what} at {ready.url}")
    if ready.new_token:
        typer.echo(f"token, shown this once: {ready.new_token}")
    elif not ready.has_token:
        typer.echo("no token: only this machine is answered")
    typer.echo("stop with Ctrl-C")
