import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import DataConfig, load, normalizer
from common.data.clients import OwnFolder, Population, own_data, shared_data
from common.data.fingerprint import look_again
from common.errors import UserError
from common.paths import cache_root

CPU = torch.device("cpu")
DATA = DataConfig(limit=200, validation=0.25)


def population(**changes) -> Population:
    return Population(DataConfig(**{"limit": 200, "validation": 0.25} | changes), 7, 3)


def test_every_sample_belongs_to_exactly_one_part_of_one_client():
    people = population()
    parts = [part for client in range(7) for part in people.split(client)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))


def test_server_validation_set_is_the_union_of_clients():
    people = population()
    held_out = people.validation()
    assert held_out.tolist() == sorted(np.concatenate([people.split(c)[1] for c in range(7)]).tolist())
    assert not set(held_out.tolist()) & set(np.concatenate([people.split(c)[0] for c in range(7)]).tolist())


def test_server_validation_images_are_the_sets_own_or_the_clients(tmp_path):
    people = population()
    expected = load(people.data, cache_root()).train.subset(people.validation())
    assert torch.equal(people.server_validation().inputs, expected.inputs)
    for split, shade in (("train", 10), ("test", 50), ("val", 200)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(10):
                Image.new("L", (4, 4), shade + number).save(tmp_path / split / name / f"{number}.png")
    own = Population(DataConfig(name="folder", root=str(tmp_path)), 2, 1)
    assert own.server_validation().inputs[:, 0, 0, 0].tolist() == list(range(200, 210)) * 2
    assert sum(len(part) for client in range(2) for part in own.split(client)) == 20


def test_client_data_is_its_part_normalised():
    people = population()
    images = shared_data(people, 4, CPU)
    train, validation, test = people.split(4)
    source = load(people.data, cache_root()).train
    normalize = normalizer(people.data, 1)
    assert torch.equal(images.x, normalize(source.inputs[torch.from_numpy(train)]))
    assert torch.equal(images.y, source.labels[torch.from_numpy(train)])
    assert torch.equal(images.validation_x, normalize(source.inputs[torch.from_numpy(validation)]))
    assert torch.equal(images.validation_y, source.labels[torch.from_numpy(validation)])
    assert images.x.shape[1:] == (1, 8, 8)
    assert (images.x.dtype, images.y.dtype) == (torch.float32, torch.int64)
    assert len(images.validation_y) == round(0.25 * (len(train) + len(validation)))
    assert len(test) == len(images.test_y) == len(images.test_x) == 0


def test_client_data_is_made_once():
    assert shared_data(population(), 1, CPU) is shared_data(population(), 1, CPU)


def test_partition_depends_on_seed_and_client_count():
    base = population().split(0)[0].tolist()
    assert Population(DATA, 7, 4).split(0)[0].tolist() != base
    assert Population(DATA, 8, 3).split(0)[0].tolist() != base
    assert population().split(0)[0].tolist() == base


@pytest.mark.parametrize("client", [-1, 7, 100])
def test_unknown_client_is_refused(client):
    with pytest.raises(UserError, match=rf"client {client} does not exist: clients\.count is 7"):
        population().split(client)


def test_each_client_keeps_a_test_split_of_the_merged_set():
    people = population(client_test=0.25)
    source = load(people.data, cache_root())
    assert (len(source.train), len(source.test), people.data.limit) == (559, 0, 200)
    parts = [people.split(client) for client in range(7)]
    assert sorted(np.concatenate([part for parts_ in parts for part in parts_]).tolist()) == list(range(559))
    for own in parts:
        number = sum(map(len, own))
        assert len(own.test) == round(0.25 * number)
        assert len(own.validation) == round(0.25 * (number - len(own.test)))
    images = shared_data(people, 4, CPU)
    normalize = normalizer(people.data, 1)
    assert torch.equal(images.test_x, normalize(source.train.inputs[torch.from_numpy(parts[4].test)]))
    assert torch.equal(images.test_y, source.train.labels[torch.from_numpy(parts[4].test)])
    assert np.array_equal(people.validation(), np.sort(np.concatenate([own.validation for own in parts])))


@pytest.mark.parametrize(
    ("changes", "digest"),
    [
        ({"limit": 200, "validation": 0.25}, "76fe575b14358fe1"),
        ({"partitioner": "dirichlet", "alpha": 0.3}, "1842e4d1bd0dfbda"),
        ({}, "24ae64938ef779ff"),
    ],
)
def test_without_test_splits_the_partition_is_unchanged(changes, digest):
    people = Population(DataConfig(**changes), 7, 3)
    parts = [part for client in range(7) for part in people.split(client)[:2]]
    assert hashlib.sha256(b"".join(part.tobytes() + b"|" for part in parts)).hexdigest()[:16] == digest


def test_validation_set_leaves_out_clients_without_samples():
    people = Population(DataConfig(limit=60, partitioner="dirichlet", alpha=0.001), 30, 1)
    sizes = [len(people.split(c)[0]) for c in range(30)]
    assert 0 in sizes
    assert len(people.validation()) == 60 - sum(sizes)


def write_images(root, **shades):
    for name, shade in shades.items():
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (9, 9), shade + number).save(root / name / f"{number}.png")


