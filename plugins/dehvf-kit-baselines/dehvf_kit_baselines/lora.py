"""LoRA as recipes and adapters named it before `peft` took every tuner; new recipes write `type: peft` with method lora."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dehvf_kit.api import BuildContext, ComponentConfig, Cost
from dehvf_kit_baselines.peft_tuner import Peft, PeftConfig

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj"]


class LoraConfig(ComponentConfig):
    """The earlier form of `peft` with method lora, kept so that adapters saved with it load; write `peft` in new recipes."""

    role: ClassVar[str] = "decoder_adapter"
    attaches: ClassVar[str] = "decoder"
    strength: ClassVar[str] = "alpha"
    type: Literal["lora"] = "lora"
    rank: int = Field(6, ge=1, description="width of A's output")
    alpha: float = Field(12.0, gt=0, description="the update is scaled by alpha / rank (choice: twice the rank)")
    targets: tuple[Target, ...] = Field(("q_proj", "v_proj"), min_length=1, description="projections of the attention")

    @property
    def tuner(self) -> PeftConfig:
        """The same as `peft` has it."""
        return PeftConfig(settings={"r": self.rank, "lora_alpha": self.alpha}, targets=self.targets)

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        return self.tuner.resolve(context)

    def num_params(self, context: BuildContext) -> dict[str, int]:
        return self.tuner.num_params(context)

    def cost(self, context: BuildContext) -> Cost:
        return self.tuner.cost(context)

    def build(self, context: BuildContext) -> Peft:
        """Its weights are named `down.<projection>.<layer>.weight` [rank, in] and `up....weight` [out, rank]."""
        places, names = self.tuner.places(context.decoder), {}
        for target in self.targets:
            for layer, path in enumerate(path for path in places if path.endswith(f".{target}")):
                names[f"{path}.lora_A.weight"] = f"down.{target}.{layer}.weight"
                names[f"{path}.lora_B.weight"] = f"up.{target}.{layer}.weight"
        return Peft("lora", self.tuner.made(places), places, self.tuner.shapes(context), names)
