#!/bin/sh
# Sixteen methods on the demo's data and base models, most of them near DEHVF's 293,440 trained parameters: data, prompt, order of
# examples and tuning protocol are the same for all. Resumable: the same command goes on where it was interrupted. Run it from the
# repository's root; further options and KEY=VALUE overrides are passed on and come last:
#
#   sh benchmarks/methods.sh --jobs 2                                         # hours
#   sh benchmarks/methods.sh --seeds 1 --rates "" --strengths "" --output runs/smoke \
#       training.max_steps=2 data.train_questions=64 data.test_questions=20   # shows that all train and are scored
B=plugins/dehvf-kit-baselines/recipes
exec dehvf-kit compare \
    recipes/smollm2_dinov2_easyvqa.yaml recipes/smollm2_easyvqa_mean.yaml recipes/smollm2_easyvqa_blind.yaml \
    $B/memvp_easyvqa.yaml $B/adem_vl_easyvqa.yaml $B/lavin_easyvqa.yaml $B/llama_adapter_easyvqa.yaml $B/llama_adapter_v2_easyvqa.yaml \
    $B/llava_lora_easyvqa.yaml $B/dense_connector_easyvqa.yaml $B/igva_easyvqa.yaml $B/deepstack_easyvqa.yaml $B/clipcap_easyvqa.yaml \
    $B/blip2_easyvqa.yaml $B/flamingo_easyvqa.yaml $B/vlora_easyvqa.yaml \
    --seeds 3 --rates 0.016,0.05,0.16 --strengths 0.33,1,3 --tune-fraction 0.35 --threads 1 --output runs/methods \
    decoder.dtype=bfloat16 data.train_questions=4160 data.test_questions=1000 "$@"
