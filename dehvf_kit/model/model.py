"""The graph on two frozen towers, as a transformers model: forward, generate, save, detach.

No YAML and no pluggy here; `build` makes one from a recipe, and plain Python can make one from components.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from dehvf_kit.backbones.decoder import num_weights
from dehvf_kit.backbones.vision.tower import VisionTower
from dehvf_kit.errors import DehvfError, ShapeError
from dehvf_kit.model import run
from dehvf_kit.model.attachment import AttachedComponents, MemoryScope, SeenByTrainers, recomputed
from dehvf_kit.model.config import DehvfConfig
from dehvf_kit.model.decoding import compile_tokens, drafting, guided, without_mixing_cache
from dehvf_kit.model.input_tokens import ExtendedInputs, bos_token, continued, positions
from dehvf_kit.model.loss import answer_loss, decoder_loss
from dehvf_kit.model.run import Features, by_tower, generation_config, run_nodes
from dehvf_kit.recipe.files import alone
from dehvf_kit.recipe.graph import Graph

if TYPE_CHECKING:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    from dehvf_kit.recipe.recipe import Recipe

log = logging.getLogger(__name__)


class DehvfModel(SeenByTrainers, AttachedComponents, PreTrainedModel, GenerationMixin):
    """A frozen decoder that sees: visual memory in every feed-forward network, written by a graph of small components.

    decoder: any transformers causal language model; towers: vision encoders by name; graph and nodes: the wired
    components. Only the nodes are trained. Hooks stay on the towers until `detach()`, or to the end of a `with` block.
    Source: DEHVF, Figure 1.
    """

    config_class = DehvfConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(
        self,
        decoder: PreTrainedModel,
        towers: Mapping[str, VisionTower],
        graph: Graph,
        nodes: Mapping[str, nn.Module],
        recipe: Recipe | None = None,
        processor: Any = None,
    ) -> None:
        super().__init__(DehvfConfig())
        self.loss_type = "ForCausalLM"  # so that the Trainer counts labels from the second column on
        self.config.read_sizes_of(decoder)
        self.decoder = decoder
        self.towers = nn.ModuleDict(towers)
        self.nodes = nn.ModuleDict({name: nodes[name] for name in graph.order})
        self.graph, self.recipe, self.processor = graph, recipe, processor
        self.bases: dict[str, Any] | None = None
        self.measured: dict[str, Any] = {}
        self.generation_config = generation_config(decoder, recipe, self._tokenizer)
        self._compared: set[str] = set()
        self._freeze(towers)
        self._attach()
        self.all_tied_weights_keys: dict[str, str] = {}
        self.eval()

    @property
    def _tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", None)

    def train(self, mode: bool = True) -> DehvfModel:
        """Training mode for the components; towers stay in evaluation mode, layers to be run again while they run (no dropout)."""
        self.training = mode
        self.decoder.eval()
        self.towers.eval()
        self.nodes.train(mode)  # last: modules that a component put into a tower follow the component
        if hasattr(self.get_input_embeddings(), "neftune_noise_alpha"):  # set by the Trainer, whose hook looks at the mode
            self.get_input_embeddings().training = mode
        self._recomputed = recomputed(self.decoder) if mode else []
        for layer in self._recomputed:
            layer.training = True
        return self

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in the order of the graph."""
        return list(self.nodes.parameters())

    def named_trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name (`fuser.input.weight`), in the order of the graph."""
        return dict(self.nodes.named_parameters())

    def num_trainable_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.trainable_parameters())

    def print_trainable_parameters(self) -> None:
        """Print how many numbers are trained, of how many, in peft's words."""
        trained = self.num_trainable_parameters()
        total = trained + sum(num_weights(tower) for tower in (self.decoder, *self.towers.values()))
        print(f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}")

    @property
    def image_is_trained(self) -> bool:
        """Whether something trained works inside a vision encoder, so that its features change with training."""
        return any(self.graph.nodes[name].config.attaches == "vision" for name in self.nodes)

    def vision_features(self, pixel_values: Features) -> Features:
        """What a feature cache stores: per encoder [image, layer, 1 + patch, vision_hidden], global token first.

        pixel_values [image, 3, height, width], or one such tensor per encoder by name; the result has the same form.
        Raises: ShapeError for other shapes.
        """
        given = by_tower(pixel_values, self.towers, "pixel_values")
        found = {}
        for name, tower in self.towers.items():
            if (pixels := given[name]).ndim != 4 or pixels.shape[1] != 3:
                raise ShapeError(f"pixel_values is {tuple(pixels.shape)}; wants [images, 3, height, width]")
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.image_is_trained):
                found[name] = tower(pixels)
        return alone(found)

    def memory(self, rows: int, *images: Any, **named: Any) -> dict[str, Any]:
        """What each component attached to the decoder holds while it reads `rows` samples. Args, Raises: as in `run_graph`."""
        return self._attached_to("decoder", self.run_graph(rows, *images, **named))

    def _attached_to(self, place: str, outputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: out for name, out in outputs.items() if self.graph.nodes[name].config.attaches == place}

    def _extended(
        self, outputs: Mapping[str, Any], text: Tensor, attention_mask: Tensor | None, cache: Any
    ) -> ExtendedInputs | None:
        """The text with the tokens that components put into it; None without such, or where a cache holds them already."""
        inserted = [out for out in self._attached_to("input", outputs).values() if out is not None]
        if not inserted or (cache is not None and cache.get_seq_length() > 0):
            return None
        pad = getattr(self._tokenizer, "pad_token_id", None)
        bos: Any = None if all(tokens.before_bos for tokens in inserted) else bos_token(self._tokenizer, self.decoder)
        if bos is not None and text.ndim == 3:
            bos = self.get_input_embeddings()(torch.tensor(bos, device=text.device)).detach()
        return ExtendedInputs(inserted, text=text, attention_mask=attention_mask, bos=bos, placeholder=pad or 0)

    def run_graph(
        self,
        rows: int,
        pixel_values: Features | None = None,
        vision_features: Features | None = None,
        has_image: Tensor | None = None,
        image_index: Tensor | None = None,
        prompt: run.Prompt | None = None,
    ) -> dict[str, Any]:
        """Run the graph: every node's output by name, one value or a tuple in the order of its ports.

        Args:
            rows: samples in the batch.
            pixel_values, vision_features, has_image, image_index: as in `forward`.
            prompt: the question's embeddings and mask, where a node reads them.

        Raises: ShapeError where images and rows do not match, DehvfError after `detach()`.
        """
        if not self.attached:
            raise DehvfError("this model was detached from its decoder; build or load it again")
        images = run.row_features(self, rows, pixel_values, vision_features, has_image, image_index)
        if images.text_row is not None and self.one_image_nodes:
            raise ShapeError(
                f"several images in a row of text, of which {', '.join(self.one_image_nodes)} can read one (port text_row: all)"
            )
        if images.features is not None and prompt is None and run.reads_prompt(self.graph):
            raise ShapeError("this graph reads the question (port prompt), and none was given; give the text, or prompt=")
        compared = None if torch.compiler.is_compiling() else self._compared
        given = (self.graph, self.nodes, images.features, images.has_image, compared, images.text_row, prompt)
        if self._checkpointing and self.training and torch.is_grad_enabled():
            with set_checkpoint_early_stop(False):  # it would end the second run by an exception inside a component
                return checkpoint(run_nodes, *given, use_reentrant=False)
        return run_nodes(*given)

    @property
    def one_image_nodes(self) -> list[str]:
        """Components at the decoder that can read one image a row, as they do not ask whose each image is (port `text_row`)."""
        reads = {}
        for name in self.nodes:
            node, wires = self.graph.nodes[name], self.graph.wires[name]
            if node.config.attaches in ("decoder", "input") and "text_row" not in wires:
                reads[f"{name} ({node.config.type})"] = any("batch" in node.takes[port].axes for port in wires)
        return [name for name, by_row in reads.items() if by_row]

    @property
    def _counts_positions(self) -> bool:
        """Whether a component's output depends on a token's position in its row: then padding must not be counted."""
        return any(self.graph.nodes[name].config.counts_positions for name in self.nodes)

    @property
    def reads_images(self) -> bool:
        """Whether anything in the graph reads an image's features."""
        return any(wire.node in self.towers and wire.port != "tower" for wire, _, _ in self.graph.edges())

    reads_pictures = reads_images  # the name until 0.1.0

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Features | None = None,
        vision_features: Features | None = None,
        labels: Tensor | None = None,
        has_image: Tensor | None = None,
        image_index: Tensor | Sequence[Sequence[int]] | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The decoder's own output, with the images in its feed-forward memory, or wherever the components put them.

        Args:
            input_ids, attention_mask: [batch, token]; or `inputs_embeds` [batch, token, hidden_size] for the first.
            pixel_values: [batch, 3, height, width], or only the images of the rows flagged in `has_image`.
            vision_features: in their place, as `vision_features()` returns them.
            labels: [batch, token], -100 where no loss is taken.
            has_image: [batch] of bool.
            image_index: [row with an image], which of the distinct images a row has, or [batch, image] which ones in their
                order (lists, or -1 where a row has fewer).
            kwargs: go to the decoder. `logits_to_keep` [position] or [batch, position] (-1 where a row has fewer) names the
                columns before answer tokens: logits and loss are theirs alone.

        Tokens put into the input have no logits here: column i predicts what follows text token i.
        Raises: ShapeError where images and rows do not match, DehvfError after `detach()`.
        """
        text = input_ids if input_ids is not None else inputs_embeds
        if text is None:
            raise ShapeError("give input_ids or inputs_embeds")
        prompt = run.question(self, text, attention_mask, labels, cache := kwargs.get("past_key_values"))
        outputs = self.run_graph(text.shape[0], pixel_values, vision_features, has_image, image_index, prompt)
        given = {**kwargs, "attention_mask": attention_mask} | ({} if labels is None else {"labels": labels})
        if labels is None and self.training and torch.is_grad_enabled():
            given.pop("logits_to_keep", None)  # the caller takes the loss, and has labels for every column
        if self.compiled and self.training and torch.is_grad_enabled() and getattr(self.decoder.config, "use_cache", False):
            given.setdefault("use_cache", False)  # which compiled layers do not fill
        extended = self._extended(outputs, text, attention_mask, cache)
        if extended is not None:
            given = extended.arguments(self.decoder, inputs_embeds, given)
        else:
            given |= {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
            given |= continued(cache, attention_mask, *text.shape[:2])
            if self._counts_positions and attention_mask is not None and given.get("position_ids") is None:
                given["position_ids"] = positions(attention_mask)[:, -text.shape[1] :]
        with contextlib.ExitStack() as stack:
            stack.enter_context(MemoryScope(self.nodes, self._attached_to("decoder", outputs)))
            if extended is not None and inputs_embeds is None:
                stack.enter_context(extended.embedded(self.get_input_embeddings(), self._tell))
            elif extended is not None:
                self._tell(extended.places)
            kept = given.get("logits_to_keep")
            answers = isinstance(kept, Tensor) and (labels is not None or kept.ndim > 1)
            output = (answer_loss if answers else decoder_loss)(self.decoder, given)
        learned = "logits" if output.loss is None else "loss"
        if self.training and torch.is_grad_enabled() and not output[learned].requires_grad:  # no image, so nothing to learn
            output[learned] = output[learned] + sum(weight.flatten()[:0].sum() for weight in self.trainable_parameters())
        if extended is not None and hasattr(output.get("past_key_values"), "get_seq_length"):
            output.past_key_values.dehvf_columns = text.shape[1], extended.attention_mask  # for the passes behind it
        if extended is not None and not answers and output.logits.shape[1] == extended.length:
            output.logits = output.logits[:, extended.count :]
        return output

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        pixel_values: Features | None = None,
        vision_features: Features | None = None,
        has_image: Tensor | None = None,
        image_index: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate` of the decoder, with the images in its memory: written once, read at every token.

        Args:
            inputs: [batch, token], or `input_ids`.
            pixel_values, vision_features, has_image, image_index: as in `forward`.
            generation_config, kwargs: all that transformers' `generate` takes. The unconditional pass of `guidance_scale`
                sees no image; an `assistant_model` that is a DehvfModel drafts with the same images.

        Returns: the prompt and the new tokens; tokens that a component puts into the input are not among them.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        text = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
        if text is None:
            raise ShapeError("give input_ids or inputs_embeds")
        images = {"pixel_values": pixel_values, "vision_features": vision_features}
        images |= {"has_image": has_image, "image_index": image_index}
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        outputs = self.run_graph(text.shape[0], **images, prompt=run.question(self, text, mask, None, cache))
        extended = self._extended(outputs, text, mask, cache)
        config = copy.deepcopy(generation_config or self.generation_config)
        kwargs = config.update(**kwargs)
        if extended is not None and input_ids is None:
            raise ShapeError("give input_ids: this model puts tokens among them, which embeddings alone do not show")
        if getattr(cache, "dehvf_columns", None) and cache.get_seq_length() > 0:
            raise ShapeError("past_key_values: this cache holds tokens beside the text's; give generate the whole text without it")
        if config.cache_implementation == "paged":
            self.init_continuous_batching()
        if config.cache_implementation == "quantized" and text.shape[0] > 1:
            log.warning(
                "a quantised KV cache may share a scale between rows: an answer can depend on the rows beside it (docs/bases.md)"
            )
        without_mixing_cache(config, self.decoder, text.shape[0])
        if self.compiled and extended is None:
            compile_tokens(config, self.decoder, kwargs, text.shape[1])
        kwargs = guided(self, text.shape[0], config, kwargs)
        memory = MemoryScope(self.nodes, self._attached_to("decoder", outputs))
        with memory, drafting(kwargs, text.shape[0], images) as given:
            if extended is not None:
                return extended.generate(self.decoder, input_ids, config, given, self._tell)
            return self.decoder.generate(inputs=input_ids, generation_config=config, **given)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused. Raises: DehvfError, as continuous batching packs its requests into one row, which has one memory."""
        raise DehvfError(
            "continuous batching (generate_batch, cache_implementation='paged') packs several requests into one row, and memory is "
            "kept for each row; give `generate` a batch with one row for each question"
        )

    generate_batch = continuous_batching_context_manager = init_continuous_batching

    @classmethod
    def can_generate(cls) -> bool:
        return True

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.get_output_embeddings()

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **kwargs: Any) -> None:
        """Write the adapter alone: weights, resolved recipe, identity of both base models, card, processor.

        Args:
            save_directory: its adapter is replaced whole or not at all.
            is_main_process: where False, nothing is written.
            kwargs: `overwrite` (default True); `state_dict`, of transformers' Trainer, whose files are then written too.

        Raises: AdapterError where the folder cannot be written, and for any other keyword, which is named.
        """
        from dehvf_kit.adapter.checkpoint import save, save_pretrained_arguments

        arguments = save_pretrained_arguments(kwargs)
        if is_main_process:
            save(self, Path(save_directory), **arguments)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Save the adapter and upload it with its card.

        Args: repo_id, `user/name`; kwargs: of `dehvf_kit.adapter.hub.push_adapter`. Returns: the commit's address.
        """
        from dehvf_kit.adapter.hub import push_model

        return push_model(self, repo_id, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        decoder: Any = None,
        vision: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        **kwargs: Any,
    ) -> DehvfModel:
        """Restore an adapter on its base models, strictly; see `dehvf_kit.load`, which explains the keywords.

        kwargs: `device_map`, `token`, `cache_dir`, `local_files_only` and `revision`; `torch_dtype` is the older name of `dtype`.
        Raises: AdapterError as `load` does, and for any other keyword, which is named.
        """
        from dehvf_kit.adapter.checkpoint import from_pretrained_arguments, load

        dtype = torch_dtype if dtype is None else dtype
        return load(pretrained_model_name_or_path, decoder, vision, dtype=dtype, **from_pretrained_arguments(kwargs))
