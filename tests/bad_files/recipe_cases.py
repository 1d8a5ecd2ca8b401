"""Recipes that are not believed."""

from __future__ import annotations

import os

from bad_files.ground import REFUSED, Case, Ground, Words, collector

RECIPES: list[Case] = []
case = collector("Recipes", RECIPES)


def check(ground: Ground, content: str | bytes) -> Words:
    return ["check", ground.write("recipe.yaml", content)]


def changed(ground: Ground, old: str, new: str) -> Words:
    """The world's own recipe with one thing changed."""
    text = (ground.world / "tiny.yaml").read_text()
    assert old in text
    return check(ground, text.replace(old, new, 1))


@case("no such file", REFUSED, "there is no such file")
def missing(ground: Ground) -> Words:
    return ["check", ground.folder / "recipe.yaml"]


@case("zero bytes", REFUSED, "is empty")
def empty(ground: Ground) -> Words:
    return check(ground, b"")


@case("a folder in its place", REFUSED, "is a folder; name a .yaml file")
def folder(ground: Ground) -> Words:
    (ground.folder / "recipe.yaml").mkdir()
    return ["check", ground.folder / "recipe.yaml"]


@case("a symlink to nothing", REFUSED, "there is no such file")
def dangling(ground: Ground) -> Words:
    (ground.folder / "recipe.yaml").symlink_to("gone.yaml")
    return ["check", ground.folder / "recipe.yaml"]


@case("a named pipe in its place, which nobody writes to", REFUSED, "is no regular file", needs="mkfifo")
def pipe(ground: Ground) -> Words:
    os.mkfifo(ground.folder / "recipe.yaml")
    return ["check", ground.folder / "recipe.yaml"]


@case("no permission to read", REFUSED, "Permission denied", needs="user")
def unreadable(ground: Ground) -> Words:
    file = ground.write("recipe.yaml", "name: a\n")
    file.chmod(0)
    return ["check", file]


@case("a YAML bomb: aliases of aliases", REFUSED, "a recipe has no aliases")
def bomb(ground: Ground) -> Words:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    return check(ground, "\n".join(lines))


@case("lists in lists, 20,000 deep", REFUSED, "nested more than 32 deep")
def deep(ground: Ground) -> Words:
    return check(ground, "[" * 20_000)


@case("ten megabytes", REFUSED, "a recipe has at most 100000")
def huge(ground: Ground) -> Words:
    return check(ground, "name: a\n" + "#" * 10_000_000)


@case("a key twice", REFUSED, "key 'name' stands twice, first on line 1; keep one")
def twice(ground: Ground) -> Words:
    return check(ground, "name: a\nname: b\n")


@case("a tag that builds a Python object", REFUSED, "a tag such as `!name`; write plain values only")
def tag(ground: Ground) -> Words:
    return check(ground, "name: !!python/object/apply:os.system ['echo run']\n")


@case("a null byte", REFUSED, "a character that no text file holds, such as a null byte")
def null(ground: Ground) -> Words:
    return check(ground, b"name: a\ndescription: \0\n")


@case("Latin-1", REFUSED, "'utf-8' codec can't decode byte 0xe9")
def latin(ground: Ground) -> Words:
    return check(ground, "name: é\n".encode("latin-1"))


@case("UTF-16", REFUSED, "'utf-8' codec can't decode byte 0xff")
def utf16(ground: Ground) -> Words:
    return check(ground, "name: a\n".encode("utf-16"))


@case("half a character, `\\ud83d` alone", REFUSED, "holds half a character")
def half(ground: Ground) -> Words:
    return check(ground, 'name: "\\ud83d"\n')


@case("a whole number of 5,000 digits", REFUSED, "not valid YAML: Exceeds the limit")
def digits(ground: Ground) -> Words:
    return check(ground, f"training: {{seed: {'9' * 5000}}}\n")


@case("a whole number of 70 bits", REFUSED, "wants a number of at most 63 bits")
def bits(ground: Ground) -> Words:
    return changed(ground, "num_slots: 16", f"num_slots: {2**70}")


@case("written for a newer kit", REFUSED, "format: 2, this kit reads up to 1; upgrade dehvf-kit")
def newer(ground: Ground) -> Words:
    return check(ground, "format: 2\nname: a\nsections_to_come: {}\n")


@case("parents in a circle", REFUSED, "recipes extend each other in a circle: recipe.yaml -> other.yaml -> recipe.yaml")
def circle(ground: Ground) -> Words:
    ground.write("other.yaml", "extends: recipe.yaml\n")
    return check(ground, "extends: other.yaml\n")


@case("a decoder of a million layers", REFUSED, "config.num_hidden_layers: given 1000000; wants 512 or less")
def layers(ground: Ground) -> Words:
    config = "{model_type: llama, num_hidden_layers: 1000000, hidden_size: 32, num_attention_heads: 4}"
    return changed(ground, "/decoder}", f"/decoder, config: {config}}}")


@case("an override of 1,000 steps", REFUSED, "an override is written key=value")
def steps(ground: Ground) -> Words:
    return ["check", ground.world / "tiny.yaml", ".".join(["a"] * 1000) + "=1"]
