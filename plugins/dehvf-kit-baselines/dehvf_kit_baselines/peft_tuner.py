"""peft's tuners as one component: LoRA, DoRA, IA3, OFT, VeRA, norm tuning and their like, in any decoder's own layers.

peft places its layers and computes them; the trained weights belong to the component, so that they are counted, saved and taken
off as any other's. Sources: the methods' papers, named in peft's documentation.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api import BuildContext, ComponentConfig, ConfigMismatchError, Cost, DecoderComponent, DecoderError, DecoderSpec
from dehvf_kit.backbones.attached import import_bitsandbytes
from dehvf_kit.backbones.map_hooks import role_of
from dehvf_kit.errors import did_you_mean, listing
from dehvf_kit_baselines.decoder_outline import in_layer, is_norm, modules_of, outlined

NAME = "dehvf"  # of the adapter inside peft's layers
METHODS = (
    *("lora", "ia3", "oft", "boft", "vera", "randlora", "ln_tuning", "loha", "lokr", "hra"),
    *("fourierft", "c3a", "miss", "road", "hira", "gralora", "delora", "waveft"),
)
"""Those that put layers in place, leave the decoder's weights as they are, and are made anew from settings and trained weights."""
OURS = {
    "target_modules": "name maps by role or name under `targets`",
    "modules_to_save": "it trains the decoder's own weights; add a second node, such as one with method ln_tuning",
    "target_parameters": "only linear maps and norms can be targets",
    "trainable_token_indices": "only linear maps and norms can be targets",
    "inference_mode": "the component sets it",
    "peft_type": "write it under `method`",
}
"""Settings that are not taken, and what to do instead."""
INSTEAD = {
    "dora": "; it is method lora with settings {use_dora: true}",
    "adalora": "; its ranks change with the step, which no component is told; use lora",
    **dict.fromkeys(("prefix_tuning", "prompt_tuning", "p_tuning"), "; it puts tokens before the text; use the type gated_prefix"),
}
"""Methods of peft that are not taken, and what to do instead."""
SCALES = ("lora_alpha", "alpha", "scaling")
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {}
"""What `shapes` found, of the latest few configs and decoders: it is asked for at every step from check to build."""
MOST_SHAPES = 16


def of_peft(module: str, name: str) -> Any:
    """A name of a module of peft, which imports bitsandbytes: without asking a hub for a kernel."""
    import_bitsandbytes()
    return getattr(import_module(f"peft.{module}"), name)


class _Scale:
    """The field that scales what a method adds: `scale`, or nothing for a config whose method of peft has no alpha or scaling."""

    def __get__(self, config: PeftConfig | None, kind: type[PeftConfig]) -> str:
        if config is None:
            return "scale"
        made = of_peft("mapping", "PEFT_TYPE_TO_CONFIG_MAPPING").get(config.method.upper())
        return "scale" if any(hasattr(made, name) for name in SCALES) else ""


