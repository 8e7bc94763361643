"""Which phases each method adds to a run. Pure; imports no JAX.

A method is a function of what it adds to (`Making`) and its options. It returns its students: key
in result.json -> who they are. To add one: its options in `method_options.METHODS`, a
function here, and, where it makes labels in a new way, one in `phases.labelling`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from w2s_jax import errors
from w2s_jax.config import LossSettings
from w2s_jax.methods.filtering import kept_count
from w2s_jax.plan import Builder, Plan, Student, base, ceiling_slice
from w2s_jax.resolve import Resolved

#: Seeds of an ensemble's members lie so far apart.
_SEED_STEP = 1_000_003


@dataclass(frozen=True)
class Making:
    """What a method adds to: the builder, and the naive plan that it has made."""

    builder: Builder
    plan: Plan

    @property
    def losses(self) -> tuple[LossSettings, ...]:
        """Those for each of which a method trains its students."""
        return self.builder.settings.method_losses

    @property
    def label_splits(self) -> tuple[str, ...]:
        """What a supervisor labels: the student's slice, validation and test."""
        return ("slice2", *self.builder.evaluated)

    def size(self, split: str) -> int:
        """Documents of a split."""
        return len(self.builder.resolved.roles["strong"].splits[split])

    def student(
        self, method: str, labels: str, loss: LossSettings, *, supervisor: str = "", **more: Any
    ) -> Student:
        """A student of the strong model on the labels of slice 2 that a phase has made.

        `supervisor`: whose test labels it is held against, if that phase has none.
        """
        ceiling = more.pop("ceiling", self.plan.ceiling)
        phase = self.builder.trained(
            more.pop("kind", "student"),
            "strong",
            more.pop("split", "slice2"),
            loss=loss,
            parents={"labels": labels},
            label=f"{loss.label}+{method}",
            **more,
        )
        return Student(phase, loss.label, method, supervisor or labels, ceiling)

    def students(self, method: str, labels: str, **more: Any) -> dict[str, Student]:
        """One for each loss."""
        return {
            f"{loss.label}+{method}": self.student(method, labels, loss, **more)
            for loss in self.losses
        }


Students = dict[str, Student]
Method = Callable[[Making, dict[str, Any]], Students]


def plan(resolved: Resolved) -> Plan:
    """All phases of a run: naive students, and what its methods add.

    Raises:
      InputError: for a method that the models, the data or the other settings do not allow.
    """
    builder = Builder(resolved)
    naive = base(builder)
    students = dict(naive.students)
    for method in resolved.settings.methods:
        students |= _METHODS[method.kind](Making(builder, naive), dict(method.options))
    used = _ancestors(builder, (naive.weak, naive.ceiling, *(s.phase for s in students.values())))
    used |= _ancestors(builder, (name for s in students.values() for name in _named(s)))
    phases = tuple(phase for phase in builder.phases.values() if phase.name in used)
    return dataclasses.replace(naive, phases=phases, students=students)


def _named(student: Student) -> tuple[str, str]:
    return student.supervisor, student.ceiling


def _ancestors(builder: Builder, names: Iterable[str]) -> set[str]:
    """The phases of these names, and all that they build on."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += builder.phases[name].parents.values()
    return found


def _bootstrapping(making: Making, options: dict[str, Any]) -> Students:
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


def _strong_to_strong(making: Making, options: dict[str, Any]) -> Students:
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


def _generative(making: Making, options: dict[str, Any]) -> Students:
    """Next-token training on slice 2 first; the ceiling gets it too (section 4.3.3)."""
    builder = making.builder
    model = builder.resolved.roles["strong"].model
    if model.bidirectional:
        raise _refused("generative", f"{model.name} predicts no next token", "a decoder")
    init = builder.generative("strong", "slice2", options["epochs"])
    split = ceiling_slice(builder.settings)
    ceiling = builder.trained("ceiling", "strong", split, init=init, label="generative")
    return making.students("generative", making.plan.weak, init=init, ceiling=ceiling)


def _bagging(making: Making, options: dict[str, Any]) -> Students:
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


def _boosting(making: Making, options: dict[str, Any]) -> Students:
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


def _seed(builder: Builder, number: int) -> int:
    """Of a member: the first has the run's own."""
    return (builder.settings.seed + (number - 1) * _SEED_STEP) % 2**32


