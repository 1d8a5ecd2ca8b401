"""The graph on two frozen towers, as a transformers model: forward, generate, save, detach.

No YAML and no pluggy here; `build` makes one from a recipe, and plain Python can make one from components.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from dehvf_kit.backbones.vision import VisionTower
from dehvf_kit.errors import DehvfError, ShapeError
from dehvf_kit.graph import Graph
from dehvf_kit.graph_run import Features, by_tower, one_a_row, run_nodes
from dehvf_kit.model_config import DehvfConfig

if TYPE_CHECKING:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    from dehvf_kit.recipe import Recipe

SINGLE = "vision"


class DehvfModel(PreTrainedModel, GenerationMixin):
    """A frozen decoder that sees: visual memory in every feed-forward network, written by a graph of small components.

    decoder: any transformers causal language model; towers: vision encoders by name; graph and nodes: the wired
    components. Only the nodes are trained. Hooks stay on the towers until `detach()`.
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
        self.decoder = decoder
        self.towers = nn.ModuleDict(towers)
        self.nodes = nn.ModuleDict({name: nodes[name] for name in graph.order})
        self.graph, self.recipe, self.processor = graph, recipe, processor
        self.generation_config = _generation_config(decoder, recipe)
        self.generation = self.generation_config
        self._was_trainable = [
            p for tower in (decoder, *self.towers.values()) for p in tower.parameters() if p.requires_grad
        ]
        inner = (decoder, *(tower.model for tower in self.towers.values()))
        self._was_training = [(module, module.training) for tower in inner for module in tower.modules()]
        self._checkpointing = False
        self.attached = False
        for tower in (decoder, *self.towers.values()):
            tower.requires_grad_(False)
        self._attach()
        self.all_tied_weights_keys: dict[str, str] = {}
        self.eval()

    def _attach(self) -> None:
        try:
            for name, node in self.nodes.items():
                place = self.graph.nodes[name].config.attaches
                if place == "decoder":
                    node.attach(self.decoder)
                elif place == "vision":
                    node.attach(self.towers[self._tower_of(name)].model)
        except Exception:
            self.detach()
            raise
        self.attached = True

    def _unhook(self) -> None:
        for node in self.nodes.values():
            if hasattr(node, "detach"):
                node.detach()
        self.attached = False

    def __deepcopy__(self, memo: dict[int, Any]) -> DehvfModel:
        """A copy with hooks of its own: hooks are bound to their module, so they are placed anew on both."""
        attached = self.attached
        self._unhook()
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        for name, value in self.__dict__.items():
            twin.__dict__[name] = copy.deepcopy(value, memo)
        if attached:
            self._attach()
            twin._attach()
        return twin

    def _tower_of(self, name: str) -> str:
        return next(
            wire.node for wires in self.graph.wires[name].values() for wire in wires if wire.node in self.towers
        )

    def detach(self) -> None:
        """Take everything off the towers: decoder and encoders are bit-identical to before, and trainable as before."""
        self._unhook()
        if self._checkpointing:
            self.activation_checkpointing_disable()
        for parameter in self._was_trainable:
            parameter.requires_grad_(True)
        for module, training in self._was_training:
            module.training = training
        self._was_trainable, self._was_training = [], []

    def train(self, mode: bool = True) -> DehvfModel:
        """Training mode for the components; the frozen towers stay in evaluation mode (no dropout of theirs).

        With gradient checkpointing the decoder's layers, which look at the flag, follow the mode.
        """
        self.training = mode
        self.nodes.train(mode)
        self.decoder.eval()
        self.towers.eval()
        if mode and self.is_gradient_checkpointing:
            for module in self.decoder.modules():
                if getattr(module, "gradient_checkpointing", False):
                    module.training = True
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
            pixels = given[name]
            if pixels.ndim != 4 or pixels.shape[1] != 3:
                raise ShapeError(f"pixel_values is {tuple(pixels.shape)}; wants [images, 3, height, width]")
            trained = torch.is_grad_enabled() and self.image_is_trained
            with contextlib.nullcontext() if trained else torch.no_grad():
                found[name] = tower(pixels)
        return found[SINGLE] if list(self.towers) == [SINGLE] else found

    def memory(
        self,
        rows: int,
        pixel_values: Features | None = None,
        vision_features: Features | None = None,
        has_image: Tensor | None = None,
    ) -> dict[str, Any]:
        """Run the graph: what each component attached to the decoder holds while it reads `rows` samples.

        Raises: ShapeError where pictures and rows do not match, DehvfError after `detach()`.
        """
        return {
            name: out
            for name, out in self.run_graph(rows, pixel_values, vision_features, has_image).items()
            if self.graph.nodes[name].config.attaches == "decoder"
        }

    def run_graph(
        self,
        rows: int,
        pixel_values: Features | None = None,
        vision_features: Features | None = None,
        has_image: Tensor | None = None,
    ) -> dict[str, Any]:
        """Every node's output by name: one value, or a tuple in the order of its ports."""
        if not self.attached:
            raise DehvfError("this model was detached from its decoder; build or load it again")
        if pixel_values is not None and vision_features is not None:
            raise ShapeError("give pixel_values or vision_features, not both")
        if vision_features is not None and self.training and torch.is_grad_enabled() and self.image_is_trained:
            raise DehvfError(
                "vision_features in training: the vision adapter works inside the encoder and would get no gradient; "
                "give pixel_values, or leave the vision adapter out of the recipe"
            )
        if has_image is not None:
            has_image = torch.as_tensor(has_image).bool()
            if has_image.shape != (rows,):
                raise ShapeError(f"has_image is {tuple(has_image.shape)}; wants one flag for each of {rows} rows")
        if not self.reads_pictures:
            pixel_values = vision_features = None
        elif pixel_values is not None and not any(
            map(len, by_tower(pixel_values, self.towers, "pixel_values").values())
        ):
            pixel_values = None
        if self.reads_pictures and pixel_values is None and vision_features is None and has_image is not None:
            if has_image.any():
                raise ShapeError(f"has_image flags {int(has_image.sum())} of {rows} rows, but no pictures were given")
            has_image = None
        if pixel_values is not None:
            vision_features = self.vision_features(pixel_values)
        features = None
        if vision_features is not None:
            given = by_tower(vision_features, self.towers, "vision_features")
            features = one_a_row(given, self.towers, rows, has_image)
        return run_nodes(self.graph, self.nodes, features, has_image)

    @property
    def reads_pictures(self) -> bool:
        """Whether anything in the graph reads a picture's features."""
        return any(wire.node in self.towers and wire.port != "tower" for wire, _, _ in self.graph.edges())

    def _checkpoint_contexts(self) -> tuple[Any, Any]:
        """For gradient checkpointing: the second run of a layer, in backward, sees the memory of the first."""
        held = {name: node.memory for name, node in self.nodes.items() if hasattr(node, "holding")}
        return contextlib.nullcontext(), _Holding(self.nodes, held)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Features | None = None,
        vision_features: Features | None = None,
        labels: Tensor | None = None,
        has_image: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The decoder's own output, with the pictures in its feed-forward memory.

        Shapes: input_ids and attention_mask [batch, token]; pixel_values [batch, 3, height, width] (or only the pictures
        of the rows flagged in has_image [batch]); vision_features as `vision_features()` returns them; labels
        [batch, token] with -100 where no loss is taken. Further keywords go to the decoder.
        """
        text = input_ids if input_ids is not None else inputs_embeds
        if text is None:
            raise ShapeError("give input_ids or inputs_embeds")
        memory = self.memory(text.shape[0], pixel_values, vision_features, has_image)
        inputs = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        if labels is not None:
            kwargs["labels"] = labels
        if labels is not None and isinstance(kwargs.get("logits_to_keep"), Tensor):
            return self._answer_loss(memory, inputs, attention_mask, kwargs)
        with _Holding(self.nodes, memory):
            return self.decoder(**inputs, attention_mask=attention_mask, **kwargs)

    def _answer_loss(
        self, memory: Mapping[str, Any], inputs: Any, attention_mask: Any, kwargs: dict[str, Any]
    ) -> CausalLMOutputWithPast:
        """Loss and logits [batch, position, vocabulary] of the positions in `logits_to_keep` alone, before answer tokens."""
        labels, keep = kwargs.pop("labels"), kwargs["logits_to_keep"]
        items = kwargs.pop("num_items_in_batch", None)
        takes = inspect.signature(self.decoder.forward).parameters
        if "logits_to_keep" not in takes:
            kwargs.pop("logits_to_keep")
        with _Holding(self.nodes, memory):
            output = self.decoder(**inputs, attention_mask=attention_mask, **kwargs)
        if output.logits.shape[1] != len(keep):
            output.logits = output.logits[:, keep]
        targets = labels[:, keep + 1]
        loss = nn.functional.cross_entropy(
            output.logits.float().flatten(0, 1), targets.flatten(), reduction="mean" if items is None else "sum"
        )
        output.loss = loss if items is None else loss / items
        return output

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        pixel_values: Features | None = None,
        vision_features: Features | None = None,
        has_image: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate` of the decoder, with the pictures in its memory: written once, read at every token.

        inputs or input_ids [batch, token]; pictures as in `forward`; every keyword of transformers' `generate`.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        text = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
        if text is None:
            raise ShapeError("give input_ids or inputs_embeds")
        memory = self.memory(text.shape[0], pixel_values, vision_features, has_image)
        config = copy.deepcopy(generation_config or self.generation_config)
        kwargs = config.update(**kwargs)
        with _Holding(self.nodes, memory):
            return self.decoder.generate(inputs=input_ids, generation_config=config, **kwargs)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Recompute the decoder's layers in backward. Raises: DehvfError for the reentrant form, which loses gradients."""
        settings = dict(activation_checkpointing_kwargs or {})
        if settings.get("use_reentrant"):
            raise DehvfError(
                "reentrant gradient checkpointing cannot reach the memory, so the adapter would get no gradient; "
                "use gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        settings |= {"use_reentrant": False, "context_fn": self._checkpoint_contexts}
        self.decoder.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
        self._checkpointing = True
        self.train(self.training)

    def activation_checkpointing_disable(self) -> None:
        """Keep the decoder's activations for backward again."""
        self.decoder.activation_checkpointing_disable()
        self._checkpointing = False
        self.train(self.training)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """The older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """The older name of `activation_checkpointing_disable`."""
        self.activation_checkpointing_disable()

    @property
    def is_gradient_checkpointing(self) -> bool:
        return any(getattr(module, "gradient_checkpointing", False) for module in self.decoder.modules())

    def enable_input_require_grads(self) -> None:
        """Nothing to do: gradients reach the adapter through the memory, not through the input embeddings."""

    @classmethod
    def can_generate(cls) -> bool:
        return True

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.get_output_embeddings()

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the adapter alone: weights, resolved recipe, identity of both base models, card, processor."""
        from dehvf_kit.checkpoint import save

        save(self, Path(save_directory), **{key: value for key, value in kwargs.items() if key == "overwrite"})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        decoder: Any = None,
        vision: Any = None,
        **kwargs: Any,
    ) -> DehvfModel:
        """Restore an adapter on its base models, strictly; see `dehvf_kit.load`."""
        from dehvf_kit.checkpoint import load

        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        return load(pretrained_model_name_or_path, decoder=decoder, vision=vision, dtype=dtype)