class PeftConfig(ComponentConfig):
    """A tuner of peft, named by `method`, on linear maps (or norms) of a decoder; with or without visual memory beside it."""

    role: ClassVar[str] = "decoder_adapter"
    attaches: ClassVar[str] = "decoder"
    strength: ClassVar[str] = _Scale()  # type: ignore[assignment]
    type: Literal["peft"] = "peft"
    method: str = Field("lora", description=f"peft's name of the method: {', '.join(METHODS)}")
    settings: dict[str, Any] = Field({}, description="fields of peft's config of that method: r, lora_alpha, use_dora, ...")
    targets: tuple[str, ...] = Field(
        (),
        description="maps in the layers by role (query, key, value, qkv, output, gate, up, down) or by name, norms by name; none: "
        "every map, for ia3 key, value, qkv and down, for ln_tuning every norm",
    )
    scale: float = Field(1.0, gt=0, description="factor on the method's own alpha or scaling, where it has one")

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        self.shapes(context)
        return {}

    def shapes(self, context: BuildContext) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every trained weight, which peft makes on an outline of the decoder without numbers."""
        places = self.places(context.decoder)
        config = self.made(places)
        known = f"{self.model_dump_json()} {context.decoder} {modules_of(context.decoder)}"
        if known not in SHAPES:
            outline = outlined(context.decoder)
            try:
                with torch.device("cpu" if self.method == "boft" else "meta"):  # BOFT's own checks read numbers
                    placed(outline, self.method, config)
            except Exception as error:  # peft's own checks of sizes raise what they like
                raise ConfigMismatchError(f"peft refuses {self.method} here: {' '.join(str(error).split())}", "settings") from error
            while len(SHAPES) >= MOST_SHAPES:
                SHAPES.pop(next(iter(SHAPES)))
            SHAPES[known] = {stored(name): tuple(weight.shape) for name, weight in tuned(outline, places).items()}
        return SHAPES[known]

    def places(self, decoder: DecoderSpec) -> list[str]:
        """Paths of the target modules, in order. Raises: ConfigMismatchError for a target that no module has."""
        if self.method not in METHODS:
            meant = INSTEAD.get(self.method.lower(), did_you_mean(self.method.lower(), METHODS))
            raise ConfigMismatchError(f"peft's '{self.method}' is not among {', '.join(METHODS)}{meant}", "method")
        norms = self.method == "ln_tuning"
        kinds = {
            path: role_of(path)
            for path, (_, linear, weights) in modules_of(decoder).items()
            if (is_norm(path, linear, weights) if norms else linear is not None and in_layer(path))
        }
        wanted = self.targets or (("key", "value", "qkv", "down") if self.method == "ia3" else ())
        fits = set(named(kinds, wanted))
        unknown = [target for target in self.targets if not named(kinds, [target])]
        if unknown or not kinds or (wanted and not fits):
            raise ConfigMismatchError(
                f"this decoder ('{decoder.model_type}') has no {'norm' if norms else 'linear map'} named "
                f"{listing(unknown or wanted) or 'so'}; it has {listing(dict.fromkeys(kinds.values())) or 'none'}",
                "targets",
            )
        return [path for path in kinds if not wanted or path in fits]

    def made(self, places: list[str]) -> Any:
        """peft's config. Raises: ConfigMismatchError for settings that are not taken, or that peft refuses."""
        settings = dict(self.settings)
        for name in OURS.keys() & settings.keys():
            raise ConfigMismatchError(f"settings.{name} is not taken: {OURS[name]}", "settings")
        if settings.get("bias", "none") != "none":
            raise ConfigMismatchError("settings.bias is not taken: it trains the decoder's own weights", "settings")
        if settings.get("init_lora_weights", True) not in (True, "gaussian", "orthogonal"):
            raise ConfigMismatchError(
                "settings.init_lora_weights: only true, gaussian and orthogonal leave the decoder's own weights as they are",
                "settings",
            )
        kind = of_peft("mapping", "PEFT_TYPE_TO_CONFIG_MAPPING")[self.method.upper()]
        known = [name for name in kind.__dataclass_fields__ if name not in OURS]
        for name in settings.keys() - set(known):
            raise ConfigMismatchError(f"peft's {self.method} has no setting '{name}'{did_you_mean(name, known)}", "settings")
        if self.method == "ia3":
            kinds = {path: role_of(path) for path in places}
            settings["feedforward_modules"] = named(kinds, settings.get("feedforward_modules", ["down"]))
        try:
            config = kind(target_modules=places, **settings)
        except (TypeError, ValueError) as error:
            raise ConfigMismatchError(f"peft refuses these settings: {' '.join(str(error).split())}", "settings") from error
        scaled = [name for name in SCALES if hasattr(config, name)]
        if self.scale != 1 and not scaled:
            raise ConfigMismatchError(f"peft's {self.method} has no alpha or scaling that could be changed; leave it at 1", "scale")
        for name in scaled[:1] if self.scale != 1 else ():
            setattr(config, name, getattr(config, name) * self.scale)
            for pattern, alpha in (getattr(config, "alpha_pattern", None) or {}).items():
                config.alpha_pattern = {**config.alpha_pattern, pattern: alpha * self.scale}
        return config

    def num_params(self, context: BuildContext) -> dict[str, int]:
        counts: dict[str, int] = {}
        places = self.places(context.decoder)
        for name, shape in self.shapes(context).items():
            term = next(path for path in places if name.startswith(f"{path}.")).rsplit(".", 1)[-1]
            counts[term] = counts.get(term, 0) + torch.Size(shape).numel()
        return counts

    def cost(self, context: BuildContext) -> Cost:
        """Two FLOPs a token for each trained weight, and for each of the frozen maps that VeRA and RandLoRA bring."""
        frozen = 0
        if self.method in ("vera", "randlora"):
            modules = modules_of(context.decoder)
            rank = self.made(places := self.places(context.decoder)).r
            frozen = sum(rank * sum(modules[path][1]) for path in places)
        return Cost(per_token=2 * (sum(self.num_params(context).values()) + frozen))

    def build(self, context: BuildContext) -> Peft:
        places = self.places(context.decoder)
        return Peft(self.method, self.made(places), places, self.shapes(context))


