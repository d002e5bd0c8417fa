"""The teacher: a finished run's network, whose last feature's entries are the filters that students share."""

from pathlib import Path

from common.bundle import Bundle, load_bundle
from common.data.images import SampleSet
from common.errors import UserError


def load_teacher(path: Path, images: SampleSet) -> Bundle:
    """Return a stored network as a teacher of these images.

    Raises `UserError` when there is none, it is a part of a network, or it is for other images or classes.
    """
    teacher = load_bundle(path)
    network = teacher.network
    if teacher.cut or network.end != len(network.layout.widths):
        raise UserError(f"{path} is a part of a network: a teacher must be a whole one")
    if network.input_shape != images.shape or teacher.classes != images.classes:
        raise UserError(
            f"{path} was trained on images {network.input_shape} of {len(teacher.classes)} classes, "
            f"this run has {images.shape} of {len(images.classes)}: give the data.* of the teacher's run"
        )
    return teacher
