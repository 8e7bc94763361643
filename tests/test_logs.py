"""What a phase tells: TensorBoard files and Weights & Biases get the rows of metrics.jsonl."""

import json
import struct
import sys
import types

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from w2s_jax.config import LogSettings
from w2s_jax.core import errors
from w2s_jax.phases import logs

ROWS = [
    {"step": 1, "split": "train", "loss": 0.75, "accuracy": 0.5},
    {"step": 2, "split": "train", "loss": 0.5, "accuracy": 0.625},
    {"step": 2, "split": "validation", "agreement": 0.875},
]


def events(folder):
    """(tag, step, value) of all scalars in a folder's event files (TFRecord framing)."""
    found = []
    for path in folder.glob("events.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            at += 16 + size
    return sorted(found)


def test_rows_reach_every_log_once_also_after_a_restart(tmp_path):
    sent = []
    wandb_run = types.SimpleNamespace(log=sent.append)
    for _ in range(2):  # a resumed phase reports everything it remembers once more
        log = logs.PhaseLog(
            tmp_path, "student xent", 2, LogSettings(every=1), Console(quiet=True), wandb_run
        )
        with log:
            log.rows(ROWS)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == ROWS
    assert events(tmp_path / "tensorboard") == [
        ("train/accuracy", 1, 0.5),
        ("train/accuracy", 2, 0.625),
        ("train/loss", 1, 0.75),
        ("train/loss", 2, 0.5),
        ("validation/agreement", 2, 0.875),
    ]
    assert sent[2] == {"student xent/validation/agreement": 0.875, "student xent/step": 2}


def test_training_rows_are_thinned_in_all_logs_but_the_file(tmp_path):
    sent = []
    log = logs.PhaseLog(
        tmp_path, "weak", 8, LogSettings(every=3), Console(quiet=True),
        types.SimpleNamespace(log=sent.append),
    )  # fmt: skip
    rows = [{"step": step, "split": "train", "loss": 1 / step} for step in range(1, 9)]
    rows.insert(4, {"step": 4, "split": "validation", "agreement": 0.5})
    with log:
        log.rows(rows)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    shown = [(tag, step) for tag, step, _ in events(tmp_path / "tensorboard")]
    losses = [("train/loss", step) for step in (3, 6, 8)]
    assert shown == [*losses, ("validation/agreement", 4)]
    assert [row["weak/step"] for row in sent] == [3, 4, 6, 8]


def test_of_two_phases_at_once_one_has_a_bar(tmp_path):
    console = Console(force_terminal=True, width=120, record=True, legacy_windows=False)
    settings = LogSettings(tensorboard=False)
    names = {"weak": True, "ceiling": False}
    for name in names:
        (tmp_path / name).mkdir()
    bars = [
        logs.PhaseLog(tmp_path / name, name, 20, settings, console, shows_bar=shown)
        for name, shown in names.items()
    ]
    with bars[0], bars[1]:
        for bar in bars:
            bar.progress(10, {"loss": 0.5, "accuracy": 0.875}, 12345.0)
        bars[0].bar.refresh()
    assert "weak" in (text := console.export_text()) and "ceiling" not in text


def test_the_bar_shows_loss_accuracy_and_speed(tmp_path):
    console = Console(force_terminal=True, width=120, record=True, legacy_windows=False)
    log = logs.PhaseLog(tmp_path, "weak", 20, LogSettings(tensorboard=False), console)
    with log:
        log.progress(10, {"loss": 0.5, "accuracy": 0.875}, 12345.0)
        log.bar.refresh()
    text = console.export_text()
    for part in ("weak", "10/20", "loss 0.5000", "accuracy 0.875", "12,345 docs/s"):
        assert part in text, text


def test_weights_and_biases_only_when_asked_for_and_installed(monkeypatch, tmp_path):
    assert logs.start_wandb(LogSettings(), "x", tmp_path, {}) is None
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(errors.InputError, match=r"log\.wandb: True, .*not installed"):
        logs.start_wandb(LogSettings(wandb=True), "x", tmp_path, {})
    started = types.SimpleNamespace(init=lambda **options: options)
    monkeypatch.setitem(sys.modules, "wandb", started)
    options = logs.start_wandb(LogSettings(wandb=True), "my run", tmp_path, {"seed": 1})
    assert options["name"] == "my run" and options["config"] == {"seed": 1}
    assert options["resume"] == "allow"


def test_a_runs_test_metrics_are_scalars_of_its_folder(tmp_path):
    student = {"model": "m", "accuracy": 0.8125, "pgr": None, "n": 64}
    result = {
        "seed": 3,
        "weak": {"model": "w", "accuracy": 0.75},
        "ceiling": {"accuracy": 0.875},
        "students": {"xent": student},
    }
    for _ in range(2):  # a run that is told again has each number once
        logs.log_result(result, tmp_path, LogSettings())
    assert events(tmp_path / "tensorboard") == [
        ("ceiling/accuracy", 3, 0.875),
        ("weak/accuracy", 3, 0.75),
        ("xent/accuracy", 3, 0.8125),
        ("xent/n", 3, 64.0),
    ]
    logs.log_result(result, tmp_path / "none", LogSettings(tensorboard=False))
    assert not (tmp_path / "none").exists()
