"""Chess: positions against python-chess, puzzles by hand, scores, transcripts, games."""

import gzip
import io
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import Document
from w2s_jax.data.tasks import get_task
from w2s_jax.data.tasks.chess import games, notation, puzzles, transcripts
from w2s_jax.data.tasks.chess.position import Position
from w2s_jax.data.tokenizers import load_tokenizer, register_tokenizer
from w2s_jax.data.word_tokenizer import word_tokenizer

chess = pytest.importorskip("chess")

OPERA = (
    "e2e4 e7e5 g1f3 d7d6 d2d4 c8g4 d4e5 g4f3 d1f3 d6e5 f1c4 g8f6 f3b3 d8e7 b1c3 c7c6 c1g5 b7b5 "
    "c3b5 c6b5 c4b5 b8d7 e1c1 a8d8 d1d7 d8d7 h1d1 e7e6 b5d7 f6d7 b3b8 d7b8 d1d8"
)
IMMORTAL = (
    "e2e4 e7e5 f2f4 e5f4 f1c4 d8h4 e1f1 b7b5 c4b5 g8f6 g1f3 h4h6 d2d3 f6h5 f3h4 h6g5 h4f5 c7c6 "
    "g2g4 h5f6 h1g1 c6b5 h2h4 g5g6 h4h5 g6g5 d1f3 f6g8 c1f4 g5f6 b1c3 f8c5 c3d5 f6b2 f4d6 c5g1 "
    "e4e5 b2a1 f1e2 b8a6 f5g7 e8d8 f3f6 g8f6 d6e7"
)
# En passant by both sides, promotions to a knight and a rook, rooks lost in the corner.
ODD = (
    "e2e4 a7a6 e4e5 d7d5 e5d6 h7h5 d6c7 h5h4 g2g4 h4g3 c7b8n g3h2 b8d7 h2g1r h1h8 c8d7 h8g8 g1f1 "
    "e1f1 d8b8"
)
GAMES = (OPERA, IMMORTAL, ODD)
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


def expected_prompt(board):
    """A position in words, square by square, from what python-chess knows of it."""
    squares = []
    for rank, file in itertools.product(range(7, -1, -1), range(8)):
        piece = board.piece_at(chess.square(file, rank))
        squares.append(piece.symbol() if piece else ".")
    rights = [
        letter
        for letter, has in zip(
            "KQkq",
            (
                board.has_kingside_castling_rights(chess.WHITE),
                board.has_queenside_castling_rights(chess.WHITE),
                board.has_kingside_castling_rights(chess.BLACK),
                board.has_queenside_castling_rights(chess.BLACK),
            ),
            strict=True,
        )
        if has
    ]
    taken = [chess.square_name(m.to_square) for m in board.legal_moves if board.is_en_passant(m)]
    castling = f"castling:{''.join(rights) or '-'}"
    side = "white" if board.turn else "black"
    return " ".join([*squares, side, castling, taken[0] if taken else "-"])


def position_of(fen):
    placement, side, castling, *_ = fen.split()
    position = Position()
    position.squares = list("".join(c if not c.isdigit() else "." * int(c) for c in placement))
    position.squares = [c for c in position.squares if c != "/"]
    position.white, position.castling = side == "w", castling
    return position


def follow(moves):
    """Play moves on both boards, which must agree after each."""
    board, position = chess.Board(), Position()
    assert position.prompt() == expected_prompt(board)
    for uci in moves:
        board.push(board.parse_uci(uci))
        position.push(uci)
        assert position.prompt() == expected_prompt(board), uci
    return board


# The tokenizer


def test_words_are_tokens():
    tokenizer = word_tokenizer("abc", ["a", "bc", "é"])
    assert (tokenizer.vocab_size, tokenizer.text_vocab_size) == (6, 6)
    assert (tokenizer.prefix, tokenizer.suffix, tokenizer.end_of_text) == ((1,), (), 2)
    texts = ["a bc", "", " é  a", "bc"] * 6000  # more than one batch
    tokens_T, lengths_N = tokenizer.encode_batch(texts)
    assert tokens_T.dtype == np.int32 and lengths_N.dtype == np.int64
    np.testing.assert_array_equal(tokens_T, [3, 4, 5, 3, 4] * 6000)
    np.testing.assert_array_equal(lengths_N, [2, 0, 2, 1] * 6000)
    assert [len(array) for array in tokenizer.encode_batch([])] == [0, 0]
    assert tokenizer.decode(np.array([1, 4, 3, 2, 0])) == "[BOS] bc a [EOS] [PAD]"
    assert tokenizer.decode(np.array([5, 6])) == "é [6]"
    assert (tokenizer.cut(np.arange(5), 3), tokenizer.cut(np.arange(5), 9)) == (3, 5)


