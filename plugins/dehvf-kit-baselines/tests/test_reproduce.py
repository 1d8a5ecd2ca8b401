"""Published figures as printed, ours beside them: counted now, read from runs, or not run with the command that would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.commands import Command
from dehvf_kit_baselines.reproduction import closed_formulas, tables
from dehvf_kit_baselines.reproduction.figures import figure2, read_adapter
from dehvf_kit_baselines.reproduction.tables import ROOT, TABLES, published, table
from PIL import Image

from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.recipe import load_recipe


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours are counted elsewhere; here a sample has 10 TFLOPs: 12,726 * 20 * 1e13 / (312e12 * 0.3) / 3600 = 7.6 h."""
    monkeypatch.setattr(tables, "training_flops", lambda *_: 1e13)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_every_column_and_a_place_for_ours(name: str) -> None:
    data = published()[name]
    kind = published()[data["data"]]
    for row in data["rows"]:
        assert len(row["values"]) == len(kind["columns"]), row["method"]
        assert ("run" in row) == ("recipe" in row), row["method"]
    assert data["source"].startswith("DEHVF, Table")


def test_averages_lie_between_the_grades_but_for_one_row_of_the_paper() -> None:
    """The two grades share out the questions, and so do the three subjects. The paper's own 13B row breaks that: typed as it is."""
    odd = set()
    for name in ("table1", "table4"):
        for row in published()[name]["rows"]:
            values = row["values"]
            if values[0] is not None:
                odd |= {row["method"] for part in (values[:3], values[6:8]) if not min(part) <= values[8] <= max(part)}
    assert odd == {"DEHVF 13B"}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", TABLES)
def test_every_parameter_count_of_ours_rounds_to_the_published(name: str, tmp_path: Path) -> None:
    rows = table(name, tmp_path)
    counted = [row for row in rows if row.parameters is not None and row.published_parameters != "-"]
    assert counted and all(row.matches for row in counted), [row.method for row in counted if not row.matches]
    assert all(row.ours is None for row in rows)
    dehvf = [row for row in counted if row.method.startswith("DEHVF") and row.command]
    assert all(row.hours and "dehvf-kit" in row.command and str(tmp_path) in row.command for row in dehvf)


@pytest.mark.usefixtures("quick")
def test_the_rival_that_the_paper_does_not_cite_has_rows_with_footnotes(tmp_path: Path) -> None:
    for name, last in (("table1", 94.01), ("table3", 130.1)):
        row = next(row for row in table(name, tmp_path) if row.method == "ADEM-VL 7B")
        assert (row.parameters, row.matches, row.published[-1]) == (4_530_432, None, last)
        assert "not in the paper's table" in row.footnote and row.command and row.hours
    doubtful = {row.method for row in table("table3", tmp_path) if row.footnote}
    assert doubtful == {"BLIP-2", "LLaMA-Adapter V2", "ADEM-VL 7B"}


@pytest.mark.usefixtures("quick")
def test_ours_are_read_where_the_command_leaves_them(tmp_path: Path) -> None:
    folder = tmp_path / "llama7b_clip_scienceqa"
    folder.mkdir()
    columns = {"NAT": {"value": 0.95, "count": 3}, "Avg": {"value": 0.9354, "count": 9}}
    (folder / "scores.json").write_text(json.dumps({"adapter": "x", "columns": columns}))
    row = next(row for row in table("table4", tmp_path) if row.method == "DEHVF 7B")
    assert row.ours == (95.0, *[None] * 7, pytest.approx(93.54)) and not row.command
    for text in ("", "{}", '{"columns": {"BLEU-4": {"value": 1}}}'):
        (folder / "scores.json").write_text(text)
        with pytest.raises(DehvfError, match="scores.json: "):
            table("table4", tmp_path)


@pytest.mark.usefixtures("quick")
def test_speed_comes_from_a_comparison(tmp_path: Path) -> None:
    assert {row.command for row in table("table2", tmp_path) if row.command} == {
        next(row.command for row in table("table2", tmp_path) if row.method == "DEHVF 7B")
    }
    (tmp_path / "table2").mkdir()
    found = {"recipe": "llama7b_clip", "accuracy": {}, "seconds_per_step": {"mean": 0.3}}
    found["answer_seconds_per_question"] = {"mean": 0.05}
    (tmp_path / "table2" / "comparison.json").write_text(json.dumps({"rows": [found]}))
    rows = {row.method: row for row in table("table2", tmp_path)}
    assert rows["DEHVF 7B"].ours == (0.3, pytest.approx(1.6)) and rows["MemVP 7B"].ours is None
    (tmp_path / "table2" / "comparison.json").write_text("[]")
    with pytest.raises(DehvfError, match=r"comparison.json: not what `dehvf-kit compare` writes"):
        table("table2", tmp_path)


@pytest.mark.nightly
def test_hours_by_the_formula(tmp_path: Path) -> None:
    from dehvf_kit_plan.symbolic import training_flops

    row = next(row for row in table("table4", tmp_path) if row.method == "w/o visual prompts")
    flops = training_flops(load_recipe(ROOT / "recipes" / "ablations" / "no_visual_prompts.yaml"), 200, 8)
    assert row.hours == pytest.approx(12_726 * 20 * flops / (312e12 * 0.3) / 3600)


def test_a_repository_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    rows = {row.method: row for row in table("table1", tmp_path)}
    assert rows["DEHVF 7B"].parameters is None and "it is in the repository" in rows["DEHVF 7B"].missing
    assert rows["LaVIN 13B"].parameters == 5_390_080 and rows["LaVIN 13B"].parameters_from.startswith("formula")


