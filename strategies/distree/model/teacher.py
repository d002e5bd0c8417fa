"""The teacher: a finished run's network. The entries of its last feature are the filters that the students divide."""

from pathlib import Path

from common.data.images import Normalizer, SampleSet
from common.errors import UserError
from common.storage.model_file import StoredModel, load_model
from strategies.distree.settings import as_typed


def load_teacher(path: Path, images: SampleSet, normalize: Normalizer) -> StoredModel:
    """Return a stored network as the teacher for these images, which `normalize` prepares for it and for its students.

    Raises `UserError` when the file is missing, holds only a part of a network, or was trained on other images, classes
    or normalisation constants.
    """
    teacher = load_model(path)
    network = teacher.network
    if teacher.cut or network.end != len(network.architecture.widths):
        raise UserError(f"{path} holds only a part of a network: give a teacher that is a whole network")
    if network.input_shape != images.shape or teacher.classes != images.classes:
        raise UserError(
            f"{path} was trained on images {network.input_shape} of {len(teacher.classes)} classes, "
            f"this run has {images.shape} of {len(images.classes)}: give the data.* of the teacher's run"
        )
    known = teacher.normalizer
    if (known.mean, known.std) != (normalize.mean, normalize.std):
        raise UserError(
            f"the teacher was trained with data.mean {as_typed(known.mean)} and data.std {as_typed(known.std)}, this "
            f"run has {as_typed(normalize.mean)} and {as_typed(normalize.std)}: give this run the same"
        )
    return teacher
