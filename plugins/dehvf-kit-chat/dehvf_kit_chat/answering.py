"""An adapter that is asked about images: its answer in pieces, and the vision layers it read for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from dehvf_kit_report.fuser_weights import EncodedImages, ReadLayers
from dehvf_kit_report.inside import look_inside
from transformers import StoppingCriteriaList, TextIteratorStreamer

from dehvf_kit.adapter.checkpoint import load
from dehvf_kit.data.conversations import conversation_sample
from dehvf_kit.data.images import read_image
from dehvf_kit.data.samples import Message, Sample
from dehvf_kit.errors import DataError
from dehvf_kit.evaluation.answers import asked, finite_logits, longest, prompt_rows
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.model.run import BEAMS, SAMPLING
from dehvf_kit_chat.uploads import Upload

MAX_CHARACTERS = 20_000
"""What is read of a question before its tokens are counted."""
MAX_TEMPERATURE = 2.0


@dataclass(frozen=True)
class Turn:
    """What is known so far. answer: its text; depths: weights of each image by its name; why: the reason where there are none;
    note: what was cut."""

    answer: str
    depths: Sequence[tuple[str, ReadLayers]] = ()
    why: str = ""
    note: str = ""


class _Held:
    """The features of a question's images, computed once for the answer and for the weights."""

    def __init__(self, model: DehvfModel, sample: Sample) -> None:
        encoded = EncodedImages(model)
        self.features = {one.image: encoded.read(one) for one in sample.apart()}

    def read(self, sample: Sample) -> Any:
        return self.features[sample.image]


