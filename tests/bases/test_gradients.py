"""No public call leaves a 4-bit base in a state that changes later gradients, where bitsandbytes would repack its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import randomise, tiny_decoder
from training.conftest import tokenizer, world  # noqa: F401 - fixtures

import dehvf_kit
from dehvf_kit.costs.flops import batch_flops
from dehvf_kit.data.encoding import Collator, EncodedSamples
from dehvf_kit.errors import DehvfError
from dehvf_kit.model.features import encode_images
from dehvf_kit.training.callbacks import first_non_finite

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def model(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: F811
    folder = tmp_path_factory.mktemp("wide") / "decoder"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 12, "initializer_range": 0.2}
    tiny_decoder(**sizes, eos_token_id=1, pad_token_id=0).save_pretrained(folder)
    for file in (world / "decoder").glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    changes = [f"decoder.model={folder}", "decoder.quantization=int4", "graph.injector.dropout=0"]
    model = dehvf_kit.build(dehvf_kit.load_recipe(world / "tiny.yaml", changes))
    randomise(model.nodes)
    return model


def encoded(model: Any) -> EncodedSamples:
    return EncodedSamples(samples(model), model.processor, model.recipe.data.prompt, 32)


def batch(model: Any) -> dict[str, Any]:
    given = encoded(model)
    return Collator(model.processor.tokenizer.pad_token_id)([given[place] for place in range(4)])


def samples(model: Any) -> Any:
    return model.recipe.data.samples("train")[:4]


def gradients(model: Any) -> list[torch.Tensor]:
    model.train()
    model.zero_grad(set_to_none=True)
    model(**batch(model)).loss.backward()
    model.eval()
    return [parameter.grad.clone() for parameter in model.trainable_parameters()]


def of_plugin(function: str, *arguments: Any) -> Any:
    module, _, name = function.rpartition(".")
    return getattr(pytest.importorskip(module), name)(*arguments)


def without_memory(model: Any) -> None:
    with model.hooks_disabled(), torch.no_grad():
        model.decoder(input_ids=batch(model)["input_ids"])


def detach_and_attach(model: Any) -> None:
    """Another memory beside the model's, and away again."""
    keys = [torch.zeros(1, 2, 64)] * model.decoder.config.num_hidden_layers
    dehvf_kit.attach_memory(model.decoder, keys, keys, stack=True).detach()


def with_encoder(model: Any) -> tuple[Any, Any]:
    """Samples, and what computes their features."""
    return samples(model), of_plugin(f"{REPORT}.fuser_weights.EncodedImages", model)


def images(model: Any) -> list[Any]:
    return [samples(model)[0].image]


def refused_export(model: Any, folder: Path) -> None:
    with pytest.raises(DehvfError, match="cannot be exported"):
        of_plugin("dehvf_kit_export.files.write", model, folder, "pt2")


REPORT = "dehvf_kit_report"
CALLS: dict[str, Callable[[Any, Path], Any]] = {
    "hooks_disabled": lambda model, folder: without_memory(model),
    "forward": lambda model, folder: torch.no_grad()(model)(**batch(model)),
    "generate": lambda model, folder: model.generate(batch(model)["input_ids"], pixel_values=batch(model)["pixel_values"]),
    "evaluate": lambda model, folder: dehvf_kit.evaluate(model, limit=3),
    "verify": lambda model, folder: of_plugin("dehvf_kit_doctor.parity.batch_parity", model, samples(model), 2, 3),
    "look for values that are not finite": lambda model, folder: first_non_finite(model, batch(model), lambda one: model(**one)),
    "vision_features": lambda model, folder: encode_images(model, samples(model)),
    "save_pretrained": lambda model, folder: model.save_pretrained(folder / "adapter"),
    "memory map": lambda model, folder: of_plugin("dehvf_kit_report.memory_maps.memory_map", model, samples(model)[0]),
    "memory": lambda model, folder: torch.no_grad()(model.memory)(4, batch(model)["pixel_values"]),
    "fuser weights": lambda model, folder: of_plugin(f"{REPORT}.fuser_weights.read_layers", model, *with_encoder(model)),
    "worth of the fuser's weights": lambda model, folder: of_plugin(f"{REPORT}.weight_worth.weight_worth", model, samples(model)),
    "probe": lambda model, folder: of_plugin("dehvf_kit_probe.probe.probe", model.recipe, "vision"),
    "FLOPs of a batch": lambda model, folder: batch_flops(model, encoded(model), 4),
    "chat": lambda model, folder: list(of_plugin("dehvf_kit_chat.answering.Answerer", model, "it").answer("what ?", images(model))),
    "export": lambda model, folder: refused_export(model, folder),
    "attach_memory": lambda model, folder: detach_and_attach(model),
}


@pytest.mark.parametrize("call", CALLS)
def test_gradients_are_the_same_before_and_after(model: Any, tmp_path: Path, call: str) -> None:
    before = gradients(model)
    assert max(one.abs().max() for one in before) > 0
    CALLS[call](model, tmp_path)
    assert not [module for module in model.decoder.modules() if getattr(module, "support_avx512bf16_for_cpu", False)]
    for one, other in zip(before, gradients(model), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
