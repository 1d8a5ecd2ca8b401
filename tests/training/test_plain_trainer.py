"""transformers' own Trainer on a DehvfModel: to it the model is a causal language model in everything it sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import pixels, randomise, tiny_decoder, tiny_model, tokens, worst
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

import dehvf_kit
from dehvf_kit.data.encoding import Collator, EncodedSamples
from dehvf_kit.errors import DehvfError
from dehvf_kit.testing.tiny_models import tiny_decoder as tiny_family
from dehvf_kit.training.run import train
from dehvf_kit.training.trainer import training_arguments

pytestmark = pytest.mark.usefixtures("builtins_alone")
EPSILON = 0.3


class WithoutPositions(Collator):
    """Batches as other libraries make them: labels for every column, and nothing about which logits are needed."""

    def __call__(self, items: Any) -> dict[str, Any]:
        batch = super().__call__(items)
        del batch["logits_to_keep"]
        return batch


def plain_trainer(recipe: Any, folder: Path, collator: type[Collator] = WithoutPositions, **settings: Any) -> Trainer:
    """The plain Trainer, on the model and the samples that `train` would make of a recipe."""
    model = dehvf_kit.build(recipe)
    samples = EncodedSamples(recipe.data.samples("train"), model.processor, recipe.data.prompt, 32)
    args = training_arguments(recipe.training, folder, len(samples))
    for name, value in settings.items():
        setattr(args, name, value)
    set_seed(recipe.training.seed)
    model.train()
    collate = collator(model.processor.tokenizer.pad_token_id)
    return Trainer(model, args, train_dataset=samples, eval_dataset=samples, data_collator=collate)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_trainable_parameters().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> bool:
    return one.keys() == other.keys() and all(worst(tensor, other[name]) <= tolerance for name, tensor in one.items())


NIGHTLY = [pytest.param(*case, marks=pytest.mark.nightly) for case in ((Collator, 3), (WithoutPositions, 1))]


@pytest.mark.parametrize(("collator", "accumulated"), [(WithoutPositions, 3), *NIGHTLY])
def test_it_trains_to_the_weights_that_the_kits_trainer_does(
    world: Path, tmp_path: Path, collator: type[Collator], accumulated: int
) -> None:
    """Worst seen: 3e-7, where losses are added up in another order; a step moves weights by some 1e-2."""
    settings = [
        "training.weight_decay=0",
        "training.epochs=1",
        "training.warmup_epochs=0",
        f"training.gradient_accumulation={accumulated}",
    ]
    settings += ["training.batch_size=2", "graph.injector.dropout=0", "training.save_steps=100"]
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", settings)
    result = train(recipe, tmp_path / "kit")
    trainer = plain_trainer(recipe, tmp_path / "plain", collator)
    before = weights(trainer.model)
    trainer.train()
    found = weights(trainer.model)
    assert same(found, weights(dehvf_kit.load(result.adapter)), 1e-5) and not same(found, before, 1e-3)
    logged = [[row["loss"] for row in log if "loss" in row] for log in (result.log, trainer.state.log_history)]
    assert logged[0] == pytest.approx(logged[1], abs=1e-4)


class Heedless(LlamaForCausalLM):
    """As 15 families of transformers: takes `num_items_in_batch`, and returns the mean all the same."""

    def forward(self, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("family", [LlamaForCausalLM, Heedless])
def test_the_loss_of_an_accumulated_step_is_the_mean_over_its_labels(family: type[LlamaForCausalLM]) -> None:
    decoder = tiny_decoder()
    decoder.__class__ = family
    model, ids = tiny_model(decoder).train(), tokens(4)
    labels = ids.clone()
    labels[0, :5] = labels[1] = -100  # a row, and with it a batch, without anything to learn
    whole = model(input_ids=ids, labels=labels).loss
    items = (labels[:, 1:] != -100).sum()
    parts = [model(input_ids=ids[r : r + 1], labels=labels[r : r + 1], num_items_in_batch=items).loss for r in range(4)]
    assert parts[1] == 0 and sum(parts).item() == pytest.approx(whole.item(), abs=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["bart", "gemma3n_text", "xlm"])
def test_families_whose_own_loss_is_another(name: str) -> None:
    """Bart's and XLM's forward take it at the token a position stands at, and all ignore `num_items_in_batch`."""
    model = tiny_model(tiny_family(name)).train()
    ids = tokens(4, length=6) % 90 + 3
    labels = ids.clone()
    labels[0, :5] = labels[1] = -100
    items = (labels[:, 1:] != -100).sum()
    whole = model(input_ids=ids, labels=labels).loss
    parts = [model(input_ids=ids[r : r + 1], labels=labels[r : r + 1], num_items_in_batch=items).loss for r in range(4)]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-5)
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    assert whole.item() == pytest.approx(F.cross_entropy(logits, labels[:, 1:].flatten()).item(), abs=1e-5)


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    return TrainingArguments(str(folder), use_cpu=True, report_to=[], disable_tqdm=True, **settings)


@pytest.mark.parametrize("positions", [False, True])
def test_label_smoothing_looks_at_the_next_token(tmp_path: Path, positions: bool) -> None:
    model, ids = tiny_model().train(), tokens()
    batch = {"input_ids": ids, "pixel_values": pixels(), "labels": ids}
    scores = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1].flatten(0, 1)
    wanted = (1 - EPSILON) * F.cross_entropy(scores, ids[:, 1:].flatten()) - EPSILON * scores.log_softmax(-1).mean()
    extra = {"logits_to_keep": torch.tensor([3, 4])} if positions else {}
    trainer = Trainer(model, arguments(tmp_path, label_smoothing_factor=EPSILON))
    items = torch.tensor(ids[:, 1:].numel())
    for given in (None, items):
        assert trainer.compute_loss(model, {**batch, **extra}, num_items_in_batch=given).item() == pytest.approx(
            wanted.item(), abs=1e-5
        )


def test_neftune_adds_noise_in_training_alone(tmp_path: Path) -> None:
    model, ids = tiny_model(), tokens()
    given = {"input_ids": ids, "labels": ids}
    plain = model(**given).loss.item()
    noise = Trainer(model, arguments(tmp_path, neftune_noise_alpha=5.0, max_steps=1))
    seen: list[float] = []

    def step(model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        loss = model(**given).loss
        model.eval()
        seen.extend([loss.item(), model(**given).loss.item()])
        return loss

    noise.training_step = step
    noise.train_dataset = [{"input_ids": ids[0]}]
    noise.train()
    assert abs(seen[0] - plain) > 1e-4 and seen[1] == plain
    assert model.train()(**given).loss.item() == pytest.approx(plain, abs=1e-6), "and is gone afterwards"


@pytest.mark.nightly
def test_it_resumes_and_loads_the_best_checkpoint(world: Path, tmp_path: Path) -> None:
    changes = [
        "training.epochs=1",
        "training.warmup_epochs=0",
        "training.batch_size=4",
        "graph.injector.dropout=0",
        "training.save_steps=2",
    ]
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", changes)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    whole = plain_trainer(recipe, tmp_path, eval_strategy="steps", eval_steps=2, **best)
    whole.train()
    ends = weights(whole.model)
    chosen = Path(whole.state.best_model_checkpoint)
    assert same(weights(dehvf_kit.load(chosen)), ends, 0)
    resumed = plain_trainer(recipe, tmp_path)
    randomise(resumed.model.nodes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(weights(resumed.model), weights(dehvf_kit.load(tmp_path / "checkpoint-6")), 1e-6)
    assert resumed.state.global_step == 6


@pytest.mark.nightly
def test_trl_is_refused_by_name_when_its_trainer_is_made(tmp_path: Path) -> None:
    """Its loss is taken from hidden states and the output map, past the model's forward."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(99)}, unk_token="w2"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
    rows = datasets.Dataset.from_dict({"input_ids": tokens().tolist()})
    settings = trl.SFTConfig(str(tmp_path), use_cpu=True, report_to=[], max_steps=1)
    model = tiny_model()
    with pytest.raises(DehvfError, match=r"trl.*past the model's forward.*transformers' Trainer"):
        trl.SFTTrainer(model, settings, train_dataset=rows, processing_class=tokenizer)
    assert model(input_ids=tokens()).logits.shape == (3, 7, 99), "as usable as before"


@pytest.mark.parametrize("call", ["get_peft_model", "add_adapter"])
def test_peft_around_the_model_is_refused_by_name(call: str) -> None:
    """It would train its own weights alone, and save them alone; the component `peft` tunes the decoder beside the memory."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model, settings = tiny_model(), peft.LoraConfig(target_modules=["q_proj"])
    with pytest.raises(DehvfError, match="freezes what this model trains.*type: peft"):
        peft.get_peft_model(model, settings) if call == "get_peft_model" else model.add_adapter(settings)
