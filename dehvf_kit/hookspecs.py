"""Deprecated: import these names from `dehvf_kit.api`; this module is removed in the next release."""

import warnings

from dehvf_kit.api.hookspecs import PROJECT as PROJECT
from dehvf_kit.api.hookspecs import Register as Register
from dehvf_kit.api.hookspecs import RegisterSource as RegisterSource
from dehvf_kit.api.hookspecs import hookimpl as hookimpl
from dehvf_kit.api.hookspecs import hookspec as hookspec
from dehvf_kit.api.hookspecs import register_components as register_components
from dehvf_kit.api.hookspecs import register_ffn_overrides as register_ffn_overrides
from dehvf_kit.api.hookspecs import register_sources as register_sources
from dehvf_kit.api.hookspecs import register_vision_overrides as register_vision_overrides

warnings.warn("dehvf_kit.hookspecs has moved to dehvf_kit.api", DeprecationWarning, stacklevel=2)
