"""DistrEE, federated: every device trains one student of a teacher, on its own images.

Before the first round:

1. Run the teacher on the server's validation images and partition its last filters (`model/partition.py`).
2. Build one student per part; each device takes one that it can train (`model/parts.py`).

A round:

3. Send each client its student and the classifier's columns of all students; the first time, the teacher too.
4. Clients train (`training/client.py`).
5. Average each student and its columns over the clients that train it, and the bias over all clients.

After the last round:

6. Fit the students' exit policies on the validation images; give each client its student.

Source: DistrEE (Peng et al., arXiv 2502.15735), where one machine trains all students jointly.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.supercore import log

from common import paths
from common.capacity import TRAINING_MACS, Capacity
from common.config import RunConfig
from common.data import load
from common.data.clients import Population
from common.data.images import SampleSet
from common.devices import pick_device, threads
from common.errors import UserError
from common.messages import protocol
from common.messages.protocol import ClientArrays, ClientReport, PackedState
from common.networks import NetworkSpec, cost_table
from common.weights.flat import FlatState, StateDict
from common.weights.layers import average_layers
from strategies.distree.exits.calibration import operate
from strategies.distree.exits.policies import CALIBRATED
from strategies.distree.model.partition import partition
from strategies.distree.model.parts import LEAN, LEARN_FROM_PUBLIC, StudentCosts, teacher_too_large, untrainable
from strategies.distree.model.stored import StoredStudents, save_students
from strategies.distree.model.students import Students, StudentsSpec, students_spec
from strategies.distree.model.teacher import load_teacher
from strategies.distree.model.widths import Match, describe_matches, match_devices
from strategies.distree.settings import DistrEESettings, read_device
from strategies.distree.training.client import IMAGES, LABELS, POLICIES, TEACHER, TRAINING, teach
from strategies.distree.training.finish import check_images, finish_students, measure
from strategies.distree.training.joint import teacher_activations
from strategies.distree.training.objective import exit_weights
from strategies.distree.training.public import public_images
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Effort, Method, RoundUpdate, Setup


class DistrEE(EarlyExitStrategy):
    """Average each student over the devices that train it."""

    def __init__(self, method: Method, setup: Setup) -> None:
        """Load the teacher and plan its students, of backbone `setup.spec`; raises `UserError` if either fails."""
        config = setup.config
        self.settings = config.of(DistrEESettings)
        images = self._check(config)
        self.teacher = load_teacher(Path(self.settings.teacher), images, setup.normalizer)
        self.validation = Population(config.data, config.clients.count, config.run.seed).server_validation()
        check_images(self.settings, len(self.validation))
        with threads(config.server.threads):
            students = self._plan(config, setup)
        super().__init__(method, replace(setup, spec=students))
        exit_weights(self.settings.exit_weights, self.students.num_exits)
        self.public: SampleSet | None = None
        if self.settings.without_teacher == "public":
            self.public = public_images(self.settings, images, config.run.seed)
        self.finished: StoredStudents | None = None
        self._untaught: frozenset[int] = frozenset()  # clients of this round that have no answers of the teacher yet

    @property
    def students(self) -> Students:
        """All students, with the weights last loaded into them."""
        return cast(Students, self.network)

    def prepare(self, round_: int, clients: Sequence[ClientReport]) -> None:
        """Note the clients that need the teacher, and warn of a student that no device trains."""
        self._untaught = frozenset(c.client for c in clients if c.client not in self.committed)
        held = {self.part(client) for client in self.roster.available()}
        for number in sorted(set(self.tiers) - held) if round_ == 1 else ():
            advice = f"declare student={number} on a device, or lower distree.students"
            log(WARNING, "no device trains student %d: %s", number, advice)

    def whole_macs(self) -> list[float]:
        """Return the MACs of a sample that leaves all students at the same exit."""
        return [sum(macs) for macs in zip(*(self.parts.exit_macs(k) for k in self.tiers), strict=True)]

    def round_values(self, round_: int) -> Mapping[str, Any]:
        """Return, once the students are finished, their exit policies and the name of their training."""
        if self.finished is None:
            return {}
        policies = {
            k: {name: chosen[k].to_json() for name, chosen in self.finished.policies.items()} for k in self.tiers
        }
        return {POLICIES: policies, TRAINING: self.finished.run}

    def shared_states(self, clients: Sequence[ClientReport]) -> Mapping[str, PackedState]:
        """Return the teacher if one of these clients needs it: a client without its answers that can hold it."""
        needed = any(c.client in self._untaught and not c.values.get(LEAN) for c in clients)
        return {TEACHER: self._packed_teacher} if needed else {}

    def client_arrays(self, clients: Sequence[ClientReport]) -> ClientArrays:
        """Return public images with the teacher's answers, once, for clients that cannot hold the teacher."""
        return {c.client: self._public_lesson for c in clients if c.client in self._untaught and c.values.get(LEAN)}

    def effort(self, client: ClientReport) -> Effort:
        """Count the public images of a device without the teacher; for others, once, the teacher's own answers."""
        macs, lean = self.parts.macs(self.part(client)), bool(client.values.get(LEAN))
        samples = len(self.public) if lean and self.public is not None else client.num_examples
        training = TRAINING_MACS * macs * samples * self.config.train.epochs
        teacher = cast(StudentCosts, self.parts.costs).teacher
        teaches = client.client in self._untaught and not lean
        return Effort(training + (teacher.cut_macs(len(teacher.units)) * samples if teaches else 0))

    def merge(self, round_: int, update: RoundUpdate) -> Mapping[str, Any]:
        """Average each tensor over the clients that trained it; other students' columns, only held, do not count."""
        trained = {k: {key: tier.state[key] for key in self.uploads[k].keys} for k, tier in update.tiers.items()}
        self.model |= average_layers(trained, {k: float(tier.weight) for k, tier in update.tiers.items()})
        self._untaught, self.finished = frozenset(), None
        return {}

    def evaluate(self, *, final: bool = False) -> Mapping[str, Any]:
        """Measure the joint exits and, after the last round, cost and accuracy of the devices' exit policies.

        The policies replace thresholds on the joint logits, which no device sees before it stops. Test images only.
        """
        result = dict(super().evaluate(final=final))
        if not final or self.evaluator is None:
            return result
        finished = self.fitted()
        test = measure(self.students, self.evaluator.test, self.normalizer, self.device)
        points = {name: operate(chosen, test) for name, chosen in finished.policies.items()}
        curve = [operate(chosen, test) for chosen in reversed(finished.ladder)]
        chosen = points[CALIBRATED]
        return result | {
            "budgeted": [{"mean_macs": point.cost, "accuracy": point.accuracy} for point in curve],
            "calibrated": {
                "thresholds": [], "accuracy": chosen.accuracy, "mean_macs": chosen.cost,
                "exit_histogram": [sum(column) for column in zip(*chosen.histogram.values(), strict=True)],
            },
            POLICIES: {name: asdict(point) for name, point in points.items()},
        }  # fmt: skip

    def finish(self) -> None:
        """Fit the exit policies, which are delivered with the students."""
        self.fitted()

    def fitted(self) -> StoredStudents:
        """Return the students with exit policies; the first call fits these on validation images."""
        if self.finished is None:
            self.global_network()
            self.finished, _ = finish_students(
                self.students, self.validation, self.normalizer, self.settings, self.device, self.config.run.name
            )
        return self.finished

    def save_final(self, folder: Path) -> None:
        """Write the aggregator's file and one per student."""
        save_students(folder, self.fitted())

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return the partition, which may differ on another machine by its last bits, and the teacher's fingerprint."""
        return {}, {"spec": self.spec.to_json(), "teacher": self._fingerprint}

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; raises `UserError` when the teacher has changed since the run's start."""
        if values["teacher"] != self._fingerprint:
            raise UserError(f"distree.teacher {self.settings.teacher} has changed since this run started: restore it")
        if values["spec"] != self.spec.to_json():
            model = self.model
            self.divide(StudentsSpec.from_json(values["spec"]))
            self.model = model

    def _check(self, config: RunConfig) -> SampleSet:
        """Return the server's training images; raises `UserError` for a configuration that DistrEE does not support."""
        if not self.settings.teacher:
            raise UserError("distree.teacher is empty: set it to a finished run's folder or a model file")
        if config.server.clients_evaluate_every:
            raise UserError("server.clients-evaluate-every is above 0, but a distree client has one student: set 0")
        if config.network.pretrained:
            raise UserError("distree's students start from the run's seed, without network.pretrained: leave it empty")
        if config.data.is_text:
            raise UserError(f"data.name {config.data.name!r} holds texts, distree needs images: choose another")
        source = load(config.data, paths.cache_root())
        if not len(source.train) or (source.validation is None and not config.data.validation):
            raise UserError(
                "the server has no validation images to partition the teacher on: "
                "set data.validation above 0, and a data.name whose images the server has"
            )
        return source.train

    def _plan(self, config: RunConfig, setup: Setup) -> StudentsSpec:
        """Return the students' spec, from the cheapest to the dearest, none too large for its declared device."""
        settings, device = self.settings, pick_device(config.server.device)
        backbone = NetworkSpec.from_json(setup.spec.to_json())
        matches = self._match(config, backbone)
        widths = tuple(match.width for match in matches) or tuple(sorted(settings.widths))
        activations = teacher_activations(self.teacher.network, self.validation, setup.normalizer, device)
        self.teacher.network.cpu()
        found = partition(activations, settings, widths, config.run.seed)
        for line in (*found.report(), *describe_matches(matches)):
            log(INFO, "%s", line)
        return students_spec(
            self.teacher.spec, backbone, found.parts, widths, [match.device for match in matches], settings.pooling
        )

    def _match(self, config: RunConfig, backbone: NetworkSpec) -> list[Match]:
        """Return the declared devices' widths, from the cheapest to the dearest.

        Raises `UserError` when a device cannot hold the teacher or any student.
        """
        settings = self.settings
        if settings.without_teacher == "refuse" and settings.devices:
            needs = cost_table(self.teacher.network).forward_memory(config.train.batch_size)
            for text in settings.declared:
                if problem := teacher_too_large(read_device(text), needs):
                    raise UserError(f"distree.devices {text!r}: {problem}; {LEARN_FROM_PUBLIC}")

        def lacks(device: Capacity, costs: StudentCosts, number: int) -> str:
            # the time of an epoch is known once a device has reported its number of images
            return untrainable(device, costs, config, 0, number)

        return sorted(match_devices(settings, backbone, self.teacher, lacks), key=lambda match: match.order)

    @cached_property
    def _teacher_state(self) -> FlatState:
        return FlatState.of(self.teacher.network.state_dict())

    @cached_property
    def _packed_teacher(self) -> PackedState:
        return protocol.pack_state(self._teacher_state)

    @cached_property
    def _fingerprint(self) -> str:
        return hashlib.sha256(self._teacher_state.floats.numpy().tobytes()).hexdigest()

    @cached_property
    def _public_lesson(self) -> Mapping[str, np.ndarray]:
        assert self.public is not None
        images, spec = self.public.inputs, cast(StudentsSpec, self.spec)
        with torch.no_grad():
            answers = teach(self.teacher.network, self.normalizer(images), spec, self.config.train.batch_size)
        lesson = {IMAGES: images, LABELS: self.public.labels, **answers}
        return {name: value.numpy() for name, value in lesson.items()}
