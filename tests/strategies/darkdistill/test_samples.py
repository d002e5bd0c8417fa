import torch

from common.data.images import Normalizer, SampleSet
from common.networks import NetworkSpec, build
from strategies.darkdistill.difficulty import DifficultyPairs
from strategies.darkdistill.generator import make_generator
from strategies.darkdistill.runtime import Runtime
from strategies.darkdistill.samples import RealSamples, generate
from strategies.darkdistill.settings import DarkDistillSettings

CPU = torch.device("cpu")


def test_real_samples_are_drawn_with_their_labels_and_normalised() -> None:
    pixels = (51 * torch.arange(6)).clamp_max(255).to(torch.uint8).view(6, 1, 1, 1).expand(6, 1, 2, 2)
    source = SampleSet(pixels, torch.arange(6), tuple("abcdef"))
    real = RealSamples(source, Normalizer((0.5,), (0.5,)))
    samples = real.draw(50, torch.Generator().manual_seed(0), CPU)
    assert samples.labels.unique().tolist() == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(samples.x[:, 0, 1, 1], 0.4 * samples.labels - 1)  # (0.2 * label - 0.5) / 0.5
    assert (samples.requested, samples.follows, samples.latent) == (None, False, False)
    again = real.draw(50, torch.Generator().manual_seed(0), CPU)
    assert torch.equal(samples.x, again.x)


def test_generated_samples_follow_the_request_if_the_generator_is_conditional() -> None:
    network = build(NetworkSpec("lenet", num_classes=3, input_shape=(1, 6, 6), width=2), seed=0)
    conditions = DifficultyPairs(torch.tensor([0.5, 2.0]), torch.tensor([2, 0]))
    for conditional in (True, False):
        settings = DarkDistillSettings(difficulty_condition=conditional, generator_channels=4)
        generator = make_generator(network, settings, seed=0)
        samples = generate(generator, conditions, Runtime(CPU, torch.Generator().manual_seed(0)), latent=True)
        assert samples.x.shape == (2, *network.latent_shape)
        assert torch.equal(samples.labels, conditions.labels)
        assert samples.requested is conditions.difficulty
        assert samples.follows == conditional
        assert samples.latent
        assert not generator.training
