"""Where pretrained networks come from: a backbone is loaded by its handle."""

from tfxfer.backbones.base import HEAD, Backbone, ImageContract, Stage
from tfxfer.backbones.hub import HubBackbone

__all__ = ["HEAD", "Backbone", "HubBackbone", "ImageContract", "Stage", "load_backbone"]


def load_backbone(handle: str) -> Backbone:
    """Loads a pretrained backbone, frozen.

    Args:
        handle: `glyphs`, which is embedded; a folder in TF Hub's format; or a handle that TF Hub
            resolves, such as `https://tfhub.dev/...` or the URL of a `.tar.gz`.

    Returns:
        The backbone, a Keras layer from images to features.

    Raises:
        UserError: If there is no such backbone, or it cannot be used.
    """
    return HubBackbone(handle)