def _confidence_threshold(making: Making, options: dict[str, Any]) -> Students:
    """The most confident weak labels of each class alone."""
    share = options["share"]
    parents = {"labels": making.plan.weak}
    labels = making.builder.labels("confident", "strong", ("slice2",), parents, share=share)
    return _on_subset(making, "confidence_threshold", labels, share)


def _on_subset(making: Making, method: str, labels: str, share: float) -> Students:
    count = kept_count(making.size("slice2"), share)
    return making.students(method, labels, supervisor=making.plan.weak, subset=count)


def _probe_filter(making: Making, options: dict[str, Any]) -> Students:
    """Without the documents whose weak labels the student's activations contradict most."""
    labels = _judged(making, "filtered", options)
    return _on_subset(making, "probe_filter", labels, 1 - options["share"])


def _probe_relabel(making: Making, options: dict[str, Any]) -> Students:
    """With the labels that the activations suggest for these documents."""
    labels = _judged(making, "relabelled", options)
    return making.students("probe_relabel", labels, supervisor=making.plan.weak)


def _judged(making: Making, kind: str, options: Mapping[str, Any]) -> str:
    parents = {"labels": making.plan.weak, "features": making.builder.features("strong")}
    return making.builder.labels(kind, "strong", ("slice2",), parents, **options)


def _trust_filter(making: Making, options: dict[str, Any]) -> Students:
    """Without what a probe of the supervisor's last hidden state takes for wrong."""
    builder = making.builder
    _require_full(builder, "weak", "trust_filter")
    if "validation" not in builder.evaluated:
        raise _refused("trust_filter", "there is no validation set", "task.validation_docs above 0")
    features = builder.features("weak", {"init": making.plan.weak})
    parents = {"labels": making.plan.weak, "features": features}
    share = options["share"]
    labels = builder.labels("trusted", "weak", ("slice2",), parents, share=share)
    return _on_subset(making, "trust_filter", labels, 1 - share)


def _early_stopping(making: Making, options: dict[str, Any]) -> Students:
    """The same student, kept at other steps; 'ground_truth' is an oracle (appendix A.5)."""
    if "validation" not in making.builder.evaluated:
        raise _refused(
            "early_stopping", "there is no validation set", "task.validation_docs above 0"
        )
    students: Students = {}
    for by in options["by"]:
        name = {"none": "last_step", "ground_truth": "oracle_stop", "agreement": "agreement_stop"}
        students |= making.students(name[by], making.plan.weak, select=by)
    return students


def _saliency(making: Making, options: dict[str, Any]) -> Students:
    """How salient the task is: probes before and after finetuning (Burns et al., section 5.2)."""
    del options
    builder, weak = making.builder, making.plan.weak
    _require_full(builder, "strong", "saliency")
    split, ceiling = ceiling_slice(builder.settings), making.plan.ceiling
    truth = builder.trained("ceiling", "strong", split, adapt="probe", label="lp(truth)")
    students: Students = {"lp_truth": Student(truth, "", "lp_truth", weak, ceiling)}
    for loss in making.losses:
        key = f"{loss.label}+lp_weak"
        students[key] = making.student("lp_weak", weak, loss, adapt="probe")
        finetuned = making.plan.students[loss.label].phase
        probe = builder.trained(
            "ceiling",
            "strong",
            split,
            init={"init": finetuned},
            adapt="probe",
            label=f"{loss.label}: ft(weak), lp(truth)",
        )
        key = f"{loss.label}+ft_weak_lp_truth"
        students[key] = Student(probe, loss.label, "ft_weak_lp_truth", weak, ceiling)
    return students


