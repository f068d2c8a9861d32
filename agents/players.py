"""Who plays: an agent by its name, and whatever else decides how it plays.

Two attempts of equal players on the same task differ by seed and chance alone, so their scores may
be averaged. Players that differ in anything never share a name of a file.
"""

from __future__ import annotations

import hashlib
import json
import re

from pydantic import Field, JsonValue

from ml_trainer_env.models import Model

LONGEST = 48  # characters of a text in the name of a file
DIGITS = 8  # of a digest


class Player(Model):
    """An agent, here and now."""

    agent: str = Field(description="its name in the catalogue")
    model: str | None = Field(default=None, description="the language model, where there is one")
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="what else decides how it plays: endpoint, decisions"
    )

    @property
    def key(self) -> str:
        """Equal for equal players, and for no others."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    @property
    def file_name(self) -> str:
        """As a part of the name of a file."""
        if self.model is None and not self.options:
            return slug(self.agent)
        shown = "-".join(slug(text) for text in (self.agent, self.model) if text)
        return f"{shown}-{digest(self.key)}"


def slug(text: str) -> str:
    """`text` in characters that every file system takes. Different texts may have the same one."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:LONGEST]


def digest(text: str) -> str:
    """A few characters that tell texts apart which are too long, or too odd, for a name."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:DIGITS]
