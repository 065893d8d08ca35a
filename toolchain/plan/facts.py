"""Where a recipe's model comes from, and its `ModelSpec` before any weight is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolchain.data import load_table
from toolchain.errors import ModelError, ToolchainError
from toolchain.model.spec import ModelSpec, load_spec


@dataclass(frozen=True)
class ModelFacts:
    """A model's spec and where it was read: the local directory, the hub's cache, or the built-in table."""

    spec: ModelSpec
    origin: str
    path: Path | None  # the model's directory when its files are here
    draft: ModelSpec | None = None  # of the model that guesses tokens for it, if a recipe has one


def model_facts(source: str, revision: str = "main") -> ModelFacts:
    """The spec of `source`, a local directory or a hub id, with as little traffic as possible.

    A hub id is looked for in the hub's local cache, then in `data/models.yaml`, then its `config.json`
    alone is fetched.

    Raises:
        ModelError: the directory or the hub id does not exist, or its config is unusable.
        ToolchainError: the id is not known here and the hub cannot be reached.
    """
    if is_local(source):
        path = Path(source)
        if not path.is_dir():
            wrong = "is not a directory" if path.exists() else "does not exist"
            raise ModelError(
                f"model directory {source} {wrong}",
                fix="set model.source to a directory with config.json, or to a hub id such as org/name",
            )
        return ModelFacts(load_spec(path), f"{path}/config.json", path)
    cached = _cached_snapshot(source, revision)
    if cached is not None:
        return ModelFacts(load_spec(cached), f"{source}, in the local hub cache", cached)
    known = load_table("models").get(source)
    if known is not None:
        return ModelFacts(
            ModelSpec.from_config(known, source), "the built-in table of published models", None
        )
    return ModelFacts(load_spec(_fetch(source, revision, ["config.json"])), f"{source} on the hub", None)


def fetch_model(source: str, revision: str = "main") -> tuple[Path, str | None]:
    """The directory that holds all files of `source`, and the commit its revision resolved to.

    A local directory is returned as it is, with no commit; a hub id is downloaded unless its snapshot is
    already here.
    """
    if is_local(source):
        facts = model_facts(source, revision)
        assert facts.path is not None
        return facts.path.resolve(), None
    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
    path = _fetch(source, revision, wanted)
    return path, path.name  # the hub cache names a snapshot directory after its commit


def is_local(source: str) -> bool:
    """Whether `source` is a path rather than a hub id (`name` or `org/name`)."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).is_dir()


def _cached_snapshot(source: str, revision: str) -> Path | None:
    """The snapshot of `source` in the hub's cache, if it is complete enough to have a config."""
    from huggingface_hub import constants

    # The rest of the package takes a fifth of a second to load: not for a model that was never fetched.
    if not (Path(constants.HF_HUB_CACHE) / f"models--{source.replace('/', '--')}").is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _fetch(source: str, revision: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise ToolchainError(
            f"{source} is gated", fix="accept its licence on the hub, then run `hf auth login` here"
        ) from None
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"{source} is neither a directory here nor a model on the hub",
            why=str(error).partition("\n")[0],
            fix="check model.source; a local directory starts with ./ or /",
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{source} has no revision {revision}", fix="check model.revision") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ToolchainError(
            f"{source} is not here and the hub cannot be reached",
            why=str(error).partition("\n")[0],
            fix="download it where there is a network (`hf download " + source + "`) and set model.source "
            "to the directory",
        ) from None
