"""CAFEDistill's client half: a personal network whose last exit starts the round as its teachers' mean.

1. Put the server's backbone, this client's own heads and the aggregated last head together.
2. Train everything; the last exit teaches the students that the server has unlocked.
3. Upload the backbone, the last head and whether the features live; keep the heads and BatchNorm's statistics.
"""

import torch
from torch import Tensor

from common.networks.base import EarlyExitNetwork, ExitOutputs
from common.objectives.base import Loss, Objective
from common.weights.flat import FlatState
from strategies.cafedistill.features import FeatureWatch
from strategies.cafedistill.heads import head_layout, head_state, head_vector, with_parameters
from strategies.cafedistill.objective import Distillation, Teacher, last_exit
from strategies.cafedistill.settings import CAFEDistillSettings
from strategies.method import Job, Outcome
from strategies.personalised.base import PersonalTraining

HEAD, TEACHER = "head", "teacher."  # names of arrays: the last head (P,), and those of teachers of other depths
STUDENTS, SHARES = "students", "shares"  # plain values of a task: k, and depth -> weight of its teachers


class CAFEDistillTraining(PersonalTraining):
    """Trains a client's network with students and teachers."""

    def __init__(self) -> None:
        self.watch = FeatureWatch()

    def load(self, job: Job, state: FlatState) -> None:
        """Put backbone, own heads and aggregated last head together.

        Without a head from the server the last one is the seed's: the server compares with that, and what the client
        kept may have been a student at another depth, or a head that the server refused.
        """
        super().load(job, state)
        layout = head_layout(*_last(job))
        last = head_state(job.client_arrays[HEAD], layout) if HEAD in job.client_arrays else job.initial()
        job.model.load_dict({**job.network.state_dict(), **{key: last[key] for key in layout.keys}})

    def objective(self, job: Job, exits: int) -> Objective:
        """Return this round's objective; the run's `objective` section does not apply."""
        settings, students = job.config.of(CAFEDistillSettings), int(job.client_values[STUDENTS])
        self.watch = FeatureWatch()
        return Distillation(settings, students, mixed_teacher(job), self.watch.see)

    def observe(self, job: Job, batch: Tensor, loss: Loss, last_epoch: bool) -> None:
        """Count the features of the last epoch."""
        if last_epoch:
            self.watch.keep()

    def regularise(self, job: Job) -> None:
        """Add nothing; look at the gradient."""
        assert job.model.trained.grad is not None
        self.watch.step(job.model.trained.grad)

    def finish(self, job: Job, outcome: Outcome) -> Outcome:
        """Upload the last head, keep the others."""
        network, position = _last(job)
        head = head_vector(network.state_dict(), head_layout(network, position))
        outcome.client_arrays[HEAD] = head.cpu().numpy()
        outcome.metrics |= self.watch.metrics()
        return super().finish(job, outcome)


def mixed_teacher(job: Job) -> Teacher:
    """Return the teacher: the own last exit, or its logits mixed with those of shallower clients' last heads.

    A shallower client's last head stands on a unit that this client has too, so its logits can be computed here
    without anything but the head having travelled (our extension for clients of unequal depth).
    """
    shares = {int(depth): float(share) for depth, share in job.client_values.get(SHARES, {}).items()}
    if not shares:
        return last_exit
    network = job.network
    teachers = []
    for depth, share in sorted(shares.items()):
        position = network.tier_positions[depth - 1]
        head = with_parameters(
            network.head(position), job.client_arrays[f"{TEACHER}{depth}"], head_layout(network, position)
        )
        teachers.append((network.exit_positions.index(position), head.to(job.device), share))
    own = 1.0 - sum(shares.values())

    def teacher(outputs: ExitOutputs) -> Tensor:
        with torch.no_grad():
            others = [share * head(outputs.features[exit_]) for exit_, head, share in teachers]
        return own * outputs.logits[-1] + torch.stack(others).sum(0)

    return teacher


def _last(job: Job) -> tuple[EarlyExitNetwork, int]:
    network = job.network
    return network, network.exit_positions[-1]
