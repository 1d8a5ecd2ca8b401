"""BLEU-1..4, METEOR, ROUGE-L and CIDEr of captions, by pycocoevalcap with its own PTB tokeniser.

Never with another tokeniser: figures would not compare. Tokeniser and METEOR are Java programs. Intervals: 95%, from 1,000
bootstrap resamples of the images (the document frequencies of CIDEr stay those of the whole set).
"""

from __future__ import annotations

import contextlib
import io
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dehvf_kit.data.metrics.scores import Score, Scores
from dehvf_kit.data.samples import Issue, refuse
from dehvf_kit.errors import DataError

RESAMPLES = 1000
NO_CAPTION = "empty captions, which score as nothing"
ONE_IMAGE = "CIDEr of a single image is 0 by definition: it weighs words by how few images they occur in"
LAST = "lastcaption"
"""A line after all captions: where the tokeniser returns it elsewhere, lines and captions do not match."""
Captions = Mapping[str, Sequence[str]]


def score(references: Captions, captions: Mapping[str, str]) -> Scores:
    """Every metric, CIDEr standing for all. references: the captions of each image by id; captions: one for each of them.

    Raises: DataError where pycocoevalcap or Java is not installed, or an image lacks a caption.
    """
    require_programs()
    lacking = [Issue("image without a prediction", key) for key in references if key not in captions]
    if not references:
        raise DataError("captions: there is no image to score")
    refuse("captions", lacking)
    ids = list(references)
    told = {key: [{"caption": one_line(caption)} for caption in references[key]] for key in ids}
    said = {key: [{"caption": one_line(captions[key])}] for key in ids}
    try:
        figures, tokens = _metrics(_tokenise(told), _tokenise(said))
    except OSError as error:
        raise DataError(f"captions: pycocoevalcap cannot write beside its programs or run them: {error}") from error
    draws = np.random.default_rng(0).multinomial(len(ids), np.full(len(ids), 1 / len(ids)), RESAMPLES)
    scores = []
    for name, (value, spread) in figures.items():
        low, high = np.percentile(np.maximum(spread(draws), 0), [2.5, 97.5])
        scores.append(Score(name, value, float(low), float(high), len(ids), percent=False))
    empty = sum(not texts[0] for texts in tokens.values())
    return Scores(
        scores,
        "CIDEr",
        {"metrics": {one.name: one.row() for one in scores}, "empty_captions": empty, "tokeniser": "PTB (pycocoevalcap)"},
        [{"image_id": int(key) if key.isdecimal() else key, "caption": captions[key]} for key in ids],
        [*([f"{NO_CAPTION}: {empty:,}"] if empty else []), *([ONE_IMAGE] if len(ids) == 1 else [])],
    )


def one_line(caption: str) -> str:
    """A caption in one line of readable characters, as the tokeniser reads a caption a line, whatever ends a line."""
    readable = "".join(" " if unicodedata.category(one) in ("Cc", "Zl", "Zp") else one for one in caption)
    return " ".join(readable.encode("utf-8", "replace").decode("utf-8").split())


def require_programs() -> None:
    """Raises: DataError saying how to get what the metrics need."""
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError as error:
        raise DataError("caption metrics need pycocoevalcap; pip install 'dehvf-kit[eval]'") from error
    if shutil.which("java") is None:
        raise DataError(
            "caption metrics need Java for the PTB tokeniser and METEOR; install it, for example by "
            "apt-get install default-jre-headless, conda install openjdk, or from adoptium.net, and put `java` on the PATH"
        )


def _tokenise(captions: Mapping[str, Any]) -> dict[str, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokens = PTBTokenizer().tokenize({**captions, LAST: [{"caption": LAST}]})
    last = tokens.pop(LAST, None)
    if last != [LAST] or {key: len(texts) for key, texts in tokens.items()} != {key: len(texts) for key, texts in captions.items()}:
        raise DataError("captions: the PTB tokeniser did not return a line for each caption; does `java -version` run?")
    return tokens


def _metrics(references: dict[str, list[str]], captions: dict[str, list[str]]) -> tuple[dict[str, Any], Any]:
    """(value, function of bootstrap draws [resample, image] -> values) of each metric."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    bleu = BleuScorer(n=4)
    for key, texts in captions.items():
        bleu += (texts[0], references[key])
    with contextlib.redirect_stdout(io.StringIO()):
        values, _ = bleu.compute_score(option="closest", verbose=0)
    spreads = _bleu_spreads(captions, references)
    found: dict[str, Any] = {f"BLEU-{n + 1}": (float(values[n]), spreads[n]) for n in range(4)}
    for name, metric in (("METEOR", Meteor()), ("ROUGE-L", Rouge()), ("CIDEr", Cider())):
        value, single = metric.compute_score(references, captions)
        found[name] = (float(value), _mean_spread(float(value), np.asarray(single, dtype=float)))
    return found, captions


def _mean_spread(value: float, single: Any) -> Any:
    """Resampled means of the images' own scores, about the value of the whole (METEOR's is no mean)."""
    return lambda draws: value + draws @ single / len(single) - single.mean()


def _bleu_spreads(captions: dict[str, list[str]], references: dict[str, list[str]]) -> list[Any]:
    """BLEU of resampled corpora, from each image's matched and guessed n-grams and its lengths."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    cooked = [cook_test(texts[0], cook_refs(references[key], n=4), n=4) for key, texts in captions.items()]
    matched = np.array([one["correct"] for one in cooked], dtype=float)
    guessed = np.array([one["guess"] for one in cooked], dtype=float)
    said = np.array([one["testlen"] for one in cooked], dtype=float)
    told = np.array([min((abs(n - one["testlen"]), n) for n in one["reflen"])[1] for one in cooked], dtype=float)

    def spread(order: int) -> Any:
        def of(draws: Any) -> Any:
            rates = (draws @ matched[:, :order] + 1e-15) / (draws @ guessed[:, :order] + 1e-9)
            ratio = (draws @ said + 1e-15) / (draws @ told + 1e-9)
            return np.exp(np.log(rates).mean(1)) * np.exp(np.minimum(0.0, 1 - 1 / ratio))

        return of

    return [spread(order) for order in range(1, 5)]
