"""Samples -> token ids, labels and images -> padded batches. Loss is taken on the answer and the end token alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from os.path import commonprefix
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from dehvf_kit.backbones.attached import padded_length
from dehvf_kit.data.conversations import generated_parts, learned_parts, marks_answers
from dehvf_kit.data.images import in_threads, open_image
from dehvf_kit.data.processing import DehvfProcessor, image_places
from dehvf_kit.data.samples import PromptConfig, Sample
from dehvf_kit.data.tokens import open_ended
from dehvf_kit.errors import DataError

IGNORED = -100


class Features(Protocol):
    """Where the vision features of a sample are read from, such as `model.features.FeatureStore`."""

    def read(self, sample: Sample) -> Any: ...


class EncodedSamples(Dataset):
    """Training samples ready to batch: `input_ids`, `labels`, and the image's pixel values or cached features.

    The prompt keeps its end where prompt and answer are longer than `max_length`; `cut` names such samples. skip: called with a
    sample that cannot be learned, and why, which is then excluded. Raises: DataError for an answer that leaves no room for a
    prompt token.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: DehvfProcessor,
        prompt: PromptConfig,
        max_length: int,
        images: bool = True,
        features: Features | None = None,
        skip: Callable[[Sample, str], None] | None = None,
    ) -> None:
        self.processor, self.images, self.features = processor, images, features
        self.prompt, self.max_length = prompt, max_length
        tokenizer = processor.tokenizer
        self.samples: list[Sample] = []
        self.tokens: list[tuple[list[int], list[int]]] = []
        self.cut: list[str] = []
        self.blank = [sample.id for sample in samples if not sample.answer.strip()]

        def usable(function: Callable[..., Any], sample: Sample, *arguments: Any) -> Any:
            """What a function makes of a sample; None where it refuses it and bad samples are skipped."""
            try:
                return function(sample, *arguments)
            except DataError as error:
                if skip is None:
                    raise
                return skip(sample, str(error))

        found = [(sample, parts) for sample in samples if (parts := usable(self._parts, sample))]
        encoded = encode_parts(tokenizer, [parts for _, parts in found], special=not prompt.chat)
        end = [] if (prompt.chat and marks_answers(tokenizer)) or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        for (sample, _), (*before, answer) in zip(found, encoded, strict=True):
            tokens = usable(self._join, sample, [*before, [*answer, *end]])
            if tokens is not None:
                self.tokens.append(tokens)
                self.samples.append(sample)

    def _parts(self, sample: Sample) -> Sequence[str]:
        """A sample's text in parts, every second of which is learned."""
        answer = self.prompt.answer.replace("{answer}", sample.answer)
        if not sample.question.strip():
            raise DataError(f"sample '{sample.id}': its question is empty; write one, or leave the sample out")
        if self.prompt.chat and marks_answers(self.processor.tokenizer):
            return generated_parts(sample, self.prompt, self.processor.tokenizer)
        if self.prompt.targets == "every" and sample.messages:
            return [*learned_parts(sample, self.prompt, self.processor.tokenizer), answer]
        return [self.processor.with_prompt(sample.asked), answer]

    def _join(self, sample: Sample, parts: Sequence[list[int]]) -> tuple[list[int], list[int]]:
        """Tokens and labels of parts of which every second one is learned, the beginning cut where they are too long."""
        *before, answer = parts
        room = self.max_length - len(answer)
        if room < 1:
            raise DataError(f"sample '{sample.id}': its answer has {len(answer)} tokens, max_length is {self.max_length}")
        prompt = [token for part in before for token in part]
        if not prompt:
            raise DataError(f"sample '{sample.id}': its prompt has no token; write a question, or a data.prompt.question")
        if len(prompt) > room:
            self.cut.append(sample.id)
        labels = [token if place % 2 else IGNORED for place, part in enumerate(before) for token in part]
        return prompt[-room:] + answer, labels[-room:] + answer

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Tokens alone: whoever only wants lengths opens no image."""
        for input_ids, labels in self.tokens:
            yield {"input_ids": input_ids, "labels": labels}

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        input_ids, labels = self.tokens[index]
        item: dict[str, Any] = {"id": sample.id, "input_ids": input_ids, "labels": labels, "length": len(input_ids)}
        if self.images and sample.image is not None:
            item["images"] = sample.images
            if self.features is not None:
                item["vision_features"] = stack([self.features.read(one) for one in sample.apart()])
            else:
                images = [open_image(one) for one in sample.apart()]
                item["pixel_values"] = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return item

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The samples of a batch; a `DataLoader` asks for them together."""
        return in_threads(self.__getitem__, indices)