def test_what_words_cannot_do():
    tokenizer = word_tokenizer("abc", ["a", "bc"])
    with pytest.raises(InputError, match=r"'abc' does not know the word 'b' \(did you mean 'bc'"):
        tokenizer.encode_batch(["a", "a b"])
    # Text is never control.
    with pytest.raises(InputError, match=r"the word '\[EOS\]'"):
        tokenizer.encode_batch(["a [EOS]"])
    with pytest.raises(InputError, match="'abc' has no tokens for the labels '0' and '1'"):
        tokenizer.label_tokens  # noqa: B018
    for words in (["a", "a"], ["a b"], [""], ["[PAD]"]):
        with pytest.raises(ValueError, match="must be different"):
            word_tokenizer("bad", words)
    assert word_tokenizer("x", ["a", "bc"]).digest == tokenizer.digest
    assert word_tokenizer("abc", ["bc", "a"]).digest != tokenizer.digest


def test_tokenizer_of_the_board():
    tokenizer = load_tokenizer("chess_board")
    assert get_task("chess_puzzles").tokenizer == tokenizer.name == "chess_board"
    assert tokenizer.vocab_size == 103
    # Trained models depend on it.
    assert tokenizer.digest.startswith(FROZEN_DIGEST)
    for text in (Position().prompt(), "a7 a8 =q", "h1 a8"):
        tokens_T, _ = tokenizer.encode_batch([text])
        assert tokenizer.decode(tokens_T) == text
    with pytest.raises(InputError, match="'chess_board' is already registered"):
        register_tokenizer("chess_board", notation.board_tokenizer)


FROZEN_DIGEST = "a2e757c2133b8842"


# Positions


def test_first_position_in_words():
    assert Position().prompt() == (
        "r n b q k b n r p p p p p p p p " + ". " * 32 + "P P P P P P P P R N B Q K B N R "
        "white castling:KQkq -"
    )
    assert notation.prompt_of_fen(chess.STARTING_FEN) == Position().prompt()
    assert len(notation.WORDS) == len(set(notation.WORDS)) == 100


@pytest.mark.parametrize("game", GAMES)
def test_positions_of_games(game):
    follow(game.split())


def test_positions_of_random_games():
    """Random games have what people's have not: odd promotions, rooks taken in their corner."""
    draw = random.Random(7)
    seen = dict.fromkeys(("en passant", "promotion", "castling"), 0)
    for _ in range(16):
        board, position = chess.Board(), Position()
        for _ in range(150):
            moves = list(board.legal_moves)
            if not moves:
                break
            special = [m for m in moves if board.is_castling(m) or board.is_en_passant(m)]
            pawns = [m for m in moves if board.piece_type_at(m.from_square) == chess.PAWN]
            move = draw.choice(special or (pawns if draw.random() < 0.5 else []) or moves)
            seen["en passant"] += board.is_en_passant(move)
            seen["castling"] += board.is_castling(move)
            seen["promotion"] += move.promotion is not None
            board.push(move)
            position.push(move.uci())
            assert position.prompt() == expected_prompt(board), board.fen()
    assert min(seen.values()) > 3, seen


@pytest.mark.parametrize(
    ("fen", "move", "square"),
    [
        ("4k3/8/8/8/3p4/8/4P3/4K3 w - - 0 1", "e2e4", "e3"),
        ("4k3/8/8/8/8/8/4P3/4K3 w - - 0 1", "e2e4", "-"),  # nothing can take it
        ("4k3/8/8/8/3P4/8/4P3/4K3 w - - 0 1", "e2e4", "-"),
        ("8/8/8/8/k2p3R/8/4P3/4K3 w - - 0 1", "e2e4", "-"),  # both pawns leave the king's row
        ("8/8/8/8/k2pp2R/8/5P2/4K3 w - - 0 1", "f2f4", "f3"),  # one stays
        ("3k4/8/8/8/3p4/8/4P3/3RK3 w - - 0 1", "e2e4", "-"),  # pinned in its column
        ("6k1/8/8/8/3p4/2B5/4P3/B3K3 w - - 0 1", "e2e4", "e3"),
        ("8/8/5k2/8/3p4/8/1B2P3/4K3 w - - 0 1", "e2e4", "-"),  # pinned on a diagonal
        ("8/8/8/k7/3p1p2/8/4P3/K3B3 w - - 0 1", "e2e4", "-"),  # a discovered check
        ("8/8/8/3k4/3p1p2/8/4P3/4K3 w - - 0 1", "e2e4", "e3"),  # the pawn itself gives check
        ("4k3/2p5/8/3P4/8/8/8/4K3 b - - 0 1", "c7c5", "c6"),
        ("4k3/7p/8/P7/8/8/8/4K3 b - - 0 1", "h7h5", "-"),  # not around the edge
        ("4k3/p7/8/7P/8/8/8/4K3 b - - 0 1", "a7a5", "-"),
        ("4k3/2p5/8/KP5r/8/8/8/8 b - - 0 1", "c7c5", "-"),
    ],
)
def test_en_passant_only_where_it_is_legal(fen, move, square):
    board, position = chess.Board(fen), position_of(fen)
    assert position.prompt() == expected_prompt(board)
    board.push(board.parse_uci(move))
    position.push(move)
    assert position.prompt() == expected_prompt(board)
    assert position.prompt() == notation.prompt_of_fen(board.fen())
    assert position.en_passant == square


