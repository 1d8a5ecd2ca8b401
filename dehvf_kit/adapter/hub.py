"""An adapter uploaded to the Hugging Face hub; `adapter.files.adapter_folder` fetches one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehvf_kit.adapter.checkpoint import save
from dehvf_kit.adapter.files import CONFIG, WEIGHTS, config_file, of_run, read_config
from dehvf_kit.data.images import read_image
from dehvf_kit.errors import AdapterError
from dehvf_kit.utils.atomic import is_file, writing

if TYPE_CHECKING:
    from dehvf_kit.model.model import DehvfModel

WIDGET = "widget.png"


def push_adapter(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    api: Any = None,
    widget: tuple[str | Path, str] | None = None,
) -> str:
    """Upload a saved adapter, card and measurements among it; the repository is made where there is none.

    Args:
        folder: an adapter's folder, or that of the run which trained it.
        repo_id: its name on the hub, `owner/name`.
        private, token, revision, commit_message, commit_description, create_pr: as huggingface_hub's `HfApi` takes them.
        api: what uploads, an `HfApi` by default.
        widget: an image and a question that the adapter's page shows as an example; the image is uploaded as PNG.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        AdapterError: for what is no adapter, where the hub refuses it, or where the temporary folder has no room for a copy.
        ImageError: for a widget's image that cannot be read.
    """
    place = of_run(Path(folder))
    read_config(place)
    if not is_file(place / WEIGHTS):
        raise AdapterError(f"{place}: incomplete, it has no {WEIGHTS}")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(token=token if isinstance(token, str) else None)
    with writing(f"a copy of {place} in the temporary folder", AdapterError), tempfile.TemporaryDirectory() as staged:
        _stage(place, Path(staged), widget)
        try:
            made = api.create_repo(repo_id, private=private, token=token, exist_ok=True)
            done = api.upload_folder(
                repo_id=made.repo_id,
                folder_path=staged,
                token=token,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message or "Upload an adapter of dehvf-kit",
                commit_description=commit_description,
            )
        except Exception as error:  # the hub's own errors, and those of the network
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise AdapterError(f"{repo_id}: cannot be uploaded to the hub: {reason[0]}") from error
    return str(getattr(done, "pr_url", None) or getattr(done, "commit_url", done))


def _stage(place: Path, staged: Path, widget: tuple[str | Path, str] | None) -> None:
    """Copy what is uploaded: the config under its present name, the widget in the card. Raises: OSError, ImageError."""
    shutil.copytree(place, staged, ignore=shutil.ignore_patterns(".*", "checkpoint-*"), dirs_exist_ok=True)
    config_file(staged).rename(staged / CONFIG)
    if widget is not None:
        from huggingface_hub import ModelCard

        read_image(Path(widget[0])).save(staged / WIDGET)
        shown = ModelCard.load(staged / "README.md")
        shown.data.widget = [{"src": WIDGET, "text": widget[1]}]
        shown.save(staged / "README.md")


def push_model(model: DehvfModel, repo_id: str, **settings: Any) -> str:
    """Save a model's adapter and upload it. settings: of `push_adapter`; transformers' own for weights in parts do nothing."""
    settings = {key: value for key, value in settings.items() if key not in ("max_shard_size", "tags", "safe_serialization")}
    with writing("the temporary folder", AdapterError), tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder))
        return push_adapter(folder, repo_id, **settings)
