import pytest
import torch
from torch import nn

from common.networks import NetworkSpec, build
from common.weights.flat import FlatModel, FlatState, Layout


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_state_dict_is_flattened_and_restored_in_order():
    state = {"b": torch.arange(6.0).view(2, 3), "n": torch.tensor(7), "a": torch.tensor([1.5])}
    flat = FlatState.of(state)
    assert flat.layout == Layout((("b", (2, 3)), ("a", (1,))), (("n", ()),))
    assert flat.floats.tolist() == [0, 1, 2, 3, 4, 5, 1.5]
    assert flat.counters.tolist() == [7]
    assert flat.layout.sizes == (7, 1)
    for name, value in flat.state_dict().items():
        assert torch.equal(value, state[name])
        assert value.shape == state[name].shape


def test_half_precision_is_widened_and_a_state_may_be_empty():
    assert FlatState.of({"a": torch.ones(2, dtype=torch.bfloat16)}).floats.dtype == torch.float32
    empty = FlatState.of({})
    assert (len(empty.floats), len(empty.counters)) == (0, 0)
    assert empty.state_dict() == {}


def test_layout_survives_json():
    layout = Layout((("a.weight", (2, 3)), ("s", ())), (("n", ()),))
    assert Layout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize("text", ["", "3", "[1,2]", "[[],[],[]]", '[[["a",["x"]]],[]]', '{"a": 1}', '[[["a"]],[]]'])
def test_invalid_layouts_are_refused(text):
    with pytest.raises(ValueError, match="not a layout"):
        Layout.from_json(text)


def test_flat_module_computes_the_same_and_keeps_its_keys():
    plain, module = small(), small()
    model = FlatModel(module)
    x = torch.randn(5, 3)
    assert torch.equal(plain(x), module(x))
    assert set(plain.state_dict()) == set(model.read(model.layout).state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.read(model.layout).state_dict()[name]), name


def test_step_on_the_vector_equals_a_step_on_every_tensor():
    plain, module = small(), small()
    model = FlatModel(module)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}
    one, many = torch.optim.SGD([model.trained], **options), torch.optim.SGD(plain.parameters(), **options)
    x = torch.randn(6, 3)
    for _ in range(3):
        for network, optimizer in ((plain, many), (module, one)):
            model.zero_grad() if network is module else optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name


def test_gradients_stay_views_after_clearing():
    module = small()
    model = FlatModel(module)
    module(torch.randn(4, 3)).sum().backward()
    assert model.trained.grad.abs().sum() > 0
    model.zero_grad()
    assert all(p.grad.abs().sum() == 0 for p in module.parameters())
    module(torch.randn(4, 3)).sum().backward()
    assert torch.equal(model.trained.grad[:12].view(4, 3), module[0].weight.grad)


def test_frozen_parameters_come_last_and_are_not_stepped():
    module = small()
    module[0].requires_grad_(False)
    model = FlatModel(module)
    names = [name for name, _ in model.layout.floats]
    assert names[:4] == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert names[4:6] == ["0.weight", "0.bias"]
    assert len(model.trained) == 4 + 4 + 8 + 2
    before = module[0].weight.clone()
    with torch.no_grad():
        model.trained += 1
    assert torch.equal(module[0].weight, before)
    assert torch.equal(module[1].bias, torch.ones(4))


def test_buffers_share_the_vector_in_training_and_after_loading():
    module = small()
    model = FlatModel(module)
    start = model.read(model.layout)
    module.train()(torch.randn(8, 3) + 5)
    after = model.read(model.layout).state_dict()
    assert after["1.num_batches_tracked"] == 1
    assert after["1.running_mean"].abs().sum() > 0
    model.load(start)
    assert module[1].num_batches_tracked == 0
    assert module[1].running_mean.abs().sum() == 0


def test_read_state_is_a_copy():
    model = FlatModel(small())
    state = model.read(model.layout)
    with torch.no_grad():
        model.trained += 1
    assert not torch.equal(state.floats, model.read(model.layout).floats)


def test_tier_loads_from_the_state_of_the_whole_network():
    network = build(NetworkSpec("resnet_slim", 3, (1, 8, 8), width=4), seed=1)
    other = build(NetworkSpec("resnet_slim", 3, (1, 8, 8), width=4), seed=2)
    model = FlatModel(other.prefix(2))
    model.load(FlatState.of(network.state_dict()))
    expected = network.prefix(2).state_dict()
    assert set(expected) == set(model.module.state_dict())
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_missing_key_or_wrong_shape_is_refused():
    model = FlatModel(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"bias: expected shape \(2,\), got nothing"):
        model.load(FlatState.of({"weight": torch.zeros(2, 2)}))
    with pytest.raises(ValueError, match=r"weight: expected shape \(2, 2\), got \(4,\)"):
        model.load(FlatState.of({"weight": torch.zeros(4), "bias": torch.zeros(2)}))