class Peft(DecoderComponent):
    """Its weights have the names they have in the decoder, without the adapter's own; peft's layers use them.

    They start as peft makes them, when first attached: some methods start from the decoder's weights (DoRA, norm tuning). While
    attached, peft's layers stand in place of the targets; `detach()` puts the very same modules back.
    """

    replaces_modules = True

    def __init__(
        self,
        method: str,
        config: Any,
        places: list[str],
        shapes: Mapping[str, tuple[int, ...]],
        names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.method, self.config, self.places_of, self.shapes = method, config, places, dict(shapes)
        self.names = {name: (names or {}).get(name, name) for name in shapes}
        self.seed, self.fresh = torch.initial_seed(), True
        self._layers: list[nn.Module] = []
        self._uses: list[tuple[nn.Module, str, str]] = []
        for name, shape in shapes.items():
            owner = self._owner(self.names[name], create=True)
            owner.register_parameter(self.names[name].rsplit(".", 1)[-1], nn.Parameter(torch.zeros(shape)))

    def _owner(self, name: str, create: bool = False) -> nn.Module:
        owner: nn.Module = self
        for part in name.split(".")[:-1]:
            if create and not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        return owner

    def hook(self, decoder: nn.Module) -> Iterator[Placed]:
        """Let peft place its layers, and these weights in them. Raises: DecoderError for a decoder of another layout."""
        layer_of_peft = of_peft("tuners.tuners_utils", "BaseTunerLayer")
        targets = {path: module for path, module in decoder.named_modules() if path in set(self.places_of)}
        if len(targets) < len(self.places_of):
            missing = [path for path in self.places_of if path not in targets]
            raise DecoderError(f"{type(decoder).__name__}: has no {listing(missing)}, where {self.method} was built to stand")
        inside = [path for path, module in targets.items() if isinstance(module, layer_of_peft)]
        if inside:
            raise DecoderError(
                f"{type(decoder).__name__}: peft tunes {inside[0]} already; merge_and_unload() it first, or write all targets "
                "into one node"
            )
        hooked = [path for path, module in targets.items() if module._forward_hooks or module._forward_pre_hooks]
        if hooked:
            raise DecoderError(
                f"{type(decoder).__name__}: {hooked[0]}, in whose place {self.method} is to stand, has a hook; remove it and "
                "place it again when the model is built"
            )
        trained = [weight for weight in decoder.parameters() if weight.requires_grad]
        yield Placed(decoder, targets)
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(self.seed)
        try:
            placed(decoder, self.method, self.config)
        finally:
            torch.default_generator.set_state(state)
        found = tuned(decoder, self.places_of)
        if {stored(name): tuple(weight.shape) for name, weight in found.items()} != self.shapes:
            raise DecoderError(f"{type(decoder).__name__}: its maps are not those that {self.method} was built for")
        for name, made in found.items():
            own = self.get_parameter(self.names[stored(name)])
            if self.fresh and not made.is_meta:
                own.data.copy_(made.detach())
            owner, _, leaf = name.rpartition(".")
            self._uses.append((decoder.get_submodule(owner), leaf, self.names[stored(name)]))
        self._place()
        self.fresh = self.fresh and any(weight.is_meta for weight in found.values())
        self._layers = [decoder.get_submodule(path) for path in self.places_of]
        if self.method == "ln_tuning":
            for layer in self._layers:
                layer.ln_tuning_layers[NAME] = InItsDtype(layer.ln_tuning_layers[NAME])
        for part in self._parts():
            for name, buffer in list(part.named_buffers()):
                if buffer.is_floating_point():  # VeRA's frozen maps have the decoder's dtype, its trained weights float32
                    owner, _, leaf = name.rpartition(".")
                    part.get_submodule(owner)._buffers[leaf] = buffer.float()
        for weight in (*self.parameters(), *trained):
            weight.requires_grad_(True)
        self.train(self.training)

    def _place(self) -> None:
        """Put the trained weights where peft's layers look for them."""
        for owner, leaf, name in self._uses:
            setattr(owner, leaf, self.get_parameter(name))

    def _apply(self, fn: Any, recurse: bool = True) -> Peft:
        """Moved to the meta device a weight becomes another object."""
        super()._apply(fn, recurse)
        self._place()
        return self

    def detach(self) -> None:
        """Put the decoder's own modules back."""
        self._layers, self._uses = [], []
        super().detach()

    def train(self, mode: bool = True) -> Peft:
        """Dropout inside peft's layers as in training, or none; the decoder's own modules keep their mode."""
        super().train(mode)
        for part in self._parts():
            part.train(mode)
        return self

    def _parts(self) -> Iterator[nn.Module]:
        """What peft put into its layers beside the decoder's own modules."""
        for layer in self._layers:
            yield from (child for name, child in layer.named_children() if name != "base_layer")


class Placed:
    """What a tuner took the place of: `remove()` puts the very same modules back."""

    def __init__(self, decoder: nn.Module, targets: Mapping[str, nn.Module]) -> None:
        self.decoder, self.targets, self.tuned_before = decoder, targets, hasattr(decoder, "peft_config")

    def remove(self) -> None:
        for path, module in self.targets.items():
            owner, _, leaf = path.rpartition(".")
            setattr(self.decoder.get_submodule(owner), leaf, module)
        if not self.tuned_before and hasattr(self.decoder, "peft_config"):
            del self.decoder.peft_config


class InItsDtype(nn.Module):
    """A norm whose trained weights are float32 beside a decoder of half precision: computed in the dtype of what it norms."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weights = {name: weight.to(x.dtype) for name, weight in self.norm.named_parameters()}
        return torch.func.functional_call(self.norm, weights, (x, *args), kwargs)


def named(kinds: Mapping[str, str], wanted: Iterable[str]) -> list[str]:
    """Of paths and their roles, the paths with one of these roles or names."""
    return [path for path, role in kinds.items() for one in wanted if one == role or f".{path}".endswith(f".{one}")]


def placed(root: nn.Module, method: str, config: Any) -> None:
    """Let peft put its layers into a model."""
    tuner = of_peft("mapping", "PEFT_TYPE_TO_TUNER_MAPPING")[method.upper()]
    with warnings.catch_warnings():
        advice = "Unsupported layer type|Already found a `peft_config`|fan_in_fan_out"  # norms; a second node; Conv1D
        warnings.filterwarnings("ignore", message=advice)
        tuner(root, copy.deepcopy(config), NAME)


def tuned(root: nn.Module, places: list[str]) -> dict[str, nn.Parameter]:
    """The weights that peft added at these places, by their names in the model."""
    inside = tuple(f"{path}." for path in places)
    return {
        name: weight
        for name, weight in root.named_parameters()
        if name.startswith(inside) and re.search(rf"\.{NAME}(\.|$)", name) and weight.requires_grad
    }


def stored(name: str) -> str:
    """A weight's name in the decoder without the adapter's own."""
    return name.replace(f".{NAME}", "")
