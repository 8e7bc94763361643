"""What a phase tells: TensorBoard files and Weights & Biases get the rows of metrics.jsonl."""

import json
import struct
import sys
import types

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from w2s_jax import errors, logs
from w2s_jax.config import LogSettings

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
            tmp_path, "student xent", 2, LogSettings(), Console(quiet=True), wandb_run
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
