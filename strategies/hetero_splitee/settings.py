"""Hyper-parameters of Hetero-SplitEE (Oda et al., arXiv 2512.09313).

Its summary fixes the shape: devices train on their own exit alone, no gradient comes back, the server keeps one model
("sequential") or one per client ("averaging"). Details that it leaves open are marked "reconstructed" below, with the
related method whose published code or paper the choice follows: DTFL, SplitFed (SFLV1, SFLV2) or alternate mini-batch
training (Gawali et al., arXiv 2012.12591). None of its numbers is known.
"""

from itertools import pairwise
from typing import Literal

from pydantic import Field

from common.settings import DistinctInts, Settings, shown


class SplitEESettings(Settings):
    """All choices of split training; momentum and weight decay are the `train` section's on both sides."""

    SECTION = "splitee"

    # The paper has both and prefers neither; one model needs least memory
    mode: Literal["sequential", "averaging"] = "sequential"
    """server models: sequential: one for all clients; averaging: one copy per client"""
    # Reconstructed: alternate mini-batches beat alternate clients in split learning (Gawali et al.)
    granularity: Literal["batch", "epoch"] = "batch"
    """sequential: clients take turns by mini-batch, or by full local epoch"""
    # Not in the paper. Features differ between cuts, and running statistics cover the last ~20 batches only
    statistics: Literal["own", "cut", "shared"] = "cut"
    """batch norm's running statistics, on both sides: own: each client's; by cut; shared: one set for all"""
    # Not in the paper. A network that unlike clients share learns class frequencies that none of them has
    prior: Literal["none", "own"] = "none"
    """own, for unlike classes: each client's class frequencies adjust both exits, in training and in answers"""
    # Unknown in the paper
    turns: Literal["fixed", "shuffled"] = "fixed"
    """sequential: order of clients in a turn: by id, or drawn for each round"""
    # Reconstructed: the paper ties aggregation to the server models ("server"); "global" is what DTFL does, and better
    aggregate_scope: Literal["auto", "server", "global"] = "auto"
    """averaging: global averages devices' layers along with the server's copies; auto: global without client-sync"""
    # Reconstructed ("periodic" in the paper): SFLV1 and DTFL aggregate after every local epoch
    period: int = Field(1, ge=1)
    """rounds between aggregations, of server copies and of devices: of this round's, unless the scope is global"""
    # Reconstructed: the paper mentions no upload of device weights ("none"); a shared server is better with it
    client_sync: Literal["auto", "none", "same_cut", "prefix"] = "auto"
    """same_cut: average devices with equal cuts; prefix: each unit over all its holders; auto: prefix, if sequential"""
    gradient: Literal["stop", "return"] = "stop"
    """stop: the paper's; return: split learning: SFLV1 with averaging, SFLV2 with sequential"""
    exit_weight: float = Field(0.0, ge=0)
    """weight of the device's exit loss, with gradient return only; split learning has no exit loss"""
    cuts: DistinctInts = ()
    """cuts offered to devices: units before the cut, rising; empty: every one"""
    coding: Literal["fp32", "bf16", "fp16", "uint8"] = "fp32"
    """number format of features and gradients; uint8 quarters the traffic"""
    server_lr: float = Field(0.0, ge=0)
    """server's learning rate, decays with train.lr-decay (reconstructed: no value is known); 0: train.lr"""
    vectorise: Literal["auto", "always", "never"] = "auto"
    """averaging: train copies of one cut together; auto: on a GPU"""

    @property
    def scope(self) -> Literal["server", "global"]:
        """Return the scope of an average, with "auto" decided."""
        if self.aggregate_scope != "auto":
            return self.aggregate_scope
        return "global" if self.mode == "averaging" and self.client_sync in ("auto", "none") else "server"

    @property
    def sync(self) -> Literal["none", "same_cut", "prefix"]:
        """Return which devices' parts are averaged among themselves, with "auto" decided."""
        if self.client_sync != "auto":
            return self.client_sync
        return "prefix" if self.mode == "sequential" else "none"

    def other_mistakes(self) -> list[str]:
        """Check the cuts, and choices that exclude each other."""
        found = [sentence for impossible, sentence in self._combinations() if impossible]
        if any(a >= b for a, b in pairwise((0, *self.cuts))):
            found.insert(0, f"splitee.cuts is {shown(self.cuts)}, must rise and start at 1 or more")
        return found

    def run_mistakes(self, units: int) -> list[str]:
        """Check that every cut leaves layers for the server."""
        if not units or max(self.cuts, default=0) < units:
            return []
        return [f"splitee.cuts is {shown(self.cuts)}, but the network has {units} units: cuts end at {units - 1}"]

    def aggregates(self, round_: int) -> bool:
        """Return whether models are averaged at the end of this round, counted from 1."""
        return round_ % self.period == 0

    def _combinations(self) -> list[tuple[bool, str]]:
        sequential = self.mode == "sequential"
        return [
            # a model that every client trains would outweigh the devices' layers in an average
            (
                sequential and self.aggregate_scope == "global",
                'splitee.aggregate-scope "global" needs splitee.mode "averaging": one shared model has no copies',
            ),
            (
                sequential and self.vectorise == "always",
                'splitee.vectorise "always" needs splitee.mode "averaging": one shared model trains client by client',
            ),
            (
                sequential and self.sync == "none" and self.period > 1,
                'splitee.period needs splitee.mode "averaging", or a splitee.client-sync other than "none": otherwise '
                "nothing is averaged",
            ),
            (
                not sequential and self.granularity == "epoch",
                'splitee.granularity "epoch" needs splitee.mode "sequential": copies do not take turns',
            ),
            (
                self.turns == "shuffled" and self.granularity == "epoch",
                'splitee.turns "shuffled" needs splitee.granularity "batch": nodes train whole epochs by client id',
            ),
            (
                not sequential and self.turns == "shuffled",
                'splitee.turns "shuffled" needs splitee.mode "sequential": copies do not take turns',
            ),
            (
                self.aggregate_scope == "global" and self.client_sync not in ("auto", "none"),
                'splitee.aggregate-scope "global" needs splitee.client-sync "none": it averages devices itself',
            ),
            (
                self.gradient == "return" and self.coding == "uint8",
                'splitee.gradient "return" needs splitee.coding "fp32", "bf16" or "fp16": 256 levels hold no gradient',
            ),
            (
                self.gradient == "stop" and self.exit_weight > 0,
                'splitee.exit-weight needs splitee.gradient "return": otherwise the exit loss is the only one',
            ),
        ]
