"""`training.compile`: the decoder's layers compiled with the memory in them.

The backends `eager` and `aot_eager` show what is traced; only the test marked so generates code.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from helpers import pixels, tiny_decoder, tiny_model, tokens, worst
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

import dehvf_kit
from dehvf_kit.backbones import attached
from dehvf_kit.data.encoding import Collator
from dehvf_kit.errors import DehvfError, RecipeError
from dehvf_kit.training.run import train

pytestmark = pytest.mark.usefixtures("builtins_alone")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"head_dim": 8, "vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced without generating code; a graph break is an error."""
    settings = {"dynamic": False, "isolate_recompiles": True, "backend": "aot_eager", "fullgraph": True}
    monkeypatch.setattr(attached, "SETTINGS", settings)


def small(kind: str = "llama") -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL)).eval()


def built(decoder: nn.Module, compile: bool = True, **graph: Any) -> Any:
    return tiny_model(decoder, graph={"vision_adapter": None, **graph}, training={"compile": compile, "warmup_epochs": 0})


def pair(kind: str = "llama") -> tuple[Any, Any]:
    """The same model compiled and not, in training mode."""
    found = tuple(built(small(kind), compile) for compile in (True, False))
    for model in found:
        model.train()
    return found


def step(model: Any, seed: int = 0, rows: int = 2) -> tuple[Tensor, list[Tensor]]:
    """Logits and the gradient of every trained weight."""
    model.zero_grad()
    ids = tokens(rows, 8, seed=seed)
    output = model(input_ids=ids, pixel_values=pixels(rows, seed=seed), labels=ids, attention_mask=torch.ones_like(ids))
    output.loss.backward()
    return output.logits.detach(), [weight.grad.clone() for weight in model.trainable_parameters()]


def same(one: Any, other: Any, **given: Any) -> float:
    """The worst difference of a step's logits and gradients."""
    (logits, gradients), (wanted, expected) = step(one, **given), step(other, **given)
    return max(worst(logits, wanted), *map(worst, gradients, expected))


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_every_layer_is_one_graph_and_detach_gives_the_decoder_back(traced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attached.SETTINGS, "backend", "eager")
    model, plain = pair()
    assert same(model, plain) < 1e-5
    assert graphs() == 2 and not counters["graph_break"]
    assert same(model, plain, seed=1) < 1e-5 and graphs() == 2, "other images and weights run the same code"
    decoder = model.decoder
    model.detach()
    assert all(layer._compiled_call_impl is None for layer in decoder.model.layers)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mistral"])
def test_no_graph_break(kind: str, traced: None) -> None:
    """Worst seen: 3e-8."""
    model, plain = pair(kind)
    assert same(model, plain) < 1e-5
    assert graphs() == 2 and not counters["graph_break"]


@pytest.mark.nightly
def test_generated_code_gives_the_eager_step_also_with_dropout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Worst seen: 4e-9."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, plain = (built(small(), compile, injector={"dropout": 0.5}) for compile in (True, False))
    steps = []
    for one in (model, plain):
        one.train()
        torch.manual_seed(5)
        steps.append(step(one))
    assert graphs() == 2 and worst(steps[0][0], steps[1][0]) < 1e-5
    assert max(map(worst, steps[0][1], steps[1][1])) < 1e-5


@pytest.mark.nightly
def test_a_run_ends_in_the_weights_of_the_eager_run(world: Path, tmp_path: Path, traced: None) -> None:
    """Worst seen: 1e-7; a step moves weights by some 1e-2."""
    weights = []
    for number, chosen in enumerate(("true", "false")):
        settings = [f"training.compile={chosen}", "training.epochs=2", "graph.injector.dropout=0"]
        result = train(dehvf_kit.load_recipe(world / "tiny.yaml", settings), tmp_path / str(number))
        weights.append(list(dehvf_kit.load(result.adapter).trainable_parameters()))
    assert graphs() > 0
    assert max(map(worst, *weights)) < 1e-5


@pytest.mark.nightly
def test_a_second_adapter_a_copy_and_disabled_hooks(traced: None) -> None:
    decoder = small()
    first = built(decoder)
    first.train()
    step(first)
    first.detach()
    second, plain = built(decoder, position={"num_slots": 24}), built(small(), False, position={"num_slots": 24})
    for model in (second, plain):
        model.train()
    assert same(second, plain) < 1e-5
    with second.hooks_disabled():
        assert all(layer._compiled_call_impl is None for layer in decoder.model.layers)
    assert same(second, plain) < 1e-5
    assert same(copy.deepcopy(second), plain) < 1e-5


@pytest.mark.nightly
def test_other_passes_run_as_written(traced: None) -> None:
    """Logits at attach, evaluation and hooks placed meanwhile."""
    model, plain = pair()
    step(model)
    model.eval(), plain.eval()
    seen: list[Any] = []
    model.decoder.model.layers[1].mlp.register_forward_hook(lambda *given: seen.append(given))
    ids, before = tokens(2), graphs()
    with torch.no_grad():
        given = {"input_ids": ids, "pixel_values": pixels(2)}
        assert torch.equal(model(**given).logits, plain(**given).logits)
    assert seen and graphs() == before


@pytest.mark.nightly
def test_without_a_compiler_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    model, plain = pair()
    with caplog.at_level(logging.WARNING):
        assert same(model, plain) == 0
    assert caplog.text.count("training.compile") == 1 and "run as they were written" in caplog.text


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_generate_gives_the_same_tokens(kind: str, traced: None) -> None:
    """The pass of a single token is one graph, two where a sliding window counts its tokens; another prompt runs the same code."""
    models = [built(small(kind), compile) for compile in (True, False)]
    for seed, length in ((0, 9), (1, 10)):
        given = {"input_ids": tokens(2, length, seed=seed), "pixel_values": pixels(2, seed=seed)}
        given |= {"attention_mask": torch.ones(2, length, dtype=torch.long), "max_new_tokens": 5, "do_sample": False}
        found, wanted = (model.generate(**given) for model in models)
        assert torch.equal(found, wanted) and graphs() == (2 if kind == "gemma2" else 1) and not counters["graph_break"]


def quantised() -> nn.Module:
    decoder = small()
    decoder.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.ones(48, 32, dtype=torch.int8), requires_grad=False)
    return decoder


@pytest.mark.nightly
@pytest.mark.parametrize(("held", "why"), [(quantised, "quantised"), (lambda: cpu_offload(small()), "accelerate")])
def test_bases_that_are_not_compiled_are_named(held: Any, why: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = built(held())
    assert model.compiled is None and "training.compile" in caplog.text and why in caplog.text


def test_gradient_checkpointing_is_refused() -> None:
    with pytest.raises(RecipeError, match="compile cannot be combined with gradient_checkpointing"):
        dehvf_kit.parse_recipe({"name": "x", "training": {"compile": True, "gradient_checkpointing": True}})
    with pytest.raises(DehvfError, match="set one to false"):
        built(tiny_decoder()).gradient_checkpointing_enable()


@pytest.mark.parametrize(("length", "longest", "wanted"), [(8, 64, 8), (9, 64, 10), (17, 64, 20), (65, 70, 70), (33, 512, 40)])
def test_batches_are_padded_to_one_of_few_lengths(length: int, longest: int, wanted: int) -> None:
    batch = Collator(0, longest)([{"input_ids": [5] * length, "labels": [5] * length}, {"input_ids": [6], "labels": [6]}])
    assert batch["input_ids"].shape == (2, wanted)
    assert batch["attention_mask"].sum() == length + 1
    assert batch["logits_to_keep"].tolist() == [list(range(length - 1)), [-1] * (length - 1)]
