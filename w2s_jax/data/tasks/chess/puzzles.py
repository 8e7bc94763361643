"""Puzzles of Lichess as positions: which move solves the puzzle?"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from w2s_jax.core.errors import InputError, first_line, shown
from w2s_jax.data.documents import Document
from w2s_jax.data.task import Candidate
from w2s_jax.data.tasks.chess.notation import fen_of_prompt, move_in, prompt_of_fen, words_of_move
from w2s_jax.data.tasks.chess.rules import chess_rules, legal_move, mates
from w2s_jax.data.tasks.fields import text_of
from w2s_jax.data.values import is_missing

FIELDS = ("PuzzleId", "FEN", "Moves", "Rating")

#: Bands of ratings: name -> (lowest, below).
BANDS: dict[str, tuple[float, float]] = {
    "below_1200": (float("-inf"), 1200),
    "1200_to_1600": (1200, 1600),
    "1600_to_2000": (1600, 2000),
    "2000_to_2400": (2000, 2400),
    "from_2400": (2400, float("inf")),
}


def expand_puzzle(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Return the position after the opponent's move, the first in `Moves`, and the answer to it.

    Raises:
      InputError: the FEN is not a position, one of the two moves is illegal, or the rating is not
        a whole number; names the puzzle.
    """
    rules = chess_rules()
    where = f"{where}: puzzle {text_of(record, 'PuzzleId', where)!r}"
    fen, moves = (text_of(record, name, where) for name in ("FEN", "Moves"))
    try:
        board = rules.Board(fen)
    except ValueError as error:
        raise InputError(
            f"{where}: field 'FEN': {shown(fen)} is not a position ({first_line(error)})"
        ) from error
    problems = board.status()
    if problems:
        names = problems.name.lower().replace("_", " ").replace("|", ", ")
        raise InputError(f"{where}: field 'FEN': {shown(fen)} is not a legal position ({names})")
    answer = _answer(board, moves, where)
    return [
        Candidate(
            prompt_of_fen(board.fen()),
            None,
            meta={"PuzzleId": record["PuzzleId"], "Rating": _rating(record["Rating"], where)},
            target=words_of_move(answer),
        )
    ]


def _answer(board: Any, moves: str, where: str) -> str:
    """Play the first of `moves` on the `board`, and return the second one."""
    words = moves.split()
    if len(words) < 2:
        raise InputError(
            f"{where}: field 'Moves': {shown(moves)}; needs at least two moves, the opponent's and "
            "the answer to it"
        )
    for number, word in enumerate(words[:2], 1):
        move = legal_move(board, word)
        if move is None:
            raise InputError(
                f"{where}: field 'Moves': move {number}, {shown(word)}, is illegal in the position "
                f"{board.fen()}"
            )
        if number == 1:
            board.push(move)
    return str(move.uci())


def _rating(value: Any, where: str) -> int:
    """Return a rating, which is text in CSV files."""
    try:
        if isinstance(value, bool) or is_missing(value) or int(value) != float(value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"{where}: field 'Rating': {shown(value)}; must be a whole number"
        ) from None
    return int(value)


def _board(document: Document) -> Any:
    return chess_rules().Board(fen_of_prompt(document.text or ""))


def is_legal(answer: str, document: Document) -> bool:
    """Return whether the answer is a legal move; no answer is none."""
    return legal_move(_board(document), answer) is not None


def is_correct(answer: str, document: Document) -> bool:
    """Return whether the answer is the move of the solution."""
    return answer != "" and answer == move_in(document.target or "")


def is_correct_or_mates(answer: str, document: Document) -> bool:
    """Return whether the answer is that of the solution, or mates, which solves any puzzle."""
    if is_correct(answer, document):
        return True
    board = _board(document)
    move = legal_move(board, answer)
    return move is not None and mates(board, move)


def _in_band(lowest: float, below: float, answer: str, document: Document) -> bool | None:
    """Return `is_correct` if the puzzle's rating is in a band, else None."""
    inside = lowest <= document.meta["Rating"] < below
    return is_correct(answer, document) if inside else None


SCORES: dict[str, Callable[[str, Document], float | None]] = {
    "legal": is_legal,
    "correct_or_mates": is_correct_or_mates,
    **{f"accuracy_{name}": functools.partial(_in_band, *band) for name, band in BANDS.items()},
}
