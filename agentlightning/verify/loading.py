"""A causal language model from a folder, in float32; nothing is fetched from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import MissingExtra, NotVerifiable

try:
    import torch
except ImportError as error:
    raise MissingExtra("torch", "trl") from error
try:
    import transformers
except ImportError as error:
    raise MissingExtra("transformers", "trl") from error


def load(folder: Path) -> Any:
    """Return the model of a folder that ``save_pretrained`` has made.

    Raises:
        NotVerifiable: There is no such model in it.
    """
    # transformers would take a name that is no folder for a repository of its hub, and complain of the network.
    if not (folder / "config.json").is_file():
        raise NotVerifiable(
            f"there is no config.json in {folder}, so it is no folder of a Hugging Face model"
        )
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise NotVerifiable(f"{folder} cannot be loaded as a causal language model: {error}") from error
