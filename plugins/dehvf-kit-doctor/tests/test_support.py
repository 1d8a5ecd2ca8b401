"""`dehvf-kit support` prints the last run, runs some types, and knows what it does not know."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from dehvf_kit.cli.main import app


def test_prints_the_pages_of_the_last_run() -> None:
    result = CliRunner().invoke(app, ["support"])
    assert result.exit_code == 0
    assert "| llama |" in result.stdout and "| dinov2 |" in result.stdout


@pytest.mark.nightly
def test_runs_an_encoder_now() -> None:
    result = CliRunner().invoke(app, ["support", "vit", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["decoders"] == [] and [one["status"] for one in facts["vision"]] == ["pass"]


@pytest.mark.nightly
def test_prints_the_items_of_a_run() -> None:
    result = CliRunner().invoke(app, ["support", "vit"])
    assert result.exit_code == 0, result.output
    assert "vit  pass" in result.stdout and "neighbours" in result.stdout


def test_unknown_type_gets_a_near_name() -> None:
    result = CliRunner().invoke(app, ["support", "lama"])
    assert result.exit_code == 1 and "did you mean 'llama'?" in result.stderr
