"""Code of plugins that raises, returns what its ports do not say, or miscounts: one line that names its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dehvf_kit_plan.plan import Workload, count_work
from helpers import pixels as tiny_pixels
from helpers import tiny_model, tiny_recipe
from helpers import tokens as tiny_tokens

from dehvf_kit.api.config import ComponentConfig
from dehvf_kit.api.registry import plugin_code
from dehvf_kit.data.samples import DataConfig, Sample
from dehvf_kit.errors import DataError, DehvfError, PluginError, RecipeError, ShapeError
from dehvf_kit.model.builder import build_nodes
from dehvf_kit.recipe.plugin_manager import load_plugin_file, plugins

FUSER = """
from typing import ClassVar, Literal

import torch
from torch import nn

from dehvf_kit import ComponentConfig, hookimpl


class LastFuserConfig(ComponentConfig):
    '''The last member of each group.'''

    role: ClassVar[str] = "fuser"
    takes: ClassVar[tuple[str, ...]] = ("levels: group member", "codes: batch layer patch code")
    gives: ClassVar[tuple[str, ...]] = ("fused: batch decoder_layer kv patch code",)
    type: Literal["last"] = "last"

    def resolve(self, context):
        return {"kv": 1}

    def build(self, context):
        return LastFuser()


class LastFuser(nn.Module):
    def forward(self, levels, codes):
        return codes[:, levels.index[levels.group_of_layer][:, -1]].unsqueeze(2)


@hookimpl
def register_components(register):
    register(LastFuserConfig)
