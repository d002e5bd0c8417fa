"""DistrEE's training on a server that has data (arXiv 2502.15735): the teacher, then all students jointly.

1. Train the teacher, or take one from a finished run.
2. Partition its last filters (`model/partition.py`) and build one student per part.
3. For each batch: Z_j = FC_j(concat_k F_{k,j}) for every exit j; one backward pass of
   1/J sum_j w_j (KD + beta AT) through all students; one step. The students' own heads learn beside it, on detached
   features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.images import Normalizer, SampleSet
from common.networks import EarlyExitNetwork
from strategies.distree.model.students import Students, blocks_of, teacher_targets
from strategies.distree.settings import DistrEESettings
from strategies.distree.training.central import Schedule, image_batches, train
from strategies.distree.training.checkpoint import Checkpoint
from strategies.distree.training.objective import JointLoss, own_head_loss

OnEpoch = Callable[[int, float, float], None]


def train_teacher(
    teacher: EarlyExitNetwork,
    images: SampleSet,
    normalize: Normalizer,
    schedule: Schedule,
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train all exits of a network with cross-entropy, in place."""

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([F.cross_entropy(logits.float(), labels) for logits in teacher(x)]).mean()

    train(teacher, loss, images, normalize, schedule, seed, device, on_epoch, checkpoint)


def train_students(
    students: Students,
    teacher: EarlyExitNetwork,
    images: SampleSet,
    normalize: Normalizer,
    settings: DistrEESettings,
    schedule: Schedule,
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train all students, their classifier and their own heads as one network, in place."""
    joint_loss = JointLoss.of(settings, students.num_exits, device)
    teacher.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        filters, answers = teacher_targets(teacher, x)
        features = students.features(x)
        logits = [students.classifier({k: f[j] for k, f in features.items()}, j) for j in range(students.num_exits)]
        published = joint_loss(logits, features, answers, blocks_of(filters, students.spec.partition), labels)
        return published + own_head_loss(students.own, features, answers, labels)

    train(students, loss, images, normalize, schedule, seed, device, on_epoch, checkpoint)


@torch.no_grad()
def teacher_activations(
    teacher: EarlyExitNetwork, images: SampleSet, normalize: Normalizer, device: torch.device
) -> Tensor:
    """Return the teacher's last feature (N, D) of validation images, on the CPU: the partition's input."""
    teacher.to(device).eval()
    return torch.cat([teacher_targets(teacher, x)[0].cpu() for x, _ in image_batches(images, normalize, device)])


@torch.no_grad()
def collect_features(
    students: Students, images: SampleSet, normalize: Normalizer, device: torch.device
) -> dict[int, Tensor]:
    """Return each student's features (J, N, |P_k|) of all exits, on the CPU."""
    students.to(device).eval()
    found: dict[int, list[Tensor]] = {k: [] for k, _ in students.numbered()}
    for x, _ in image_batches(images, normalize, device):
        for k, features in students.features(x).items():
            found[k].append(torch.stack(features).cpu())
    return {k: torch.cat(parts, dim=1) for k, parts in found.items()}
