"""An exported network: a graph per segment between exits, and beside them one JSON file with everything else.

model.json          what is here, and the size and digest of every other file
segment-K.onnx      from the tensor after exit K-1 to (the next tensor, the logits of exit K)
classifier.safetensors  of a student: its columns of the classifier, and its own heads
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.data.text import PADDING, PATTERN
from common.errors import UserError
from common.exits.policy import ThresholdPolicy

FILE = "model.json"
CLASSIFIER = "classifier.safetensors"
SEGMENTS = "segment-*.onnx"
FORMAT = 1
# Names in the graphs: what goes in, and what comes out, of which the last goes into the next segment as CARRIED
INPUT, CARRIED, FEATURES, LOGITS, HANDED_ON = "input", "carried", "features", "logits", "handed_on"
REMEDY = "export the model again with `python -m server export`"
WORDS = {
    "network": "a network that answers alone",
    "split": "a device's half of a split network",
    "student": "a student",
}


class Plain(BaseModel):
    """A part of the JSON file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Stored(Plain):
    """A file beside the JSON."""

    file: str = Field(pattern=r"^[\w.-]+$")
    bytes: int
    sha256: str


class Segment(Stored):
    """A graph."""

    macs: int  # of a sample that leaves at its exit


class Images(Plain):
    """The network takes (pixel / 255 - mean) / std of RGB or grey images, resized bilinearly."""

    kind: Literal["images"] = "images"
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]  # one for all channels, or one each
    std: tuple[float, ...]


class Texts(Plain):
    """The network takes token ids: 1 + crc32(token) % (vocabulary - 1) of each token of the lower-cased text."""

    kind: Literal["texts"] = "texts"
    length: int  # tokens kept
    vocabulary: int  # number of token ids
    pattern: str = PATTERN  # of a token
    hash: Literal["crc32"] = "crc32"
    padding: int = PADDING  # id after a text's end


class Student(Plain):
    """What a student has besides its network."""

    number: int
    length: int  # of a feature
    policies: dict[str, dict[str, Any]]  # exit policies by name
    classifier: Stored


class Quantization(Plain):
    """What int8 costs, on validation samples."""

    samples: int  # that were measured
    calibrated_on: int  # of these, that ranges were taken from
    accuracy_fp32: tuple[float, ...]  # per exit
    accuracy: tuple[float, ...]
    policy_accuracy_fp32: float  # with the exit policies
    policy_accuracy: float
    policy_macs_fp32: float  # mean, of a sample
    policy_macs: float
    policy_refitted: bool


class Exported(Plain):
    """Everything about an exported network but its graphs."""

    format: Literal[1] = 1
    kind: Literal["network", "split", "student"]
    run: str
    network: str  # the backbone
    classes: tuple[str, ...]
    exits: tuple[int, ...]  # units before each exit
    carries: bool = False  # each segment hands something to the next one's exit: in an ensemble, or to recurrent exits
    cut: int = 0  # units of a split network's device half
    feature_shape: tuple[int, ...] = ()  # of one sample at the cut
    client: int | None = None  # whose device half
    input: Images | Texts = Field(discriminator="kind")
    policy: dict[str, Any]  # see `ThresholdPolicy.to_json`; of a student it is not used
    segments: tuple[Segment, ...] = Field(min_length=1)
    student: Student | None = None
    quantization: Quantization | None = None  # None: fp32
    largest_difference: float  # of a logit from torch's, in fp32, on random inputs
    versions: dict[str, str]  # of what made it

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image, (L,) of a text's token ids."""
        given = self.input
        return (given.channels, given.height, given.width) if isinstance(given, Images) else (given.length,)

    @property
    def vocabulary(self) -> int:
        """Number of token ids; 0: images."""
        return self.input.vocabulary if isinstance(self.input, Texts) else 0

    def exit_policy(self) -> ThresholdPolicy:
        """Return the exit policy; raises `UserError` when it is damaged."""
        return ThresholdPolicy.from_json(json.dumps(self.policy))


def is_exported(path: Path) -> bool:
    """Return whether the path is the folder of an exported network, or its JSON file."""
    return path.name == FILE or (path / FILE).is_file()


def read_exported(path: Path, kinds: tuple[str, ...]) -> tuple[Path, Exported]:
    """Return the folder of an exported network and what its JSON file says.

    Raises `UserError` when the file is missing, damaged, of another format, or of a network of no such kind.
    """
    folder = path.parent if path.name == FILE else path
    file = folder / FILE
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"no exported model in {path}: {REMEDY}, and give the folder that it made") from error
    try:
        values = json.loads(text)
        found = values["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged: {REMEDY}") from error
    if found != FORMAT:
        raise UserError(f"{file} has format {found}, this version of EarlyBloom reads format {FORMAT}: {REMEDY}")
    try:
        exported = Exported.model_validate(values)
        _check(exported)
    except (ValidationError, ValueError) as error:
        raise UserError(f"{file} is damaged ({_first(error)}): {REMEDY}") from error
    if exported.kind not in kinds:
        wanted = " or ".join(WORDS[kind] for kind in kinds)
        raise UserError(f"--model {path} is {WORDS[exported.kind]}: give {wanted}")
    return folder, exported


def read_stored(folder: Path, stored: Stored) -> bytes:
    """Return a file's content; raises `UserError` when it is missing, or not the one that was exported."""
    file = folder / stored.file
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): copy the whole folder, or {REMEDY}") from error
    if len(content) != stored.bytes:
        raise UserError(f"{file} has {len(content)} bytes instead of {stored.bytes}: copy it again, or {REMEDY}")
    if hashlib.sha256(content).hexdigest() != stored.sha256:
        raise UserError(f"{file} is not the file that was exported (its digest differs): copy it again, or {REMEDY}")
    return content


def describe(file: str, content: bytes) -> dict[str, Any]:
    """Return the fields of `Stored` for a file's content."""
    return {"file": file, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _check(exported: Exported) -> None:
    """Raise `ValueError` for parts that do not fit each other."""
    if len(exported.segments) != len(exported.exits):
        raise ValueError(f"{len(exported.segments)} segments for {len(exported.exits)} exits")
    if (exported.kind == "student") != (exported.student is not None):
        raise ValueError("only a student has a student's fields")
    if bool(exported.cut) != bool(exported.feature_shape) or (exported.kind == "split" and not exported.cut):
        raise ValueError("a half of a split network has a cut and the shape of its features")
    if isinstance(exported.input, Texts) and exported.input != Texts(
        length=exported.input.length, vocabulary=exported.input.vocabulary
    ):
        raise ValueError("its texts became token ids in another way")
    if isinstance(exported.input, Images):
        for constants in (exported.input.mean, exported.input.std):
            if len(constants) not in (1, exported.input.channels):
                raise ValueError(f"{len(constants)} constants for {exported.input.channels} channels")
        if not all(math.isfinite(value) and value > 0 for value in exported.input.std):
            raise ValueError("constants to divide by are above 0")
    exported.exit_policy()


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
    return str(error)
