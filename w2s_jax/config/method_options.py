"""The table of methods: what each adds to a run, and its options. Imports no JAX.

A run has a naive student for each of its losses; a method adds further ones, keyed
'<loss>+<method>' in result.json. `methods.planning` makes their phases.
"""

from typing import Any

#: Kinds of wrong labels of `synthetic` (Burns et al. 2023, appendix on error structures).
STRUCTURES = ("weak", "random", "longest", "shortest", "strong_unconfident", "strong_confident")
JUDGES = ("knn", "logistic", "topological")
CONTROLS = ("lora", "weight_decay", "dropout", "label_smoothing", "ema")
STOPPING = ("none", "agreement", "ground_truth")

#: method -> its options with their defaults.
METHODS: dict[str, dict[str, Any]] = {
    # The naive students alone.
    "naive": {},
    # Models between weak and strong, from small to large: each labels a fresh slice for the next.
    "bootstrapping": {"models": ("gpt-d16",)},
    # The student labels its own slice again, and a fresh student learns from that.
    "strong_to_strong": {"iterations": 2},
    # Next-token training on the task's unlabelled texts first, for students and a ceiling alike.
    "generative": {"epochs": 1.0},
    # Supervisors on resampled documents, or (resample=False) that differ in seed only: mean logits.
    "bagging": {"members": 5, "resample": True},
    # Supervisors one after another, each on the errors of those before (AdaBoost).
    "boosting": {"members": 5},
    # Only the most confident share of the weak labels of each class.
    "confidence_threshold": {"share": 0.5},
    # Without the share of documents whose weak labels fit the student's activations least.
    "probe_filter": {"judge": "knn", "share": 0.1, "neighbours": 50},
    # ... or with the labels that the activations suggest.
    "probe_relabel": {"judge": "knn", "share": 0.1, "neighbours": 50},
    # Without the share that a probe of the supervisor's own activations trusts least.
    "trust_filter": {"share": 0.1},
    # The same student, its training ended by other rules.
    "early_stopping": {"by": ("none", "ground_truth")},
    # Linear probes with weak labels and ground truth, before and after weak finetuning.
    "saliency": {},
    # No training: label tokens after k solved examples (with ground truth, and with weak labels).
    "prompting": {"shots": 5},
    # A direction in the features of contrast pairs, found without labels.
    "contrast_consistent_search": {"tries": 10, "iterations": 1000},
    # Labels corrected by a model of the supervisor's errors.
    "em_posterior": {"rounds": 2},
    # Supervisors made of ground truth with as many errors as the weak model's, of several kinds.
    "synthetic": {"structures": STRUCTURES},
    # The student trained with something that regularises it; the ceiling stays.
    "controls": {
        "of": CONTROLS,
        "weight_decay": 0.1,
        "dropout": 0.1,
        "label_smoothing": 0.1,
        "ema": 0.9,
    },
    # The weak label stands at the end of each document: will the student just copy it?
    "imitation": {},
}
