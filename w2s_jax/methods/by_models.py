"""Methods that change how the student is trained, or read it without training."""

import dataclasses
from typing import Any

from w2s_jax.methods.making import Making, Students, refused, require_full, require_label_tokens
from w2s_jax.planning.build import ceiling_slice
from w2s_jax.planning.plan import Student


def generative(making: Making, options: dict[str, Any]) -> Students:
    """Next-token training on slice 2 first; the ceiling gets it too (section 4.3.3)."""
    builder = making.builder
    model = builder.resolved.roles["strong"].model
    if model.bidirectional:
        raise refused("generative", f"{model.name} predicts no next token", "a decoder")
    init = builder.generative("strong", "slice2", options["epochs"])
    split = ceiling_slice(builder.settings)
    ceiling = builder.trained("ceiling", "strong", split, init=init, label="generative")
    return making.students("generative", making.plan.weak, init=init, ceiling=ceiling)


def early_stopping(making: Making, options: dict[str, Any]) -> Students:
    """The same student, kept at other steps; 'ground_truth' is an oracle (appendix A.5)."""
    if "validation" not in making.builder.evaluated:
        raise refused(
            "early_stopping", "there is no validation set", "task.validation_docs above 0"
        )
    students: Students = {}
    for by in options["by"]:
        name = {"none": "last_step", "ground_truth": "oracle_stop", "agreement": "agreement_stop"}
        students |= making.students(name[by], making.plan.weak, select=by)
    return students


def saliency(making: Making, options: dict[str, Any]) -> Students:
    """How salient the task is: probes before and after finetuning (Burns et al., section 5.2)."""
    del options
    builder, weak = making.builder, making.plan.weak
    require_full(builder, "strong", "saliency")
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


def prompting(making: Making, options: dict[str, Any]) -> Students:
    """Zero-shot, and few-shot with ground truth and with weak labels (appendix on prompting)."""
    builder = making.builder
    require_label_tokens(making, "prompting")
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


def contrast_consistent_search(making: Making, options: dict[str, Any]) -> Students:
    """A direction that gives a statement and its negation opposite truth (Burns et al. 2022)."""
    builder = making.builder
    require_label_tokens(making, "contrast_consistent_search")
    parents = builder.init("strong") | {"labels": making.plan.weak}
    kind = "contrast_consistent_search"
    phase = builder.labels(kind, "strong", builder.evaluated, parents, **options)
    return {kind: Student(phase, "", kind, making.plan.weak, making.plan.ceiling)}


def controls(making: Making, options: dict[str, Any]) -> Students:
    """Regularisers, of which the paper found none to help; the ceiling is trained without."""
    train = making.builder.settings.strong.train
    if train.adapt != "full":
        raise refused("controls", f"strong.train.adapt={train.adapt!r}", "'full'")
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
