"""Hyper-parameters of the personalised methods."""

from typing import Literal

from pydantic import Field

from common.settings import Settings


class PersonalSettings(Settings):
    """What all personalised methods share."""

    SECTION = "personal"

    batchnorm: Literal["local", "averaged"] = "local"
    """running statistics: local (FedBN, Li et al., ICLR 2021), or averaged like weights"""
    finetune_epochs: int = Field(5, ge=1)
    """FedBABU's and fine-tuned FedAvg's last epochs, on each client before it is evaluated"""


class DittoSettings(Settings):
    """Hyper-parameters of Ditto."""

    SECTION = "ditto"

    pull: float = Field(0.1, ge=0)
    """lambda: 0 is local training beside FedAvg, large values are FedAvg"""
    epochs: int = Field(0, ge=0)
    """local epochs of the personal network; 0: train.epochs"""


class FedRepSettings(Settings):
    """Hyper-parameters of FedRep."""

    SECTION = "fedrep"

    head_epochs: int = Field(5, ge=0)
    """epochs of the heads before the backbone's"""