def test_part_of_a_layout_keeps_its_order():
    layout = Layout((("a.weight", (2, 3)), ("b.weight", (4,)), ("a.mean", (3,))), (("b.n", ()), ("a.n", ())))
    part = layout.only(lambda key: key.startswith("a."))
    assert part == Layout((("a.weight", (2, 3)), ("a.mean", (3,))), (("a.n", ()),))
    assert (part.keys, part.sizes) == (("a.weight", "a.mean", "a.n"), (9, 1))
    assert layout.only(lambda key: True) == layout
    assert layout.only(lambda key: False) == Layout(())


def test_loaded_dict_must_be_complete_and_may_have_more_keys():
    model, other = FlatModel(small()), FlatModel(small())
    with torch.no_grad():
        other.floats.add_(1)
        other.counters.add_(3)
    model.load_dict({"more": torch.zeros(3), **other.read(other.layout).state_dict()})
    assert torch.equal(model.floats, other.floats)
    assert torch.equal(model.counters, other.counters)
    assert model.module[1].num_batches_tracked == 3
    given = other.read(other.layout).state_dict()
    with pytest.raises(ValueError, match=r"2\.bias: expected shape \(2,\), got nothing"):
        model.load_dict({key: value for key, value in given.items() if key != "2.bias"})
    with pytest.raises(ValueError, match=r"1\.running_var: expected shape \(4,\), got \(3,\)"):
        model.load_dict({**given, "1.running_var": torch.zeros(3)})


@pytest.mark.parametrize("prefix", ["0.", "1.", "2.weight", ""])
def test_read_part_is_a_copy(prefix):
    model = FlatModel(small())
    whole = model.read(model.layout).state_dict()
    layout = model.layout.only(lambda key: key.startswith(prefix))
    part = model.read(layout)
    assert part.layout == layout
    assert part.state_dict().keys() == {key for key in whole if key.startswith(prefix)}
    with torch.no_grad():
        model.floats.add_(1)
        model.counters.add_(1)
    assert all(torch.equal(value, whole[key]) for key, value in part.state_dict().items())


def test_empty_layout_reads_an_empty_state():
    model = FlatModel(small())
    nothing = model.read(model.layout.only(lambda key: False))
    assert (nothing.layout, len(nothing.floats), len(nothing.counters)) == (Layout(()), 0, 0)


def test_leaf_shares_memory_and_gradient_with_the_whole():
    module = small()
    model = FlatModel(module)
    leaf = model.leaf(lambda key: key.startswith("2."))
    assert torch.equal(leaf, torch.cat([module[2].weight.flatten(), module[2].bias]))
    module(torch.randn(4, 3)).sum().backward()
    assert torch.equal(leaf.grad, torch.cat([module[2].weight.grad.flatten(), module[2].bias.grad]))
    assert leaf.grad.abs().sum() > 0
    with torch.no_grad():
        leaf.add_(1)
    assert torch.equal(model.trained[-2:], module[2].bias)
    assert torch.equal(leaf[-2:], module[2].bias)
    model.zero_grad()
    assert leaf.grad.abs().sum() == 0
    assert len(model.leaf(lambda key: True)) == len(model.trained)


def test_leaf_must_be_contiguous():
    model = FlatModel(small())
    for chosen in (lambda key: key.startswith(("0.", "2.")), lambda key: False, lambda key: "running" in key):
        with pytest.raises(ValueError, match="do not lie side by side"):
            model.leaf(chosen)
    assert len(model.leaf(lambda key: key.startswith(("0.", "1.")))) == 24
    module = small()
    module[0].requires_grad_(False)
    with pytest.raises(ValueError, match="do not lie side by side"):
        FlatModel(module).leaf(lambda key: key.startswith("0."))


def test_stepping_a_leaf_changes_no_other_weight():
    plain, module = small(), small()
    model = FlatModel(module)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}
    one = torch.optim.SGD([model.leaf(lambda key: key.startswith("1."))], **options)
    many = torch.optim.SGD(plain[1].parameters(), **options)
    x = torch.randn(6, 3)
    for _ in range(3):
        plain.zero_grad()
        model.zero_grad()
        plain(x).square().sum().backward()
        module(x).square().sum().backward()
        many.step()
        one.step()
    start = small().state_dict()
    for name, value in module.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
        assert torch.equal(value, start[name]) == name.startswith(("0.", "2.")), name
