"""The rules of chess, from the package `chess` (python-chess), which is an optional extra.

The package is under the GPL: it is imported by functions of the chess tasks only, when they are
called, and nothing else depends on it.
"""

from types import ModuleType
from typing import Any

from w2s_jax.core.errors import InputError


def chess_rules() -> ModuleType:
    """Return the package `chess`.

    Raises:
      InputError: it is not installed.
    """
    try:
        import chess
    except ImportError as error:
        raise InputError(
            "task.name: tasks of chess need the package chess, which is not installed; install it "
            "with pip install 'w2s_jax[chess]'"
        ) from error
    return chess


def legal_move(board: Any, uci: str) -> Any:
    """Return the `chess.Move` of a move in UCI; None if it is none, or illegal on the `board`."""
    try:
        # The null move, which python-chess takes for legal, is false.
        return board.parse_uci(uci) or None
    except ValueError:
        return None


def mates(board: Any, move: Any) -> bool:
    """Return whether a legal move ends the game by checkmate; the `board` is left as it was."""
    board.push(move)
    try:
        return bool(board.is_checkmate())
    finally:
        board.pop()
