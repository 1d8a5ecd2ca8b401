"""A user's code, for mypy in strict mode alone: the public names have the types that the documentation says. Never run."""

from __future__ import annotations

from typing import ClassVar, Literal, assert_type

import torch
from torch import nn
from transformers import PreTrainedModel

import dehvf_kit
from dehvf_kit import BuildContext, ComponentConfig, hookimpl, testing
from dehvf_kit.api.hookspecs import Register


def build_and_save(decoder: PreTrainedModel, vision: nn.Module) -> None:
    recipe = dehvf_kit.load_recipe("mine.yaml", ["training.epochs=1"])
    assert_type(recipe, dehvf_kit.Recipe)
    assert_type(dehvf_kit.parse_recipe({"name": "mine"}), dehvf_kit.Recipe)
    model = dehvf_kit.build(recipe, decoder=decoder, vision=vision)
    assert_type(model, dehvf_kit.DehvfModel)
    assert_type(model.num_trainable_parameters(), int)
    assert_type(model.named_trainable_parameters(), dict[str, nn.Parameter])
    model.save_pretrained("runs/mine")
    assert_type(dehvf_kit.train("mine.yaml", "runs/mine", overrides=["training.epochs=1"]).steps, int)
    assert_type(dehvf_kit.evaluate("runs/mine", {"test": "other.jsonl"}).scores.headline.value, float)
    assert_type(dehvf_kit.load("runs/mine"), dehvf_kit.DehvfModel)
    model.detach()


def memory_of_my_own(decoder: nn.Module) -> list[str]:
    sites = dehvf_kit.ffn_sites(decoder)
    assert_type(sites, list[dehvf_kit.FfnSite])
    rows = [torch.zeros(1, 2, site.hidden_size) for site in sites]
    handle = dehvf_kit.attach_memory(decoder, rows, rows, output_scale=0.1)
    handle.detach()
    return [site.path for site in sites]


def faults(path: str) -> str:
    try:
        dehvf_kit.load_recipe(path)
    except dehvf_kit.RecipeError as error:
        return "; ".join(fault.message for fault in error.faults)
    except dehvf_kit.DehvfError as error:
        return str(error)
    return ""


class MyFuserConfig(ComponentConfig):
    """A component of a plugin."""

    role: ClassVar[str] = "fuser"
    type: Literal["mine"] = "mine"

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        if not context.size("group"):
            raise dehvf_kit.ConfigMismatchError("needs groups", "type")
        return {"kv": 1}

    def build(self, context: BuildContext) -> nn.Module:
        return nn.Identity()


@hookimpl
def register_components(register: Register) -> None:
    register(MyFuserConfig)


def contracts() -> None:
    assert_type(testing.tiny_decoder("llama"), nn.Module)
    assert_type(testing.check_decoder("llama"), list[testing.ItemResult])
    assert_type(testing.check_vision(lambda: testing.tiny_vision("dinov2")), list[testing.ItemResult])
