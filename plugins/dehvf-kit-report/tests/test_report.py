"""The page holds what a run left, says what makes the rest, and asks nothing of the network."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cli.commands import Command
from dehvf_kit_report.finished_run import read_run
from dehvf_kit_report.memory_maps import memory_map
from dehvf_kit_report.sections import scored
from dehvf_kit_report.write import write_report
from PIL import Image

from dehvf_kit.errors import DehvfError
from dehvf_kit.evaluation.evaluate import evaluate

VOID = {"meta", "img", "br", "input", "line", "rect", "circle", "polyline", "path"}


class Tags(HTMLParser):
    """Checks that tags close in order, and keeps ids, links and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href"):
                self.addresses.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def tags(page: Path) -> Tags:
    found = Tags()
    found.feed(page.read_text())
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("page") / "report.html"
    found = write_report(run, target, maps=3)
    assert found["page"] == str(target) and all(found["sections"].values()), found["sections"]
    return target


def test_it_needs_nothing_from_outside(page: Path) -> None:
    found = tags(page)
    assert all(address.startswith(("#", "data:")) for address in found.addresses)
    assert len(found.ids) == len(set(found.ids))
    assert {address for address in found.addresses if address.startswith("#")} <= {f"#{name}" for name in found.ids}
    text = page.read_text()
    assert set(re.findall(r"https?://[^'\" <)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme:dark" in text


def test_it_shows_layers_scores_and_answers(page: Path, run: Path) -> None:
    text = page.read_text()
    assert "layers 1 to 2" in text and "layers 3 to 4" in text  # Figure 3: four decoder layers in two groups
    assert all(f">layer {number}<" in text for number in (1, 2, 3, 4)) and ">layer 5<" not in text
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    right = sum(row["right"] for row in rows)
    assert f"{100 * right / len(rows):.1f}%" in text
    assert text.count("<div class='card'>") == len(rows)
    assert "<polyline" in text and "gradient norm" in text


def test_the_answers_of_an_evaluation_are_found_wherever_they_are(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for name in ("predictions.jsonl", "evaluations.jsonl"):
        (copy / name).unlink()
    assert read_run(copy).predictions is None
    evaluate(copy, limit=4, output=tmp_path / "elsewhere.jsonl", store=True)
    assert len(read_run(copy).predictions) == 4
    evaluate(copy, limit=3, output=copy / "later.jsonl")
    assert len(read_run(copy).predictions) == 3
    (tmp_path / "elsewhere.jsonl").unlink()
    (copy / "later.jsonl").unlink()
    stored = scored(read_run(copy), None)
    assert stored.headline.count == 4 and "the first 4 questions" in stored.notes[0]


def test_it_says_how_to_repeat_the_run(page: Path, run: Path, tmp_path: Path) -> None:
    from base64 import b64decode

    from dehvf_kit.adapter.checkpoint import read_config
    from dehvf_kit.recipe.recipe import load_recipe

    text = page.read_text()
    assert "dehvf-kit train tiny.yaml --output runs/tiny_again" in text
    config = read_config(run / "adapter")
    assert config["prompt_fingerprint"]["hash"] in text and config["versions"]["torch"] in text
    (address,) = re.findall(r"data:text/yaml;base64,([\w+/=]+)", text)
    (tmp_path / "again.yaml").write_bytes(b64decode(address))
    assert load_recipe(tmp_path / "again.yaml").resolved() == config["recipe"]


def test_the_maps_are_in_it(page: Path) -> None:
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    maps = json.loads(data)
    assert len(maps) == 3
    for one in maps:
        assert len(one["most"]) == len(one["sums"]) == 4 and one["side"] == 4
        assert all(0 < most <= total for most, total in zip(one["most"], one["sums"], strict=True))


def test_a_map_is_what_each_slot_adds_less_what_it_would_add_without_the_image(run: Path) -> None:
    """Slot by slot through the injector's own arithmetic, on a memory of that slot alone. Tolerance: float32 of short sums."""
    import torch
    from dehvf_kit_report.memory_maps import slots_written

    import dehvf_kit
    from dehvf_kit.ops.ffn_memory import LayerMemory, factored_memory

    model = dehvf_kit.load(run / "adapter")
    sample = model.recipe.data.samples("test")[0]
    found = memory_map(model, sample)
    assert found is not None and found.written.shape == (4, 4, 4) and found.image.size == (32, 32)
    watched = []
    asked = model.processor(images=Image.open(sample.image), text=sample.question)
    with torch.no_grad(), model.nodes["injector"].watching(lambda *seen: watched.append(seen)):
        model(**asked)
    assert [index for index, *_ in watched] == [0, 1, 2, 3]
    for index, x, memory, site in watched:
        x = x[:, -1:]
        lengths = slots_written(memory, index, x, site)[0, 0]
        assert torch.equal(lengths.view(4, 4), found.written[index])
        layer = memory.layer(index, x)
        for slot in (0, 7, 15):
            one = slice(slot, slot + 1)
            positions = layer.position_keys[one], layer.position_values[one]
            codes = layer.key_codes[:, one], layer.value_codes[:, one]
            seen = LayerMemory(*codes, layer.weight, layer.bias, *positions, layer.visual_scale)
            blank = LayerMemory(None, None, None, None, *positions)
            added, without = (factored_memory(x, held, site.activation, memory.output_scale) for held in (seen, blank))
            assert (added - without).norm().item() == pytest.approx(lengths[slot].item(), rel=1e-4, abs=1e-7)


def test_a_run_without_image_or_answers_says_so(blind: Path, tmp_path: Path) -> None:
    found = write_report(blind, tmp_path / "page.html")
    lacking = {title for title, has in found["sections"].items() if not has}
    assert {"Scores", "Answers", "Memory contributions by decoder layer"} < lacking
    text = (tmp_path / "page.html").read_text()
    tags(tmp_path / "page.html")
    assert "This graph reads no image." in text
    assert f"dehvf-kit eval {blind / 'adapter'} --output {blind / 'predictions.jsonl'}" in text


def test_mean_weights_are_shown_too(world: Path, tmp_path: Path) -> None:
    from dehvf_kit.recipe.recipe import load_recipe
    from dehvf_kit.training.run import train

    changes = ["graph.fuser.type=mean", "graph.layer_query=null", "training.max_steps=1"]
    train(load_recipe(world / "tiny.yaml", changes), tmp_path / "mean")
    found = write_report(tmp_path / "mean")
    assert found["page"] == str(tmp_path / "mean" / "report.html")
    assert found["sections"]["Vision layers by group (Figure 3)"]
    assert "keys and values" in Path(found["page"]).read_text()


def test_base_models_that_are_gone_leave_the_rest(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "adapter" / "dehvf_config.json"
    config = json.loads(file.read_text())
    config["recipe"]["decoder"]["model"] = "nobody/nothing"
    file.write_text(json.dumps(config))
    found = write_report(tmp_path / "run")
    text = Path(found["page"]).read_text()
    assert not found["sections"]["Recipe and graph"] and found["sections"]["Scores"]
    assert "nobody/nothing" in text and "cannot be loaded and run here" in text


def test_runs_inside_are_shown_beside_it(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "another_one").mkdir()
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "prediction": "mauve"}) + "\n" for row in rows]
    (tmp_path / "run" / "another_one" / "predictions.jsonl").write_text("".join(lines))
    found = write_report(tmp_path / "run", maps=1)
    text = Path(found["page"]).read_text()
    assert "<th class='n'>another one</th>" in text and text.count("another one: mauve") == len(rows)


def test_the_command_never_replaces_a_file_of_yours(command: Command, run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    ended = command("report", run, "-o", mine)
    assert ended.code == 1 and "exists and is no page of dehvf-kit" in ended.err and mine.read_text() == "<p>mine</p>"
    ended = command("report", run / "adapter", "-o", tmp_path / "page.html", "--maps", 1, "--json")
    assert ended.code == 0 and json.loads(ended.out)["recipe"] == "tiny"
    assert command("report", run, "-o", tmp_path / "page.html", "--maps", 1).out == f"page: {tmp_path / 'page.html'}\n"


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("log.jsonl", "{", "log.jsonl:1: not valid JSON"),
        ("log.jsonl", "[]\n", "log.jsonl:1: not a JSON object"),
        ("predictions.jsonl", '{"id": "x"}\n', "predictions.jsonl:1: no answer as `dehvf-kit eval --output` keeps it"),
        ("predictions.jsonl", "\n", "predictions.jsonl: holds no answers"),
    ],
)
def test_broken_files_are_told(run: Path, tmp_path: Path, file: str, text: str, says: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / file).write_text(text)
    with pytest.raises(DehvfError, match=re.escape(says)):
        write_report(tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()


def test_what_is_no_run_is_told(command: Command, tmp_path: Path) -> None:
    ended = command("report", tmp_path)
    assert ended.code == 1 and "no run of dehvf-kit" in ended.err


def test_an_adapter_without_data_may_be_given_some(command: Command, run: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "dehvf_config.json"
    config = json.loads(file.read_text())
    config["recipe"]["data"] = None
    file.write_text(json.dumps(config))
    page = tmp_path / "page.html"
    assert "missing: Scores" in command("report", tmp_path / "adapter", "-o", page).out
    assert "data.type=jsonl data.test=FILE" in page.read_text()
    more = ["data.type=jsonl", f"data.test={world / 'test.jsonl'}", "--predictions", run / "predictions.jsonl"]
    found = json.loads(command("report", tmp_path / "adapter", *more, "-o", page, "--maps", 1, "--json").out)
    assert [title for title, has in found["sections"].items() if not has] == ["Training curves"]
