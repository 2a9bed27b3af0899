"""Which backbones have no pretrained weights."""

from tfxfer.backbones.hashed import BAG, TRANSFORMER
from tfxfer.backbones.hub import parsed
from tfxfer.backbones.random_weights import draws_all
from tfxfer.backbones.tiny import TINY


def from_scratch(spec: str) -> bool:
    """Tells whether a backbone has no pretrained weights.

    These are `tiny`, `bag` and `transformer`, and networks with `weights=none` or `random=all`.

    Args:
        spec: What `load_backbone` takes.
    """
    found = parsed(spec)
    return (
        found.name in (TINY, BAG, TRANSFORMER)
        or draws_all(found)
        or ("weights" in found.options and found.options["weights"] is None)
    )
