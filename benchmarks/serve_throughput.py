"""`dehvf-kit serve` under 1 and 16 clients, over HTTP: throughput, seconds per answer (median and 95th percentile), and ratios.

In each repetition the same questions are asked by one client and by 16, in turn. Throughput is per second, and per CPU second
of the server, which other work on the machine changes less.

python benchmarks/serve_throughput.py runs/demo/adapter --questions 64 --repetitions 3
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from openai import OpenAI
from PIL import Image

CLIENTS = 16
START = "import sys; from dehvf_kit.cli.main import main; sys.argv[0] = 'dehvf-kit'; main()"
LOADS: dict[str, tuple[str, Callable[[int], int]]] = {
    "16 tokens at most": ("Describe image {} in detail.", lambda _: 16),
    "2 to 32 tokens at most": ("Describe image {} in detail.", lambda n: random.Random(n).choice([2, 3, 4, 6, 8, 16, 32])),
    "a short question": ("What is in image {}?", lambda _: 32),
}
"""A question, and the tokens that its answer to image n may have."""


def picture(number: int) -> str:
    """An image of one colour as a data URI."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (number * 37 % 256, number * 91 % 256, 120)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(client: OpenAI, text: str, number: int, tokens: int) -> tuple[float, int]:
    """Seconds that one answer took, and its tokens."""
    image = {"type": "image_url", "image_url": {"url": picture(number)}}
    content = [image, {"type": "text", "text": text.format(number)}]
    began = time.perf_counter()
    said = client.chat.completions.create(model="subject", messages=[{"role": "user", "content": content}], max_tokens=tokens)
    return time.perf_counter() - began, said.usage.completion_tokens


def measured(client: OpenAI, load: str, clients: int, questions: int, server: psutil.Process) -> dict[str, float]:
    """One run of all questions of a load with so many clients."""
    text, tokens = LOADS[load]
    began, spent = time.perf_counter(), sum(server.cpu_times()[:2])
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda number: ask(client, text, number, tokens(number)), range(questions)))
    took, spent = time.perf_counter() - began, sum(server.cpu_times()[:2]) - spent
    said, each = sum(count for _, count in found), [seconds for seconds, _ in found]
    return {
        "tokens_per_answer": said / questions,
        "tokens_per_s": said / took,
        "tokens_per_cpu_s": said / spent,
        "median_s": statistics.median(each),
        "p95_s": statistics.quantiles(each, n=20)[-1],
    }


def repetition(client: OpenAI, load: str, counts: tuple[int, int], questions: int, server: psutil.Process) -> dict[str, object]:
    """The questions of a load asked by so many clients, and then by so many; the ratios of 16 to one."""
    run: dict[str, object] = {"load": load}
    found = {count: measured(client, load, count, questions, server) for count in counts}
    run |= {str(count): figures for count, figures in found.items()}
    return run | {f"ratio_{name}": found[CLIENTS][f"tokens_per_{name}"] / found[1][f"tokens_per_{name}"] for name in ("s", "cpu_s")}


def table(runs: list[dict[str, object]]) -> list[str]:
    """The medians of the repetitions as lines of a Markdown table, and the range of the ratios."""
    lines = [
        "| answers (mean tokens) | clients | tokens/s | per CPU s | s per answer, median | 95% | ratio of tokens/s | per CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for load in LOADS:
        own = [run for run in runs if run["load"] == load]
        ratios = []
        for name in ("s", "cpu_s"):
            values = [run[f"ratio_{name}"] for run in own]
            ratios.append(f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        for count in ("1", str(CLIENTS)):
            cells = {name: statistics.median(run[count][name] for run in own) for name in own[0][count]}
            figures = (
                f"{cells['tokens_per_s']:.1f} | {cells['tokens_per_cpu_s']:.1f} | {cells['median_s']:.2f} | {cells['p95_s']:.2f}"
            )
            shown = " | ".join(ratios) if count != "1" else " | "
            lines.append(f"| {load} ({cells['tokens_per_answer']:.1f}) | {count} | {figures} | {shown} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serve.json")
    given = parser.parse_args()
    command = [sys.executable, "-c", START, "serve", f"subject={given.adapter}", "--port", "0", "--max-batch", str(CLIENTS)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            client = OpenAI(base_url=server.stdout.readline().split()[0], api_key="none", max_retries=0)
            process = psutil.Process(server.pid)
            measured(client, "a short question", CLIENTS, CLIENTS, process)  # warm
            runs = []
            for number in range(given.repetitions):
                counts = (1, CLIENTS) if number % 2 else (CLIENTS, 1)
                for load in LOADS:
                    runs.append(repetition(client, load, counts, given.questions, process))
                    print(json.dumps(runs[-1]), flush=True)
        finally:
            server.terminate()
    settings = {"questions": given.questions, "repetitions": given.repetitions}
    given.output.write_text(json.dumps({"arguments": settings, "runs": runs}, indent=1) + "\n")
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
