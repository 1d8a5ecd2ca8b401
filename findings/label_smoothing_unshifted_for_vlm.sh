#!/usr/bin/env bash
# With label smoothing, transformers' Trainer trains vision-language models to repeat the current token.
#
# Versions: transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, Python 3.11.
# Surprise: label_smoothing_factor > 0 makes the Trainer compute the loss itself. It shifts the labels by one only when the
#   model's class is listed among the causal language models. LLaVA, Qwen2-VL, BLIP-2, PaliGemma, SmolVLM, InternVL and most
#   other ...ForConditionalGeneration classes are not (Gemma 3 is), so position i is trained to predict token i, which it has
#   just read. The loss falls as usual, and no message is printed.
# Who meets it: anyone who turns label smoothing on for a vision-language model, or wraps a decoder in a class of their own.
# Workaround: leave label_smoothing_factor at 0 and smooth in compute_loss_func (on shifted labels), or in the model.
# Output when written (2026-11-29), a cyclic sequence 1..12 as text, 60 steps, what each position predicts:
#   LlamaForCausalLM              smoothing 0.1: next token
#   LlavaForConditionalGeneration smoothing 0.0: next token
#   LlavaForConditionalGeneration smoothing 0.1: same token
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

print("transformers", transformers.__version__, "torch", torch.__version__)
text = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
vision = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
ids = torch.arange(1, 13)
rows = [{"input_ids": ids, "labels": ids}] * 8


def learned(model, smoothing):
    arguments = TrainingArguments(
        "out",
        max_steps=60,
        learning_rate=1e-2,
        label_smoothing_factor=smoothing,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    Trainer(model, arguments, train_dataset=rows).train()
    predicted = model.eval()(input_ids=ids[None]).logits.argmax(-1)[0]
    found = {"next token": predicted[:-1].equal(ids[1:]), "same token": predicted.equal(ids)}
    kind = next((name for name, holds in found.items() if holds), str(predicted.tolist()))
    print(f"{type(model).__name__:29} smoothing {smoothing}: {kind}")
    return kind


def llava():
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_id=31))


torch.manual_seed(0)
assert learned(LlamaForCausalLM(text), 0.1) == "next token"
assert learned(llava(), 0.0) == "next token"
assert learned(llava(), 0.1) == "same token"
PYTHON
