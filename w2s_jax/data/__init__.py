"""Tasks, documents, tokens and packed batches.

The data flow is source -> task -> documents -> slices -> tokens -> packed batches. Nothing here
needs JAX, and packages that are slow to import are imported on first use.
"""

from w2s_jax.data.documents import Document
from w2s_jax.data.feature_sources import register_features
from w2s_jax.data.loading import load_task
from w2s_jax.data.task import Candidate, Task
from w2s_jax.data.tasks import register_task

__all__ = ["Candidate", "Document", "Task", "load_task", "register_features", "register_task"]
