"""Chess: puzzles by hand, answers and scores, transcripts, loading, without the package, real."""

import gzip
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import chess.pgn
import pytest
from chess_games import GAMES, OPERA, expected_prompt, follow

from w2s_jax.config.recipes import load_config
from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import Document
from w2s_jax.data.loading import load
from w2s_jax.data.tasks import get_task
from w2s_jax.data.tasks.chess import games, notation, puzzles, transcripts
from w2s_jax.data.tokenizers import load_tokenizer
from w2s_jax.models.config import EMBEDDED_MODELS

RECORD = {
    "PuzzleId": "A1",
    "FEN": "6k1/5ppp/8/8/8/8/5PPP/R3R1K1 b - - 0 1",
    "Moves": "g8h8 a1a8",
    "Rating": 1200,
}


def puzzle(**changes):
    """The document of a puzzle, as the loader makes it."""
    (candidate,) = puzzles.expand_puzzle(RECORD | changes, "here")
    return Document(id=0, text=candidate.text, target=candidate.target, meta=candidate.meta)


# Puzzles


def test_a_puzzle_by_hand():
    document = puzzle()
    assert document.text == (
        ". . . . . . . k . . . . . p p p " + ". " * 32 + ". . . . . P P P R . . . R . K . "
        "white castling:- -"
    )
    assert document.target == "a1 a8"
    assert document.meta == {"PuzzleId": "A1", "Rating": 1200}
    task = get_task("chess_puzzles")
    assert task.generates and task.folder == "lichess_puzzles"
    assert task.answer_in(document.target) == "a1a8"


@pytest.mark.parametrize(
    ("fen", "moves", "state", "target"),
    [
        ("8/P6k/8/8/8/8/7K/8 b - - 0 1", "h7g7 a7a8q", "white castling:- -", "a7 a8 =q"),
        ("7k/8/8/8/8/8/1p5K/B7 w - - 0 1", "h2g2 b2a1n", "black castling:- -", "b2 a1 =n"),
        ("r3k2r/8/8/8/8/8/8/R3K2R b KQkq - 0 1", "e8f8 e1g1", "white castling:KQ -", "e1 g1"),
        ("r3k2r/8/8/8/8/8/8/R3K2R b KQkq - 0 1", "e8f8 e1h1", "white castling:KQ -", "e1 g1"),
        ("r3k2r/8/8/8/8/8/8/R3K2R w KQkq - 0 1", "h1h2 e8c8", "black castling:Qkq -", "e8 c8"),
        ("4k3/3p4/8/4P3/8/8/8/4K3 b - - 0 1", "d7d5 e5d6", "white castling:- d6", "e5 d6"),
        # In the FEN a square that nothing can take on, as older writers have it.
        ("4k3/8/8/8/4P3/8/8/4K3 b - e3 0 1", "e8e7 e4e5", "white castling:- -", "e4 e5"),
    ],
)
def test_promotion_castling_and_en_passant(fen, moves, state, target):
    document = puzzle(FEN=fen, Moves=moves)
    assert document.text.split(" ", 64)[64] == state
    assert document.target == target
    answer = notation.move_in(document.target)
    assert puzzles.is_legal(answer, document) and puzzles.is_correct(answer, document)
    load_tokenizer("chess_board").encode_batch([document.text, document.target])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"FEN": "nonsense"}, "field 'FEN': 'nonsense' is not a position"),
        (
            {"FEN": "8/8/8/8/8/8/8/8 b - - 0 1"},
            "is not a legal position .*no white king, no black king",
        ),
        ({"Moves": "g8h8 a1h8"}, "field 'Moves': move 2, 'a1h8', is illegal in the position 7k/"),
        ({"Moves": "g8g6 a1a8"}, "field 'Moves': move 1, 'g8g6', is illegal in the position 6k1"),
        ({"Moves": "g8h8 Ra8"}, "move 2, 'Ra8', is illegal"),
        ({"Moves": "g8h8 0000"}, "move 2, '0000', is illegal"),
        ({"Moves": "g8h8"}, "field 'Moves': 'g8h8'; needs at least two moves"),
        ({"Rating": "high"}, "field 'Rating': 'high'; must be a whole number"),
        ({"Rating": None}, "field 'Rating': None"),
        ({"Rating": 1200.5}, "field 'Rating': 1200.5"),
    ],
)
def test_bad_puzzles(changes, message):
    with pytest.raises(InputError, match=f"^f.jsonl, line 3: puzzle 'A1': .*{message}") as error:
        puzzles.expand_puzzle(RECORD | changes, "f.jsonl, line 3")
    assert "\n" not in str(error.value)


def test_ratings_of_a_csv_file():
    assert puzzle(Rating="1200").meta == puzzle(Rating=1200.0).meta == puzzle().meta


