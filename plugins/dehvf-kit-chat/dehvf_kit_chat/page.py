"""The chat page: images, a question, and for each adapter the conversation and the vision layers it read for each image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import gradio as gr
import torch
from dehvf_kit_report.page import inline_image, text
from torch.cuda import OutOfMemoryError

from dehvf_kit.backbones.base import first_line
from dehvf_kit.data.images import read_image
from dehvf_kit.errors import DehvfError
from dehvf_kit_chat.answering import MAX_TEMPERATURE, Answerer
from dehvf_kit_chat.depth_panel import depth_panel
from dehvf_kit_chat.guard import COOKIE
from dehvf_kit_chat.image_field import image_field
from dehvf_kit_chat.uploads import Upload, Uploads

PREVIEW = 360  # pixels of the longer side
WAITING = 32  # questions that may wait; the next is told that there are too many
log = logging.getLogger(__name__)
Turns = list[tuple[str, str, str]]
"""A conversation: question, answer, and the ids of the images that the question was about."""
Shown = tuple[str, str, str, Turns, str]
OTHER_IMAGES = "The images are others than before, so a new conversation began."


def chat_page(adapters: Sequence[Answerer], uploads: Uploads) -> gr.Blocks:
    """The page for one adapter, or for several side by side, which answer the same question."""
    title = "Ask about images"
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f"<h1>{title}</h1>", elem_id="title")
        with gr.Row():
            with gr.Column(min_width=280):
                image = image_field(uploads)
                preview = gr.HTML(elem_id="preview")
            with gr.Column(min_width=280):
                question = gr.Textbox(
                    label="Question",
                    info="Enter sends, Shift+Enter makes a new line",
                    max_lines=8,
                    autofocus=True,
                    elem_id="question",
                )
                temperature = gr.Slider(
                    *(0, MAX_TEMPERATURE, adapters[0].temperature),
                    step=0.1,
                    label="Temperature",
                    info="0 takes the likeliest token each time",
                    elem_id="temperature",
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=100)
                    stop = gr.Button("Stop", elem_id="stop", min_width=100)
                    anew = gr.Button("New conversation", elem_id="anew", min_width=180)
        running, cleared = [], []
        with gr.Row():
            for number, adapter in enumerate(adapters):
                with gr.Column(min_width=300, elem_id=f"adapter{number}"):
                    gr.HTML(f"<h2>{text(adapter.name)}</h2>{about(adapter)}", elem_classes="name")
                    fault = gr.HTML(elem_id=f"fault{number}", elem_classes="fault")
                    turns = gr.State([])
                    earlier = gr.HTML(elem_id=f"earlier{number}", elem_classes="earlier")
                    answer = gr.Textbox(label="Answer", lines=2, interactive=False, buttons=["copy"])
                    depths = gr.HTML(elem_id=f"depths{number}", elem_classes="depths")
                running.append(
                    gr.on(
                        [ask.click, question.submit],
                        replies(adapter, uploads),
                        [question, image, temperature, turns],
                        [answer, depths, fault, turns, earlier],
                        concurrency_limit=1,
                        trigger_mode="always_last",  # asked again while one adapter still answers: all get the new question
                        show_progress="minimal",
                        show_progress_on=answer,
                        api_visibility="private",
                    )
                )
                cleared += [answer, depths, fault, turns, earlier]
        stop.click(None, cancels=running)
        empty = [*("", "", "", [], "")] * len(adapters)
        shown = {"show_progress": "hidden", "api_visibility": "private"}
        anew.click(lambda: empty, None, cleared, cancels=running, **shown)
        image.change(looks(uploads), image, preview, **shown)
    page.queue(max_size=WAITING)
    return page


def about(adapter: Answerer) -> str:
    """Whether an adapter keeps a conversation; what it was trained on and can be asked, to unfold."""
    lines = "".join(f"<p>{text(line)}</p>" for line in adapter.about)
    keeps = "It is given the earlier questions and answers." if adapter.converses else "Each question is answered on its own."
    return f"<p class='keeps'>{keeps}</p><details><summary>About this adapter</summary>{lines}</details>"


def looks(uploads: Uploads) -> Callable[[str | None, gr.Request], str]:
    """What the page calls when images were chosen: each as it is read, small, or what is wrong with it."""

    def look(ids: str | None, request: gr.Request) -> str:
        try:
            return "".join(map(seen, uploaded(uploads, ids, request)))
        except DehvfError as error:
            return fault_box(str(error))

    def seen(upload: Upload) -> str:
        try:
            return f"<img alt='{text(upload)}' src='{inline_image(read_image(upload), PREVIEW)}'>"
        except DehvfError as error:
            return fault_box(str(error))

    return look


def replies(adapter: Answerer, uploads: Uploads) -> Callable[[str, str | None, float, Turns, gr.Request], Iterator[Shown]]:
    """What the page calls when something is asked: answer, weights, fault and conversation, again while the answer grows."""

    def reply(question: str, ids: str | None, temperature: float, turns: Turns, request: gr.Request) -> Iterator[Shown]:
        question, ids, said, depths, notes = (question or "").strip(), ids or "", "", "", ""
        turns = turns if adapter.converses else []
        if turns and not f"{ids} ".startswith(f"{turns[-1][2]} ".lstrip()):
            turns, notes = [], f"<p role='status'>{OTHER_IMAGES}</p>"
        kept = turns, conversation(turns)
        try:
            earlier = [(asked, answered) for asked, answered, _ in turns]
            for turn in adapter.answer(question, uploaded(uploads, ids, request), temperature, earlier):
                said, depths = turn.answer, depths or depth_panel(turn)
                fault = notes + (f"<p role='status'>{text(turn.note)}</p>" if turn.note else "")
                yield said, depths, fault, *kept
            if said:
                yield said, depths, fault, [*turns, (question, said, ids)], kept[1]
            else:
                yield said, depths, fault_box("The answer is empty: the model ended it at once."), *kept
        except DehvfError as error:
            yield said, depths, fault_box(str(error)), *kept
        except OutOfMemoryError:
            torch.cuda.empty_cache()
            yield said, depths, fault_box("The GPU's memory is full. Other programs may hold some of it."), *kept
        except Exception as error:  # a page that stays up says what happened; the terminal gets the traceback
            log.exception("%s could not answer", adapter.name)
            yield said, depths, fault_box(f"{adapter.name} could not answer: {first_line(error)}"), *kept

    return reply


def uploaded(uploads: Uploads, ids: str | None, request: gr.Request) -> list[Upload]:
    """The images of the ids that a page sent. Raises: DataError for another session's, and for too many."""
    return uploads.find_all(request.cookies.get(COOKIE, ""), ids or "")


def conversation(turns: Turns) -> str:
    """Earlier questions and answers."""
    return "".join(f"<p class='asked'>{text(asked)}</p><p class='said'>{text(said)}</p>" for asked, said, _ in turns)


def fault_box(message: str) -> str:
    """A message that screen readers speak at once."""
    return f"<p role='alert'>{text(message)}</p>"
