"""Probes on images whose answer is planted in the pixels."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from cli.commands import Command
from dehvf_kit_probe.probe import probe
from helpers import raw_recipe, tiny_vision
from PIL import Image

from dehvf_kit.errors import DataError, DehvfError
from dehvf_kit.recipe.recipe import load_recipe

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 220)}


def row(number: int, colour: str, question: str, answer: str, kind: str) -> dict[str, str]:
    return {"id": f"{number}{kind}", "image": f"{number}.png", "question": question, "answer": answer, "kind": kind}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random encoder; the kind `colour` can be read from the image, `coin` cannot, `other` has words that decide."""
    root, parts = tmp_path_factory.mktemp("probe"), {}
    for split, numbers in {"train": range(60), "test": range(60, 84)}.items():
        rows = []
        for number in numbers:
            colour = list(COLOURS)[number % 3]
            shade = tuple(min(255, part + number % 7) for part in COLOURS[colour])
            Image.new("RGB", (32, 32), shade).save(root / f"{number}.png")
            rows.append(row(number, colour, "what color is it?", colour, "colour" if split == "train" else "new colour"))
            rows.append(row(number, colour, "heads or tails?", "heads" if number * 7919 % 11 < 5 else "tails", "coin"))
            asked = list(COLOURS)[number // 3 % 3]
            rows.append(row(number, colour, f"is it {asked}?", "yes" if asked == colour else "no", "other"))
        parts[split] = root / f"{split}.jsonl"
        parts[split].write_text("".join(json.dumps(one) + "\n" for one in rows))
    raw = raw_recipe()
    tiny_vision().save_pretrained(root / "vision")
    raw["vision"]["model"] = str(root / "vision")
    raw["data"] = {"type": "jsonl", **{name: str(file) for name, file in parts.items()}}
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def test_what_is_in_the_pixels_is_found_and_nothing_else(recipe: Path) -> None:
    found = probe(load_recipe(recipe), "vision")
    kinds = {kind.name: kind for kind in found.kinds}
    assert found.images == 84
    # A test kind of its own is answered by the probe of the training questions in the same words.
    assert kinds["new colour"].best.accuracy == 1.0 and kinds["new colour"].train == 60
    assert kinds["coin"].best.accuracy < 0.9
    assert list(found.skipped) == ["other"] and "question's words" in found.skipped["other"]
    lost, half = kinds["new colour"].lost_by(kinds["new colour"].best.layer)
    assert (lost, half) == (0.0, 0.0)
    assert set(found.wanted_layers()) <= set(range(found.num_layers))
    alone = probe(load_recipe(recipe), "vision", reads=())
    assert [list(layer.scores) for layer in alone.kinds[0].layers] == [["both"]] * found.num_layers
    assert [layer.accuracy for layer in alone.kinds[0].layers] == [layer.accuracy for layer in found.kinds[0].layers]


def test_command_writes_figures_and_heat_map(recipe: Path, tmp_path: Path, command: Command) -> None:
    figures, drawn = tmp_path / "probe.json", tmp_path / "probe.svg"
    ended = command("probe", recipe, "--output", figures, "--heat-map", drawn, "--json")
    assert ended.code == 0
    facts = json.loads(ended.out)
    assert facts == json.loads(figures.read_text())
    assert [one["layer"] for one in facts["kinds"]["coin"]["layers"]] == list(range(1, facts["num_layers"] + 1))
    assert "<svg" in drawn.read_text()


@pytest.mark.parametrize("place", ["missing/map.svg", "taken.svg", "map.gif", "out.json", "folder.svg", "no matplotlib"])
def test_a_heat_map_that_cannot_be_drawn_is_refused_before_the_work(
    place: str, recipe: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dehvf_kit_probe.probe.probe", lambda *_: pytest.fail("worked"))
    (tmp_path / "taken.svg").write_text("kept")
    (tmp_path / "folder.svg").mkdir()
    if place == "no matplotlib":
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        place = "map.svg"
    before = sorted(tmp_path.iterdir())
    ended = command("probe", recipe, "--output", tmp_path / "out.json", "--heat-map", tmp_path / place)
    assert ended.code == 1 and ("map" in ended.err.splitlines()[-1] or "matplotlib" in ended.err), ended.err
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "taken.svg").read_text() == "kept"


def test_refusals(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe)
    with pytest.raises(DehvfError, match="no encoder 'other'"):
        probe(loaded, "other")
    with pytest.raises(DataError, match="no kind of question can be probed.*5 are needed"):
        probe(loaded, "vision", images=10)
    blind = tmp_path / "blind.yaml"
    blind.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "data": None}))
    with pytest.raises(DehvfError, match="no `data` section"):
        probe(load_recipe(blind), "vision")


def test_features_that_are_kept_give_the_same(recipe: Path) -> None:
    from dehvf_kit.data.images import open_image
    from dehvf_kit.data.processing import build_image_processor

    loaded = load_recipe(recipe)
    config = loaded.vision["vision"]
    tower, processor = config.tower(config.load({})), build_image_processor({"vision": config.image})

    class Kept:
        def read(self, sample):
            return tower(processor([open_image(sample)], return_tensors="pt")["pixel_values"])

    ours, again = probe(loaded, "vision", 20), probe(loaded, "vision", 20, features=Kept())
    assert [kind.name for kind in ours.kinds] == [kind.name for kind in again.kinds] and again.num_layers == ours.num_layers
    for one, other in zip(ours.kinds, again.kinds, strict=True):
        assert [layer.right.tolist() for layer in one.layers] == [layer.right.tolist() for layer in other.layers]