class _Holding(contextlib.AbstractContextManager[None]):
    """Inside, the decoder reads a batch's memory. It may be entered again, as each backward over a kept graph does."""

    def __init__(self, nodes: nn.ModuleDict, memory: Mapping[str, Any]) -> None:
        self.nodes, self.memory = nodes, memory
        self.open: list[contextlib.ExitStack] = []

    def __enter__(self) -> None:
        self.open.append(contextlib.ExitStack())
        for name, state in self.memory.items():
            self.open[-1].enter_context(self.nodes[name].holding(state))

    def __exit__(self, *error: object) -> None:
        self.open.pop().close()


# Settings of a base model that say nothing without sampling or beams; transformers refuses to save them then.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty")


def _generation_config(decoder: nn.Module, recipe: Recipe | None) -> GenerationConfig:
    known = getattr(decoder, "generation_config", None)
    config = GenerationConfig(**known.to_dict()) if known is not None else GenerationConfig()
    if recipe is not None:
        wanted = recipe.generation.model_dump()
        if not wanted["do_sample"]:
            wanted |= dict.fromkeys(_SAMPLING)
        if wanted["num_beams"] == 1:
            wanted |= dict.fromkeys(_BEAMS)
        for name, value in wanted.items():
            setattr(config, name, value)
    return config
