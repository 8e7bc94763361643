"""Methods of the weak-to-strong literature beyond naive finetuning, one file each.

A file declares its method with `register`: options, the function that adds phases to the plan, and
the functions that make its labels. These call pure functions of arrays in the same file. Importing
them imports no JAX; scikit-learn is imported where it is used.

Shapes in names: N documents, M documents with ground truth, D features, C classes.
*Soft labels* are float32 [N, C]; a *keep mask* is bool [N]. The likeliest class is predicted, of
equal ones the first.
"""

from w2s_jax.config.declarations import METHODS, MethodSpec
from w2s_jax.methods.registry import register

__all__ = ["METHODS", "MethodSpec", "register"]

METHODS.load()
