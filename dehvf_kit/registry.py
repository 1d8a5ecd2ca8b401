"""Deprecated: import these names from `dehvf_kit.api`; this module is removed in the next release."""

import warnings

from dehvf_kit.api.registry import Registry as Registry
from dehvf_kit.api.registry import Source as Source
from dehvf_kit.api.registry import type_name as type_name

warnings.warn("dehvf_kit.registry has moved to dehvf_kit.api", DeprecationWarning, stacklevel=2)