def _prompting(making: Making, options: dict[str, Any]) -> Students:
    """Zero-shot, and few-shot with ground truth and with weak labels (appendix on prompting)."""
    builder = making.builder
    data = builder.resolved.roles["strong"]
    if not data.label_tokens:
        raise _refused("prompting", f"{data.model.name} has no label tokens", "a decoder")
    init, shots = builder.init("strong"), options["shots"]
    students: Students = {}
    wanted: dict[str, tuple[int, dict[str, str]]] = {"zero_shot": (0, {})}
    if shots:
        wanted |= {
            "few_shot_truth": (shots, {}),
            "few_shot_weak": (shots, {"labels": making.plan.weak}),
        }
    for name, (count, parents) in wanted.items():
        phase = builder.labels(
            "prompted", "strong", builder.evaluated, init | parents, label=name, shots=count
        )
        students[f"prompting_{name}"] = Student(
            phase, "", f"prompting_{name}", making.plan.weak, making.plan.ceiling
        )
    return students


def _contrast_consistent_search(making: Making, options: dict[str, Any]) -> Students:
    """A direction that gives a statement and its negation opposite truth (Burns et al. 2022)."""
    builder = making.builder
    data = builder.resolved.roles["strong"]
    if not data.label_tokens:
        name = data.model.name
        raise _refused("contrast_consistent_search", f"{name} has no label tokens", "a decoder")
    parents = builder.init("strong") | {"labels": making.plan.weak}
    kind = "contrast_consistent_search"
    phase = builder.labels(kind, "strong", builder.evaluated, parents, **options)
    return {kind: Student(phase, "", kind, making.plan.weak, making.plan.ceiling)}


def _em_posterior(making: Making, options: dict[str, Any]) -> Students:
    """Labels after a model of the supervisor's errors has been fitted."""
    labels = _judged(making, "em_posterior", options)
    return making.students("em_posterior", labels, supervisor=making.plan.weak)


def _synthetic(making: Making, options: dict[str, Any]) -> Students:
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


def _controls(making: Making, options: dict[str, Any]) -> Students:
    """Regularisers, of which the paper found none to help; the ceiling is trained without."""
    train = making.builder.settings.strong.train
    if train.adapt != "full":
        raise _refused("controls", f"strong.train.adapt={train.adapt!r}", "'full'")
    changes: dict[str, dict[str, Any]] = {
        "lora": {"adapt": "lora"},
        "weight_decay": {"optimizer": "adamw", "weight_decay": options["weight_decay"]},
    }
    students: Students = {}
    for name in options["of"]:
        change = changes.get(name) or {name: options[name]}
        changed = dataclasses.replace(train, **change)
        students |= making.students(name, making.plan.weak, train=changed)
    return students


def _imitation(making: Making, options: dict[str, Any]) -> Students:
    """The label stands in the document: nothing but copying is left to learn (PGR near 0)."""
    del options
    data = making.builder.resolved.roles["strong"]
    if not data.label_tokens:
        raise _refused("imitation", f"{data.model.name} has no label tokens", "a decoder")
    return making.students("imitation", making.plan.weak, suffixed=True)


def _require_full(builder: Builder, role: str, method: str) -> None:
    adapt = builder.settings.roles[role].train.adapt
    if adapt != "full" or (role == "weak" and builder.settings.weak.labels is not None):
        found = f"{role}.train.adapt={adapt!r}" if adapt != "full" else "weak.labels is given"
        raise _refused(method, found, f"a {role} model that is finetuned in full")


def _refused(method: str, found: str, allowed: str) -> errors.InputError:
    return errors.InputError(f"method.name: {method!r}, but {found}; allowed: {allowed}")


_METHODS: dict[str, Method] = {
    "bootstrapping": _bootstrapping,
    "strong_to_strong": _strong_to_strong,
    "generative": _generative,
    "bagging": _bagging,
    "boosting": _boosting,
    "confidence_threshold": _confidence_threshold,
    "probe_filter": _probe_filter,
    "probe_relabel": _probe_relabel,
    "trust_filter": _trust_filter,
    "early_stopping": _early_stopping,
    "saliency": _saliency,
    "prompting": _prompting,
    "contrast_consistent_search": _contrast_consistent_search,
    "em_posterior": _em_posterior,
    "synthetic": _synthetic,
    "controls": _controls,
    "imitation": _imitation,
}
