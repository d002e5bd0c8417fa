"""Every backbone at a size that runs in milliseconds."""

import pytest

from common.networks import NetworkSpec

TINY = {
    "convnet": NetworkSpec("convnet", 3, (3, 22, 22), width=4),
    "deit_tiny": NetworkSpec("deit_tiny", 3, (3, 32, 32), width=64),
    "lenet": NetworkSpec("lenet", 3, (1, 8, 8)),
    "resnet18": NetworkSpec("resnet18", 3, (3, 8, 8), width=8),
    "resnet_slim": NetworkSpec("resnet_slim", 3, (1, 8, 8)),
    "transformer4": NetworkSpec("transformer4", 3, (6,), width=8, vocabulary=20),
    "transformer_lora": NetworkSpec("transformer4", 3, (6,), width=8, vocabulary=20, lora_rank=2),
    "vit_small32": NetworkSpec("vit_small32", 3, (3, 8, 8)),
    "vit_lora": NetworkSpec("vit_small32", 3, (3, 8, 8), lora_rank=2),
    "wrn16": NetworkSpec("wrn16", 3, (3, 8, 8)),
}


@pytest.fixture(params=TINY.values(), ids=TINY.keys())
def tiny(request: pytest.FixtureRequest) -> NetworkSpec:
    """Return each backbone in turn."""
    spec: NetworkSpec = request.param
    return spec