"""
CHANGES = {"graph": {"fuser": {"type": "last"}, "layer_query": None}}
COUNTED = 'type: Literal["last"] = "last"\n\n    def num_params(self, context):\n        return {"w": context.nothing}'


def fuser(folder: Path, old: str = "", new: str = "", name: str = "last_fuser") -> Path:
    """The fuser above with one thing changed in it, loaded."""
    assert old in FUSER
    file = folder / f"{name}.py"
    file.write_text(FUSER.replace(old, new) if old else FUSER)
    load_plugin_file(file)
    return file


def run(**changes):
    return tiny_model(random=False, **CHANGES)(tiny_tokens(), pixel_values=tiny_pixels())


def test_the_fuser_these_tests_spoil_is_sound(own_plugins, tmp_path):
    fuser(tmp_path)
    assert torch.isfinite(run().logits).all()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("return LastFuser()", "return LastFuser(context.layers_read)", "AttributeError: .*layers_read.*:22, in build"),
        ('return {"kv": 1}', 'return {"kv": context.axes["key"]}', r"KeyError: 'key' \(.*:19, in resolve"),
        ('type: Literal["last"] = "last"', COUNTED, r"AttributeError: .*'nothing' \(.*:19, in num_params"),
        ("levels.index[", "levels.indices[", r"AttributeError: .*'indices'.*:27, in forward"),
    ],
    ids=["build", "resolve", "num_params", "forward"],
)
def test_what_a_component_raises_is_told_by_its_place(own_plugins, tmp_path, monkeypatch, old, new, told):
    file = fuser(tmp_path, old, new)
    with pytest.raises(DehvfError, match=rf"graph\.fuser: the plugin's 'last' raised {told}") as caught:
        run()
    assert str(file) in str(caught.value) and "DEHVF_KIT_DEBUG=1 shows the traceback" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.setenv("DEHVF_KIT_DEBUG", "1")
    with pytest.raises((AttributeError, KeyError, TypeError)):
        run()


def test_resolve_is_one_fault_among_others(own_plugins, tmp_path):
    fuser(tmp_path, 'return {"kv": 1}', "return 1 / 0")
    with pytest.raises(RecipeError) as caught:
        tiny_recipe(**CHANGES, training={"batch_size": 0}).check()
    assert {fault.path for fault in caught.value.faults} == {"graph.fuser", "training.batch_size"}


def test_our_own_components_and_full_memory_keep_their_traceback():
    ours = tiny_recipe().nodes["fuser"].config
    for owner, error in ((ours, KeyError("x")), (ComponentConfig(), MemoryError()), (Foreign(), MemoryError())):
        with pytest.raises(type(error)), plugin_code(owner):
            raise error
    with pytest.raises(PluginError, match="KeyError"), plugin_code(Foreign()):
        raise KeyError("x")


class Foreign:
    type = "foreign"


class LostData(DataConfig):
    """A data set whose file is not there."""

    type: str = "lost"

    def samples(self, split):
        return open(f"{split}.nowhere").readlines()


def test_what_a_data_set_raises_is_told(own_plugins):
    told = r"data: the plugin's 'lost' raised FileNotFoundError: .*train\.nowhere.*in samples\)"
    with pytest.raises(PluginError, match=told):
        LostData().usable("train")
    with pytest.raises(PluginError, match=told):
        LostData(on_bad_sample="skip").usable("train")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (".unsqueeze(2)", "", r"returned \[3, 4, 16, 8\] for its port fused \[batch decoder_layer=4 kv=1 patch=16 code=8\]"),
        ('{"kv": 1}', '{"kv": 2}', r"returned \[3, 4, 1, 16, 8\] for its port fused \[batch decoder_layer=4 kv=2"),
    ],
)
def test_outputs_are_compared_with_their_ports(own_plugins, tmp_path, old, new, told):
    fuser(tmp_path, old, new)
    with pytest.raises(ShapeError, match=rf"node 'fuser' {told}"):
        run()


def test_outputs_are_compared_once(own_plugins, tmp_path):
    fuser(tmp_path)
    model = tiny_model(**CHANGES)
    model(tiny_tokens())
    assert "fuser" not in model._compared, "a batch of text alone runs no fuser"
    model(tiny_tokens(), pixel_values=tiny_pixels())
    assert model._compared == set(model.graph.order)


def test_a_miscount_is_refused(own_plugins, tmp_path):
    fuser(tmp_path, "return LastFuser()", "return nn.Linear(3, 2)")
    with pytest.raises(PluginError, match=r"graph\.fuser \(last\): num_params says 0, the module has 8 trained"):
        build_nodes(tiny_recipe(**CHANGES).check())


def test_a_plan_tells_a_plugins_own_fault_from_what_needs_numbers(own_plugins, tmp_path):
    fuser(tmp_path, "levels.index[", "levels.indices[")
    with pytest.raises(PluginError, match=r"^graph\.fuser: the plugin's 'last' raised AttributeError"):
        count_work(tiny_recipe(**CHANGES), Workload(tokens=9, answer=2, decode_batch=1))


def test_a_samples_picture_may_be_a_text_but_no_picture():
    assert Sample("1", "q", "a", "a/b.png") == Sample("1", "q", "a", Path("a/b.png"))
    with pytest.raises(DataError, match="1: its image is of the type Tensor; wants the path of a file"):
        Sample("1", "q", "a", torch.zeros(3, 4, 4))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("register(LastFuserConfig)", "register(LastFuserConfig())", "config class, got an instance of LastFuserConfig"),
        ("register(LastFuserConfig)", "register(LastFuser)", "register wants a config class, got the class LastFuser"),
        ("register(LastFuserConfig)", "pass", "last_fuser.py: registers nothing"),
        ('= ("levels: group member", "codes: batch layer patch code")', '= "codes: batch"', "`takes` is a text; wants a tuple"),
        (
            '"codes: batch layer patch code")',
            '"codes batch layer patch code")',
            "`takes` holds 'codes batch layer patch code'; wants",
        ),
        ('"fuser"', '"fuser"\n    strength: ClassVar[str] = "scale"', "`strength` is 'scale', none of its fields. Fields: type"),
    ],
    ids=["instance", "module", "nothing", "text", "colon", "strength"],
)
def test_what_cannot_be_registered(own_plugins, tmp_path, old, new, told):
    with pytest.raises(DehvfError, match=told):
        fuser(tmp_path, old, new)
    fuser(tmp_path)  # nothing of the faulty one is left


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"fuser"', '"fusr"', "no fuser is named 'last'.* 'last' is registered under the role fusr"),
        ("batch layer patch", "batch layers patch", r"projector\.codes has no axis 'layers'; did you mean 'layer'\? It is"),
    ],
)
def test_misspelt_roles_and_axes(own_plugins, tmp_path, old, new, told):
    fuser(tmp_path, old, new)
    with pytest.raises(RecipeError, match=told):
        tiny_recipe(**CHANGES).check()


def test_plugins_that_could_not_be_loaded_are_named_where_a_type_is_not_found(own_plugins):
    plugins().broken["mine"] = "mine 0.1: RuntimeError: no\nlicence"
    with pytest.raises(RecipeError, match=r"'last'.*; plugin mine 0\.1: RuntimeError: no licence \(could not be loaded\)"):
        tiny_recipe(**CHANGES)
    with pytest.raises(RecipeError, match=r"Roles: .*; plugin mine 0\.1"):
        tiny_recipe(graph={"pool": {"type": "mean"}})


def test_what_a_plugin_prints_goes_to_standard_error(own_plugins, tmp_path, capsys):
    fuser(tmp_path, "    register(LastFuserConfig)", "    print('registering')\n    register(LastFuserConfig)\nprint('loading')")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "loading\nregistering\n"