def test_changed_device_folder_is_read_again(tmp_path):
    write_images(tmp_path, cat=10, dog=200)

    def read():
        return own_data(OwnFolder(str(tmp_path), DataConfig(validation=0), ("cat", "dog"), (1, 8, 8), 1), CPU)

    before = read()
    (tmp_path / "dog" / "0.png").unlink()
    (tmp_path / "bird").mkdir()
    Image.new("L", (9, 9), 50).save(tmp_path / "bird" / "0.png")
    assert read() is before
    look_again()
    with pytest.raises(UserError, match="not classes of this run"):
        read()
    (tmp_path / "bird" / "0.png").unlink()
    look_again()
    assert len(read().y) == len(before.y) - 1
    assert read() is read()


def test_changed_shared_folder_is_dealt_again(tmp_path):
    write_images(tmp_path, cat=10, dog=200)
    people = Population(DataConfig(name="folder", root=str(tmp_path), validation=0), 2, 3)
    before = [shared_data(people, client, CPU) for client in range(2)]
    Image.new("L", (9, 9), 99).save(tmp_path / "dog" / "4.png")
    assert shared_data(people, 0, CPU) is before[0]
    look_again()
    after = [shared_data(people, client, CPU) for client in range(2)]
    assert sum(len(own.y) for own in after) == sum(len(own.y) for own in before) + 1


def test_what_a_device_leaves_out_is_logged(tmp_path, flower_log):
    (tmp_path / "cat").mkdir()
    for number in range(4):
        Image.new("L", (9, 9), 10 * number).save(tmp_path / "cat" / f"{number}.png")
    (tmp_path / "cat" / "9.png").write_bytes(b"no image")
    data = own_data(OwnFolder(str(tmp_path), DataConfig(skip_damaged=True), ("cat",), (1, 8, 8), 1), CPU)
    assert len(data.y) + len(data.validation_y) == 4
    assert any(str(tmp_path) in line and "9.png" in line for line in flower_log)


def test_device_folder_becomes_client_data(tmp_path):
    for name, shade in (("cat", 10), ("dog", 200)):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("L", (9, 9), shade).save(tmp_path / name / f"{number}.png")
    data = DataConfig(validation=0.25)
    images = own_data(OwnFolder(str(tmp_path), data, ("bird", "cat", "dog"), (3, 8, 8), 1), CPU)
    assert images.x.shape == (6, 3, 8, 8)
    assert images.validation_x.shape == (2, 3, 8, 8)
    assert sorted([*images.y.tolist(), *images.validation_y.tolist()]) == [1] * 4 + [2] * 4
    dark = (images.y == 1).nonzero()[0, 0]
    assert images.x[dark].unique().tolist() == pytest.approx([(10 / 255 - 0.5) / 0.5], abs=1e-6)
    halves = own_data(
        OwnFolder(str(tmp_path), DataConfig(validation=0.25, client_test=0.5), ("cat", "dog"), (1, 8, 8), 1), CPU
    )
    assert [len(y) for y in (halves.y, halves.validation_y, halves.test_y)] == [3, 1, 4]
    assert halves.test_x.shape == (4, 1, 8, 8)
    with pytest.raises(UserError, match="not classes of this run"):
        own_data(OwnFolder(str(tmp_path), data, ("bird", "cat"), (3, 8, 8), 1), CPU)
