"""The Trainer, run folders, resuming, distributed runs."""

from dehvf_kit.backbones.attached import import_bitsandbytes

import_bitsandbytes()  # before transformers' Trainer: it imports peft, and that bitsandbytes with its look-up of a kernel
