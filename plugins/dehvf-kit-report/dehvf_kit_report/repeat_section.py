"""Everything needed to repeat a run: recipe, commands, base models, versions, seed, prompt fingerprint."""

from __future__ import annotations

import base64
import json
import platform
from pathlib import Path
from shlex import quote
from typing import Any

import torch
import transformers

from dehvf_kit._version import __version__
from dehvf_kit.adapter.files import WEIGHTS
from dehvf_kit.adapter.identity import saved_fingerprint
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.training.run import ADAPTER
from dehvf_kit.utils.atomic import is_file, sha256
from dehvf_kit.utils.plain_data import to_yaml
from dehvf_kit_report.finished_run import FinishedRun
from dehvf_kit_report.page import Section, table, text
from dehvf_kit_report.sections import eval_command


def repeat_section(run: FinishedRun) -> Section:
    """Commands first, then what they must find."""
    recipe = run.recipe
    file = f"{recipe.name or 'recipe'}.yaml"
    resolved = to_yaml(recipe.resolved())
    again = Path("runs") / f"{recipe.name or run.folder.name}_again"
    commands = [f"dehvf-kit train {quote(file)} --output {quote(str(again))}"]
    commands += [eval_command(again / ADAPTER, again), f"dehvf-kit report {quote(str(again))}"]
    address = f"data:text/yaml;base64,{base64.b64encode(resolved.encode()).decode()}"
    print_ = saved_fingerprint(run.config, recipe, str(run.adapter))
    parts = [
        f"<p><a download='{text(file)}' href='{address}'>Save {text(file)}</a>, then:</p><pre>{text(chr(10).join(commands))}</pre>",
        f"<details><summary>{text(file)}: the recipe with every default filled in</summary><pre>{text(resolved)}</pre></details>",
        "<div class='pair'><div><h3>Versions</h3>", table(["", "trained with", "page made with"], _versions(run), 3),
        "<h3>Seed</h3><p>", text(recipe.training.seed), " (initial weights, order of the samples, dropout)</p>",
        "<h3>Adapter</h3><p>sha256 of ", text(WEIGHTS), f": <code>{_sha256(run)}</code></p></div>",
        "<div><h3>Base models</h3>", table(["", "name", "revision", "dtype"], _bases(run.config), 4),
        f"<h3>Prompt fingerprint</h3><p><code>{text(print_['hash'])}</code></p>",
        f"<details><summary>what it covers</summary><pre>{text(_shown(print_))}</pre></details></div></div>",
    ]  # fmt: skip
    return Section("repeat", "Repeat this run", "".join(parts))


def _versions(run: FinishedRun) -> list[list[str]]:
    now = {"dehvf-kit": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    now["python"] = platform.python_version()
    trained = run.config.get("versions", {})
    rows = [[name, str(trained.get(name, "-")), now.get(name, "-")] for name in {**trained, **now}]
    others = [[f"plugin {name}", "-", place] for name, place in plugins().origins.items() if name != "built-in"]
    return [*rows, *others, ["machine", "-", f"{platform.system()} {platform.machine()}"]]


def _bases(config: Any) -> list[list[str]]:
    return [
        [name, base.get("name") or "handed over in memory", base.get("revision") or "-", base.get("dtype", "-")]
        for name, base in config["bases"].items()
    ]


def _sha256(run: FinishedRun) -> str:
    file = run.adapter / WEIGHTS
    return sha256(file) if is_file(file) else "missing"


def _shown(facts: Any) -> str:
    return json.dumps(dict(facts), indent=2, ensure_ascii=False)
