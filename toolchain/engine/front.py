"""What the repositories of the flavours take alike from a recipe and from the model: see `Served` there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolchain.model.spec import ModelSpec
    from toolchain.recipe import Recipe


def front_config(recipe: Recipe) -> dict[str, Any]:
    """The limits that a recipe sets, and as `models` the sources of the models."""
    from deploy.repositories.common import models_digest

    deploy = recipe.deploy
    return {
        "models": models_digest(),
        "max_batch_size": recipe.engine.max_batch_size,
        "max_queue_size": deploy.max_queue_size,
        "streaming": deploy.streaming,
        "accumulate_tokens": deploy.accumulate_tokens,
        "preprocessing_instance_count": deploy.preprocessing_instance_count,
        "postprocessing_instance_count": deploy.postprocessing_instance_count,
        "bls_instance_count": deploy.bls_instance_count,
    }


def front_facts(spec: ModelSpec) -> dict[str, Any]:
    """What a repository says of the model. A model without a padding token is padded with its first end."""
    pad_id = spec.pad_token_id
    if pad_id is None:
        pad_id = next(iter(spec.eos_token_ids), 0)
    return {"vocab_size": spec.vocab_size, "end_ids": spec.eos_token_ids, "pad_id": pad_id}
