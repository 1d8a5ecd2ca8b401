"""How far gradients in float16 are from float32's, with and without loss scaling, on the demo's models and questions.

    python benchmarks/float16_gradients.py                       # 32 and 2,000 answer tokens a batch
    python benchmarks/float16_gradients.py --answer-tokens 32 --trained ADAPTER

The loss is the mean over a batch's answer tokens, so the gradient of each shrinks as the batch grows, while float16 holds nothing
below 6e-8. Large batches are computed in parts of 16 questions, each part's loss divided by the tokens of the whole. With scaling
the loss is multiplied by 65,536, or by half of it as often as gradients overflow, and the gradients are divided by it in float32.
Features are computed once in float32. Needs the demo's wheels (`make demo` installs them).
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from compare_timing import machine
from torch import Tensor

import dehvf_kit
from dehvf_kit.data.encoding import IGNORED, Collator, EncodedSamples
from dehvf_kit.model.feature_files import FeatureFiles

RECIPE = Path(__file__).parents[1] / "recipes" / "smollm2_dinov2_easyvqa.yaml"
SCALE = 65536.0
"""Where torch's GradScaler begins."""
ROWS = 16
Gradients = dict[str, Tensor]
Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Way:
    """How a step is computed: the dtype of the decoder's weights, of autocast (None: without), and whether the loss is scaled."""

    weights: str
    autocast: torch.dtype | None = None
    scaled: bool = False


WAYS = {
    "precision float32 on float16 weights": Way("float16"),
    "the same, loss scaled": Way("float16", scaled=True),
    "float16 autocast without scaling": Way("float16", torch.float16),
    "precision float16": Way("float16", torch.float16, scaled=True),
    "precision float16 on float32 weights": Way("float32", torch.float16, scaled=True),
    "precision bfloat16 on bfloat16 weights": Way("bfloat16", torch.bfloat16),
}


def answer_tokens(batch: Mapping[str, Tensor]) -> int:
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def encoded_batches(model: dehvf_kit.DehvfModel, recipe: dehvf_kit.Recipe, wanted: int) -> list[dict[str, Tensor]]:
    """Shuffled questions in batches of 16, as many as hold `wanted` answer tokens, with features from the float32 encoder."""
    samples = recipe.data.samples("train")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()[:wanted]
    chosen = [samples[number] for number in order]  # each has an answer token at least
    plain = EncodedSamples(chosen, model.processor, recipe.data.prompt, recipe.training.max_length, images=False)
    count = needed = 0
    while count < wanted and needed < len(chosen):
        count += sum(label != IGNORED for label in plain.tokens[needed][1][1:])
        needed += 1
    with tempfile.TemporaryDirectory() as cache:
        store = FeatureFiles(model, folder=Path(cache))
        store.fill(chosen[:needed])
        encoded = EncodedSamples(chosen[:needed], model.processor, recipe.data.prompt, recipe.training.max_length, True, store)
        collate = Collator(model.processor.tokenizer.pad_token_id)
        items = [encoded[number] for number in range(needed)]
    return [collate(items[start : start + ROWS]) for start in range(0, needed, ROWS)]


def gradients(model: dehvf_kit.DehvfModel, batches: Batches, way: Way) -> tuple[Gradients, float]:
    """The gradients of the mean loss over all answer tokens, and the scale that they were computed under."""
    whole, scale = sum(map(answer_tokens, batches)), SCALE if way.scaled else 1.0
    while True:
        found: Gradients = {name: torch.zeros_like(one) for name, one in model.named_trainable_parameters().items()}
        for batch in batches:
            model.zero_grad(set_to_none=True)
            with contextlib.nullcontext() if way.autocast is None else torch.autocast("cpu", way.autocast):
                loss = model(**batch, use_cache=False).loss
            (loss.float() * (answer_tokens(batch) / whole) * scale).backward()
            for name, parameter in model.named_trainable_parameters().items():
                found[name] += parameter.grad / scale
            if scale > 1 and not all(one.isfinite().all() for one in found.values()):
                scale /= 2
                break
        else:
            return found, scale


def error(found: Gradients, expected: Gradients) -> float:
    """Of all gradients together: the norm of the difference over float32's norm."""
    return (_flat(found) - _flat(expected)).norm().item() / _flat(expected).norm().item()


def by_node(found: Gradients, expected: Gradients) -> dict[str, float]:
    """The same for each node of the graph alone."""
    nodes = dict.fromkeys(name.partition(".")[0] for name in expected)
    return {
        node: error(*({name: one for name, one in both.items() if name.startswith(f"{node}.")} for both in (found, expected)))
        for node in nodes
    }


def _flat(all_of_them: Gradients) -> Tensor:
    return torch.cat([all_of_them[name].double().flatten() for name in sorted(all_of_them)])


def _numbered() -> str:
    return "; ".join(f"{number} {name}" for number, name in enumerate(WAYS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="fields of the recipe to change")
    parser.add_argument("--recipe", default=RECIPE, type=Path)
    parser.add_argument("--answer-tokens", nargs="+", type=int, default=[32, 2000], metavar="N", help="of each batch")
    parser.add_argument("--ways", nargs="+", type=int, default=range(len(WAYS)), metavar="N", help=f"by number: {_numbered()}")
    parser.add_argument("--trained", metavar="ADAPTER", help="an adapter of the recipe, in place of initial weights")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(machine("cpu"))
    models: dict[str, dehvf_kit.DehvfModel] = {}
    ways = {name: way for number, (name, way) in enumerate(WAYS.items()) if number in arguments.ways}
    for dtype in ("float32", *dict.fromkeys(way.weights for way in ways.values())):
        recipe = dehvf_kit.load_recipe(arguments.recipe, overrides=[f"decoder.dtype={dtype}", *arguments.overrides])
        models.setdefault(dtype, dehvf_kit.build(recipe).train())
        models[dtype].nodes.load_state_dict(models["float32"].nodes.state_dict())
    if arguments.trained:
        weights = dehvf_kit.load(arguments.trained).nodes.state_dict()
        for model in models.values():
            model.nodes.load_state_dict(weights)
    for wanted in arguments.answer_tokens:
        batches = encoded_batches(models["float32"], recipe, wanted)
        expected, _ = gradients(models["float32"], batches, Way("float32"))
        print(f"\n{sum(map(answer_tokens, batches)):,} answer tokens, {sum(len(batch['labels']) for batch in batches):,} questions")
        for name, way in ways.items():
            found, scale = gradients(models[way.weights], batches, way)
            nodes = ", ".join(f"{node} {one:.2%}" for node, one in by_node(found, expected).items())
            print(f"{name}: {error(found, expected):.2%} (scale {scale:,.0f}; {nodes})", flush=True)


if __name__ == "__main__":
    main()
