"""The decoder's positions bound training samples, prompts and answers alike; what is cut is counted and named."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from cli.commands import Command
from helpers import randomise
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForCausalLM

import dehvf_kit
from dehvf_kit.backbones.decoder import max_positions
from dehvf_kit.data.encoding import EncodedSamples
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DataError
from dehvf_kit.evaluation import answers
from dehvf_kit.evaluation.answers import answer, prompt_rows

POSITIONS = 16
LONG = "what colour is it ? " * 20


@pytest.fixture(scope="module")
def place(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a GPT-2 of 16 positions, whose table ends there, and a recipe with two long questions."""
    folder = tmp_path_factory.mktemp("positions")
    torch.manual_seed(0)
    config = GPT2Config(n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4, vocab_size=12, eos_token_id=1, bos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(folder / "decoder")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(world / "decoder" / file, folder / "decoder")
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()[:6]]
    for row in rows:
        row["image"] = str(world / row["image"])
    rows[2]["question"], rows[4]["question"] = LONG, "what " * 100_000
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "gpt2.yaml").write_text(
        f"extends: {world}/tiny.yaml\ndecoder: {{model: {folder}/decoder}}\n"
        f"data: {{train: {folder}/rows.jsonl, test: {folder}/rows.jsonl}}\n"
    )
    return folder


def test_the_limit_is_read_from_the_config() -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 12}
    roberta = RobertaForCausalLM(RobertaConfig(**small, max_position_embeddings=20, pad_token_id=1, is_decoder=True))
    assert max_positions(roberta) == 18
    ids = torch.full((1, 18), 5)
    roberta(input_ids=ids)
    with pytest.raises((IndexError, RuntimeError)):
        roberta(input_ids=torch.full((1, 19), 5))


@pytest.mark.nightly
def test_check_train_eval_and_generate_agree(
    place: Path, tmp_path: Path, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = place / "gpt2.yaml"
    checked = command("check", recipe)
    assert checked.code == 0 and f"positions for {POSITIONS} tokens" in checked.err
    assert json.loads(command("check", recipe, "--json").out)["max_length"] == POSITIONS
    with caplog.at_level(logging.WARNING):
        trained = command("train", recipe, "training.max_steps=2", "--output", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert "2 of 6 prompts are longer than 16 tokens with their answers and lose their beginning: train2, train4" in caplog.text
    adapter = tmp_path / "run/adapter"
    scored = command("eval", adapter, "--output", tmp_path / "out.jsonl", "--json")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["cut"] == ["train2", "train4"]
    rows = {row["id"]: row["cut"] for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    assert rows["train2"] == 100 - (POSITIONS - 3) and rows["train4"] == 100_000 - (POSITIONS - 3) and rows["train0"] == 0
    assert "lost their beginning: 2 (train2, train4)" in command("eval", adapter).out
    image = json.loads((place / "rows.jsonl").read_text().splitlines()[0])["image"]
    said = command("generate", image, LONG, "--adapter", adapter)
    assert said.code == 0 and "lost 87 tokens" in said.err
    assert command("generate", image, "what ?", "--adapter", adapter, "--max-new-tokens", 14).code == 0
    refused = command("generate", image, "what ?", "--adapter", adapter, "--max-new-tokens", 16)
    assert refused.code == 1 and "leaves no room for a question" in refused.err
    assert command("verify", adapter, "--questions", 6, "--new-tokens", 4).code == 0
    refused = command("check", recipe, "generation.max_new_tokens=16")
    assert refused.code == 1 and "generation.max_new_tokens" in refused.err


def test_a_prompt_is_cut_as_in_training_and_costs_its_own_row_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dehvf_kit.build(dehvf_kit.load_recipe(place / "gpt2.yaml", ["training.max_length=12"]))
    randomise(model.nodes)
    samples = model.recipe.data.samples("test")
    alone = answer(model, [samples[0]])
    shapes, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **given: (shapes.append(tuple(given["input_ids"].shape)), generate(**given))[1])
    together = answer(model, samples)
    assert shapes == [(6, 12)] and together[0] == alone[0]
    (row,) = prompt_rows(model.processor, [samples[4]], 9)
    trained = EncodedSamples([samples[4]], model.processor, model.recipe.data.prompt, 9 + 2, images=False)
    assert trained.cut == [samples[4].id] and trained.tokens[0][0][:9] == row.tokens and row.cut == 100_000 - 9
    started = Sample("s", LONG, "it is", answer_start="it")
    (row,) = prompt_rows(model.processor, [started], 9)
    assert len(row.tokens) == 9 and row.tokens[-1:] == row.start


def test_a_prompt_without_a_token_is_named(place: Path) -> None:
    model = dehvf_kit.build(dehvf_kit.load_recipe(place / "gpt2.yaml"))
    empty = Sample("none", " ", "red")
    with pytest.raises(DataError, match="sample 'none': its prompt has no token"):
        answers.answer(model, [empty])
    with pytest.raises(DataError, match="sample 'none': its question is empty"):
        EncodedSamples([empty], model.processor, model.recipe.data.prompt, 12, images=False)
