"""Moved to `dehvf_kit.api.hookspecs`; this name is kept for one release."""

from dehvf_kit.api.hookspecs import *  # noqa: F403
