"""The tiny recipe of the command tests."""

from cli.conftest import recipe  # noqa: F401 - a fixture
