"""Which classes models take for which others, in tasks with more than two classes.

Counts are of test documents, with the seeds of a setting pooled. Up to `MAX_CLASSES` classes they
are drawn as matrices; of more, the most confused pairs are listed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from w2s_jax.metrics.classification import predicted_classes
from w2s_jax.report.answers import shortened
from w2s_jax.report.drawing import INK, SERIES, WEAK, WIDTH, Panel, escape_mathtext, style
from w2s_jax.report.results import MAX_STUDENTS, Key, first_of, plural, show
from w2s_jax.report.settings import Setting, student_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: With more classes the cells of a matrix would be too small to read.
MAX_CLASSES = 20
#: Pairs of classes in a list.
MAX_PAIRS = 15
#: Names of classes in a figure are cut to this many characters.
MAX_NAME = 18
#: Opacity of a cell with all documents of its class: the number on it stays readable.
_OPACITY = 0.55
#: Columns of confusion.csv.
CONFUSION_COLUMNS = ("setting", "role", "label", "seeds", "true", "predicted", "n")


@dataclass(frozen=True)
class Confusion:
    """What one model of a setting predicted for the test documents of each class.

    Attributes:
        setting: the setting's title.
        key: (role, label) of the model.
        classes: the names of the C classes.
        seeds: the number of trainings that are pooled.
        counts_CC: documents by true and predicted class, int64 [C, C].
    """

    setting: str
    key: Key
    classes: tuple[str, ...]
    seeds: int
    counts_CC: NDArray[np.int64]

    @property
    def name(self) -> str:
        """The model's name in figures and tables."""
        return "weak model" if self.key[0] == "weak" else self.key[1]

    @property
    def share_CC(self) -> NDArray[np.float64]:
        """The counts as shares of each true class, [C, C]; 0 for a class without documents."""
        return self.counts_CC / np.maximum(self.counts_CC.sum(axis=1, keepdims=True), 1)

    @property
    def wrong_CC(self) -> NDArray[np.int64]:
        """The counts of wrong predictions: 0 on the diagonal."""
        return self.counts_CC * ~np.eye(len(self.classes), dtype=bool)


def confusions(settings: Iterable[Setting]) -> list[Confusion]:
    """Return the confusions of all models whose predictions of C > 2 classes were found."""
    from sklearn.metrics import confusion_matrix

    out = []
    for setting in settings:
        classes = setting.classes
        for key, entries in setting.entries.items():
            phases = dict.fromkeys(str(e.get("phase")) for e in entries)
            found = [setting.predictions[p] for p in phases if p in setting.predictions]
            found = [own for own in found if own["p"].shape[1:] == (len(classes),)]
            if not found:
                continue
            counts_CC = sum(
                confusion_matrix(
                    own["ground_truth"], predicted_classes(own["p"]), labels=range(len(classes))
                )
                for own in found
            )
            out.append(Confusion(setting.title, key, classes, len(found), counts_CC))
    return out


def confusion_rows(found: Iterable[Confusion]) -> list[dict[str, Any]]:
    """Return one row per model and pair of classes that occurs, with `CONFUSION_COLUMNS`."""
    return [
        {"setting": own.setting, "role": own.key[0], "label": own.key[1], "seeds": own.seeds,
         "true": own.classes[true], "predicted": own.classes[predicted],
         "n": int(own.counts_CC[true, predicted])}
        for own in found
        for true, predicted in np.argwhere(own.counts_CC)
    ]  # fmt: skip


def _shown(setting: Setting, found: Iterable[Confusion]) -> list[Confusion]:
    """Return the confusions of a setting's weak model, first students and ceiling."""
    labels = {"weak", "ceiling", *student_labels([setting])[:MAX_STUDENTS]}
    return [own for own in found if own.setting == setting.title and own.key[1] in labels]


def _most_confused(wrong_CC: NDArray[np.int64], count: int) -> list[tuple[int, int]]:
    """Return the pairs (true, predicted) with the most wrong predictions, at most `count`."""
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, wrong_CC.shape), strict=True)
    return [(int(t), int(p)) for t, p in pairs if wrong_CC[t, p]]


# --- matrices ------------------------------------------------------------------------------------


def confusion_panels(settings: Sequence[Setting], found: Sequence[Confusion]) -> list[Panel]:
    """Return a confusion matrix per model, of settings with up to `MAX_CLASSES` classes."""
    panels = []
    for setting in settings:
        if len(setting.classes) > MAX_CLASSES:
            continue
        left_out = first_of(student_labels([setting]))
        for own in _shown(setting, found):
            parts = [own.name, setting.title if len(settings) > 1 else "", left_out]
            side = 0.29 * len(own.classes)
            panels.append(
                Panel(
                    "; ".join(filter(None, parts)),
                    _alt_text(own),
                    partial(_draw_confusion, found=own),
                    max(3.3, 1.7 + side),
                    max(WIDTH, 2.2 + side),
                )
            )
    return panels