def test_words_back_to_a_position():
    for game in GAMES:
        board = follow(game.split())
        fen = notation.fen_of_prompt(expected_prompt(board))
        assert fen.split()[:4] == board.fen().split()[:4]
    prompt = Position().prompt()
    for bad in ("", prompt + " -", prompt.replace("white", "w"), prompt.replace("castling:", "")):
        with pytest.raises(ValueError, match="not a chess position"):
            notation.fen_of_prompt(bad)


@pytest.mark.parametrize(
    ("move", "message"),
    [
        ("e2", "not a move in UCI"),
        ("e2e4k", "not a move in UCI"),
        ("e2e9", "not a move in UCI"),
        ("e4e5", "white has no piece on e4"),
        ("e7e5", "white has no piece on e7"),
        ("e1h1", "white has a piece on h1"),
    ],
)
def test_moves_that_cannot_be_played(move, message):
    with pytest.raises(ValueError, match=message):
        Position().push(move)


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
    read = __import__("chess.pgn").pgn.read_game(io.StringIO(text))
    assert not read.errors
    assert [move.uci() for move in read.mainline_moves()] == game.split()
    assert text.startswith("1. e4 1... ") and "2... " in text
    # A puzzle's transcript is read back to the same position.
    assert transcripts._fen_after(text) == follow(game.split()).fen()


# Games


def rows(*moves):
    return [(f"f, line {i}", {"moves_uci": game}) for i, game in enumerate(moves, 1)]


def test_positions_to_pretrain_on():
    tokenizer = load_tokenizer("chess_board")
    fn = get_task("chess_puzzles").pretraining["chess_games"]
    documents = fn(iter(rows(*GAMES)), tokenizer, max_docs=None)
    expected = []
    for game in GAMES:
        board = chess.Board()
        for uci in game.split():
            move = f"{uci[:2]} {uci[2:4]}" + (f" ={uci[4]}" if uci[4:] else "")
            expected.append(f"[BOS] {expected_prompt(board)} {move} [EOS]")
            board.push_uci(uci)
    assert [tokenizer.decode(np.array(d.tokens)) for d in documents] == expected
    assert len({d.id for d in documents}) == len(documents)
    for document in documents:
        words = len(document.tokens) - 68
        assert document.loss_weights == (0.0,) * 68 + (1.0,) * words
        assert words in (3, 4)


def test_positions_are_drawn_evenly_and_by_a_hash():
    tokenizer = load_tokenizer("chess_board")
    records = rows(*GAMES, *(f"{game} " for game in GAMES))  # equal games have distinct ids
    everything = games.position_documents(records, tokenizer)
    plies = 2 * sum(len(game.split()) for game in GAMES)
    assert len({d.id for d in everything}) == len(everything) == plies
    drawn = games.position_documents(records, tokenizer, max_docs=60)
    by_id = {d.id: d for d in everything}
    assert len(drawn) == 60 and all(by_id[d.id] == d for d in drawn)
    again = games.position_documents(records[::-1], tokenizer, max_docs=60)
    assert {d.id for d in again} == {d.id for d in drawn}
    more = games.position_documents(records, tokenizer, max_docs=100)
    assert {d.id for d in drawn} < {d.id for d in more}
    assert games.position_documents(records, tokenizer, max_docs=plies) == everything
    # A third of the positions: of 400 games alike, a third of each ply, standard deviation .024.
    many = games.position_documents(rows(*[ODD] * 400), tokenizer, max_docs=400 * 20 // 3)
    first = [d for d in many if d.tokens[:68] == everything[0].tokens[:68]]
    last = [d for d in many if tokenizer.decode(np.array(d.tokens[68:])) == "d8 b8 [EOS]"]
    assert abs(len(first) / 400 - 1 / 3) < 0.1 and abs(len(last) / 400 - 1 / 3) < 0.1


def test_transcripts_to_pretrain_on():
    fn = get_task("chess_pgn").pretraining["chess_games"]
    documents = fn(iter(rows(*GAMES)), None, max_docs=None)
    assert [d.text for d in documents] == [transcripts.transcript_of(g.split()) for g in GAMES]
    drawn = fn(iter(rows(*GAMES)), None, max_docs=2)
    assert len(drawn) == 2 and all(document in documents for document in drawn)


def test_bad_games():
    tokenizer = load_tokenizer("chess_board")
    board, pgn_fn = games.position_documents, games.transcript_documents
    for fn in (board, pgn_fn):
        with pytest.raises(InputError, match=r"^f, line 2: field 'moves_uci' is missing; .*: text"):
            fn([*rows(OPERA), ("f, line 2", {"text": "x"})], tokenizer)
        with pytest.raises(InputError, match="^f, line 1: field 'moves_uci': empty document"):
            fn(rows(" "), tokenizer)
        with pytest.raises(InputError, match=r"^f, line 1: field 'moves_uci': move 2, 'e2e4'[:,]"):
            fn(rows("e2e4 e2e4"), tokenizer)
    with pytest.raises(InputError, match="move 1, 'e2e5', is illegal"):
        pgn_fn(rows("e2e5"), tokenizer)


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
    assert games.position_documents(rows(OPERA), load_tokenizer("chess_board"))


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
