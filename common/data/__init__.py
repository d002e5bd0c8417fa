"""Data sets, federated partitions and one client's view."""

from common.data.batches import batches
from common.data.dataset import TrainTest, load
from common.data.device import device_data
from common.data.images import Normalizer, SampleSet, normalizer
from common.data.partition import partition, with_samples
from common.data.split import ClientSplit, client_split
from common.sections.data import DataConfig

__all__ = [
    "ClientSplit",
    "DataConfig",
    "Normalizer",
    "SampleSet",
    "TrainTest",
    "batches",
    "client_split",
    "device_data",
    "load",
    "normalizer",
    "partition",
    "with_samples",
]
