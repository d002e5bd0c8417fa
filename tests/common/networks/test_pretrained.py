from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from common.errors import UserError
from common.networks import NetworkSpec, build

WIDTH = 128  # two heads of 64
SPEC = NetworkSpec("deit_tiny", 3, (3, 32, 32), width=WIDTH)


def timm_weights(side: int = 2) -> dict[str, Tensor]:
    """Return random weights of a 12-block transformer in timm's names, final norm and head included."""
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + side * side, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "head.weight": (1000, WIDTH),
    }
    for index in range(12):
        for name, rows, columns in (
            ("norm1", WIDTH, 0),
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("norm2", WIDTH, 0),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            shapes[f"blocks.{index}.{name}.weight"] = (rows, columns) if columns else (rows,)
            shapes[f"blocks.{index}.{name}.bias"] = (rows,)
    generator = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def hugging_face_weights(timm: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same weights in Hugging Face's names."""
    renamed = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks.": "encoder.layer.",
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    result = {}
    for key, tensor in timm.items():
        name = key
        for theirs, ours in renamed.items():
            name = name.replace(theirs, ours)
        if "attn.qkv" not in name:
            result[f"vit.{name}"] = tensor
            continue
        for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            result["vit." + name.replace("attn.qkv", f"attention.attention.{part}")] = rows.contiguous()
    return result


def stored(folder: Path, weights: dict[str, Tensor]) -> str:
    path = folder / "model.safetensors"
    save_file(weights, path)
    return str(path)


def timm_features(weights: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """Return the tokens after some blocks, computed as timm's VisionTransformer does."""

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    patches = functional.conv2d(x, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], 16)
    tokens = torch.cat([weights["cls_token"].expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    tokens = tokens + weights["pos_embed"]
    for index in range(blocks):
        block = f"blocks.{index}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens))
        query, key, value = qkv.reshape(len(x), -1, 3, 2, 64).permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-2, -1) * 64**-0.5).softmax(dim=-1)
        tokens = tokens + linear(f"{block}.attn.proj", (attention @ value).transpose(1, 2).flatten(2))
        hidden = functional.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens)))
        tokens = tokens + linear(f"{block}.mlp.fc2", hidden)
    return tokens


def test_timm_weights_give_timm_outputs(tmp_path: Path) -> None:
    weights = timm_weights()
    network = build(replace(SPEC, pretrained=stored(tmp_path, weights)), 0)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network.features_at(x, 13), timm_features(weights, x, 12), rtol=1e-3, atol=1e-4)


def test_hugging_face_names_give_the_same_network_and_keep_heads(tmp_path: Path) -> None:
    weights = timm_weights()
    timm = build(replace(SPEC, pretrained=stored(tmp_path, weights)), 0).state_dict()
    theirs = replace(SPEC, pretrained=stored(tmp_path, hugging_face_weights(weights)))
    fresh = build(SPEC, 0).state_dict()
    for name, tensor in build(theirs, 0).state_dict().items():
        assert torch.equal(tensor, timm[name])
        if name.startswith("exits."):
            assert torch.equal(tensor, fresh[name])


def test_adapters_are_added_to_a_pretrained_trunk(tmp_path: Path) -> None:
    weights = timm_weights()
    network = build(replace(SPEC, pretrained=stored(tmp_path, weights), lora_rank=2), 0)
    got = network.state_dict()["units.3.self_attention.in_proj_weight"]
    assert torch.equal(got, weights["blocks.2.attn.qkv.weight"])


def test_positions_are_resized_to_another_grid(tmp_path: Path) -> None:
    weights = timm_weights(side=4)
    ramp = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 4, 4, WIDTH).reshape(1, 16, WIDTH)
    weights["pos_embed"] = torch.cat([torch.full((1, 1, WIDTH), 9.0), ramp], dim=1)
    network = build(replace(SPEC, pretrained=stored(tmp_path, weights)), 0)
    positions = network.state_dict()["units.0.positions"][0, :, 0]
    assert positions[0] == 9.0
    rows = positions[1:].view(2, 2)
    torch.testing.assert_close(rows[0], rows[1])
    # The ramp 0..3 across 4 columns stays a ramp of the same mean across 2.
    assert rows.mean().item() == pytest.approx(1.5)
    assert 1.5 < (rows[0, 1] - rows[0, 0]).item() < 2.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.11.norm2.bias": None}, "no blocks.11.norm2.bias"),
        ({"norm.weight": None, "cls_token": None}, "no vision transformer"),
        ({"patch_embed.proj.weight": torch.zeros(WIDTH, 3, 8, 8)}, r"projection.weight is \(128, 3, 8, 8\)"),
        ({"pos_embed": torch.zeros(1, 6, WIDTH)}, "6 positions"),
    ],
)
def test_unsuitable_weights_are_refused(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    merged = {**timm_weights(), **changes}
    weights = {name: tensor for name, tensor in merged.items() if tensor is not None}
    with pytest.raises(UserError, match=message):
        build(replace(SPEC, pretrained=stored(tmp_path, weights)), 0)


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    with pytest.raises(UserError, match="is not a file"):
        build(replace(SPEC, pretrained=str(broken)), 0)
    broken.write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="not a readable"):
        build(replace(SPEC, pretrained=str(broken)), 0)


def test_other_networks_refuse_pretrained_weights() -> None:
    with pytest.raises(UserError, match="only transformers"):
        build(NetworkSpec("lenet", 3, (1, 8, 8), pretrained="x.safetensors"), 0)


def test_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    weights = timm_weights()
    path = stored(tmp_path, weights)

    def download(repository: str, filename: str) -> str:
        if (repository, filename) != ("timm/deit", "model.safetensors"):
            raise OSError("offline")
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    network = build(replace(SPEC, pretrained="timm/deit"), 0)
    assert torch.equal(network.state_dict()["units.0.class_token"], weights["cls_token"])
    with pytest.raises(UserError, match=r"nobody/nothing cannot be downloaded \(offline\)"):
        build(replace(SPEC, pretrained="nobody/nothing"), 0)
