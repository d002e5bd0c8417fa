"""DarkDistill's server half: tier averages -> generators and reverse KD -> layer-wise average (KDD 2025).

W_k := average of the clients of depth d_k                    homogeneous aggregation
P_k := their difficulties and labels
progressive: train G_k on W_k, distil W_1 -> W_2 -> ... -> W_K
M := W_K                                                      difficulty meter of the next round
W := average of every layer over the tiers that hold it       heterogeneous aggregation
parallel: average first, then distil the tiers into W

Every round logs how far the distillation moved the weights, beside what the clients and weight decay did.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from logging import INFO, WARNING
from typing import Any

import torch
from flwr.supercore import log

from common.errors import UserError
from common.messages.protocol import ClientReport
from common.networks import EarlyExitNetwork
from common.seeding import derive_seed, generator
from common.weights.flat import StateDict
from common.weights.folding import MAGNITUDE
from common.weights.layers import average_layers
from strategies.darkdistill.client import DIFFICULTY, LABELS, SKETCH
from strategies.darkdistill.diagnostics import LEAST, Movement, shrinkage, variety
from strategies.darkdistill.difficulty import DifficultyPairs, DifficultyPool, DifficultySketch, pool
from strategies.darkdistill.generator import follow_stem, make_generator
from strategies.darkdistill.matching import make_matcher
from strategies.darkdistill.parallel import transfer_parallel
from strategies.darkdistill.runtime import Optimizers, Runtime, Tier, evaluating
from strategies.darkdistill.samples import RealSamples
from strategies.darkdistill.server_step import make_meter, transfer
from strategies.darkdistill.settings import DarkDistillSettings, DifficultySettings
from strategies.darkdistill.summary import summarise, summarise_parallel
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Effort, Method, RoundUpdate, Setup


class DarkDistill(EarlyExitStrategy):
    """Shallow tiers teach deeper ones on generated samples of matched difficulty."""

    def __init__(self, method: Method, setup: Setup) -> None:
        super().__init__(method, setup)
        self.settings = self.config.of(DarkDistillSettings)
        self.difficulty = self.config.of(DifficultySettings)
        self.real = self._real_samples()
        self.idle = False  # a round's distillation has moved next to nothing, and that was said
        self.network.to(self.device)
        self.models = {depth: self.network.prefix(depth).to(self.device) for depth in self.tiers}
        self.meter = make_meter(self.network).to(self.device)
        self._make_generators(0)

    def summary(self) -> None:
        """Log what is about to run, and how large the generators are."""
        super().summary()
        if not self.settings.distillation:
            log(INFO, "  averaging only, without distillation")
            return
        if self.settings.source == "validation":
            log(INFO, "  a diagnostic: distils on the server's validation samples, without generators")
            return
        sizes = ", ".join(f"{g.parameter_count / 1e6:.2f} M" for g in self.generators.values())
        log(INFO, "  generators: %s parameters, on the server only", sizes)

    def client_array_bytes(self, client: ClientReport) -> int:
        """Return the size of a difficulty (float32) and a label (int64) per sample, or of a sketch's counts."""
        pairs, sketch = 12 * client.num_examples, 4 * self.spec.num_classes * self.difficulty.bins
        return pairs if self.difficulty.upload == "pairs" else sketch

    def effort(self, client: ClientReport) -> Effort:
        """Return what a round costs a device: for a noisy sketch all samples pass the first exit once more."""
        usual, epsilon = super().effort(client), self.difficulty.epsilon
        extra = self.parts.exit_macs(self.part(client))[0] * client.num_examples if epsilon > 0 else 0
        return replace(usual, macs=usual.macs + extra)

    def merge(self, round_: int, update: RoundUpdate) -> Mapping[str, Any]:
        """Transfer across tiers, then average layer by layer; the parallel variant averages first."""
        averages = {depth: tier.state for depth, tier in update.tiers.items()}
        weights = {depth: float(tier.weight) for depth, tier in update.tiers.items()}
        terms: Mapping[str, Any] = {}
        if self.settings.variant == "progressive" and self.settings.distillation:
            averages, terms = self._transfer(round_, update, averages)
        received = dict(self.model)
        self.model |= average_layers(averages, weights)
        if self.settings.variant == "parallel" and self.settings.distillation:
            terms = self._transfer_parallel(round_, update, received)
        return terms

    def _transfer(
        self, round_: int, update: RoundUpdate, averages: dict[int, StateDict]
    ) -> tuple[dict[int, StateDict], Mapping[str, Any]]:
        """Return the tiers' models after reverse KD, and what is logged."""
        tiers, runtime = self._present(update), self._runtime(round_)
        report = transfer(
            tiers, self.generators, self.meter, self.optimizers,
            settings=self.settings, runtime=runtime, matcher=self.matcher,
            real=self.real if self.settings.source == "validation" else None,
        )  # fmt: skip
        taught = {depth: _on_cpu(tier.model) for depth, tier in tiers.items()}
        terms = summarise(report)
        if not self._sound(round_, taught.values()):
            taught = {}
            for depth, tier in tiers.items():
                tier.model.load_state_dict(averages[depth])
        elif report.distillation and report.distillation[-1].pairs:
            steps = [(averages[depth], tier.model) for depth, tier in tiers.items()]
            terms |= self._movement(round_, self.model, steps, len(report.distillation))
            terms |= self._real_variety(round_, tiers)
        if (deepest := max(self.tiers)) in tiers:
            self.meter = make_meter(tiers[deepest].model)
        return averages | taught, terms

    def _transfer_parallel(self, round_: int, update: RoundUpdate, received: StateDict) -> Mapping[str, Any]:
        """Distil the tiers into the averaged model, of which `received` is the last round's; returns what is logged."""
        tiers, runtime, student = self._present(update), self._runtime(round_), self.global_network()
        report = transfer_parallel(
            tiers, student, self.generators, self.optimizers, settings=self.settings, runtime=runtime
        )
        terms = summarise_parallel(report)
        if self._sound(round_, [taught := _on_cpu(student)]):
            if report.distillation:
                terms |= self._movement(round_, received, [(self.model, student)], len(report.distillation))
            self.model |= taught
        return terms

    def _movement(
        self, round_: int, received: StateDict, steps: Iterable[tuple[StateDict, EarlyExitNetwork]], count: int
    ) -> Mapping[str, Any]:
        """Return how far the round moved the weights; the first time that distillation hardly does, warn."""
        kept = shrinkage(self.optimizers.distillation[0], count)
        movement = Movement.measure(received, steps, kept)
        if movement.share < LEAST and not self.idle:
            self.idle = True
            log(WARNING, "round %d: the distillation moves the weights by %.2g of what the clients do, too little to "
                "matter; this is said once, each round's metrics have moved-distillation and moved-clients",
                round_, movement.share)  # fmt: skip
        return movement.terms()

    def _real_samples(self) -> RealSamples | None:
        """Return the server's validation samples, if it has any; raises `UserError` if they are needed."""
        held_out = self.evaluator.validation if self.evaluator else None
        if held_out is not None and len(held_out):
            return RealSamples(held_out, self.normalizer.to(self.device))
        if self.settings.source == "validation":
            raise UserError(
                "darkdistill.source is 'validation', but the server has no validation samples: set data.validation and "
                "server.evaluate-every above 0, or choose 'generated'"
            )
        return None

    def _real_variety(self, round_: int, tiers: Mapping[int, Tier]) -> dict[str, Any]:
        """Return how varied the teachers find a batch of the server's validation samples, if it has any."""
        if self.real is None:
            return {}
        # numbers of its own: what is logged must not change what is trained
        runtime = Runtime(self.device, generator(self.config.run.seed, "real variety", round_))
        samples = self.real.draw(self.settings.batch_size, runtime.rng, self.device)
        teachers = {depth: tiers[depth].model for depth in sorted(tiers)[:-1]}
        with torch.no_grad(), evaluating(teachers.values()):
            features = {
                k: runtime.forward(model, samples.x, latent=False).features[-1] for k, model in teachers.items()
            }
        return {f"real-{depth}-variety": variety(feature) for depth, feature in features.items()}

    def _runtime(self, round_: int) -> Runtime:
        """Prepare the optimisers and generators for a round; returns how its maths runs."""
        follow_stem(self.generators.values(), self.global_network())
        if not self.settings.keep_optimizers:
            self.optimizers = self._new_optimizers()
        self.optimizers.decay(round_ - 1, self.settings.lr_decay)
        rng = generator(self.config.run.seed, "server", round_)
        return Runtime(self.device, rng, self.config.server.autocast, self.settings.rescale)

    def _sound(self, round_: int, taught: Iterable[StateDict]) -> bool:
        """Return whether a transfer diverged nowhere; if it did, the averages stand and generators start anew."""
        weights = (value for state in taught for value in state.values() if value.is_floating_point())  # no counters
        models = all(bool(value.abs().max() < MAGNITUDE) for value in weights)
        if models and all(bool(p.isfinite().all()) for _, module in self._modules() for p in module.parameters()):
            return True
        log(WARNING, "round %d: the distillation diverged and is left out; its generators start anew", round_)
        self._make_generators(round_)
        return False

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return generators, matcher, meter and, if they are kept, the optimisers."""
        tensors = {
            f"{name}.{key}": value for name, module in self._modules() for key, value in module.state_dict().items()
        }
        if self.settings.keep_optimizers:
            tensors |= self.optimizers.state_dict()
        return tensors, {}

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Take `state_dict`'s result back."""
        for name, module in self._modules():
            prefix = f"{name}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        if self.settings.keep_optimizers:
            self.optimizers.load_state_dict(tensors)

    def _present(self, update: RoundUpdate) -> dict[int, Tier]:
        """Return the tiers that can take part: those with clients whose difficulties can be read."""
        tiers = {}
        for depth, tier in update.tiers.items():
            pools = [known for client in tier.clients if (known := self._difficulties(client, update)) is not None]
            if pools and len(pooled := pool(pools)):
                self.models[depth].load_state_dict(tier.state)
                tiers[depth] = Tier(self.models[depth], tier.weight, pooled)
        return tiers

    def _difficulties(self, client: int, update: RoundUpdate) -> DifficultyPool | None:
        """Return a client's difficulties; its model counts even if they cannot be read."""
        entries = {name: torch.from_numpy(array) for name, array in update.client_arrays.get(client, {}).items()}
        classes, section = self.spec.num_classes, self.difficulty
        try:
            if section.upload == "pairs":
                return DifficultyPairs.checked(entries[DIFFICULTY], entries[LABELS], classes)
            return DifficultySketch.from_array(entries[SKETCH], classes, bins=section.bins, clip=section.clip)
        except (KeyError, ValueError) as error:
            reason = f"it sent no array {error}" if isinstance(error, KeyError) else error
            log(WARNING, "client %d: its difficulties are left out: %s", client, reason)
            return None

    def _make_generators(self, round_: int) -> None:
        """Make generators (progressive: one per tier; parallel: one per exit), matcher and optimisers.

        Where nothing is generated there are no generators: they would only fill the checkpoints.
        """
        seed, settings = self.config.run.seed, self.settings
        keys = self.tiers if settings.variant == "progressive" else range(len(self.network.exit_positions))
        generates = settings.distillation and settings.source == "generated"
        self.generators = {
            k: make_generator(self.network, settings, derive_seed(seed, "generator", k, round_)).to(self.device)
            for k in (keys if generates else ())
        }
        self.matcher = make_matcher(self.settings, derive_seed(seed, "matcher", round_))
        if self.matcher is not None:
            self.matcher.to(self.device)
        self.optimizers = self._new_optimizers()

    def _new_optimizers(self) -> Optimizers:
        models = self.models.values() if self.settings.variant == "progressive" else [self.network]
        return Optimizers.create(models, self.generators, self.settings, self.matcher)

    def _modules(self) -> Iterable[tuple[str, torch.nn.Module]]:
        yield from ((f"generator-{k}", module) for k, module in self.generators.items())
        yield "meter", self.meter
        if self.matcher is not None:
            yield "matcher", self.matcher


def _on_cpu(network: EarlyExitNetwork) -> StateDict:
    return {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
