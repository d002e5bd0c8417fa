"""DistrEE's client half, federated: each device trains its own student on its own images (after arXiv 2502.15735).

Once:

1. Run the teacher on every own image and keep its used filters t_1 ... t_K and its logits z_T; drop the teacher.

In every round, for each mini-batch and at every exit j, device k:

2. F_{k,j} = its own student's features
3. Z_j = b^(j) + W_k^(j) F_{k,j} + sum_{i != k} W_i^(j) t_i     (the teacher stands in for the other students)
4. one step of its student, of its columns W_k and of the bias b on
   1/J sum_j w_j (KD(Z_j, z_T, y) + beta / K * AT(F_{k,j}, t_k)),
   and of its own heads on their cross-entropy, without a gradient for the student

The paper trains all students jointly on one machine; the teacher as stand-in for the others is this project's choice
for devices that do not see each other. A device that cannot hold the teacher receives its answers to public images and
learns from these; its weight in the average is still the number of its own images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from common.data import Normalizer, normalizer
from common.data.clients import ClientData
from common.errors import UserError
from common.networks import EarlyExitNetwork, build
from common.objectives import Loss
from common.objectives.base import StatelessObjective
from common.storage.client_store import ClientState
from common.storage.model_file import ModelInfo
from strategies.distree.exits.policies import policy_from_json
from strategies.distree.model.stored import save_student, student_file
from strategies.distree.model.students import Students, StudentsSpec, blocks_of, teacher_targets
from strategies.distree.settings import DistrEESettings
from strategies.distree.training.objective import JointLoss, own_head_loss
from strategies.method import Job, Outcome
from strategies.node.local_training import LocalTraining

TEACHER = "teacher"  # name of the teacher's state in a message
# round values after the last round: student -> name -> policy, and `StoredStudents.run`
POLICIES, TRAINING = "policies", "training"
FEATURES, LOGITS, IMAGES, LABELS = "features", "logits", "images", "labels"  # arrays of a lesson, as sent and as kept
UNKNOWN = -1  # label of all public images if some of their classes are not the run's


@dataclass(frozen=True)
class Lesson:
    """Images and the teacher's answers to them."""

    x: Tensor  # (N, C, H, W), normalised
    labels: Tensor | None  # (N,); None: unknown
    features: Tensor  # the used filters (N, sum_k |P_k|), student by student
    logits: Tensor  # (N, classes)

    def numbers_as_labels(self) -> ClientData:
        """Return the images with their numbers as labels, by which a batch finds the teacher's answers."""
        nothing = self.x[:0], torch.arange(0)
        return ClientData(self.x, torch.arange(len(self.x), device=self.x.device), *nothing, *nothing)


@dataclass(frozen=True)
class Imitation(StatelessObjective):
    """The loss of one student, with the teacher's filters as stand-in for all other students."""

    lesson: Lesson
    joint_loss: JointLoss

    def loss(self, network: EarlyExitNetwork, x: Tensor, y: Tensor) -> Loss:
        """Return the loss of images (B, C, H, W) whose numbers in the lesson are `y` (B,)."""
        part, lesson = cast(Students, network), self.lesson
        sizes = [len(filters) for filters in part.spec.partition]
        blocks = dict(zip(part.spec.numbers, lesson.features[y].split(sizes, dim=1), strict=True))
        features = part.features(x)
        logits = [
            part.classifier(blocks | {number: own[j] for number, own in features.items()}, j)
            for j in range(part.num_exits)
        ]
        labels = None if lesson.labels is None else lesson.labels[y]
        total = self.joint_loss(logits, features, lesson.logits[y], blocks, labels)
        total = total + own_head_loss(part.own, features, lesson.logits[y], labels)
        return Loss(total, total.detach().reshape(1, 1))


class DistrEELocal(LocalTraining):
    """Trains a device's student; the client keeps the teacher's answers from its first round on."""

    def train(self, job: Job) -> Outcome:
        """Train one client for one round; the first round also stores the teacher's answers."""
        settings = job.config.of(DistrEESettings)
        answers = dict(job.kept.tensors) or _answers(job)
        lesson, part = _lesson(job, answers), cast(Students, job.network)
        objective = Imitation(lesson, JointLoss.of(settings, part.num_exits, job.device))
        loss = self.fit(
            replace(job, data=lesson.numbers_as_labels), objective, job.model.trained, job.config.train.epochs
        )
        metrics = {} if loss is None else {"loss": loss}
        kept = None if job.kept.tensors else ClientState(answers)
        return Outcome(job.model.read(job.upload_layout), metrics, kept=kept)

    def store(self, job: Job, folder: Path, info: ModelInfo) -> None:
        """Write the device's student with its exit policies, for `python -m client serve-student`."""
        students, constants = cast(Students, job.network), Normalizer(info.mean, info.std)
        policies = {name: policy_from_json(text) for name, text in job.round_values[POLICIES][str(job.part)].items()}
        save_student(
            student_file(folder, job.part), students, job.part, constants, policies, info.classes,
            str(job.round_values[TRAINING]),
        )  # fmt: skip


@torch.no_grad()
def teach(teacher: EarlyExitNetwork, x: Tensor, spec: StudentsSpec, batch_size: int) -> dict[str, Tensor]:
    """Return the teacher's used filters and logits of images (N, C, H, W), on the CPU."""
    answers = [teacher_targets(teacher, part) for part in x.split(batch_size)]
    features, logits = (torch.cat(parts) for parts in zip(*answers, strict=True))
    used = torch.cat(list(blocks_of(features, spec.partition).values()), dim=1)
    return {FEATURES: used.cpu(), LOGITS: logits.cpu()}


def _answers(job: Job) -> dict[str, Tensor]:
    """Return the teacher's answers: computed here for the client's images, or as received for public images."""
    if job.client_arrays:
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in job.client_arrays.items()}
    if TEACHER not in job.states:
        raise UserError(
            "the message holds no teacher, and this client has not kept the teacher's answers: "
            "leave clients.store unchanged during a run"
        )
    spec = cast(Students, job.network).spec
    teacher = build(spec.teacher, seed=0)
    teacher.load_state_dict(job.states[TEACHER].state_dict())
    return teach(teacher.to(job.device).eval(), job.x, spec, job.config.train.batch_size)


def _lesson(job: Job, answers: Mapping[str, Tensor]) -> Lesson:
    features, logits = answers[FEATURES].to(job.device), answers[LOGITS].to(job.device)
    if IMAGES in answers:
        images, labels = answers[IMAGES].to(job.device), answers[LABELS].to(job.device)
        x = normalizer(job.config.data, images.shape[1]).to(job.device)(images)
        return Lesson(x, None if (labels == UNKNOWN).any() else labels, features, logits)
    if len(job.y) != len(features):
        raise UserError(
            f"client {job.client} has {len(job.y)} images but the teacher's answers to {len(features)}; "
            "keep a client's images unchanged during a run"
        )
    return Lesson(job.x, job.y, features, logits)
