"""What the trainers of other libraries find on a model: transformers' Trainer is served, TRL's are refused."""

from __future__ import annotations

from typing import Any

from torch import nn

from dehvf_kit.errors import DehvfError


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
