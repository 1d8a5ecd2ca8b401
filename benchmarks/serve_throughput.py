"""`dehvf-kit serve` under 1 and 16 clients: answers and tokens per second, seconds per answer, and the ratio of both.

python benchmarks/serve_throughput.py runs/demo/adapter --questions 32 --tokens 32 --repetitions 3
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openai import OpenAI
from PIL import Image

CLIENTS = 16
START = "import sys; from dehvf_kit.cli.main import main; sys.argv[0] = 'dehvf-kit'; main()"


def picture(number: int) -> str:
    """An image of one colour as a data URI."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (number * 37 % 256, number * 91 % 256, 120)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(client: OpenAI, model: str, number: int, tokens: int) -> tuple[float, int]:
    """Seconds that one answer took, and its tokens."""
    image = {"type": "image_url", "image_url": {"url": picture(number)}}
    text = {"type": "text", "text": f"What is in image {number}?"}
    began = time.perf_counter()
    said = client.chat.completions.create(model=model, messages=[{"role": "user", "content": [image, text]}], max_tokens=tokens)
    return time.perf_counter() - began, said.usage.completion_tokens


def measured(client: OpenAI, model: str, clients: int, questions: int, tokens: int) -> dict[str, float]:
    """One run of all questions with so many clients."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda number: ask(client, model, number, tokens), range(questions)))
    took = time.perf_counter() - began
    return {
        "answers_per_s": questions / took,
        "tokens_per_s": sum(count for _, count in found) / took,
        "median_s": statistics.median(seconds for seconds, _ in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("serve.json"))
    given = parser.parse_args()
    command = [sys.executable, "-c", START, "serve", f"subject={given.adapter}", "--port", "0", "--max-batch", str(CLIENTS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            client = OpenAI(base_url=server.stdout.readline().split()[0], api_key="none", max_retries=0)
            measured(client, "subject", CLIENTS, CLIENTS, 2)  # warm
            runs = []
            for number in range(given.repetitions):
                counts = (1, CLIENTS) if number % 2 else (CLIENTS, 1)
                runs.append({str(count): measured(client, "subject", count, given.questions, given.tokens) for count in counts})
                runs[-1]["ratio"] = runs[-1][str(CLIENTS)]["tokens_per_s"] / runs[-1]["1"]["tokens_per_s"]
                print(json.dumps(runs[-1]), flush=True)
        finally:
            server.terminate()
    ratio = statistics.median(run["ratio"] for run in runs)
    settings = {"questions": given.questions, "tokens": given.tokens, "repetitions": given.repetitions}
    given.output.write_text(json.dumps({"arguments": settings, "runs": runs, "ratio": ratio}, indent=1) + "\n")
    print(f"{CLIENTS} clients: {ratio:.1f} times the tokens per second of one")


if __name__ == "__main__":
    main()
