"""Names that moved are still found where they were for one release, with a warning that says where they are now."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module

import pytest

from dehvf_kit.api.shapes import GroupLayers
from dehvf_kit.errors import ImageError, PictureError

MOVED = {
    "config": ["BuildContext", "ComponentConfig", "Misfit", "Settings", "settings_of"],
    "shapes": ["KV", "Cost", "DecoderSpec", "Readout", "Unprojected", "VisionSpec"],
    "registry": ["Registry", "Source", "type_name"],
    "hookspecs": ["PROJECT", "Register", "RegisterSource", "hookimpl", "hookspec", "register_components"],
}


@pytest.mark.parametrize("module", MOVED)
def test_a_moved_module_warns_and_holds_the_same_objects(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"dehvf_kit.{module}", raising=False)
    with pytest.warns(DeprecationWarning, match=r"dehvf_kit\.api"):
        old = import_module(f"dehvf_kit.{module}")
    new = import_module(f"dehvf_kit.api.{module}")
    for name in MOVED[module]:
        assert getattr(old, name) is getattr(new, name)


def test_renamed_classes_keep_their_old_names() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old = import_module("dehvf_kit.shapes")
    assert old.Levels is GroupLayers
    assert PictureError is ImageError


def test_the_old_name_of_config_mismatch_error_is_the_same_class() -> None:
    for module in ("dehvf_kit", "dehvf_kit.api", "dehvf_kit.api.config"):
        assert import_module(module).Misfit is import_module(module).ConfigMismatchError
    assert {"Misfit", "ConfigMismatchError"} <= set(import_module("dehvf_kit").__all__)
