"""An adapter on the Hugging Face hub: its folder, uploaded as it stands."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehvf_kit.adapter.checkpoint import save
from dehvf_kit.adapter.files import WEIGHTS, read_config
from dehvf_kit.errors import AdapterError
from dehvf_kit.utils.atomic import is_file

if TYPE_CHECKING:
    from dehvf_kit.model.model import DehvfModel


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
) -> str:
    """Upload a saved adapter, card and measurements among it; the repository is made where there is none.

    api: what does it, huggingface_hub's `HfApi` by default. Gives the commit's address.
    Raises: AdapterError for what is no adapter, or where the hub refuses it.
    """
    place = Path(folder)
    read_config(place)
    if not is_file(place / WEIGHTS):
        raise AdapterError(f"{place}: incomplete, it has no {WEIGHTS}")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(token=token if isinstance(token, str) else None)
    try:
        made = api.create_repo(repo_id, private=private, token=token, exist_ok=True)
        done = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=str(place),
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message or "Upload an adapter of dehvf-kit",
            commit_description=commit_description,
            ignore_patterns=[".*", "checkpoint-*"],
        )
    except Exception as error:  # the hub's own errors, and those of the network
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise AdapterError(f"{repo_id}: cannot be uploaded to the hub: {reason[0]}") from error
    return str(getattr(done, "pr_url", None) or getattr(done, "commit_url", done))


def push_model(model: DehvfModel, repo_id: str, **settings: Any) -> str:
    """Save a model's adapter and upload it. settings: of `push_adapter`; transformers' own for weights in parts do nothing."""
    settings = {key: value for key, value in settings.items() if key not in ("max_shard_size", "tags", "safe_serialization")}
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder))
        return push_adapter(folder, repo_id, **settings)