def _alt_text(found: Confusion) -> str:
    n, share_CC = int(found.counts_CC.sum()), found.share_CC
    text = f"Confusion matrix of {found.name}: {plural(n, 'prediction')}, accuracy"
    text += f" {show(float(np.trace(found.counts_CC) / n))}"
    pairs = [
        f"{found.classes[t]} taken for {found.classes[p]} ({share_CC[t, p]:.0%})"
        for t, p in _most_confused(found.wrong_CC, 3)
    ]
    return f"{text}; {', '.join(pairs)}." if pairs else f"{text}."


def _draw_confusion(ax: "Axes", found: Confusion) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    classes, share_CC = len(found.classes), found.share_CC
    cells = np.argwhere(found.counts_CC).tolist()
    shades = [
        to_rgba(SERIES[0] if true == predicted else WEAK, _OPACITY * share_CC[true, predicted])
        for true, predicted in cells
    ]
    squares = [Rectangle((predicted - 0.5, true - 0.5), 1, 1) for true, predicted in cells]
    ax.add_collection(PatchCollection(squares, facecolors=shades, edgecolors="none"))
    size = 8.5 if classes <= 10 else 6.5
    for true, predicted in cells:
        percent = f"{100 * share_CC[true, predicted]:.0f}"
        ax.text(predicted, true, percent, ha="center", va="center", fontsize=size, color=INK)
    names = [escape_mathtext(shortened(name, MAX_NAME)) for name in found.classes]
    sizes = found.counts_CC.sum(axis=1)
    ax.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), aspect="equal")
    ax.set_yticks(range(classes), [f"{k} ({n})" for k, n in zip(names, sizes, strict=True)])
    ax.set_xticks(range(classes), names)
    if sum(map(len, names)) > 30:
        ax.tick_params(axis="x", rotation=45)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    ax.set_ylabel("true class (predictions)")
    ax.set_xlabel(f"predicted class (% of the row, {plural(found.seeds, 'seed')})")
    style(ax, grid=False)


# --- the most confused pairs ---------------------------------------------------------------------


@dataclass(frozen=True)
class PairTable:
    """The most confused pairs of classes of a setting.

    Attributes:
        setting: the setting's title.
        caption: how the pairs were chosen, and what is left out.
        columns: (role, label) of the models.
        rows: true class, predicted class, and for each model the number of such predictions and
            their share of the true class.
    """

    setting: str
    caption: str
    columns: list[Key]
    rows: list[tuple[str, str, list[tuple[int, float]]]]


def pair_table(setting: Setting, found: Sequence[Confusion]) -> PairTable | None:
    """Return the pairs of classes that a setting's models confuse most; None without predictions.

    The pairs are those with the most wrong predictions over the models shown.
    """
    shown = _shown(setting, found)
    if not shown:
        return None
    wrong_CC = np.sum([own.wrong_CC for own in shown], axis=0)
    classes = setting.classes
    pairs = _most_confused(wrong_CC, MAX_PAIRS)
    rows = [
        (classes[t], classes[p], [(int(o.counts_CC[t, p]), o.share_CC[t, p]) for o in shown])
        for t, p in pairs
    ]
    confused = int(np.count_nonzero(wrong_CC))
    caption = (
        f"{len(classes)} classes. {len(pairs)} of the {plural(confused, 'pair')} of classes that"
        " are confused, those with the most wrong predictions of these models together: the share"
        " of the true class that a model takes for the other one, and the number of predictions."
    )
    if max(own.seeds for own in shown) > 1:
        caption += " Seeds are pooled."
    left_out = first_of(student_labels([setting]))
    caption += f" {left_out[0].upper()}{left_out[1:]}." if left_out else ""
    return PairTable(setting.title, caption, [own.key for own in shown], rows)


# --- the section of the page ---------------------------------------------------------------------


def confusion_context(settings: Sequence[Setting], found: Sequence[Confusion]) -> dict[str, Any]:
    """Return what the page shows of classes.

    Returns:
        `expected`: whether any setting has more than two classes; `tables`: the most confused pairs
        of settings with too many classes for a matrix; `listed`: whether all have too many.
    """
    sizes = [len(setting.classes) for setting in settings if setting.classes]
    many = [setting for setting in settings if len(setting.classes) > MAX_CLASSES]
    return {
        "expected": bool(sizes),
        "tables": [t for s in many if (t := pair_table(s, found)) is not None],
        "listed": bool(sizes) and min(sizes) > MAX_CLASSES,
    }
