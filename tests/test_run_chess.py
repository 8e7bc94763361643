"""A whole run on puzzles that are transcripts of games, as in Burns et al. 2023."""

import json

import chess
import numpy as np
import pyarrow.parquet as pq
import pytest
from chess_games import GAMES

import w2s_jax
from w2s_jax.config import default_config
from w2s_jax.data.loading import load
from w2s_jax.data.tasks.chess.transcripts import transcript_of

pytestmark = pytest.mark.medium


def puzzles():
    """Every move of the games is the answer to the moves before it."""
    records = []
    for number, game in enumerate(GAMES):
        moves, board = game.split(), chess.Board()
        for n, move in enumerate(moves):
            san = board.san(chess.Move.from_uci(move))
            if n:
                record = {"id": f"{number}-{n}", "ctx": transcript_of(moves[:n])}
                records.append(record | {"target": f" {san}"})
            board.push_uci(move)
    return records


def write(path, rows):
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def board_after(ctx):
    board = chess.Board()
    for word in ctx.split():
        if not word.endswith("."):
            board.push_san(word)
    return board


def test_transcripts_from_games_to_scores(tmp_path):
    records = puzzles()
    write(tmp_path / "data" / "chess_pgn" / "train.jsonl", records)
    write(tmp_path / "data" / "chess_games" / "train.jsonl", [{"moves_uci": g} for g in GAMES])
    config = default_config()
    config.task.name, config.task.data_dir = "chess_pgn", str(tmp_path / "data")
    config.task.test_docs, config.task.validation_docs = 24, 0
    config.protocol.early_stopping = "none"
    config.weak.model, config.strong.model = "gpt-d16", "gpt-d32"
    config.pretrain.source, config.pretrain.steps = "chess_games", 200
    config.pretrain.batch_size, config.pretrain.chunk_length = 2, 400
    config.pretrain.learning_rate = 1e-2
    config.train.batch_size, config.train.epochs, config.train.learning_rate = 8, 10.0, 3e-3
    config.losses = ("xent",)
    result = w2s_jax.run(config, tmp_path / "run")

    phases = tmp_path / "run" / "phases"
    assert {p.name.split("-")[0] for p in phases.iterdir()} >= {"pretrain", "weak", "student"}
    documents = load("chess_pgn", data_dir=str(tmp_path / "data")).documents["train"]
    contexts = {document.id: document.text for document in documents}
    entries = (result["weak"], result["students"]["xent"], result["ceiling"])
    # The games are short and were read often: some moves are known.
    assert max(entry["scores"]["legal"] for entry in entries) > 0
    for entry in entries:
        rows = pq.read_table(
            phases / entry["phase"] / "predictions.parquet", filters=[("split", "==", "test")]
        ).to_pylist()
        legal, correct = [], []
        for row in rows:
            board = board_after(contexts[row["id"]])
            move = move_of(board, row["answer"])
            legal.append(move is not None)
            correct.append(move == board.parse_san(row["target"].strip()))
            assert row["correct"] == correct[-1]
        assert (entry["n"], entry["accuracy"]) == (24, np.mean(correct))
        assert entry["scores"]["legal"] == pytest.approx(np.mean(legal))


def move_of(board, answer):
    try:
        return board.parse_san(answer)
    except ValueError:
        return None
