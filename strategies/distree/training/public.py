"""Images that everybody may see: devices which cannot hold the teacher learn from what it answers to these."""

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

    Where all class names are the run's, labels are the run's numbers; else nobody knows them (`UNKNOWN`).
    Raises `UserError` when the set is not there, or has fewer or other channels.
    """
    name, _, root = settings.public.partition(":")
    channels, height, width = images.shape
    config = DataConfig(name=name, root=root, image_size=height if height == width else 0)
    if problems := config.problems():
        raise UserError(f"distree.public {settings.public!r}: {'; '.join(problems)}")
    found = load(config, paths.cache_root()).train
    if found.shape != (channels, height, width):
        raise UserError(f"distree.public has images {found.shape}, this run {images.shape}: name another set")
    chosen = torch.randperm(len(found), generator=generator(seed, "public"))[: settings.public_samples].sort().values
    picked = found.subset(chosen)
    if set(found.classes) <= set(images.classes):
        number = torch.tensor([images.classes.index(name) for name in found.classes])
        return replace(picked, labels=number[picked.labels], classes=images.classes)
    return replace(picked, labels=torch.full_like(picked.labels, UNKNOWN))
