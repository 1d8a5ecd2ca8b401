"""Plugins: one file with a new fuser and a new role, loaded through the manager, working from a recipe."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from helpers import LLAMA, pixels, tiny_decoder, tiny_model, tiny_recipe, tiny_vision, tokens, worst

import dehvf_kit
from dehvf_kit.api.config import ComponentConfig
from dehvf_kit.api.registry import Registry
from dehvf_kit.errors import AdapterError, DehvfError, PluginError, RecipeError
from dehvf_kit.recipe import builtin_plugin, plugin_manager
from dehvf_kit.recipe.plugin_manager import load_plugin_file, plugins

PLUGIN = '''
from typing import ClassVar, Literal

import torch
from torch import nn

import dehvf_kit


class LastFuserConfig(dehvf_kit.ComponentConfig):
    """The last member of each group, scaled."""

    role: ClassVar[str] = "fuser"
    takes: ClassVar[tuple[str, ...]] = ("levels: group member", "codes: batch layer patch code", "gain: code")
    gives: ClassVar[tuple[str, ...]] = ("fused: batch decoder_layer kv patch code",)
    type: Literal["last"] = "last"

    def resolve(self, context):
        return {"kv": 1}

    def build(self, context):
        return LastFuser()


class LastFuser(nn.Module):
    def forward(self, levels, codes, gain):
        last = levels.index[levels.group_of_layer][:, -1]
        return (codes[:, last] * gain).unsqueeze(2)


class GainConfig(dehvf_kit.ComponentConfig):
    """A trained gain per code: a role the kit does not have."""

    role: ClassVar[str] = "gain"
    gives: ClassVar[tuple[str, ...]] = ("gain: code",)
    type: Literal["learned"] = "learned"
    size: int = 8

    def num_params(self, context):
        return {"gain": self.size}

    def build(self, context):
        return Gain(self.size)


class Gain(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self):
        return self.gain


@dehvf_kit.hookimpl
def register_components(register):
    register(LastFuserConfig)
    register(GainConfig)
'''
CHANGES = {"graph": {"fuser": {"type": "last"}, "gain": {"type": "learned"}, "layer_query": None}}


def write(folder: Path, text: str, name: str = "my_plugin") -> Path:
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder / f"{name}.py"


def test_a_new_fuser_and_a_new_role_work_from_a_recipe(own_plugins, tmp_path):
    with pytest.raises(RecipeError, match="no fuser is named 'last'"):
        tiny_recipe(**CHANGES)
    load_plugin_file(write(tmp_path, PLUGIN))
    model = tiny_model(random=False, **CHANGES)
    with torch.no_grad():
        model.nodes.position.values.normal_()
    input_ids = tokens()
    output = model(input_ids, labels=input_ids, pixel_values=pixels())
    output.loss.backward()

    assert "gain.gain" in model.named_trainable_parameters() and model.nodes.gain.gain.grad.any()
    assert worst(output.logits, tiny_decoder()(input_ids=input_ids).logits) > 1e-3
    before = output.logits.detach()
    with torch.no_grad():
        model.nodes.gain.gain.zero_()
    assert not torch.equal(model(input_ids, pixel_values=pixels()).logits, before)
    assert plugins().origins["my_plugin"] == str(tmp_path / "my_plugin.py")
    assert "gain" in plugins().registry.roles() and "last" in plugins().registry.types("fuser")


def test_an_adapter_of_a_plugins_component_needs_the_plugin(own_plugins, tmp_path):
    file = write(tmp_path, PLUGIN)
    load_plugin_file(file)
    model = tiny_model(**CHANGES)
    expected = model(tokens(), pixel_values=pixels()).logits
    model.save_pretrained(tmp_path / "adapter")
    plugins.cache_clear()
    with pytest.raises(AdapterError, match="'my_plugin.py', for fuser 'last', gain 'learned'; load a .py file with --plugin"):
        dehvf_kit.load(tmp_path / "adapter", decoder=tiny_decoder(), vision=tiny_vision())
    assert "fuser 'last': from the plugin my_plugin.py" in (tmp_path / "adapter/README.md").read_text()
    load_plugin_file(file)
    again = dehvf_kit.load(tmp_path / "adapter", decoder=tiny_decoder(), vision=tiny_vision())
    assert torch.equal(again(tokens(), pixel_values=pixels()).logits, expected)


def test_loading_a_file_again_changes_nothing(own_plugins, tmp_path):
    file = write(tmp_path, PLUGIN)
    load_plugin_file(file)
    known = plugins().registry.find("fuser", "last")
    load_plugin_file(file)
    assert plugins().registry.find("fuser", "last") is known
    (tmp_path / "other").mkdir()
    with pytest.raises(DehvfError, match="a plugin named 'my_plugin' is loaded already; rename the file"):
        load_plugin_file(write(tmp_path / "other", PLUGIN))


BROKEN = {
    "syntax": ("def (", "SyntaxError: "),
    "import": ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    "misspelt hook": (
        "import dehvf_kit\n@dehvf_kit.hookimpl\ndef register_component(register): pass\n",
        "unknown hook 'register_component'",
    ),
    "wrong argument": (
        "import dehvf_kit\n@dehvf_kit.hookimpl\ndef register_components(registry): pass\n",
        "Argument.* {'registry'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "hook that fails": (
        "import dehvf_kit\n@dehvf_kit.hookimpl\ndef register_components(register): register(1 / 0)\n",
        "ZeroDivisionError: division by zero",
    ),
    "a class without role": (
        """
        import dehvf_kit
        class Nameless(dehvf_kit.ComponentConfig):
            pass
        @dehvf_kit.hookimpl
        def register_components(register): register(Nameless)
        """,
        r"Nameless: a config class needs a `role` and a `type: Literal\['...'\] = '...'`",
    ),
    "a name that is taken": (
        PLUGIN.replace('"last"', '"mean"'),
        "two classes are registered as fuser 'mean': dehvf_kit.components.fuser.mean.MeanFuserConfig and .*LastFuserConfig; "
        "rename one of them",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_file_leaves_nothing_behind(case, own_plugins, tmp_path):
    text, message = BROKEN[case]
    before = dict(plugins().registry.configs)
    file = write(tmp_path, text)
    with pytest.raises(DehvfError, match=f"(?s)--plugin .*my_plugin.py: .*{message}"):
        load_plugin_file(file)
    assert plugins().registry.configs == before and "my_plugin" not in plugins().origins
    file.write_text(PLUGIN)
    load_plugin_file(file)
    assert "last" in plugins().registry.types("fuser"), "mended and loaded again in the same process"


def test_files_that_are_no_plugins(own_plugins, tmp_path):
    with pytest.raises(DehvfError, match="there is no such file"):
        load_plugin_file(tmp_path / "nothing.py")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DehvfError, match="not a Python file"):
        load_plugin_file(tmp_path / "notes.txt")


def test_a_broken_entry_point_is_recorded_and_the_kit_goes_on(own_plugins, tmp_path, monkeypatch):
    write(tmp_path, "raise RuntimeError('sad')", "sad_plugin")
    write(tmp_path, BROKEN["hook that fails"][0], "failing_plugin")
    write(tmp_path, BROKEN["misspelt hook"][0], "misspelt_plugin")
    write(tmp_path, PLUGIN, "good_plugin")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("sad_plugin", "failing_plugin", "misspelt_plugin", "good_plugin")
    found = [EntryPoint(name, name, "dehvf_kit") for name in names]
    monkeypatch.setattr(plugin_manager, "entry_points", lambda group: found)

    loaded = plugins()
    assert set(loaded.broken) == set(names[:3])
    assert loaded.broken["sad_plugin"] == "sad_plugin: RuntimeError: sad"
    assert loaded.broken["failing_plugin"] == "failing_plugin: ZeroDivisionError: division by zero"
    assert "unknown hook 'register_component'" in loaded.broken["misspelt_plugin"]
    assert loaded.registry.find("fuser", "last") and loaded.registry.find("fuser", "mean")


def test_builtins_come_by_the_same_hook(own_plugins, monkeypatch):
    monkeypatch.setattr(plugin_manager, "entry_points", lambda group: [])
    registered = Registry()
    builtin_plugin.register_components(registered.register)
    assert plugins().registry.configs == registered.configs
    assert plugins().origins == {"built-in": "dehvf-kit"}
    for (role, kind), config in registered.configs.items():
        assert config.model_fields["type"].default == kind and config.role == role


def test_two_sources_of_one_name_are_refused():
    registry = Registry()
    registry.register_source("small", dict, Path, "a decoder")
    with pytest.raises(DehvfError, match="two plugins supply a base model named 'small'; uninstall one of them"):
        registry.register_source("small", dict, Path, "another")


def test_a_source_gives_its_config_to_recipes(own_plugins):
    config = {"model_type": "llama", **LLAMA}
    plugins().registry.register_source("small", lambda: config, lambda: Path("nowhere"), "a decoder")
    recipe = tiny_recipe(decoder={"config": None, "model": "small"})
    assert recipe.check().contexts["position"].decoder.hidden_size == 32


def test_a_component_that_returns_the_wrong_number_of_values_is_named(own_plugins, tmp_path):
    text = PLUGIN.replace("return (codes[:, last] * gain).unsqueeze(2)", "return codes").replace(
        '"fused: batch decoder_layer kv patch code",)', '"fused: batch decoder_layer kv patch code", "more: code")'
    )
    load_plugin_file(write(tmp_path, text))
    model = tiny_model(**CHANGES)
    with pytest.raises(DehvfError, match="node 'fuser' returned a Tensor for its ports fused, more; return one value a port"):
        model(tokens(), pixel_values=pixels())


def test_config_parents_say_what_they_are():
    class Plain(ComponentConfig):
        """One line. Two lines.

        More.
        """

    assert Plain().summary() == "One line. Two lines."
    with pytest.raises(NotImplementedError, match="Plain.build"):
        Plain().build(None)


def test_loading_plugins_and_a_recipe_imports_what_the_recipe_names():
    code = """
        import sys
        from dehvf_kit.recipe.plugin_manager import plugins
        plugins()
        assert not [name for name in sys.modules if name.startswith(("dehvf_kit.components.", "dehvf_kit.data."))]
        from dehvf_kit import load_recipe
        load_recipe("recipes/llama7b_clip.yaml", ["graph.fuser={type: mean}", "graph.layer_query=null"])
        print(*sorted(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "dehvf_kit.components.fuser.mean" in loaded
    unnamed = ("fuser.cross_attention", "layer_query.embedding_mlp", "grouper.listed", "merger.concat_levels")
    assert not loaded & {f"dehvf_kit.components.{module}" for module in unnamed}
    assert not loaded & {"dehvf_kit_streams.llava", "dehvf_kit_baselines.lora", "dehvf_kit_timm.vision", "timm"}


def in_place(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, text, name)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("import nothing_of_this_name", "placed_plugin:Last", "No module named 'nothing_of_this_name'"),
        ("", "placed_plugin:Last", "has no attribute 'Last'"),
        ("", "no_such_module:Last", "No module named 'no_such_module'"),
        ("Last = 3", "placed_plugin:Last", "wants a config class"),
        (PLUGIN, "placed_plugin:GainConfig", "role 'gain' and type 'learned'"),
    ],
)
def test_a_class_that_cannot_be_imported_is_named_when_a_recipe_wants_it(text, place, reason, own_plugins, tmp_path, monkeypatch):
    in_place(tmp_path, "placed_plugin", text, monkeypatch)
    plugins().registry.register(place, role="fuser", type="last")
    assert "last" in plugins().registry.types("fuser")
    with pytest.raises(PluginError, match=reason) as caught:
        plugins().registry.find("fuser", "last")
    assert place in str(caught.value)
    with pytest.raises(RecipeError, match=reason) as refused:
        tiny_recipe(**CHANGES)
    assert "graph.fuser.type" in [fault.path for fault in refused.value.faults]
    assert ("fuser", "last") not in plugins().registry.configs
    assert reason in plugins().registry.broken["fuser 'last'"]


