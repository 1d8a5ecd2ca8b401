"""What a DEHVF model is beside its forward: components on towers, their memory of a batch, and a module that others handle.

Components are attached when a model is built, and taken off by `detach()` or at the end of a `with` block. Gradient checkpointing
shows the second run of a layer the memory of the first. transformers' Trainer is served, TRL's trainers and peft are refused.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils import checkpoint

from dehvf_kit.api.components import DecoderComponent
from dehvf_kit.api.registry import plugin_code
from dehvf_kit.backbones.attached import (
    CompiledLayers,
    attached_to,
    forget,
    forget_compiled,
    keep_differentiable,
    names,
    not_compilable,
    note,
    release,
)
from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.graph import Graph

log = logging.getLogger(__name__)


def tell_places(nodes: nn.ModuleDict, places: Tensor | None) -> None:
    """Say to the components at the decoder where the image's tokens stand in the pass that begins."""
    for node in nodes.values():
        if isinstance(node, DecoderComponent):
            node.places = places


def places_told(nodes: nn.ModuleDict) -> Tensor | None:
    """What the components were told last."""
    return next((node.places for node in nodes.values() if isinstance(node, DecoderComponent)), None)


class MemoryScope(contextlib.AbstractContextManager[None]):
    """Inside, a decoder reads a batch's memory, layers of it in evaluation mode; a backward over a kept graph enters it again."""

    def __init__(self, nodes: nn.ModuleDict, memory: Mapping[str, Any], places: Tensor | None = None, layers: Any = ()) -> None:
        self.nodes, self.memory, self.places, self.layers = nodes, memory, places, layers
        self.open: list[contextlib.ExitStack] = []

    def __enter__(self) -> None:
        self.open.append(contextlib.ExitStack())
        for name, state in self.memory.items():
            self.open[-1].enter_context(self.nodes[name].holding(state))
        self.open[-1].callback(tell_places, self.nodes, places_told(self.nodes))
        for layer in [layer for layer in self.layers if layer.training]:
            layer.training = False
            self.open[-1].callback(setattr, layer, "training", True)
        tell_places(self.nodes, self.places)

    def __exit__(self, kind: object = None, error: object = None, trace: TracebackType | None = None) -> None:
        """Raises: PluginError from an exception out of a component's hook, naming its place in the plugin."""
        self.open.pop().close()
        if not isinstance(error, Exception) or type(error).__module__ == checkpoint.__name__:  # by which torch ends a second run
            return
        for frame, _ in reversed(list(traceback.walk_tb(trace))):
            if isinstance(owner := frame.f_locals.get("self"), nn.Module) and hasattr(owner, "_dehvf_origin"):
                with plugin_code(*owner._dehvf_origin):
                    raise error


def recomputed(decoder: nn.Module) -> list[nn.Module]:
    """The layers that are run again in backward; in families whose stack sees to it, the stack."""
    from transformers.modeling_layers import GradientCheckpointingLayer as Layer

    flagged = [part for part in decoder.modules() if getattr(part, "gradient_checkpointing", False)]
    return [part for part in flagged if isinstance(part, Layer)] or flagged


