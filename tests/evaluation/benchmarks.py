"""Tiny base models whose tokenizer knows the words of small benchmarks, and recipes on them."""

from __future__ import annotations

from pathlib import Path

from helpers import VIT, tiny_decoder, tiny_vision
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEXT = """<pad> <eos> <unk> Question : What colour is it ? Context N / A Look closely . Options ( ) B C red green blue
Response The answer Instruction Generate caption of this image a square the picture one that \\ n BECAUSE Light has colours It"""


def towers(folder: Path) -> Path:
    """`decoder` with a tokenizer of whole words, and `vision`."""
    names = dict.fromkeys(TEXT.split())
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    decoder = tiny_decoder(
        vocab_size=len(names), initializer_range=0.3, eos_token_id=1, pad_token_id=0, max_position_embeddings=256
    )
    decoder.save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    tiny_vision("clip").save_pretrained(folder / "vision")
    return folder


def recipe(folder: Path, data: str, steps: int = 2) -> Path:
    """A recipe on the towers in `folder` with this `data` section."""
    file = folder / "recipe.yaml"
    file.write_text(f"""
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
training: {{max_steps: {steps}, warmup_epochs: 1, batch_size: 4, base_learning_rate: 0.2, save_steps: 100}}
data: {data}
generation: {{max_new_tokens: 3}}
""")
    return file
