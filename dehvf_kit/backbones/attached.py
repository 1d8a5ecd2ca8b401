"""What is attached to a model, noted on its modules: a second attachment names the first, and a lost handle is found again."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Protocol

from torch import nn

NOTES = "_dehvf_attached"


class Attachment(Protocol):
    """Something that can be taken off a model again; `attached_as` is how messages call it."""

    @property
    def attached_as(self) -> str: ...

    def detach(self) -> None: ...


class Notes(list[Any]):
    """The attachments of one module. Its deep copy keeps those that were copied with it, not whole models built around it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Notes:
        return Notes(copy.deepcopy(one, memo) for one in self if not isinstance(one, nn.Module))


def note(attachment: Attachment, modules: Iterable[nn.Module]) -> None:
    """Remember an attachment on the modules where it is."""
    for module in modules:
        module.__dict__.setdefault(NOTES, Notes()).append(attachment)


def forget(attachment: Attachment, modules: Iterable[nn.Module]) -> None:
    """The opposite of `note`; a module on which nothing is noted is as it was before."""
    for module in modules:
        kept = Notes(one for one in module.__dict__.pop(NOTES, ()) if one is not attachment)
        if kept:
            module.__dict__[NOTES] = kept


def attached_to(model: nn.Module) -> list[Attachment]:
    """What is attached to a model or to a part of it, first attached first."""
    noted = [one for module in model.modules() for one in module.__dict__.get(NOTES, ())]
    return list({id(one): one for one in noted}.values())


def names(attachments: Iterable[Attachment]) -> str:
    """Attachments as a message lists them, with what to do about them."""
    held = ", ".join(one.attached_as for one in attachments)
    return f"{held}; detach() it, or call dehvf_kit.detach_all(decoder)"


def detach_all(decoder: nn.Module) -> list[str]:
    """Take everything off a decoder or vision encoder that the kit attached to it, also where the handle is lost.

    Args:
        decoder: any model that `attach_memory` or `build` was given, or a part of it.

    Returns:
        What was taken off, as messages call it; empty where nothing was attached.
    """
    found = attached_to(decoder)
    for attachment in reversed(found):
        attachment.detach()
    return [one.attached_as for one in found]
