"""Log-probabilities of given completions under a model, by a label pass.

They are the reference of `dpo`, and score the answers of other models. Shapes in names: N
documents, K texts per document, each a prompt and its completion.
"""

from typing import Any

import numpy as np
from jax.sharding import Mesh

from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models.config import ModelConfig
from w2s_jax.training.prediction import Predictor
from w2s_jax.training.sequences import target_counts


def completion_logprobs(
    model: ModelConfig,
    params: Any,
    documents: TokenizedDocuments,
    mesh: Mesh,
    *,
    compute_dtype: str = "float32",
    per_device: bool = True,
    batch_size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed log-probability and the number of each text's target tokens.

    Target tokens are those of positive loss weight; the sum does not weigh them. Of several
    processes, all must call it, and each gets all results.

    Args:
      model: the model.
      params: its parameters, {'backbone'} and perhaps more.
      documents: the documents, with loss weights.
      mesh: the mesh of a sharded model.
      compute_dtype: dtype of activations; logits and sums are float32.
      per_device: run a batch with all parameters on each device (see `Predictor`).
      batch_size: largest number of documents per device and dispatch (None: by the device).

    Returns:
      logp_NK, float32, and lengths_NK, int32.
    """
    predictor = Predictor(
        model,
        documents,
        mesh,
        compute_dtype=compute_dtype,
        batch_size=batch_size,
        per_device=per_device,
        completions=True,
    )
    return predictor(params), target_counts(documents).astype(np.int32)
