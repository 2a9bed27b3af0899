"""A folder of arrays that were computed once: written whole or not at all, read memory-mapped."""

from tfxfer.cache.draft import FORMAT, Draft, Parts, Shapes
from tfxfer.cache.store import Cache, Entry, default_folder, entry_key

__all__ = ["FORMAT", "Cache", "Draft", "Entry", "Parts", "Shapes", "default_folder", "entry_key"]
