"""Pretrained vision transformers from a .safetensors file, in timm's or Hugging Face's names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from torchvision.models.vision_transformer import EncoderBlock

from common.errors import UserError
from common.networks.base import EarlyExitNetwork
from common.networks.vit import PatchEmbedding


@dataclass(frozen=True)
class _Names:
    """A library's names of a transformer's parameters."""

    class_token: str
    positions: str
    patches: str
    block: str  # with a place for the block's number
    query_key_value: tuple[str, ...]
    modules: Mapping[str, str]  # of a block: our name -> the library's


_TIMM = _Names(
    class_token="cls_token",
    positions="pos_embed",
    patches="patch_embed.proj",
    block="blocks.{}.",
    query_key_value=("attn.qkv",),
    modules={
        "ln_1": "norm1",
        "self_attention.out_proj": "attn.proj",
        "ln_2": "norm2",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
    },
)
_HUGGING_FACE = _Names(
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    patches="embeddings.patch_embeddings.projection",
    block="encoder.layer.{}.",
    query_key_value=tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    modules={
        "ln_1": "layernorm_before",
        "self_attention.out_proj": "attention.output.dense",
        "ln_2": "layernorm_after",
        "mlp.0": "intermediate.dense",
        "mlp.3": "output.dense",
    },
)


def load_pretrained(network: EarlyExitNetwork, source: str) -> None:
    """Overwrite a whole transformer's trunk with pretrained weights; its exit heads do not change.

    Position embeddings are resized when the token grid differs.

    Args:
        network: a transformer without adapters.
        source: path of a local .safetensors file, or a Hugging Face hub id.

    Raises:
        UserError: the file cannot be downloaded or read, or its weights do not fit this network.
    """
    embedding = network.units["0"]
    if not isinstance(embedding, PatchEmbedding):
        raise UserError(
            f"network.pretrained is {source}, but only transformers (deit_tiny) take pretrained weights: leave it empty"
        )
    state = _translated(_read(source), network, embedding, source)
    ours = network.state_dict()
    for key, tensor in state.items():
        if tensor.shape != ours[key].shape:
            raise UserError(
                f"network.pretrained {source} does not fit: {key} is {tuple(tensor.shape)} in the file and "
                f"{tuple(ours[key].shape)} in the network"
            )
    network.load_state_dict(state, strict=False)


def _read(source: str) -> dict[str, Tensor]:
    path = Path(source) if source.endswith(".safetensors") else _downloaded(source)
    if not path.is_file():
        raise UserError(f"network.pretrained {source} is not a file: give a .safetensors file or a hub id")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"network.pretrained {source} is not a readable .safetensors file ({error})") from error
    return {key: tensor.float() for key, tensor in tensors.items()}


def _downloaded(repository: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(
            f"network.pretrained {repository} is on the hub: pip install -e '.[simulation]', or give a local file"
        ) from error
    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except (OSError, ValueError) as error:
        raise UserError(f"network.pretrained {repository} cannot be downloaded ({error}): give a local file") from error


def _translated(
    theirs: dict[str, Tensor], network: EarlyExitNetwork, embedding: PatchEmbedding, source: str
) -> dict[str, Tensor]:
    names, root = _layout(theirs, source)

    def get(name: str) -> Tensor:
        if root + name not in theirs:
            raise UserError(f"network.pretrained {source} does not fit: it has no {root + name}")
        return theirs[root + name]

    state = {
        "units.0.class_token": get(names.class_token),
        "units.0.positions": _resized(get(names.positions), embedding.grid, source),
        "units.0.projection.weight": get(f"{names.patches}.weight"),
        "units.0.projection.bias": get(f"{names.patches}.bias"),
    }
    for index, unit in enumerate(network.units.values()):
        if not isinstance(unit, EncoderBlock):
            continue
        block = names.block.format(index - 1)
        for kind in ("weight", "bias"):
            packed = [get(f"{block}{name}.{kind}") for name in names.query_key_value]
            state[f"units.{index}.self_attention.in_proj_{kind}"] = torch.cat(packed)
            for our, their in names.modules.items():
                state[f"units.{index}.{our}.{kind}"] = get(f"{block}{their}.{kind}")
    return state


def _layout(theirs: dict[str, Tensor], source: str) -> tuple[_Names, str]:
    """Return the names that a file uses and their common prefix, such as "vit."."""
    # Hugging Face's class token has timm's as its ending, so it is checked first.
    for names in (_HUGGING_FACE, _TIMM):
        for key in theirs:
            if key.endswith(names.class_token):
                return names, key.removesuffix(names.class_token)
    raise UserError(f"network.pretrained {source} holds no vision transformer in timm's or Hugging Face's names")


def _resized(positions: Tensor, grid: tuple[int, int], source: str) -> Tensor:
    """Return positions (1, 1 + patches, D) for a grid (rows, columns) of patches, interpolated bicubically."""
    side = math.isqrt(positions.shape[1] - 1)
    if side * side != positions.shape[1] - 1:
        raise UserError(
            f"network.pretrained {source} does not fit: {positions.shape[1]} positions are no class token and a square"
        )
    if grid == (side, side):
        return positions
    plane = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    plane = functional.interpolate(plane, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:, :1], plane.flatten(2).transpose(1, 2)], dim=1)