class Answerer:
    """One adapter in memory. It answers one question at a time; a second one waits."""

    def __init__(self, model: DehvfModel, name: str) -> None:
        self.model, self.name = model, name
        self._alone = Lock()

    @property
    def temperature(self) -> float:
        """What the recipe answers with; 0 where it does not sample."""
        config = self.model.generation_config
        return min(float(config.temperature or 1.0), MAX_TEMPERATURE) if config.do_sample else 0.0

    @property
    def about(self) -> list[str]:
        """What the adapter was trained on, and what it can be asked, a line each."""
        recipe, model = self.model.recipe, self.model
        data = recipe.data
        lines = [] if data is None else [f"Trained on: {data.type}, {getattr(data, 'train', None) or getattr(data, 'path', '')}"]
        lines += [] if data is None else [f"Asked as: {model.processor.with_prompt('...')}"]
        several = "one image" if model.one_image_nodes else "one image or several"
        images = f"It reads {several} with each question." if model.reads_images else "It reads no images."
        length = f"A question may have {self.max_length:,} tokens; of a longer one the end is read."
        return [*lines, f"{images} {length}"]

    @property
    def converses(self) -> bool:
        """Whether earlier turns are sent with a question: where training rendered conversations, in messages or a chat template."""
        prompt, data = self.model.processor.prompt, self.model.recipe.data
        return bool((prompt and prompt.get("chat")) or (data is not None and data.type == "messages"))

    @property
    def max_length(self) -> int:
        """Tokens that a prompt may have: what the adapter was trained on, and the decoder has positions for beside an answer."""
        return longest(self.model, None) or self.model.recipe.training.max_length

    def answer(
        self, question: str, images: Sequence[Upload], temperature: float = 0.0, earlier: Sequence[tuple[str, str]] = ()
    ) -> Iterator[Turn]:
        """The weights first, then the answer as it grows; the last turn has what `generate` answers, whole.

        temperature: 0 takes the likeliest token each time; earlier: questions and answers before, which are sent along as training
        renders conversations where the adapter converses. Closing the iterator ends the generation at the next token.
        A prompt that is too long loses its beginning, as in `train`, `eval` and `generate`, which the turns' note says.
        Raises: DataError for an empty question, ImageError for an image that cannot be read, DataError where the scores of a
        token are not finite.
        """
        sample = self._sample(question, images, earlier if self.converses else ())
        for image in images:
            read_image(image)
        held = _Held(self.model, sample) if images and self.model.reads_images else None
        cut = prompt_rows(self.model.processor, [sample], longest(self.model, None))[0].cut
        note = f"The prompt lost {cut:,} tokens at its beginning: {self.name} reads {self.max_length:,} at most." if cut else ""
        turn = replace(self._depths(sample, held), note=note)
        yield turn
        inputs, _ = asked(self.model, [sample], held)  # type: ignore[arg-type]
        for text in self._stream(sample, inputs, _settings(temperature)):
            yield replace(turn, answer=text)

    def idle(self, timeout_s: float) -> bool:
        """Wait until nothing is generated any more; whether that came about in time."""
        ended = self._alone.acquire(timeout=timeout_s)
        if ended:
            self._alone.release()
        return ended

    def _sample(self, question: str, images: Sequence[Upload], earlier: Sequence[tuple[str, str]]) -> Sample:
        if not question.strip():
            raise DataError("the question is empty")
        if len(question) > MAX_CHARACTERS:
            raise DataError(f"the question has {len(question):,} characters; {MAX_CHARACTERS:,} are read at most")
        said = sum(len(text) for turn in earlier for text in turn)
        if said > MAX_CHARACTERS:
            raise DataError(f"the conversation has {said:,} characters; {MAX_CHARACTERS:,} are read at most: begin a new one")
        roles = ("user", "assistant")
        before = [Message(role, text) for turn in earlier for role, text in zip(roles, turn, strict=True) if text.strip()]
        named = str(images[0]) if images else "question"
        return conversation_sample(named, [*before, Message("user", question.strip())], "", images)

    def _depths(self, sample: Sample, held: _Held | None) -> Turn:
        if sample.image is None:
            return Turn("", why="No image was asked about.")
        found, why = [], ""
        for one in sample.apart():
            inside = look_inside(self.model, [one], maps=0, features=held)
            found += [] if inside.layers is None else [(str(one.image), inside.layers)]
            why = why or inside.why.get("layers", "")
        return Turn("", found, why)

    def _stream(self, sample: Sample, inputs: dict[str, Any], settings: dict[str, Any]) -> Iterator[str]:
        """The answer so far, each time something was added to it."""
        tokenizer = self.model.processor.tokenizer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop, ended = Event(), _Ended()

        def generate() -> None:
            try:
                with self._alone, finite_logits(self.model, [sample]):
                    ended.tokens = self.model.generate(
                        **inputs,
                        **settings,
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([lambda *_, **__: stop.is_set()]),
                    )
            except Exception as error:  # whatever it is, it is raised where the answer is waited for
                ended.error = error
            finally:
                streamer.end()

        worker = Thread(target=generate, daemon=True)
        worker.start()
        try:
            said = ""
            for piece in streamer:
                said += piece
                if piece:
                    yield said.strip()
            worker.join()
            if ended.error is not None:
                raise ended.error
            new = ended.tokens[:, inputs["input_ids"].shape[1] :]
            yield self.model.processor.batch_decode(new, skip_special_tokens=True)[0].strip()
        finally:
            stop.set()


class _Ended:
    """How a generation ended."""

    tokens: Any = None
    error: Exception | None = None


def _settings(temperature: float) -> dict[str, Any]:
    """Keywords for `generate`; beams are left out, since an answer that may still change cannot be shown as it grows."""
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise DataError(f"the temperature is {temperature}; 0 to {MAX_TEMPERATURE:g} would do")
    alone = {"num_beams": 1, **dict.fromkeys(BEAMS)}
    if temperature == 0:
        return {**alone, "do_sample": False, **dict.fromkeys(SAMPLING)}
    return {**alone, "do_sample": True, "temperature": float(temperature)}


def load_answerer(folder: Path, overrides: Sequence[str] = ()) -> Answerer:
    """An adapter on its base models. Raises: AdapterError for what is no adapter, as `dehvf_kit.load` does."""
    model = load(folder, overrides=overrides)
    return Answerer(model, f"{model.recipe.name} ({folder})")
