"""What every typed section of a configuration is: frozen, strict, closed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a configuration. Unknown keys are refused, values are not converted (an int may stand for a float)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    def changed(self) -> list[str]:
        """The keys whose values are not the defaults."""
        return [name for name, info in type(self).model_fields.items() if getattr(self, name) != info.default]
