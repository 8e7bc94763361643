"""Methods that change whose labels the student learns, or which of them."""

from collections.abc import Mapping
from typing import Any

from w2s_jax.methods.filtering import kept_count
from w2s_jax.methods.making import Making, Students, refused, require_full, require_label_tokens
from w2s_jax.planning.plan import PlanBuilder

#: Seeds of an ensemble's members lie so far apart.
_SEED_STEP = 1_000_003


def bootstrapping(making: Making, options: dict[str, Any]) -> Students:
    """M1 -> M2 -> ... -> Mn, each labels a fresh slice for the next (section 4.3.2)."""
    del options
    builder, roles = making.builder, list(making.builder.settings.roles)
    students = {}
    for loss in making.losses:
        labels = making.plan.weak
        for number, role in enumerate(roles[1:-1], 2):
            labels = builder.trained(
                "student",
                role,
                f"slice{number}",
                loss=loss,
                parents={"labels": labels},
                label=f"{loss.label}+bootstrapping {role}",
                label_splits=(f"slice{number + 1}", *builder.evaluated),
            )
        key = f"{loss.label}+bootstrapping"
        students[key] = making.student("bootstrapping", labels, loss, split=f"slice{len(roles)}")
    return students


def strong_to_strong(making: Making, options: dict[str, Any]) -> Students:
    """The student labels its slice again, for a fresh student."""
    students = {}
    for loss in making.losses:
        labels = making.plan.weak
        for number in range(options["iterations"]):
            labels = making.builder.trained(
                "student",
                "strong",
                "slice2",
                loss=loss,
                parents={"labels": labels},
                label_splits=making.label_splits,
                label=f"{loss.label}+relabelling {number + 1}" if number else loss.label,
            )
        key = f"{loss.label}+strong_to_strong"
        students[key] = making.student("strong_to_strong", labels, loss)
    return students


def bagging(making: Making, options: dict[str, Any]) -> Students:
    """Supervisors on resampled documents (Breiman 1996), or that differ in seed alone."""
    builder, members = making.builder, {}
    for number in range(1, options["members"] + 1):
        more: dict[str, Any] = {}
        if options["resample"]:
            sample = builder.labels(
                "resampled", "weak", ("slice1",), {}, label=f"sample {number}", member=number
            )
            more = {"parents": {"labels": sample}, "subset": making.size("slice1")}
        members[f"member{number}"] = builder.trained(
            "weak",
            "weak",
            "slice1",
            seed=_seed(builder, number),
            label=f"member {number}",
            label_splits=making.label_splits,
            **more,
        )
    labels = builder.labels("mean_logits", "weak", making.label_splits, members)
    return making.students("bagging", labels)


def boosting(making: Making, options: dict[str, Any]) -> Students:
    """AdaBoost (Freund and Schapire 1997) by resampling: the errors so far are drawn more often."""
    builder = making.builder
    members: dict[str, str] = {}
    for number in range(1, options["members"] + 1):
        sample = builder.labels(
            "boosted", "weak", ("slice1",), members, label=f"sample {number}", member=number
        )
        members = members | {
            f"member{number}": builder.trained(
                "weak",
                "weak",
                "slice1",
                parents={"labels": sample},
                subset=making.size("slice1"),
                seed=_seed(builder, number),
                label=f"boosted {number}",
                label_splits=("slice1", *making.label_splits),
            )
        }
    labels = builder.labels("vote", "weak", making.label_splits, members)
    return making.students("boosting", labels)


def _seed(builder: PlanBuilder, number: int) -> int:
    """Of a member: the first has the run's own."""
    return (builder.settings.seed + (number - 1) * _SEED_STEP) % 2**32


def confidence_threshold(making: Making, options: dict[str, Any]) -> Students:
    """The most confident weak labels of each class alone."""
    share = options["share"]
    parents = {"labels": making.plan.weak}
    labels = making.builder.labels("confident", "strong", ("slice2",), parents, share=share)
    return _on_subset(making, "confidence_threshold", labels, share)


def _on_subset(making: Making, method: str, labels: str, share: float) -> Students:
    count = kept_count(making.size("slice2"), share)
    return making.students(method, labels, supervisor=making.plan.weak, subset=count)


def probe_filter(making: Making, options: dict[str, Any]) -> Students:
    """Without the documents whose weak labels the student's activations contradict most."""
    labels = _judged(making, "filtered", options)
    return _on_subset(making, "probe_filter", labels, 1 - options["share"])


def probe_relabel(making: Making, options: dict[str, Any]) -> Students:
    """With the labels that the activations suggest for these documents."""
    labels = _judged(making, "relabelled", options)
    return making.students("probe_relabel", labels, supervisor=making.plan.weak)


def _judged(making: Making, kind: str, options: Mapping[str, Any]) -> str:
    parents = {"labels": making.plan.weak, "features": making.builder.features("strong")}
    return making.builder.labels(kind, "strong", ("slice2",), parents, **options)


def trust_filter(making: Making, options: dict[str, Any]) -> Students:
    """Without what a probe of the supervisor's last hidden state takes for wrong."""
    builder = making.builder
    require_full(builder, "weak", "trust_filter")
    if "validation" not in builder.evaluated:
        raise refused("trust_filter", "there is no validation set", "task.validation_docs above 0")
    features = builder.features("weak", {"init": making.plan.weak})
    parents = {"labels": making.plan.weak, "features": features}
    share = options["share"]
    labels = builder.labels("trusted", "weak", ("slice2",), parents, share=share)
    return _on_subset(making, "trust_filter", labels, 1 - share)


def em_posterior(making: Making, options: dict[str, Any]) -> Students:
    """Labels after a model of the supervisor's errors has been fitted."""
    labels = _judged(making, "em_posterior", options)
    return making.students("em_posterior", labels, supervisor=making.plan.weak)


def synthetic(making: Making, options: dict[str, Any]) -> Students:
    """Error structures of equal accuracy (Burns et al., appendix on synthetic supervisors)."""
    builder = making.builder
    strong = builder.trained(
        "ceiling", "strong", "slice1", label="on slice1", label_splits=making.label_splits
    )
    students: Students = {}
    for structure in options["structures"]:
        parents = {"labels": making.plan.weak}
        if structure.startswith("strong"):
            parents["strong"] = strong
        labels = builder.labels(
            "synthetic",
            "strong",
            making.label_splits,
            parents,
            label=f"errors {structure}",
            structure=structure,
        )
        students |= making.students(f"synthetic_{structure}", labels)
    return students


def imitation(making: Making, options: dict[str, Any]) -> Students:
    """The label stands in the document: nothing but copying is left to learn (PGR near 0)."""
    del options
    require_label_tokens(making, "imitation")
    return making.students("imitation", making.plan.weak, suffixed=True)
