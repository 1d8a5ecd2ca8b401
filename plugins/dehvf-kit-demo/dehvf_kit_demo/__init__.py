"""SmolLM2-135M-Instruct, DINOv2-S/14 and easy-VQA as a decoder, a vision encoder and a data set of dehvf-kit."""

__version__ = "0.1.0"
