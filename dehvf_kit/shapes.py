"""Deprecated: import these names from `dehvf_kit.api`; this module is removed in the next release."""

import warnings

from dehvf_kit.api.shapes import KV as KV
from dehvf_kit.api.shapes import MAX_LAYERS as MAX_LAYERS
from dehvf_kit.api.shapes import Cost as Cost
from dehvf_kit.api.shapes import DecoderSpec as DecoderSpec
from dehvf_kit.api.shapes import GroupLayers as GroupLayers
from dehvf_kit.api.shapes import Readout as Readout
from dehvf_kit.api.shapes import Unprojected as Unprojected
from dehvf_kit.api.shapes import VisionSpec as VisionSpec

Levels = GroupLayers

warnings.warn("dehvf_kit.shapes has moved to dehvf_kit.api", DeprecationWarning, stacklevel=2)
