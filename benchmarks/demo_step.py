"""A training step of the embedded default with its features cached, against the text-only step of the same decoder.

    python benchmarks/demo_step.py                              # 2 threads, float32: the recipe as it stands
    python benchmarks/demo_step.py graph.projector.bottleneck_size=64

Both take the same batches of real easy-VQA questions and lose on the answers alone. Text only is the frozen decoder with
a gradient at its embeddings. Neither has an optimiser. Needs the demo's wheels (`make demo` installs them).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from compare_timing import Case, interleave, keep_freed_memory, machine, quartiles, ratio
from torch import Tensor

import dehvf_kit
from dehvf_kit.data.encoding import Collator, EncodedSamples
from dehvf_kit.model.feature_files import FeatureFiles
from dehvf_kit.model.loss import answer_loss

RECIPE = Path(__file__).parents[1] / "recipes" / "smollm2_dinov2_easyvqa.yaml"
QUESTIONS = 128


def batches(model: dehvf_kit.DehvfModel, recipe: dehvf_kit.Recipe, cache: Path) -> list[dict[str, Tensor]]:
    """Batches as the recipe's training makes them, of like lengths or shuffled, with features read from a filled cache."""
    samples = recipe.data.samples("train")[:QUESTIONS]
    store = FeatureFiles(model, folder=cache)
    store.fill(samples)
    encoded = EncodedSamples(samples, model.processor, recipe.data.prompt, recipe.training.max_length, True, store)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    if recipe.training.group_by_length:
        order.sort(key=lambda number: len(encoded.tokens[number][0]))
    collate, size = Collator(model.processor.tokenizer.pad_token_id), recipe.training.batch_size
    return [collate([encoded[number] for number in order[start : start + size]]) for start in range(0, len(order), size)]


def dehvf_step(model: dehvf_kit.DehvfModel, batch: dict[str, Tensor]) -> Callable[[], None]:
    return lambda: model(**batch).loss.backward()


def text_step(model: dehvf_kit.DehvfModel, batch: dict[str, Tensor]) -> Callable[[], None]:
    decoder, given = model.decoder, {name: batch[name] for name in ("attention_mask", "labels", "logits_to_keep")}

    def run() -> None:
        text = decoder.get_input_embeddings()(batch["input_ids"]).requires_grad_()
        answer_loss(decoder, {**given, "inputs_embeds": text, "use_cache": False}).loss.backward()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="fields of the recipe to change")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5, help="of every batch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kept = keep_freed_memory()
    recipe = dehvf_kit.load_recipe(RECIPE, overrides=[f"data.train_questions={QUESTIONS}", *arguments.overrides])
    model = dehvf_kit.build(recipe)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def reset() -> None:
        for parameter in trained:
            parameter.grad = None

    with tempfile.TemporaryDirectory() as cache:
        given = batches(model, recipe, Path(cache))
    seconds: dict[str, list[float]] = {"text": [], "dehvf": []}
    for batch in given:
        cases = {"text": Case(text_step(model, batch), reset), "dehvf": Case(dehvf_step(model, batch), reset)}
        for name, taken in interleave(cases, arguments.repetitions, warm_up=1).items():
            seconds[name] += taken
    shapes = ", ".join(f"{rows}x{tokens}" for rows, tokens in (batch["input_ids"].shape for batch in given))
    print(f"batches: {shapes}; malloc keeps freed memory: {kept}; {machine('cpu')}")
    for name, taken in seconds.items():
        low, median, high = quartiles(taken)
        print(f"{name:6} {1000 * median:5.0f} ms ({1000 * low:.0f} to {1000 * high:.0f})")
    print(f"dehvf / text {ratio(seconds['dehvf'], seconds['text'])}, {len(seconds['text'])} repetitions")


if __name__ == "__main__":
    main()
