"""The recipe that the tests of the command line run on."""

from __future__ import annotations

from cli.commands import builtins_alone, command, own_plugins, wide  # noqa: F401 - fixtures
from cli.conftest import recipe  # noqa: F401 - a fixture
from training.conftest import tokenizer, world  # noqa: F401 - fixtures
