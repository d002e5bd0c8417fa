"""Data sets, federated partitions and one client's view."""

from typing import TYPE_CHECKING

from common.data.split import ClientSplit, client_split
from common.lazy import lazily
from common.sections.data import DataConfig

if TYPE_CHECKING:
    from common.data.dataset import TrainTest, load
    from common.data.device import device_data
    from common.data.images import Normalizer, SampleSet, normalizer
    from common.data.partition import with_samples

__all__ = [
    "ClientSplit",
    "DataConfig",
    "Normalizer",
    "SampleSet",
    "TrainTest",
    "client_split",
    "device_data",
    "load",
    "normalizer",
    "with_samples",
]

# these modules import torch, which a device that infers with ONNX does not have
__getattr__ = lazily(__name__, ("images", "dataset", "device", "partition"), __all__)
