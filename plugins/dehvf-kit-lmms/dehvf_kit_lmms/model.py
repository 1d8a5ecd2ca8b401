"""An adapter as a model of lmms-eval (its `simple` interface, as of 0.7). Only lmms-eval imports this file."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from lmms_eval.api.model import lmms
from loguru import logger
from PIL import Image

from dehvf_kit.adapter.checkpoint import load
from dehvf_kit.data.images import read_any
from dehvf_kit.data.rows import RowReader, TableColumns
from dehvf_kit.data.samples import Message, Sample
from dehvf_kit.errors import DataError
from dehvf_kit.evaluation.answers import answer
from dehvf_kit_lmms.forms import FORMS, form_of

PASSED_ON = ("max_new_tokens", "num_beams", "do_sample", "temperature", "top_p")
NAMED = 5


class DehvfLmm(lmms):
    """Answers lmms-eval's requests with a saved adapter.

    Args:
        pretrained: the adapter's folder.
        batch_size: questions asked together.
        max_batch_size: taken and not used, as `batch_size` is what is asked together.
        device: `cpu`, `cuda`, ...; if None, the decoder stays where it was loaded.
        dtype: of the decoder.
        form: `letter`, `short`, `caption` or `as_is` for every answer; `task`: as each task's text asks.

    Raises:
        DataError: for another `form`.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        form: str = "task",
    ) -> None:
        super().__init__()
        if form != "task" and form not in FORMS:
            raise DataError(f"form={form}: one of task, {', '.join(FORMS)}")
        self.form = form
        self.dehvf = load(pretrained, dtype=dtype)
        if device is not None:
            self.dehvf.to(device)
        self.batch_size = int(batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer per request, in their order, cut at the first of its `until`, in the form that its task asks for.

        A request's args: text, generation keywords, a function from a task's document to its images, document, task, split.
        Answers that are not in that form are passed on as they are, and counted in a warning.
        Raises: ShapeError for several images and a graph that reads one.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(_generation(request.args[1])), []).append(number)
        said: dict[int, str] = {}
        noted: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for places in groups.values():
            samples = [self._sample(number, requests[number]) for number in places]
            keywords = _generation(requests[places[0]].args[1])
            found = answer(self.dehvf, samples, batch_size=self.batch_size, **keywords)
            for place, one in zip(places, found, strict=True):
                text, wanted, _, document, task, _ = requests[place].args
                form = form_of(text) if self.form == "task" else self.form
                raw = _until(one.prediction, wanted)
                formed = FORMS[form](raw, text)
                if formed is None:
                    noted[task, f"no answer of the form `{form}`"].append(document)
                if one.cut:
                    noted[task, "prompt too long, its beginning was cut"].append(document)
                said[place] = raw if formed is None else formed
                self.cache_hook.add_partial("generate_until", (text, wanted), said[place])
        for (task, what), documents in noted.items():
            more = f" and {len(documents) - NAMED:,} more" if len(documents) > NAMED else ""
            logger.warning(f"{task}: {what}: {len(documents):,} ({', '.join(map(str, documents[:NAMED]))}{more})")
        return [said[number] for number in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("dehvf_kit answers by generation; choose a task whose output_type is generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("dehvf_kit answers single questions; choose a task of one round")

    def _sample(self, number: int, request: Any) -> Sample:
        text, _, images_of, document, task, split = request.args
        place = f"{task}/{document}"
        images = list(_flat(images_of(_read(self.task_dict[task][split][document]))))
        read = [_Image(read_any(image), place) for image in images]
        (asked,) = RowReader(TableColumns()).texts([Message("user", text)], place, len(images))
        return Sample(str(number), asked.content.strip(), "", read[0] if read else None, further_images=tuple(read[1:]))


class _Image:
    """A PIL image in RGB that opens like a file."""

    def __init__(self, image: Any, name: str) -> None:
        self.image, self.name = image, name

    def read_bytes(self) -> bytes:
        data = io.BytesIO()
        self.image.save(data, format="PNG")
        return data.getvalue()

    def open(self, mode: str = "rb") -> IO[bytes]:
        return io.BytesIO(self.read_bytes())

    def __str__(self) -> str:
        return self.name


def _flat(images: Any) -> Iterator[Any]:
    """The images in a list, in lists of it too; None is no image."""
    if isinstance(images, (list, tuple)):
        for one in images:
            yield from _flat(one)
    elif images is not None:
        yield images


def _read(value: Any) -> Any:
    """A task's document with its images in RGB: most tasks convert them by Pillow alone, which makes 16-bit greys white."""
    if isinstance(value, Image.Image):
        return read_any(value)
    if isinstance(value, Mapping):
        return {name: _read(one) for name, one in value.items()}
    return [_read(one) for one in value] if isinstance(value, list) else value


def _generation(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords for `generate`; a temperature of zero means greedy."""
    found = {name: keywords[name] for name in PASSED_ON if keywords.get(name) is not None}
    if not found.get("temperature"):
        found.pop("temperature", None)
        found.pop("top_p", None)
        found["do_sample"] = False
    else:
        found.setdefault("do_sample", True)
    return found


def _until(text: str, keywords: dict[str, Any]) -> str:
    """The text before the first of the stopping texts."""
    until = keywords.get("until") or []
    for stop in [until] if isinstance(until, str) else until:
        text = text.partition(stop)[0] if stop else text
    return text.strip()
