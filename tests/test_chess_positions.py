"""Positions in words, and the documents that games make, against python-chess."""

import json
import random

import chess
import numpy as np
import pytest
from chess_games import GAMES, ODD, OPERA, expected_prompt, follow

from w2s_jax.config import PretrainSettings, TaskSettings
from w2s_jax.core.errors import InputError
from w2s_jax.data.tasks import get_task
from w2s_jax.data.tasks.chess import games, notation, transcripts
from w2s_jax.data.tasks.chess.position import Position
from w2s_jax.data.tokenizers import load_tokenizer, register_tokenizer
from w2s_jax.planning.pretraining_text import read_chunks
from w2s_jax.planning.tokenized_splits import Reader

FROZEN_DIGEST = "a2e757c2133b8842"


def position_of(fen):
    placement, side, castling, *_ = fen.split()
    position = Position()
    position.squares = list("".join(c if not c.isdigit() else "." * int(c) for c in placement))
    position.squares = [c for c in position.squares if c != "/"]
    position.white, position.castling = side == "w", castling
    return position


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


@pytest.mark.parametrize("name", ["chess_puzzles", "chess_pgn"])
def test_games_as_the_text_of_a_run(tmp_path, name):
    (tmp_path / "chess_games").mkdir()
    lines = [json.dumps({"moves_uci": game}) + "\n" for game in GAMES]
    (tmp_path / "chess_games" / "train.jsonl").write_text("".join(lines))
    task = get_task(name)
    tokenizer = load_tokenizer(task.tokenizer or "bytes")
    reader = Reader(task, tokenizer, None, "truncate", task.truncate, "error")
    settings = PretrainSettings(source="chess_games", chunk_length=2000, max_docs=2)
    notes = []
    found = read_chunks(settings, {}, reader, TaskSettings(data_dir=str(tmp_path)), notes)
    assert len(found) == 2 and "2 documents" in notes[0]
    expected = task.pretraining["chess_games"](rows(*GAMES), tokenizer, max_docs=2)
    for i, document in enumerate(expected):
        text = tokenizer.decode(found.document(i))
        if name == "chess_pgn":
            assert text == f"[BOS]{document.text}[EOS]"
        else:
            assert text == tokenizer.decode(np.array(document.tokens))
            weights = found.loss_weights_T[found.offsets[i] : found.offsets[i + 1]]
            np.testing.assert_array_equal(weights, document.loss_weights)