@pytest.mark.parametrize(
    ("text", "move"),
    [
        ("e2 e4", "e2e4"),
        (" e7 e8 =q", "e7e8q"),
        ("e7 e8 =n e1 e2", "e7e8n"),
        ("e2 e4 e5", "e2e4"),  # the first move counts
        ("", ""),
        ("e2", ""),
        ("e2 =q", ""),
        ("e2e4", ""),
        (". e2 e4", ""),
        ("[EOS] e2 e4", ""),
    ],
)
def test_move_in_a_completion(text, move):
    assert get_task("chess_puzzles").answer_in(text) == move
    if move:
        assert notation.move_in(notation.words_of_move(move)) == move


@pytest.mark.parametrize(
    ("answer", "correct", "legal", "mates"),
    [
        ("a1a8", True, True, True),
        ("e1e8", False, True, True),  # mates too
        ("a1a7", False, True, False),
        ("a1b2", False, False, False),
        ("h8g8", False, False, False),  # the other side's
        ("", False, False, False),
    ],
)
def test_scores_of_a_puzzle(answer, correct, legal, mates):
    task, document = get_task("chess_puzzles"), puzzle()
    assert task.is_correct(answer, document) is correct
    found = {name: score(answer, document) for name, score in task.scores.items()}
    assert (found["legal"], found["correct_or_mates"]) == (legal, mates)
    bands = {name: value for name, value in found.items() if name.startswith("accuracy")}
    assert bands == {
        "accuracy_below_1200": None,
        "accuracy_1200_to_1600": correct,
        "accuracy_1600_to_2000": None,
        "accuracy_2000_to_2400": None,
        "accuracy_from_2400": None,
    }


def test_every_rating_is_in_one_band():
    scores = get_task("chess_puzzles").scores
    bands = [score for name, score in scores.items() if name.startswith("accuracy")]
    for rating in (-1, 0, 1199, 1200, 1599, 1600, 1999, 2000, 2399, 2400, 4000):
        document = puzzle(Rating=rating)
        assert [b("a1a8", document) for b in bands if b("a1a8", document) is not None] == [True]


# Transcripts


@pytest.mark.parametrize(
    ("text", "move"),
    [
        (" Nf3", "Nf3"),
        ("Qxf7#", "Qxf7"),
        ("exd6+!?", "exd6"),
        ("e8=Q+", "e8=Q"),
        ("e8Q", "e8=Q"),
        ("bxa1=N", "bxa1=N"),
        ("0-0-0", "O-O-O"),
        ("O-O+", "O-O"),
        ("R1xe2 12... Kd8", "R1xe2"),
        ("Qa1xb2", "Qa1xb2"),
        ("", ""),
        ("12.", ""),
        ("Xf3", ""),
        ("e9", ""),
        ("e2e", ""),
    ],
)
def test_moves_in_algebraic_notation(text, move):
    assert get_task("chess_pgn").answer_in(text) == move


FOOLS = {"id": "x", "ctx": "1. f3 1... e5 2. g4", "target": " Qh4#"}


def pgn(**changes):
    (candidate,) = transcripts.expand_transcript(FOOLS | changes, "here")
    return Document(id=0, text=candidate.text, target=candidate.target, meta=candidate.meta)


def test_a_transcript():
    document, task = pgn(), get_task("chess_pgn")
    assert (document.text, document.target) == ("1. f3 1... e5 2. g4", " Qh4#")
    assert task.hub.name == "EleutherAI/lichess-puzzles"
    answer = task.answer_in(document.target)
    for given, correct, legal in (
        (answer, True, True),
        ("Qd8h4", True, True),  # the same move
        ("Qg5", False, True),
        ("Qh5", False, False),
        ("O-O", False, False),
        ("", False, False),
    ):
        assert task.is_correct(given, document) is correct
        assert task.scores["legal"](given, document) is legal
        assert task.scores["correct_or_mates"](given, document) is correct
    # A position in which two moves mate, after a number as the last word.
    back_rank = pgn(ctx="1. e4 1... e5 2. Bc4 2... Nc6 3. Qh5 3... Nf6 4.", target=" Qxf7#")
    assert task.is_correct("Qxf7", back_rank) and not task.is_correct("Bxf7", back_rank)
    assert task.scores["legal"]("Bxf7", back_rank)
    for changes in ({"target": " Xh4"}, {"target": "12..."}, {"target": "Qh4 Kd2"}):
        with pytest.raises(InputError, match="^here: field 'target': .* is not a move in SAN"):
            pgn(**changes)


def test_a_transcript_that_cannot_be_replayed():
    document, scores = pgn(ctx="1. f3 1... e5 2. g5"), get_task("chess_pgn").scores
    assert scores["legal"]("Qh4", document) is None
    assert scores["correct_or_mates"]("Qh4", document) is None
    assert transcripts.is_correct("Qh4", document)
    assert not transcripts.is_correct("Qd8h4", document)