class Collator:
    """Pads on the right to the batch's longest sample and names the columns of each row whose logits the loss needs.

    longest: where given, pads on to one of few lengths up to this one, for compiled code of static shapes.
    """

    def __init__(self, pad_token_id: int, longest: int = 0) -> None:
        self.pad_token_id, self.longest = pad_token_id, longest

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """-> input_ids, attention_mask, labels [batch, token], logits_to_keep [batch, position], -1 where a row has fewer,
        distinct images, image_index where rows share one or have several, has_image [batch] where some have none."""
        longest = max(len(item["input_ids"]) for item in items)
        if self.longest:
            longest = padded_length(longest, self.longest)
        input_ids = torch.full((len(items), longest), self.pad_token_id)
        labels = torch.full((len(items), longest), IGNORED)
        attention_mask = torch.zeros(len(items), longest, dtype=torch.long)
        for row, item in enumerate(items):
            length = len(item["input_ids"])
            input_ids[row, :length] = torch.tensor(item["input_ids"])
            labels[row, :length] = torch.tensor(item["labels"])
            attention_mask[row, :length] = 1
        batch: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        kept = [(row[1:] != IGNORED).nonzero().squeeze(1) for row in labels]
        batch["logits_to_keep"] = pad_sequence(kept, batch_first=True, padding_value=-1)
        for key in ("pixel_values", "vision_features"):
            found = [item[key] for item in items if key in item]
            if found:
                places, given = image_places([item.get("images", (row,)) if key in item else () for row, item in enumerate(items)])
                images = stack(found)
                batch[key] = images if given.keys() <= {"has_image"} else _picked(images, places)
                batch |= given
        return batch


def _picked(images: Any, places: list[int]) -> Any:
    """Some images of a tensor [image, ...], or of each encoder's."""
    return images[places] if isinstance(images, Tensor) else {name: tensor[places] for name, tensor in images.items()}


def stack(values: Sequence[Any]) -> Any:
    """One tensor [image, ...] from tensors with a leading axis of one; a mapping of them for several encoders."""
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    return {name: torch.cat([value[name] for value in values]) for name in values[0]}


def encode_pairs(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], special: bool
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each prompt and of the answer that follows it: see `encode_parts`."""
    rows = list(zip(prompts, answers, strict=True))
    return [(prompt, answer) for prompt, answer in encode_parts(tokenizer, rows, special)]


def encode_parts(tokenizer: Any, rows: Sequence[Sequence[str]], special: bool) -> list[list[list[int]]]:
    """Token ids of each part of some texts. special: whether the texts get the tokenizer's own marks.

    The parts are tokenised as one text, as the official MemVP and LaVIN scripts do, where that text begins with the tokens of
    the parts before the last, which are what generation sees; where a token would straddle that border, the last part is
    tokenised alone. At an earlier border such a token belongs to the part behind it.
    """
    if not rows:
        return []
    texts = ["".join(row[: count + 1]) for row in rows for count in range(len(row))]
    found = iter(open_ended(tokenizer, tokenizer(texts, add_special_tokens=special)["input_ids"], special))
    encoded = []
    for row in rows:
        *heads, prompt, joined = [list(next(found)) for _ in row]
        cuts = [0, *(len(commonprefix([head, prompt])) for head in heads), len(prompt)]
        alone = joined[: len(prompt)] != prompt
        answer = tokenizer(row[-1], add_special_tokens=False)["input_ids"] if alone else joined[len(prompt) :]
        encoded.append([*(prompt[start:end] for start, end in pairwise(cuts)), answer])
    return encoded
