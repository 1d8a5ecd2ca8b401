"""The chat page: an image, a question, and for each adapter its answer and the vision layers it read."""

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
Shown = tuple[str, str, str]


def chat_page(adapters: Sequence[Answerer], uploads: Uploads) -> gr.Blocks:
    """The page for one adapter, or for several side by side, which answer the same question."""
    title = "Ask about an image"
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
        running = []
        with gr.Row():
            for number, adapter in enumerate(adapters):
                with gr.Column(min_width=300, elem_id=f"adapter{number}"):
                    gr.HTML(f"<h2>{text(adapter.name)}</h2>{about(adapter)}", elem_classes="name")
                    fault = gr.HTML(elem_id=f"fault{number}", elem_classes="fault")
                    answer = gr.Textbox(label="Answer", lines=2, interactive=False, buttons=["copy"])
                    depths = gr.HTML(elem_id=f"depths{number}", elem_classes="depths")
                running.append(
                    gr.on(
                        [ask.click, question.submit],
                        replies(adapter, uploads),
                        [question, image, temperature],
                        [answer, depths, fault],
                        concurrency_limit=1,
                        trigger_mode="always_last",  # asked again while one adapter still answers: all get the new question
                        show_progress="minimal",
                        show_progress_on=answer,
                        api_visibility="private",
                    )
                )
        stop.click(None, cancels=running)
        image.change(looks(uploads), image, preview, show_progress="hidden", api_visibility="private")
    page.queue(max_size=WAITING)
    return page


def about(adapter: Answerer) -> str:
    """What an adapter was trained on and can be asked, to unfold."""
    lines = "".join(f"<p>{text(line)}</p>" for line in adapter.about)
    return f"<details><summary>About this adapter</summary>{lines}</details>"


def looks(uploads: Uploads) -> Callable[[str | None, gr.Request], str]:
    """What the page calls when an image was uploaded: the image as it is read, small, or what is wrong with it."""

    def look(id: str | None, request: gr.Request) -> str:
        try:
            upload = uploaded(uploads, id, request)
            return f"<img alt='{text(upload)}' src='{inline_image(read_image(upload), PREVIEW)}'>" if upload else ""
        except DehvfError as error:
            return fault_box(str(error))

    return look


def replies(adapter: Answerer, uploads: Uploads) -> Callable[[str, str | None, float, gr.Request], Iterator[Shown]]:
    """What the page calls when something is asked: answer, weights and fault, again and again while the answer grows."""

    def reply(question: str, id: str | None, temperature: float, request: gr.Request) -> Iterator[Shown]:
        said = depths = ""
        try:
            for turn in adapter.answer(question or "", uploaded(uploads, id, request), temperature):
                said, depths = turn.answer, depths or depth_panel(turn)
                yield said, depths, f"<p role='status'>{text(turn.note)}</p>" if turn.note else ""
            if not said:
                yield said, depths, fault_box("The answer is empty: the model ended it at once.")
        except DehvfError as error:
            yield said, depths, fault_box(str(error))
        except OutOfMemoryError:
            torch.cuda.empty_cache()
            yield said, depths, fault_box("The GPU's memory is full. Other programs may hold some of it.")
        except Exception as error:  # a page that stays up says what happened; the terminal gets the traceback
            log.exception("%s could not answer", adapter.name)
            yield said, depths, fault_box(f"{adapter.name} could not answer: {first_line(error)}")

    return reply


def uploaded(uploads: Uploads, id: str | None, request: gr.Request) -> Upload | None:
    """The image of an id that a page sent; None where it sent none. Raises: DataError for another session's."""
    return uploads.find(request.cookies.get(COOKIE, ""), id) if id else None


def fault_box(message: str) -> str:
    """A message that screen readers speak at once."""
    return f"<p role='alert'>{text(message)}</p>"
