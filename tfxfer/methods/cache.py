"""`--mode=cache`: what was computed once and is kept, and how to be rid of it. It reads no data."""

from tfxfer.cache import Cache, default_folder
from tfxfer.config import RunConfig
from tfxfer.report.console import Console

_GIGABYTE = 10**9


def run(config: RunConfig, path: None, console: Console) -> None:
    """Lists the entries of the cache or, with `clear`, removes them.

    Args:
        config: The settings.
        path: Not used: nothing is written.
        console: Where to print.

    Raises:
        UserError: If the cache folder cannot be read or written.
    """
    cache = configured_cache(config)
    if config.clear:
        console.cleared(cache.folder, *cache.clear())
    else:
        console.cache(cache.folder, cache.entries(), cache.limit_bytes)


def configured_cache(config: RunConfig) -> Cache:
    """Returns the cache that a config names; its folder may not be there yet."""
    return Cache(config.cache_dir or default_folder(), round(config.cache_gb * _GIGABYTE))
