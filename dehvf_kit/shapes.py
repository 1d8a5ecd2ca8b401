"""Moved to `dehvf_kit.api.shapes`; this name is kept for one release."""

from dehvf_kit.api.shapes import *  # noqa: F403
