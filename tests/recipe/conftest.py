"""The tiny world of the training tests."""

from __future__ import annotations

from training.conftest import tokenizer, world  # noqa: F401 - fixtures
