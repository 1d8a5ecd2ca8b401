"""A tiny world on disk: a decoder with a word-level tokenizer, an encoder, coloured pictures and questions about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import VIT, tiny_decoder, tiny_vision
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (30, 60, 220), "white": (245, 245, 245)}
WORDS = ["<pad>", "<eos>", "<unk>", "what", "colour", "is", "it", "?", *COLOURS]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with `decoder`, `vision`, `train.jsonl`, `test.jsonl` and the recipe `tiny.yaml`."""
    folder = tmp_path_factory.mktemp("world")
    tiny_decoder(vocab_size=len(WORDS), initializer_range=0.3, eos_token_id=1, pad_token_id=0).save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    tiny_vision("clip").save_pretrained(folder / "vision")
    for split, count in (("train", 24), ("test", 8)):
        rows = []
        for number in range(count):
            name = list(COLOURS)[number % len(COLOURS)]
            picture = folder / f"{split}{number}.png"
            Image.new("RGB", (32, 32), COLOURS[name]).save(picture)
            rows.append(
                {
                    "id": f"{split}{number}",
                    "image": picture.name,
                    "question": "what colour is it ?",
                    "answer": name,
                    "kind": "colour",
                }
            )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.yaml").write_text(f"""
name: tiny
vision: {{model: {folder}/vision, image: {{size: {VIT["image_size"]}}}}}
decoder: {{model: {folder}/decoder}}
graph:
  grouper: {{type: contiguous, num_groups: 2}}
  layer_query: {{type: embedding_mlp, query_size: 8}}
  projector: {{type: bottleneck_mlp, bottleneck_size: 8}}
  fuser: {{type: cross_attention, hidden_size: 8, num_blocks: 1, num_heads: 2}}
  position: {{type: learned, num_slots: 16}}
  injector: {{type: ffn_memory, visual_scale: 1.0, output_scale: 1.0}}
training: {{epochs: 4, warmup_epochs: 1, batch_size: 4, base_learning_rate: 0.2, save_steps: 6, logging_steps: 1}}
data:
  type: jsonl
  train: {folder}/train.jsonl
  test: {folder}/test.jsonl
  prompt: {{question: "{{question}}", answer: "{{answer}}"}}
generation: {{max_new_tokens: 3}}
""")
    return folder
