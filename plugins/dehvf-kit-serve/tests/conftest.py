"""Two tiny adapters on one decoder, whose tokenizer knows the letters of ASCII."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import torch
from cli.commands import command  # noqa: F401 - a fixture
from data.small_sets import COLOURS, picture
from evaluation.benchmarks import recipe
from helpers import tiny_decoder, tiny_vision
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import dehvf_kit

for package in ("llguidance", "openai", "starlette", "uvicorn"):
    pytest.importorskip(package, reason=f"{package} is not installed")


def towers(folder: Path) -> Path:
    """`decoder` with a tokenizer of letters, and `vision`."""
    letters = sorted({letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter.isascii()} | {"Ġ"})  # the last: a space
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", *letters])}
    words = Tokenizer(models.BPE(vocabulary, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    decoder = tiny_decoder(
        vocab_size=len(vocabulary), initializer_range=0.3, eos_token_id=1, pad_token_id=0, max_position_embeddings=256
    )
    decoder.save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    tiny_vision("clip").save_pretrained(folder / "vision")
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters `one/adapter` and `two/adapter`, and an image of each colour."""
    folder = towers(tmp_path_factory.mktemp("serve"))
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = dehvf_kit.build(dehvf_kit.load_recipe(recipe(folder, "{type: jsonl}")))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / name / "adapter")
        model.detach()
    for colour in COLOURS:
        picture(folder / f"{colour}.png", colour)
    return folder


@pytest.fixture(scope="session")
def service(world: Path):
    """Both adapters behind a port, with the API key `secret`."""
    from dehvf_kit_serve.adapters import Limits, load_adapters
    from dehvf_kit_serve.app import Service
    from dehvf_kit_serve.batching import Batches

    adapters = load_adapters([str(world / "one/adapter"), f"second={world / 'two/adapter'}"])
    return Service(adapters, Batches(max_batch=4, max_waiting=8), Limits(images=2, tokens=64), key="secret", max_bytes=200_000)


@pytest.fixture(scope="session")
def url(service) -> Iterator[str]:
    from dehvf_kit_serve.command import listen
    from dehvf_kit_serve.server import Server

    bound = listen("127.0.0.1", 0)
    server = Server(service, 0)
    thread = Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(20)
