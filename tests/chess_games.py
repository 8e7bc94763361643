"""Games of chess, and their positions in words from what python-chess knows of them."""

import itertools

import chess

from w2s_jax.data.tasks.chess.position import Position

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


def follow(moves):
    """Play moves on both boards, which must agree after each."""
    board, position = chess.Board(), Position()
    assert position.prompt() == expected_prompt(board)
    for uci in moves:
        board.push(board.parse_uci(uci))
        position.push(uci)
        assert position.prompt() == expected_prompt(board), uci
    return board