@pytest.fixture(scope="module")
def points() -> list:
    return figure2()


@pytest.mark.nightly
def test_figure2_counts_as_the_closed_formulas(points: list) -> None:
    """The paper's round form takes a feed-forward network of 4 h and two matrices; LLaMA's three of 2.69 h are 0.8% more.

    LLaVA within 1%; DEHVF within 2.5%, for the projector that the formula leaves out (worst: 2.1%, at 576).
    """
    assert [point.visual_tokens for point in points] == [16, 64, 144, 256, 400, 576]
    for point in points:
        assert point.llava == pytest.approx(point.llava_formula, rel=0.01)
        assert point.dehvf == pytest.approx(point.dehvf_formula, rel=0.025)
        assert point.llava_formula == closed_formulas.decoder(point.visual_tokens + 32, 4096, 32)
        assert point.dehvf > point.dehvf_formula


@pytest.mark.nightly
def test_figure2_says_what_the_paper_says(points: list) -> None:
    """5.3% counted where the paper says 6%, which it rounds up or counts with the projector; and linear growth."""
    assert points[-1].share == pytest.approx(0.06, abs=0.01)
    shares = [point.share for point in points]
    assert shares == sorted(shares, reverse=True)
    steps = [(b.dehvf - a.dehvf) / (b.visual_tokens - a.visual_tokens) for a, b in zip(points, points[1:], strict=False)]
    assert max(steps[2:]) == pytest.approx(min(steps[2:]), rel=0.01)  # with few slots another form of the product is cheaper


def test_figures_3_and_4_from_an_adapter(adapter: Path) -> None:
    found = read_adapter(adapter, None)
    groups, layers = found.by_group(), found.by_layer()
    assert found.images == 8
    assert [row["decoder_layers"] for row in groups] == [[1, 2], [3, 4]]
    assert [row["vision_layers"] for row in groups] == [["1", "2", "3", "4", "7"], ["5", "6", "7", "8"]]
    for row in groups:
        for values in row["weights"].values():
            assert sum(values) == pytest.approx(1, abs=1e-5)
    assert [row["decoder_layer"] for row in layers] == [1, 2, 3, 4]
    for role in ("memory keys", "memory values"):
        mean = [(a + b) / 2 for a, b in zip(layers[0]["weights"][role], layers[1]["weights"][role], strict=True)]
        read = [mean[int(layer) - 1] for layer in groups[0]["vision_layers"]]
        assert read == pytest.approx(groups[0]["weights"][role], abs=1e-5)


@pytest.mark.parametrize("name", ["figure3", "figure4"])
@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_command_draws(command: Command, adapter: Path, tmp_path: Path, name: str, ending: str) -> None:
    file = tmp_path / f"picture{ending}"
    ended = command("reproduce", name, "--adapter", adapter, "--image", file, "--limit", 4)
    assert ended.code == 0 and f"image: {file}" in ended.out and "mean over 4 images" in ended.out
    if ending == ".png":
        with Image.open(file) as picture:
            assert min(picture.size) > 200
    else:
        assert "</svg>" in file.read_text()


@pytest.mark.usefixtures("quick")
def test_the_command_prints_a_table(command: Command, tmp_path: Path) -> None:
    ended = command("reproduce", "table1", "--runs", tmp_path)
    assert ended.code == 0
    for words in ("Human", "89.60", "not run", "4,171,520", "To fill ours", "DEHVF 13B, 7.6 h", "3,781,296"):
        assert words in ended.out, words
    found = json.loads(command("reproduce", "table3", "--json", "--runs", tmp_path).out)
    assert found["columns"] == ["BLEU-4", "CIDEr"] and found["rows"][-1]["published"] == [37.1, 128.9]


@pytest.mark.nightly
def test_figure2_as_json_with_its_picture(command: Command, tmp_path: Path, points: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dehvf_kit_baselines.reproduction.figures.figure2", lambda: points)
    ended = command("reproduce", "figure2", "--picture", tmp_path / "figure2.png", "--json")
    assert [point["visual_tokens"] for point in json.loads(ended.out)["points"]][-1] == 576
    assert (tmp_path / "figure2.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["table5"], "there is no 'table5' to reproduce; did you mean 'table"),
        (["figure3"], "name one with --adapter DIR"),
        (["figure3", "--adapter", "nowhere"], "nowhere: there is no such folder"),
        (["table1", "--image", "a.png"], "table1 is a table"),
        (["figure2", "--image", "a.exe"], "wants a name that ends in .png, .svg or .pdf"),
    ],
)
def test_mistakes_are_told(command: Command, words: list[str], says: str) -> None:
    ended = command("reproduce", *words)
    assert ended.code == 1 and says in ended.err and "Traceback" not in ended.err


def test_an_adapter_without_a_fuser_is_told(world: Path, tmp_path: Path) -> None:
    from dehvf_kit.training.run import train

    none = [f"graph.{node}=null" for node in ("grouper", "layer_query", "projector", "fuser")]
    found = train(load_recipe(world / "tiny.yaml", [*none, "training.max_steps=1"]), tmp_path / "run")
    with pytest.raises(DehvfError, match="its graph has no fuser"):
        read_adapter(found.adapter, None)


@pytest.mark.nightly
def test_the_docs_say_what_is_counted(points: list) -> None:
    from dehvf_kit.utils.units import si

    page = (ROOT / "docs" / "flops.md").read_text()
    for point in points:
        row = f"| {point.visual_tokens} | {si(point.llava, '')} | {si(point.dehvf, '')} | {point.share:.1%} |"
        assert row in page
