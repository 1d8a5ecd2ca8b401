"""Moved to `dehvf_kit.api.registry`; this name is kept for one release."""

from dehvf_kit.api.registry import *  # noqa: F403
