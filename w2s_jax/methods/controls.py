"""Regularisers as controls."""

import dataclasses
from typing import Any

from w2s_jax.config.options import Option
from w2s_jax.methods.registry import Students, refused, register, require_network
from w2s_jax.planning.plan import MethodPlanner

CONTROLS = ("lora", "weight_decay", "dropout", "label_smoothing", "ema")


@register(
    "controls",
    students="`+lora`, `+weight_decay`, `+dropout`, `+label_smoothing`, `+ema`",
    summary="The student trained with a regulariser, of which the paper found none to help; the "
    "ceiling is trained without",
    of=Option(CONTROLS, "The regularisers", choices=CONTROLS),
    weight_decay=Option(0.1, "`train.weight_decay` of AdamW", low=0),
    dropout=Option(0.1, "`train.dropout`", low=0, below=1),
    label_smoothing=Option(0.1, "`train.label_smoothing`", low=0, below=1),
    ema=Option(0.9, "`train.ema`", low=0, below=1),
)
def controls(planner: MethodPlanner, *, of: tuple[str, ...], **values: float) -> Students:
    """A student for each regulariser."""
    require_network(planner.builder, "strong", "controls")
    train = planner.builder.settings.strong.train
    if train.adapt != "full":
        raise refused("controls", "strong.train.adapt='full'", f"it is {train.adapt!r}")
    changes: dict[str, dict[str, Any]] = {
        "lora": {"adapt": "lora"},
        "weight_decay": {"optimizer": "adamw", "weight_decay": values["weight_decay"]},
    }
    students: Students = {}
    for name in of:
        changed = dataclasses.replace(train, **(changes.get(name) or {name: values[name]}))
        students |= planner.students(name, planner.naive.weak, train=changed)
    return students
