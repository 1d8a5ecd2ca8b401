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


def own_names(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


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


def test_components_do_not_know_one_another():
    for file in (ROOT / "components").rglob("*.py"):
        role = file.parent.name
        for line, name in imports(file):
            if name.startswith("components."):
                assert name.split(".")[1] == role, f"{file}:{line}: a {role} imports {name}"


def test_only_the_attention_file_knows_xformers():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert own_names(file) == "ops.attention" or not any(name.startswith("xformers") for name in names), (
                    file
                )


@pytest.mark.parametrize(
    "code", ["import dehvf_kit", "import dehvf_kit.cli.main", "import dehvf_kit.recipe.recipe, dehvf_kit.recipe.graph"]
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
