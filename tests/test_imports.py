"""Who may import whom (`.importlinter`), and that importing the package stays cheap."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter import api
from importlinter.application import use_cases

CONTRACT = str(Path(__file__).parents[1] / ".importlinter")


def test_the_import_contract_is_kept(capsys):
    kept = use_cases.lint_imports(config_filename=CONTRACT, cache_dir=None, no_logo=True)
    assert kept, capsys.readouterr().out


def test_the_exceptions_do_not_grow():
    layers = next(options for options in api.read_configuration(CONTRACT)["contracts_options"] if options["id"] == "layers")
    assert layers["ignore_imports"] == [
        "dehvf_kit.model.model -> dehvf_kit.adapter.checkpoint",
        "dehvf_kit.model.model -> dehvf_kit.adapter.hub",
    ]


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
