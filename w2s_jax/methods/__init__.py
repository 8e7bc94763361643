"""Methods of the weak-to-strong literature beyond naive finetuning, one file each.

A file declares its method with `register`: options, the function that adds phases to the plan, and
the functions that make its labels. These call pure functions of arrays in the same file. Importing
them imports no JAX; scikit-learn is imported where it is used.

Shapes in names: N documents, M documents with ground truth, D features, C the two classes.
*Soft labels* are float32 [N, 2], column 1 P(label 1); a *keep mask* is bool [N]. A class is
predicted where P(label 1) > 1/2, so that a tie predicts 0.
"""

from w2s_jax.config.declarations import METHODS, MethodSpec
from w2s_jax.methods.registry import register

__all__ = ["METHODS", "MethodSpec", "register"]

METHODS.load()
