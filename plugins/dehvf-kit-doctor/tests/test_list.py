"""`dehvf-kit list` names all that is installed, and what could not be loaded."""

from __future__ import annotations

import json

import pytest
from cli.commands import Command

from dehvf_kit.recipe.plugin_manager import plugins


def test_list_names_every_component_its_origin_and_a_line(command: Command) -> None:
    found = json.loads(command("list", "--json").out)
    entries = {(entry["role"], entry["type"]): entry for entry in found["components"]}
    assert set(entries) == set(plugins().registry.configs)
    assert all(entry["summary"] and entry["origin"] for entry in entries.values())
    assert entries["fuser", "cross_attention"]["origin"] == "built-in"
    assert {"name": "built-in", "origin": "dehvf-kit"} in found["plugins"]


def test_list_prints_all_of_it(command: Command) -> None:
    out = command("list").out
    for role, kind in plugins().registry.configs:
        assert f"\n{role}\n" in out and f"  {kind} " in out
    assert not any(line.endswith(" ") for line in out.splitlines())


def test_list_of_a_role_prints_ports_fields_defaults_and_descriptions(command: Command) -> None:
    out = command("list", "fuser").out
    assert "members: batch group member vision_hidden" in out
    for line in ("num_blocks", "cross-attention blocks k", "one of silu, gelu"):
        assert line in out, line
    assert "required" in command("list", "grouper").out


def test_list_suggests_a_role(command: Command) -> None:
    ended = command("list", "fusser")
    assert ended.code == 1
    assert ended.err.splitlines()[1].startswith("list: no role is named 'fusser'; did you mean 'fuser'? Roles: ")


@pytest.mark.usefixtures("own_plugins")
def test_list_names_broken_plugins_with_the_reason(command: Command) -> None:
    plugins().broken["theirs"] = "theirs 1.0: ImportError: no module named 'x'"
    assert json.loads(command("list", "--json").out)["broken_plugins"][-1]["name"] == "theirs"
    assert "no module named 'x'" in command("list").out
