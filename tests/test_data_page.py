"""docs/data.md names every data set of the kit, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

from dehvf_kit_benchmarks.scienceqa import ScienceQaDataConfig
from dehvf_kit_benchmarks.scienceqa_prompt import Problem, prompt, reply
from dehvf_kit_scaffold.schema import builtin_registry
from typer import Context
from typer.main import get_command

from dehvf_kit.cli.main import app

PAGE = (Path(__file__).parents[1] / "docs/data.md").read_text()


def test_every_data_set_stands_on_the_page() -> None:
    table = PAGE.partition("| `type` | data |")[2].partition("\n\n")[0]
    assert set(builtin_registry().types("data")) == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def test_its_commands_and_options_exist() -> None:
    group = get_command(app)
    for words in re.findall(r"^dehvf-kit (.*?)(?:\s+#.*)?$", PAGE, re.MULTILINE):
        verb, *rest = words.split()
        command = group.get_command(Context(group), verb).load()
        if hasattr(command, "commands"):
            command = command.commands[rest[0]]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, words


def test_its_prompt_is_the_default() -> None:
    (block,) = re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL)
    config = ScienceQaDataConfig()
    problem = Problem("1", "{question}", ("...", "..."), 1, "{hint, or N/A}")
    text = prompt(problem, config.format, config.captions, config.response) + reply(problem, config.format)
    assert text == block
