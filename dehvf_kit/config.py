"""Moved to `dehvf_kit.api.config`; this name is kept for one release."""

from dehvf_kit.api.config import *  # noqa: F403
