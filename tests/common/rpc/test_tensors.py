import math
import warnings

import pytest
import torch

from common.rpc import arrays
from common.rpc.split_pb2 import FP32, UINT8, Features
from common.rpc.tensors import CODINGS, bytes_per_sample, decode, decode_pixels, encode
from common.seeding import generator

SHAPES = [(5, 4, 3, 2), (1, 3, 7, 7), (4, 6, 5), (7, 10), (2, 1, 1, 1)]


def random_tensor(shape, seed=1, scale=3.0):
    return torch.randn(shape, generator=generator("tensors", seed)) * scale


def there_and_back(x, coding):
    features, data = encode(x, coding)
    # bytes, as they come out of a socket: read-only
    return decode(Features.FromString(features.SerializeToString()), bytes(data), tuple(x.shape[1:]), len(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_fp32_is_exact_for_every_memory_layout(shape, seed):
    x = random_tensor(shape, seed)
    assert torch.equal(there_and_back(x, "fp32"), x)
    assert torch.equal(there_and_back(x.transpose(0, -1), "fp32"), x.transpose(0, -1))
    assert torch.equal(there_and_back(x.requires_grad_(), "fp32"), x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("coding", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_is_rounded_as_in_torch(shape, coding, dtype):
    x = random_tensor(shape)
    assert torch.equal(there_and_back(x, coding), x.to(dtype).float())


def test_half_precision_keeps_subnormals_zeros_and_extremes():
    x = torch.tensor([[0.0, -0.0, 1e-7, 6e-5, 65504.0, -65504.0]])
    assert torch.equal(there_and_back(x, "fp16"), x.half().float())
    y = torch.tensor([[0.0, -0.0, 1e-40, 1e38, -1e38]])
    assert torch.equal(there_and_back(y, "bf16"), y.bfloat16().float())
    assert math.copysign(1, there_and_back(y, "bf16")[0, 1]) == -1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_uint8_is_off_by_at_most_half_a_step_of_its_channel(shape, seed):
    x = random_tensor(shape, seed)
    others = (0, 2, 3) if len(shape) == 4 else tuple(range(len(shape) - 1))
    step = (x.amax(others, keepdim=True) - x.amin(others, keepdim=True)) / 255
    rounding = 1e-6 * x.abs().max()
    assert ((there_and_back(x, "uint8") - x).abs() <= step / 2 + rounding).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_uint8_keeps_zeros_such_as_a_texts_padding(shape, seed):
    x = random_tensor(shape, seed) - 0.7
    x[..., -1:, :] = 0.0
    others = (0, 2, 3) if len(shape) == 4 else tuple(range(len(shape) - 1))
    step = (x.amax(others, keepdim=True) - x.amin(others, keepdim=True)) / 255
    back = there_and_back(x, "uint8")
    assert torch.equal(back[..., -1:, :], x[..., -1:, :])
    assert ((back - x).abs() <= step / 2 + 1e-6 * x.abs().max()).all()


def test_uint8_matches_a_result_by_hand():
    x = torch.tensor([[[[0.0, 51.0]], [[7.0, 7.0]]], [[[255.0, 25.4]], [[7.0, 7.0]]]])  # (2, 2, 1, 2)
    features, data = encode(x, "uint8")
    assert (list(features.scale), list(features.offset)) == ([1.0, 0.0], [0.0, 7.0])
    assert list(bytes(data)) == [0, 51, 0, 0, 255, 25, 0, 0]
    assert there_and_back(x, "uint8").flatten().tolist() == [0, 51, 7, 7, 255, 25, 7, 7]


@pytest.mark.parametrize("coding", CODINGS)
def test_decoded_tensor_is_writable_and_has_its_own_memory(coding):
    x = random_tensor((3, 4, 2, 2))
    features, data = encode(x, coding)
    data = bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns about read-only memory
        first, second = (decode(features, data, (4, 2, 2), 3) for _ in range(2))
    first.add_(1)
    assert torch.equal(first, second + 1)


@pytest.mark.parametrize("coding", CODINGS)
def test_bytes_per_sample_match_the_encoded_size(coding):
    x = random_tensor((3, 4, 2, 5))
    assert len(encode(x, coding)[1]) == 3 * bytes_per_sample((4, 2, 5), coding)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_non_finite_values_are_refused_on_both_sides(coding, value):
    x = random_tensor((2, 3, 2, 2))
    x[1, 2, 1, 0] = value
    with pytest.raises(ValueError, match="not finite"):
        encode(x, coding)
    if coding == "uint8":
        features, data = Features(coding=UINT8, shape=x.shape, scale=[1, 1, value], offset=[0, 0, 0]), bytes(24)
    else:
        features, data = encode(torch.zeros_like(x), coding)
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[coding]
        data = x.to(dtype).view(torch.uint8).numpy().tobytes()
    with pytest.raises(ValueError, match="not finite"):
        decode(features, data, (3, 2, 2), 2)


def test_fp16_refuses_values_out_of_its_range():
    with pytest.raises(ValueError, match="fp16"):
        encode(torch.tensor([[70000.0]]), "fp16")


def described(**changes) -> Features:
    return Features(**{"coding": FP32, "shape": [2, 3], **changes})


@pytest.mark.parametrize(
    ("features", "size", "reason"),
    [
        (described(coding=0), 24, "coding"),
        (described(coding=9), 24, "coding"),
        (described(shape=[2, 4]), 32, "shape"),
        (described(shape=[2]), 8, "shape"),
        (described(shape=[]), 4, "shape"),
        (described(shape=[2, 3, 1]), 24, "shape"),
        (described(shape=[0, 3]), 0, "samples"),
        (described(shape=[5, 3]), 60, "samples"),
        (described(shape=[4294967295, 3]), 24, "samples"),
        (described(), 23, "bytes"),
        (described(), 25, "bytes"),
        (described(), 0, "bytes"),
        (described(scale=[1, 1, 1]), 24, "scales"),
        (described(coding=UINT8), 6, "scales"),
        (described(coding=UINT8, scale=[1, 1], offset=[0, 0, 0]), 6, "scales"),
    ],
)
def test_features_of_another_shape_are_refused(features, size, reason):
    with pytest.raises(ValueError, match=reason):
        decode(features, bytes(size), (3,), 4)


def test_refusal_allocates_no_memory(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("allocated before the check")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(ValueError, match="bytes"):
        decode(Features(coding=FP32, shape=[1 << 20, 1 << 20]), b"", (1 << 20,), 1 << 20)


def test_pixels_come_back_unchanged():
    pixels = torch.randint(0, 256, (3, 2, 4, 5), generator=generator("pixels", 1), dtype=torch.uint8)
    raw = pixels.numpy().tobytes()
    back = decode_pixels(pixels.shape, raw, (2, 4, 5), 3)
    assert torch.equal(back, pixels)
    back.zero_()  # it has its own memory


@pytest.mark.parametrize(
    ("shape", "size", "reason"),
    [
        ((1, 2, 3), 6, "samples of shape"),
        ((1, 2, 3, 5), 30, "samples of shape"),
        ((4, 2, 3, 4), 96, "1 to 3 are allowed"),
        ((0, 2, 3, 4), 0, "1 to 3 are allowed"),
        ((2, 2, 3, 4), 47, "47 bytes came, 48 are expected"),
    ],
)
def test_pixels_of_another_shape_are_refused(shape, size, reason):
    with pytest.raises(ValueError, match=reason):
        decode_pixels(shape, bytes(size), (2, 3, 4), 3)


@pytest.mark.parametrize("coding", CODINGS)
def test_numpy_alone_encodes_and_decodes_the_same_bits(coding):
    """A device that infers with ONNX has no torch."""
    for x in (random_tensor((3, 4, 5, 6)), torch.tensor([[0.0, -0.0, 1e-7, 6e-5, 65504.0, -3.0000002]])):
        features, data = encode(x, coding)
        alone, alone_data = arrays.encode(x.numpy(), coding)
        assert (alone, bytes(alone_data)) == (features, bytes(data))
        decoded = arrays.decode(features, bytes(data), tuple(x.shape[1:]), len(x))
        assert decoded.tobytes() == decode(features, bytes(data), tuple(x.shape[1:]), len(x)).numpy().tobytes()


@pytest.mark.parametrize(
    ("coding", "value"), [("fp16", 65520.0), ("bf16", 3.4e38), ("fp32", math.nan), ("uint8", math.inf)]
)
def test_numpy_alone_refuses_what_is_not_finite(coding, value):
    with pytest.raises(ValueError, match=f"not finite as {coding}"):
        arrays.encode(torch.tensor([[1.0, value]]).numpy(), coding)
