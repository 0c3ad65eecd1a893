"""A bundle on disk: what it is, what it says of itself, and whose engines in it may be loaded."""

from reelquant.runtime.bundle.bundle import (
    ENGINES,
    SCHEDULES,
    TOKENIZER,
    Bundle,
    hash_file,
    list_files,
    write_manifest,
)

__all__ = ["ENGINES", "SCHEDULES", "TOKENIZER", "Bundle", "hash_file", "list_files", "write_manifest"]
