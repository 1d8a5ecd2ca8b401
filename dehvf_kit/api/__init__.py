"""What a plugin imports: config classes, the shapes that travel between towers and components, and the hooks."""

from dehvf_kit.api.config import BuildContext as BuildContext
from dehvf_kit.api.config import ComponentConfig as ComponentConfig
from dehvf_kit.api.config import Misfit as Misfit
from dehvf_kit.api.config import Settings as Settings
from dehvf_kit.api.cost_formulas import BaselineCost as BaselineCost
from dehvf_kit.api.cost_formulas import CostFormula as CostFormula
from dehvf_kit.api.cost_formulas import TowerSizes as TowerSizes
from dehvf_kit.api.hookspecs import Register as Register
from dehvf_kit.api.hookspecs import RegisterSource as RegisterSource
from dehvf_kit.api.hookspecs import hookimpl as hookimpl
from dehvf_kit.api.plugin_code import plugin_code as plugin_code
from dehvf_kit.api.registry import Registry as Registry
from dehvf_kit.api.registry import Source as Source
from dehvf_kit.api.shapes import DecoderSpec as DecoderSpec
from dehvf_kit.api.shapes import VisionSpec as VisionSpec
