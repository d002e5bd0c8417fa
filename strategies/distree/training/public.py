"""Public images: devices that cannot hold the teacher learn from its answers to these."""

from dataclasses import replace

import torch

from common import paths
from common.data import DataConfig, SampleSet, load
from common.errors import UserError
from common.seeding import generator
from strategies.distree.settings import DistrEESettings
from strategies.distree.training.client import UNKNOWN


def public_images(settings: DistrEESettings, images: SampleSet, seed: int) -> SampleSet:
    """Return `distree.public-samples` of the images that `distree.public` names, in the shape of the run's `images`.

    If all class names occur in the run, labels are the run's class numbers; else all are `UNKNOWN`.
    Raises `UserError` when the data set is missing, or its images have another shape.
    """
    name, _, root = settings.public.partition(":")
    channels, height, width = images.shape
    config = DataConfig(name=name, root=root, image_size=height if height == width else 0)
    try:
        found = load(config, paths.cache_root()).train
    except UserError as error:
        raise UserError(f"distree.public {settings.public!r}: {error}") from error
    if found.shape != (channels, height, width):
        raise UserError(f"distree.public has images {found.shape}, this run {images.shape}: name another data set")
    chosen = torch.randperm(len(found), generator=generator(seed, "public"))[: settings.public_samples].sort().values
    picked = found.subset(chosen)
    if set(found.classes) <= set(images.classes):
        number = torch.tensor([images.classes.index(name) for name in found.classes])
        return replace(picked, labels=number[picked.labels], classes=images.classes)
    return replace(picked, labels=torch.full_like(picked.labels, UNKNOWN))