@pytest.mark.parametrize("game", GAMES)
def test_transcript_of_a_game(game):
    text = transcripts.transcript_of(game.split())
    read = chess.pgn.read_game(io.StringIO(text))
    assert not read.errors
    assert [move.uci() for move in read.mainline_moves()] == game.split()
    assert text.startswith("1. e4 1... ") and "2... " in text
    # A puzzle's transcript is read back to the same position.
    assert transcripts._fen_after(text) == follow(game.split()).fen()


# Loading, and a run's text


def write(root, name, records):
    path = root / name / "train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_puzzles_of_a_file(tmp_path):
    promotion = {"FEN": "8/P6k/8/8/8/8/7K/8 b - - 0 1", "Moves": "h7g7 a7a8q h2h3"}
    records = [RECORD, RECORD | promotion | {"PuzzleId": "B2", "Rating": 1900}]
    write(tmp_path, "lichess_puzzles", records)
    (first, second) = load("chess_puzzles", data_dir=str(tmp_path)).documents["train"]
    assert (first.target, second.target) == ("a1 a8", "a7 a8 =q")
    assert second.meta == {"PuzzleId": "B2", "Rating": 1900} and second.label is None
    easy = load("chess_puzzles", data_dir=str(tmp_path), where="Rating<1500").documents
    assert easy == {"train": [first]}
    bad = tmp_path / "bad"
    path = write(bad, "lichess_puzzles", [RECORD, RECORD | {"Moves": "g8h8 a1h8"}])
    with pytest.raises(InputError, match=f"^{path}, line 2: puzzle 'A1': field 'Moves': move 2"):
        load("chess_puzzles", data_dir=str(bad))


def test_transcripts_of_a_file(tmp_path):
    write(tmp_path, "chess_pgn", [FOOLS])
    (document,) = load("chess_pgn", data_dir=str(tmp_path)).documents["train"]
    assert (document.text, document.target) == (FOOLS["ctx"], " Qh4#")
    assert document.meta == {"id": "x"}


def test_recipe():
    config = load_config(str(Path(__file__).parents[1] / "configs" / "chess.py") + ":3,1500", [])
    assert (config.seed, config.task.split_seed, config.pretrain.seed) == (3, 3, 0)
    assert config.task.where == "Rating<1500" and config.name == "chess-3-below-1500"
    names = [config.weak.model, *config.method.bootstrapping.models, config.strong.model]
    widths = [EMBEDDED_MODELS[name]["d_model"] for name in names]
    assert len(widths) >= 3 and widths == sorted(set(widths))
    assert config.pretrain.chunk_length >= 72  # of the longest position with its move


# The package


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "chess", None)
    calls = (
        lambda: puzzles.expand_puzzle(RECORD, "here"),
        lambda: transcripts.transcript_of(["e2e4"]),
    )
    for call in calls:
        with pytest.raises(InputError, match=r"pip install 'w2s_jax\[chess\]'") as error:
            call()
        assert "\n" not in str(error.value)
    # Positions to pretrain on need no rules.
    assert games.position_documents([("here", {"moves_uci": OPERA})], load_tokenizer("chess_board"))


def test_the_package_is_imported_by_tasks_of_chess_only():
    code = "import sys, w2s_jax.data, w2s_jax.data.tasks.chess; assert 'chess' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Real data

ROOT = os.environ.get("W2S_TEST_DATA")


@pytest.mark.skipif(not ROOT, reason="W2S_TEST_DATA is not set: no real data")
def test_real_puzzles_and_games():
    def read(name, count):
        with gzip.open(Path(ROOT) / "data" / name / "test.jsonl.gz", "rt") as file:
            return [json.loads(line) for line in itertools.islice(file, count)]

    task, tokenizer = get_task("chess_puzzles"), load_tokenizer("chess_board")
    for record in read("lichess_puzzles", 600):
        (candidate,) = task.expand(record, "here")
        board = chess.Board(record["FEN"])
        first, second, *_ = record["Moves"].split()
        board.push_uci(first)
        assert candidate.text == expected_prompt(board)
        document = Document(0, candidate.text, target=candidate.target, meta=candidate.meta)
        assert task.answer_in(candidate.target) == second
        assert task.is_correct(second, document)
        found = {name: score(second, document) for name, score in task.scores.items()}
        assert found["legal"] and found["correct_or_mates"]
        assert [found[n] for n in found if n.startswith("accuracy")].count(True) == 1
        tokenizer.encode_batch([candidate.text, candidate.target])
    for record in read("chess_games", 12):
        follow(record["moves_uci"].split())
