"""Commands inside the test's process, as the tests of the command line have them."""

from __future__ import annotations

from cli.conftest import command, recipe  # noqa: F401 - fixtures
