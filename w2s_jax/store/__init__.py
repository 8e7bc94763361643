"""Phase folders, stored trees of arrays, checksums."""
