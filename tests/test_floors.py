"""The layering: a file imports from floors below its own, and on its own floor only where that is named here.

Floor 0 knows nothing, floor 5 is the command line. Imports inside functions count too.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "dehvf_kit"
FLOORS = {
    0: ("shapes", "errors", "scores", "atomic", "shipped"),
    1: ("config", "hookspecs", "registry", "plugin_code", "ops", "yaml_files", "strict_json"),
    2: ("backbones", "components", "recipe_files"),
    3: (
        "graph",
        "graph_run",
        "data",
        "training.config",
        "recipe",
        "recipe_parser",
        "plugin_manager",
        "builtin_plugin",
        "processing",
        "model",
        "model_config",
        "input_tokens",
        "loss",
        "holding",
    ),
    4: (
        "builder",
        "checkpoint",
        "fingerprint",
        "card",
        "measured",
        "licences",
        "hub",
        "tokenizer_identity",
        "memvp_checkpoint",
        "auto_classes",
        "data.encoding",
        "data.features",
        "data.feature_files",
        "data.peek",
        "data.stream_encoding",
        "training",
        "scoring",
        "analysis",
        "chat",
        "comparison",
        "drawing",
        "new_plugin",
        "planning",
        "report",
        "reproduction",
        "starter",
        "recipe_list",
        "schema",
        "reference",
        "testing",
    ),
    5: ("cli", "__main__", "integrations"),
}
# Imports on one floor below the fourth, and the doors upward: each with its reason.
ALLOWED = {
    ("components", "backbones"): "components hook towers by the sites that backbones list",
    ("recipe", "recipe_parser"): "the parser fills its fields",
    ("recipe_parser", "graph"): "it checks the graph too",
    ("recipe_parser", "training.config"): "and the training section",
    ("recipe", "graph"): "a recipe is a graph",
    ("recipe", "data"): "and a data section",
    ("recipe", "training.config"): "and a training section",
    ("recipe", "plugin_manager"): "types are found in the registry",
    ("plugin_manager", "builtin_plugin"): "built-ins load by the same hooks",
    ("builtin_plugin", "data"): "the table of contents",
    ("processing", "data"): "the prompt",
    ("data", "scoring"): "a data set's score opens the door upward when called",
    ("model", "graph"): "the model runs the graph",
    ("model", "graph_run"): "the model runs the graph",
    ("graph_run", "graph"): "the graph that is run",
    ("model", "model_config"): "its config class",
    ("model", "input_tokens"): "what components put into the input",
    ("model", "loss"): "the loss of the answers",
    ("model", "holding"): "what the decoder reads while it runs",
    ("model", "recipe"): "for annotations",
    ("model_config", "recipe"): "for annotations",
    ("model", "hub"): "push_to_hub opens the door upward when called",
    ("model", "checkpoint"): "save_pretrained and from_pretrained open the door upward when called",
}


def own_names(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def place(name: str) -> tuple[int, str] | None:
    """Floor and unit of a module named without its package: the longest entry of FLOORS that it lies in."""
    found = [
        (len(unit), floor, unit)
        for floor, units in FLOORS.items()
        for unit in units
        if name == unit or name.startswith(f"{unit}.")
    ]
    return max(found)[1:] if found else None


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, module without the package) of every import of our own, wherever it stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{file}:{node.lineno}: a relative import; write the module's full name")
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "dehvf_kit":
                yield node.lineno, name.removeprefix("dehvf_kit").removeprefix(".")


FILES = sorted(file for file in ROOT.rglob("*.py") if file != ROOT / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=own_names)
def test_imports_come_from_below(file):
    here = place(own_names(file).removesuffix(".__init__"))
    assert here is not None, f"{file}: on no floor; add it to FLOORS"
    faults = []
    for line, name in imports(file):
        there = place(name)
        if there is None:
            if name not in ("__version__",) and here[0] < 4:
                faults.append(f"{file}:{line}: imports '{name}' from the package root, which is for users and plugins")
            continue
        if (
            there[1] == here[1]
            or there[0] < here[0]
            or (here[1], there[1]) in ALLOWED
            or here[0] >= 4 <= there[0] <= here[0]
        ):
            continue
        faults.append(f"{file}:{line}: {here[1]} (floor {here[0]}) imports {there[1]} (floor {there[0]})")
    assert not faults, "\n".join(faults)


def test_components_do_not_know_one_another():
    for file in (ROOT / "components").rglob("*.py"):
        role = file.parent.name
        for line, name in imports(file):
            if name.startswith("components."):
                assert name.split(".")[1] == role, f"{file}:{line}: a {role} imports {name}"


def test_every_floor_names_what_exists():
    for unit in (unit for units in FLOORS.values() for unit in units):
        path = ROOT.joinpath(*unit.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"FLOORS names '{unit}', which is not there"


def test_only_the_attention_file_knows_xformers():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert own_names(file) == "ops.attention" or not any(name.startswith("xformers") for name in names), (
                    file
                )


@pytest.mark.parametrize(
    "code", ["import dehvf_kit", "import dehvf_kit.cli.main", "import dehvf_kit.recipe, dehvf_kit.graph"]
)
def test_these_imports_bring_no_torch(code):
    script = f"import json, sys; {code}; print(json.dumps([n for n in ('torch', 'transformers') if n in sys.modules]))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_help_brings_no_torch():
    script = (
        "import sys; sys.argv = ['dehvf-kit', '--help']\n"
        "from dehvf_kit.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit(int('torch' in sys.modules or 'transformers' in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "train" in found.stdout


def test_importing_leaves_the_environment_alone():
    script = "import os; before = dict(os.environ); import dehvf_kit; print(before == dict(os.environ))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "True\n"


def test_public_names_load():
    import dehvf_kit

    assert all(getattr(dehvf_kit, name) is not None for name in dehvf_kit.__all__)
    assert set(dehvf_kit.__all__) <= set(dir(dehvf_kit))
    with pytest.raises(AttributeError, match="module 'dehvf_kit' has no attribute 'bild'"):
        dehvf_kit.bild  # noqa: B018