def test_a_class_by_its_place_is_the_class_itself(own_plugins, tmp_path, monkeypatch):
    in_place(tmp_path, "placed_plugin", PLUGIN, monkeypatch)
    registry = plugins().registry
    registry.register("placed_plugin:LastFuserConfig", role="fuser", type="last")
    registry.register("placed_plugin:GainConfig", role="gain", type="learned")
    assert "placed_plugin" not in sys.modules
    tiny_recipe(**CHANGES)
    found = registry.find("fuser", "last")
    registry.register(found)
    registry.register("placed_plugin:LastFuserConfig", role="fuser", type="last")
    assert registry.find("fuser", "last") is found is sys.modules["placed_plugin"].LastFuserConfig
    with pytest.raises(DehvfError, match=r"two classes .*fuser 'last': placed_plugin\.LastFuserConfig and other\.Last"):
        registry.register("other:Last", role="fuser", type="last")


@pytest.mark.parametrize(
    ("place", "names"),
    [("no colon", {"role": "fuser", "type": "x"}), ("a.b:C", {"role": "fuser"}), ("a.b:C", {"type": "x"}), ("a.b:C", {})],
)
def test_a_place_without_colon_role_or_type_is_refused(place, names):
    with pytest.raises(DehvfError, match="package.module:Class"):
        Registry().register(place, **names)


@pytest.mark.parametrize("code", ["import sys\nsys.exit(3)\n", "raise SystemExit('enough')\n"])
def test_a_plugin_that_exits_ends_no_command(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_plugins: None) -> None:
    (tmp_path / "quits.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("quits", "quits", "dehvf_kit")
    monkeypatch.setattr(plugin_manager, "entry_points", lambda group: [entry])
    said = "sys.exit(3)" if "sys" in code else "sys.exit('enough')"
    assert said in plugins().broken["quits"]
    with pytest.raises(DehvfError, match="--plugin .*SystemExit: it calls sys.exit"):
        load_plugin_file(tmp_path / "quits.py")


def test_a_component_that_exits_while_it_is_built_is_named(tmp_path: Path, own_plugins: None) -> None:
    file = tmp_path / "last_fuser.py"
    file.write_text(PLUGIN.replace("return LastFuser()", "raise SystemExit(7)"))
    load_plugin_file(file)
    with pytest.raises(PluginError, match=r"sys.exit\(7\)"):
        tiny_model(graph={"fuser": {"type": "last"}, "layer_query": None, "gain": {"role": "gain", "type": "learned"}})
