"""Stages by name and by pattern."""

import pytest

from tests.conftest import small_network
from tfxfer.backbones import load_backbone
from tfxfer.backbones.stages import by_block, by_pattern
from tfxfer.errors import UserError


def grouped(names, learned=None, kernels=None):
    full = [True] * len(names)
    groups = by_block(names, learned or full, kernels or full)
    assert [i for group in groups for i in group.members] == list(range(len(names)))
    return [group.name for group in groups]


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (["conv1_conv", "conv2_block1_1_conv", "conv2_block2_out"], ["conv1", "conv2"]),
        (["block1a_dw", "block1b_dw", "block2a_dw"], ["block1", "block2"]),
        (["net/stem", "net/layer_1/a", "net/layer_2/a"], ["stem", "layer_1", "layer_2"]),
        (["conv2d", "conv2d_1", "dense"], ["conv2d", "conv2d_1", "dense"]),
        (["a", "b", "a"], ["a", "b", "a_2"]),
        (["head", "body"], ["head_0", "body"]),
    ],
)
def test_names_tell_blocks(names, stages):
    assert grouped(names) == stages


def test_what_tells_no_block_goes_with_the_block_before():
    names = [f"block_{i}_{part}" for i in range(5) for part in "ab"]
    names[4:4] = ["pool_bn", "pool_conv"]
    assert len(grouped(names)) == 7
    names += ["x", "y", "z"]
    assert grouped(names) == [f"block_{i}" for i in range(5)]


def test_without_blocks_a_kernel_begins_a_stage():
    names = [f"{kind}_{i}" for i in range(6) for kind in ("conv2d", "batch_normalization")]
    assert grouped(names, kernels=[True, False] * 6) == [f"conv2d_{i}" for i in range(6)]


def test_what_learns_nothing_is_no_stage():
    assert grouped(["scale", "a", "count", "b"], [False, True, False, True]) == ["a", "b"]
    assert by_block(["a"], [False], [True]) == ()


NAMES = ["stem/w", "block1/w", "block2/w", "block2/count", "block10/w"]
LEARNED = [True, True, True, False, True]


def test_patterns_choose_the_stages():
    groups = by_pattern(NAMES, LEARNED, "stem|block1/; block2 ;block10")
    assert [(group.name, group.members) for group in groups] == [
        ("stem|block1/", (0, 1)),
        ("block2", (2, 3)),
        ("block10", (4,)),
    ]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("stem;block1;block2;block10", "finds 'block10/w' by 'block1' and 'block10'"),
        ("block", "finds 'stem/w' by none"),
        ("stem;block;(", "is none"),
        ("stem;block1;block2/w;block2/count", "'block2/count' finds none"),
        ("", "different regular expressions"),
        ("a;a", "different regular expressions"),
        ("head;.", "none of them 'head'"),
    ],
)
def test_patterns_that_do_not_fit_are_named(patterns, message):
    with pytest.raises(UserError, match=message):
        by_pattern(NAMES, LEARNED, patterns)


@pytest.mark.parametrize("kind", ["Keras", "SavedModel"])
def test_patterns_reach_the_backbone(kind, hub_folder):
    source = str(hub_folder) if kind == "SavedModel" else small_network()
    backbone = load_backbone(source, stages="block1/conv;block1/bn|block2")
    assert [stage.name for stage in backbone.stages] == ["block1/conv", "block1/bn|block2"]
    assert [len(stage.weights) for stage in backbone.stages] == [2, 10]
    backbone.unfreeze("block1/conv")
    assert len(backbone.trainable_weights) == 2


def test_layers_are_not_torn_apart():
    with pytest.raises(UserError, match="weights of a layer together, and 'block1/conv'"):
        load_backbone(small_network(), stages="kernel;bias|bn")
