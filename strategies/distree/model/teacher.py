"""The teacher: a finished run's network, whose last feature's entries are the filters that students share."""

from pathlib import Path

from common.data.images import Normalizer, SampleSet
from common.errors import UserError
from common.storage.model_file import StoredModel, load_model


def load_teacher(path: Path, images: SampleSet, normalize: Normalizer) -> StoredModel:
    """Return a stored network as a teacher of these images, which `normalize` prepares for it and for its students.

    Raises `UserError` when there is none, it is a part of a network, or it is for other images, classes or constants.
    """
    teacher = load_model(path)
    network = teacher.network
    if teacher.cut or network.end != len(network.architecture.widths):
        raise UserError(f"{path} is a part of a network: a teacher must be a whole one")
    if network.input_shape != images.shape or teacher.classes != images.classes:
        raise UserError(
            f"{path} was trained on images {network.input_shape} of {len(teacher.classes)} classes, "
            f"this run has {images.shape} of {len(images.classes)}: give the data.* of the teacher's run"
        )
    known = teacher.normalizer
    if (known.mean, known.std) != (normalize.mean, normalize.std):
        raise UserError(
            f"the teacher was trained with data.mean {_told(known.mean)} and data.std {_told(known.std)}, this run has "
            f"{_told(normalize.mean)} and {_told(normalize.std)}: give this run the same"
        )
    return teacher


def _told(constants: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in constants)
