"""`dehvf-kit eval`: a trained adapter scored on the test split of its data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import Adapter, Json, Overrides
from dehvf_kit.cli.console import print_json, reporting
from dehvf_kit.cli.scores import show_scores


def evaluate(
    adapter: Adapter,
    overrides: Overrides = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most questions to ask.", show_default=False)] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write every answer, as JSON lines.", show_default=False)
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FILE", help="Write the predictions in the benchmark's own format.")
    ] = None,
    allow_prompt_mismatch: Annotated[
        bool, typer.Option("--allow-prompt-mismatch", help="Continue where prompt or images differ from those trained on.")
    ] = False,
    store: Annotated[bool, typer.Option("--store", help="Store the scores in the adapter's measured.json and card.")] = False,
    as_json: Json = False,
) -> None:
    """Ask, score as the data set defines it, print.

    Raises: AdapterError for what is not an adapter or was trained on other prompts, DataError where it has no data set or a
    sample cannot be read.
    """
    from dehvf_kit.data.sample_filter import summary
    from dehvf_kit.evaluation import evaluate as evaluation

    with reporting() as progress:
        found = evaluation.evaluate(
            adapter,
            overrides=overrides or (),
            limit=limit,
            output=output,
            results=results,
            allow_prompt_mismatch=allow_prompt_mismatch,
            store=store,
            progress=progress,
        )
    if as_json:
        files = {"predictions": str(output) if output else None, "results": str(results) if results else None}
        print_json({"adapter": str(adapter), **found.scores.facts, **files, "prompt_mismatch": found.prompt_mismatch})
        return
    show_scores(found.scores)
    if found.skipped:
        print(summary(found.skipped, found.skipped_list))
    for label, file in (("every answer", output), ("results", results)):
        if file is not None:
            print(f"{label}: {file}")
