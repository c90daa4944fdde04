"""The `policy` section: model, tokenizer, batches, optimiser, generation. NeMo RL's names; ours are marked.

Only keys that this build implements are fields; the other keys of NeMo RL are in `known_keys.yaml`.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import Field, field_validator

from regimen.config.section import Section

Precision = Literal["bfloat16", "float32"]


class TokenizerConfig(Section):
    """Which tokenizer and chat template. `name` None: the model's own; `chat_template` "default": the tokenizer's."""

    name: str | None = None
    chat_template: str = "default"
    chat_template_kwargs: dict[str, Any] | None = None

    @field_validator("chat_template", mode="before")
    @classmethod
    def _refuse_null(cls, value: object) -> object:
        if value is None:
            raise ValueError("null is NeMo RL's pass-through template, which is not implemented; write 'default'")
        return value

    @property
    def template(self) -> str | None:
        """The template to use instead of the tokenizer's own, or None."""
        return None if self.chat_template == "default" else self.chat_template


class OptimizerConfig(Section):
    """A torch optimiser by its dotted name, and its arguments."""

    name: str = "torch.optim.AdamW"
    kwargs: dict[str, Any] = Field(default_factory=lambda: {"lr": 5e-6, "weight_decay": 0.01})


class TokenBudgetConfig(Section):
    """`sequence_packing` and `dynamic_batching`: how many tokens a micro-batch may hold, when enabled."""

    enabled: bool = False
    train_mb_tokens: int | None = Field(default=None, ge=1)
    logprob_mb_tokens: int | None = Field(default=None, ge=1)


class SamplingConfig(Section):
    """How to generate: the `generation` section of collect, evaluate and iterate, and what training shares with it."""

    backend: str = "transformers"
    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    stop_token_ids: list[int] | None = None
    max_batch_size: int = Field(default=64, ge=1)  # ours
    precision: Precision | None = None  # ours; None: the policy's in training, else bfloat16 on a GPU, float32 on a CPU


class GenerationConfig(SamplingConfig):
    """`policy.generation`. The `val_` values are for validation; None means: as in training."""

    val_max_new_tokens: int | None = Field(default=None, ge=1)  # ours
    val_temperature: float | None = Field(default=None, ge=0)
    val_top_p: float | None = Field(default=None, gt=0, le=1)
    val_top_k: int | None = Field(default=None, ge=1)


class LoraConfig(Section):
    """`policy.dtensor_cfg.lora_cfg`: adapters beside frozen weights; with one process too, `enabled` above or not.

    `match_all_linear` None: when there are no `target_modules`.
    """

    enabled: bool = False
    target_modules: list[str] = []
    exclude_modules: list[str] = []
    match_all_linear: bool | None = None
    dim: int = Field(default=8, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    dropout_position: Literal["pre", "post"] = "post"
    lora_A_init: Literal["xavier", "kaiming"] = "xavier"  # noqa: N815
    load_in_4bit: bool = False  # ours


class DTensorConfig(Section):
    """`policy.dtensor_cfg`: many processes that share the weights (FSDP2) and the products in each layer (`tensor_`).

    The sizes that this build does not divide by are refused when they are not 1.
    """

    enabled: bool = False
    tensor_parallel_size: int = Field(default=1, ge=1)
    sequence_parallel: bool = False
    context_parallel_size: int = Field(default=1, ge=1)
    expert_parallel_size: int | None = Field(default=None, ge=1)
    dp_replicate_size: int | None = Field(default=None, ge=1)
    cpu_offload: bool = False
    custom_parallel_plan: str | None = None
    lora_cfg: LoraConfig = LoraConfig()


class PolicyConfig(Section):
    """The model and how it is trained."""

    model_name: str
    tokenizer: TokenizerConfig = TokenizerConfig()
    trust_remote_code: bool = False  # ours
    train_global_batch_size: int | None = Field(default=None, ge=1)
    train_micro_batch_size: int = Field(default=1, ge=1)
    train_micro_batch_tokens: int | None = Field(default=None, ge=1)  # ours
    logprob_batch_size: int | None = Field(default=None, ge=1)
    max_total_sequence_length: int = Field(default=1024, ge=2)
    precision: Precision = "bfloat16"
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: list[dict[str, Any]] | None = None
    activation_checkpointing: bool = False  # ours; NeMo RL's policy.dtensor_cfg.activation_checkpointing becomes this
    torch_compile: bool = False  # ours
    dtensor_cfg: DTensorConfig = DTensorConfig()
    sequence_packing: TokenBudgetConfig = TokenBudgetConfig()
    dynamic_batching: TokenBudgetConfig = TokenBudgetConfig()
    generation: GenerationConfig | None = None

    @field_validator("scheduler", mode="before")
    @classmethod
    def _one_scheduler(cls, value: object) -> object:
        return [cast("object", value)] if isinstance(value, dict) else value

    @field_validator("scheduler")
    @classmethod
    def _check_scheduler(cls, stages: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if stages is not None:
            _check_stages(stages)
        return stages

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name or folder."""
        return self.tokenizer.name or self.model_name

    @property
    def train_token_budget(self) -> int:
        """Tokens of a training micro-batch: the budget given, or micro-batch size times sequence length."""
        if self.train_micro_batch_tokens is not None:
            return self.train_micro_batch_tokens
        for section in (self.sequence_packing, self.dynamic_batching):
            if section.enabled and section.train_mb_tokens is not None:
                return section.train_mb_tokens
        return self.train_micro_batch_size * self.max_total_sequence_length

    @property
    def logprob_token_budget(self) -> int:
        """Tokens of a micro-batch that needs no gradient."""
        for section in (self.sequence_packing, self.dynamic_batching):
            if section.enabled and section.logprob_mb_tokens is not None:
                return section.logprob_mb_tokens
        if self.logprob_batch_size is not None:
            return self.logprob_batch_size * self.max_total_sequence_length
        return self.train_token_budget


def _check_stages(stages: list[dict[str, Any]]) -> None:
    """Stages are `{name, kwargs}`; several need one `{milestones: [...]}` with one step fewer than stages."""
    names = [stage for stage in stages if "name" in stage]
    milestones = [stage["milestones"] for stage in stages if set(stage) == {"milestones"}]
    for stage in stages:
        well_formed = isinstance(stage.get("name"), str) and isinstance(stage.get("kwargs", {}), dict)
        if set(stage) != {"milestones"} and not (well_formed and set(stage) <= {"name", "kwargs"}):
            raise ValueError(f"a stage is {{name, kwargs}} or {{milestones}}, not {stage}")
    if len(milestones) > 1 or (len(names) > 1 and not milestones):
        raise ValueError("several stages need exactly one {milestones: [...]}")
    for steps in milestones:
        numbers = cast("list[object]", steps) if isinstance(steps, list) else None
        if numbers is None or not all(isinstance(step, int) for step in numbers) or len(numbers) != len(names) - 1:
            raise ValueError(f"{len(names)} stages need {len(names) - 1} milestones, not {steps}")
