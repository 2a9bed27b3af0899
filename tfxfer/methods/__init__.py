"""One file a `--mode`; each has `run(config, console) -> Result | None`."""
