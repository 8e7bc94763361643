"""Everything on disk: phase folders, trees of arrays, checksums."""
