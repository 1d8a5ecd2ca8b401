"""Deprecated: import these names from `dehvf_kit.api`; this module is removed in the next release."""

import warnings

from dehvf_kit.api.config import BuildContext as BuildContext
from dehvf_kit.api.config import ComponentConfig as ComponentConfig
from dehvf_kit.api.config import Misfit as Misfit
from dehvf_kit.api.config import Settings as Settings
from dehvf_kit.api.config import settings_of as settings_of

warnings.warn("dehvf_kit.config has moved to dehvf_kit.api", DeprecationWarning, stacklevel=2)
