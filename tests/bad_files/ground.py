"""What the bad files are put on: a tiny world with two base models, an adapter of its own for each case, and a list of cases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

Words = Sequence[object]
REFUSED, HANDLED = "refused", "read"
WEIGHTS, CONFIG = "adapter_model.safetensors", "dehvf_config.json"


@dataclass
class Ground:
    """A case's folder, the world (base models, images, `tiny.yaml`), and an adapter that nobody has touched."""

    folder: Path
    world: Path
    pristine: Path

    def write(self, name: str, content: str | bytes) -> Path:
        """A file in the case's folder."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def adapter(self) -> Path:
        """A copy of the adapter, for the case to spoil."""
        return Path(shutil.copytree(self.pristine, self.folder / "adapter"))

    def config(self, **changes: Any) -> Path:
        """A copy of the adapter whose config has other fields; a function changes the field that is there."""
        adapter = self.adapter()
        config = json.loads((adapter / CONFIG).read_text())
        for name, value in changes.items():
            config[name] = value(config.get(name)) if callable(value) else value
        (adapter / CONFIG).write_text(json.dumps(config))
        return adapter

    def weights(self, change: Callable[[dict[str, Any]], object]) -> Path:
        """A copy of the adapter with other weights, and a config that vouches for them."""
        adapter = self.config(weights_sha256=None)
        tensors = load_file(adapter / WEIGHTS)
        change(tensors)
        save_file(tensors, adapter / WEIGHTS)
        return adapter

    def ask(self, image: Path) -> Words:
        """The command that asks about an image."""
        return ["generate", image, "what colour is it ?", "--adapter", self.pristine]


@dataclass(frozen=True)
class Case:
    """A bad file: what it is, how it is made and given to a command, and what then must happen.

    said: a part of what the command prints, which the table quotes; look: what else must be true of a file that is read.
    """

    kind: str
    what: str
    outcome: str
    said: str
    make: Callable[[Ground], Words]
    look: Callable[[Ground], None] | None = None
    needs: str = ""
    name: str = field(default="")


def collector(kind: str, cases: list[Case]) -> Callable[..., Any]:
    """A decorator for the functions that make the files of one kind; each returns the words of a command."""

    def case(what: str, outcome: str, said: str, look: Callable[[Ground], None] | None = None, needs: str = "") -> Any:
        def add(make: Callable[[Ground], Words]) -> Callable[[Ground], Words]:
            cases.append(Case(kind, what, outcome, said, make, look, needs, make.__name__))
            return make

        return add

    return case
