"""What these tests share with those of the kit."""

from __future__ import annotations

from cli.commands import builtins_alone, command, own_plugins, wide  # noqa: F401 - fixtures
from training.conftest import tokenizer, world  # noqa: F401 - fixtures