class RecomputedLayers:
    """The part of a model that switches gradient checkpointing of its decoder, in transformers' words."""

    decoder: nn.Module
    nodes: nn.ModuleDict
    training: bool
    compiled: Any
    _checkpointing: bool = False
    _recomputed: Sequence[nn.Module] = ()

    def _tell(self, places: Tensor | None) -> None:
        tell_places(self.nodes, places)

    def _checkpoint_contexts(self) -> tuple[Any, Any]:
        """For gradient checkpointing: the second run of a layer, in backward, sees the memory of the first.

        In both runs the layers are in evaluation mode: transformers runs layers in training mode again, which have dropout then.
        """
        held = {name: node.memory for name, node in self.nodes.items() if hasattr(node, "holding")}
        first, again = (MemoryScope(self.nodes, memory, places_told(self.nodes), self._recomputed) for memory in ({}, held))
        return first, again

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Recompute the decoder's layers in backward. Raises: DehvfError for the reentrant form, which loses gradients."""
        if self.compiled:
            raise DehvfError(
                "training.compile compiles whole layers, which gradient checkpointing runs in two parts; set one to false"
            )
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

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """The older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    gradient_checkpointing_disable = activation_checkpointing_disable  # the older name

    @property
    def is_gradient_checkpointing(self) -> bool:
        return bool(recomputed(self.decoder))

    def enable_input_require_grads(self) -> None:
        """Nothing to do: gradients reach the adapter through the memory, not through the input embeddings."""


class AttachedComponents(RecomputedLayers, nn.Module):
    """The part of a model that attaches its components, and leaves the towers as it found them."""

    towers: nn.ModuleDict
    graph: Graph
    attached: bool = False
    compiled: CompiledLayers | None = None
    recipe: Any
    _tokenizer: Any

    def _freeze(self, towers: Mapping[str, nn.Module]) -> None:
        """Freeze the towers, noting what of them was trainable and training; a warning names what is attached to them already."""
        both, inner = (self.decoder, *towers.values()), (self.decoder, *(tower.model for tower in towers.values()))
        self._was_trainable = [weight for tower in both for weight in tower.parameters() if weight.requires_grad]
        self._was_training = [(module, module.training) for tower in inner for module in tower.modules()]
        self._differentiable = [part for tower in both for part in keep_differentiable(tower)]
        for tower in both:
            tower.requires_grad_(False)
        for place in self._places():
            if held := attached_to(place):
                log.warning("%s has this attached already: %s", type(place).__name__, names(held))

    def _places(self) -> list[nn.Module]:
        """The decoder, and each vision encoder that a component is attached to."""
        vision = [name for name in self.nodes if self.graph.nodes[name].config.attaches == "vision"]
        return [self.decoder, *(self._tower_of(name).model for name in vision)]

    def _tower_of(self, name: str) -> Any:
        wires = (wire for found in self.graph.wires[name].values() for wire in found)
        return next(self.towers[wire.node] for wire in wires if wire.node in self.towers)

    def _attach(self) -> None:
        self.compiled = self._compiled_layers()
        try:
            for name, node in sorted(self.nodes.items(), key=lambda item: not getattr(item[1], "replaces_modules", False)):
                config = self.graph.nodes[name].config
                with plugin_code(config, f"graph.{name}"):
                    node._dehvf_origin = (config, f"graph.{name}")
                    if config.attaches == "decoder":
                        node.attach(self.decoder)
                    elif config.attaches == "vision":
                        node.attach(self._tower_of(name).model)
                    elif config.attaches == "input":
                        node.attach(self.decoder, self._tokenizer)
        except Exception:
            self.detach()
            raise
        self.attached = True
        forget_compiled()
        note(self, self._places())

    def _compiled_layers(self) -> CompiledLayers | None:
        """The decoder's layers, where the recipe says `training.compile`; a warning says why they cannot be compiled."""
        reason = not_compilable(self.decoder) if self.recipe is not None and self.recipe.training.compile else None
        if reason:
            log.warning("training.compile: %s: the decoder's layers run as they were written", reason)
        if reason != "" or next(self.decoder.parameters()).is_meta:
            return None
        layers = dict.fromkeys(site.layer_path for site in ffn_sites(self.decoder))
        return CompiledLayers([self.decoder.get_submodule(path) for path in layers], lambda: self.training)

    def _disable_hooks(self) -> None:
        if self.compiled is not None:
            self.compiled.remove()
            self.compiled = None
        for name, node in self.nodes.items():
            if hasattr(node, "detach"):
                with plugin_code(self.graph.nodes[name].config, f"graph.{name}"):
                    node.detach()
        self.attached = False
        forget_compiled()
        forget(self, self._places())

    @property
    def attached_as(self) -> str:
        """How messages call the model while it is attached."""
        return f"a model with {', '.join(name for name in self.nodes if self.graph.nodes[name].config.attaches)}"

    def detach(self) -> None:
        """Take everything off the towers: decoder and encoders are bit-identical to before, and trainable as before."""
        self._disable_hooks()
        if self._checkpointing:
            self.activation_checkpointing_disable()
        release(self._differentiable)
        for parameter in self._was_trainable:
            parameter.requires_grad_(True)
        for module, training in self._was_training:
            module.training = training
        self._was_trainable, self._was_training = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    @contextlib.contextmanager
    def hooks_disabled(self) -> Iterator[None]:
        """Inside, the towers are as they were before: without hooks, and without modules that a component put there."""
        attached = self.attached
        self._disable_hooks()
        try:
            yield
        finally:
            if attached:
                self._attach()

    unhooked = hooks_disabled  # the name until 0.1.0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with hooks of its own: hooks are bound to their module, so they are placed anew on both."""
        attached = self.attached
        with self.hooks_disabled():
            twin = self.__class__.__new__(self.__class__)
            memo[id(self)] = twin
            nn.Module.__init__(twin)
            for name, value in self.__dict__.items():
                twin.__dict__[name] = copy.deepcopy(value, memo)
        if attached:
            twin._attach()
        return twin


class SeenByTrainers(nn.Module):
    """The part of a model that other libraries' trainers look at."""

    nodes: nn.ModuleDict

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises: DehvfError where TRL puts its own `forward` here (transformers' Trainer only wraps the model's own), or peft a
        tuner of its own: it freezes the components and saves its weights alone.
        """
        made_in = getattr(getattr(value, "__func__", value), "__globals__", {}).get("__name__", "")
        if name == "forward" and made_in.startswith("trl."):
            raise DehvfError(
                "trl takes the loss from hidden states, past the model's forward, where images and labels are handled; train with "
                "transformers' Trainer, or by `dehvf-kit train`"
            )
        if name == "peft_config":
            raise DehvfError(
                "peft's get_peft_model freezes what this model trains and saves its own weights alone; add a node "
                "`tuner: {type: peft}` to the recipe's graph (plugin dehvf-kit-baselines), and build or load the model "
                "again, as this one is changed"
            )
        super().__setattr__(name, value)

    def __reduce__(self) -> Any:
        raise DehvfError(
            "torch.save and pickle cannot store a model with hooks; save_pretrained(folder) writes the adapter alone, "
            "dehvf_kit.load(folder) restores it"
        )

    @property
    def _keys_to_ignore_on_save(self) -> list[str]:
        """What the Trainer should not miss in `model.safetensors`: everything that is not trained."""
        held = {f"nodes.{name}" for name in self.nodes.state_dict()}
        return [name for name in self.state_dict() if name not in held]
