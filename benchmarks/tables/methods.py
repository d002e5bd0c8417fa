"""README's table of methods: what each does, a command, and what was measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.tables import baselines, cafedistill, darkdistill, distree, hetero_splitee
from benchmarks.tables.cells import Read, table

RUN = "python -m server run"
PERSONAL = "-c data.client-test=0.25"


@dataclass(frozen=True)
class Row:
    """A method's row."""

    does: str
    command: str  # the options after `python -m server run`
    measured: Callable[[Read], str]
    page: str = ""  # of the method; empty: it has none


def _darkdistill(read: Read) -> str:
    ours, decay, real = (
        darkdistill.bound_gain(read, variant) for variant in ("darkdistill", "eefl, decay", "real images, half rate")
    )
    return (
        f"{ours} points over `eefl` on CIFAR-10 at 16x16, weight decay alone {decay}, real images in place of "
        f"generated ones {real} at best: no gain shown"
    )


def _eefl(read: Read) -> str:
    return f"{baselines.eefl(read)} % on CIFAR-10, 30 rounds, mean of four exits"


def _over_eefl(method: str) -> Callable[[Read], str]:
    return lambda read: f"{baselines.over_eefl(read, method)} points over `eefl` on CIFAR-10, 30 rounds"


def _fedavg(read: Read) -> str:
    return f"last exit {baselines.over_eefl(read, 'fedavg')} points over `eefl`'s on CIFAR-10, 30 rounds"


def _cafedistill(read: Read) -> str:
    small, full = cafedistill.over_fedper(read), cafedistill.full_over_fedper(read)
    return (
        f"points over `fedper` on skewed CIFAR-10: {small} after 40 rounds, at twice the width {full} after 80; the "
        "published weights are unstable"
    )


def _personal(read: Read) -> str:
    found = ", ".join(f"`{name}` {cafedistill.accuracy(read, name)} %" for name in cafedistill.baselines(read))
    others = ", ".join(f"`{name}` {over}" for name, over in cafedistill.over_others(read).items())
    return f"{found} on skewed CIFAR-10, 40 rounds; points over `fedper`: {others}"


def _hetero_splitee(read: Read) -> str:
    def modes(name: str) -> str:
        return "; ".join(
            f"`{mode}` {hetero_splitee.server_exit(read, mode, name)} %, "
            f"{hetero_splitee.over_standalone(read, mode, name)}"
            for mode in ("averaging", "sequential")
        )

    return (
        f"points over devices alone, CIFAR-10 at 16x16 in equal shares: {modes('split_accuracy')}; with unlike classes "
        f"and `splitee.prior=own`: {modes('split_skewed')}"
    )


def _distree(read: Read) -> str:
    last, saved, lost = (
        figure(read) for figure in (distree.last_exit, distree.calibrated_saved, distree.calibrated_lost)
    )
    return (
        f"two students {last} % on CIFAR-10; early exits save {saved} % of the MACs for {lost} points; their rule is "
        f"{distree.whole_over_papers(read)} points over the paper's where both save 27.6 % (16x16)"
    )


METHODS: Mapping[str, Row] = {
    "`darkdistill`": Row(
        "generated samples let shallow models teach deeper ones on the server (KDD 2025)",
        "-c run.strategy=darkdistill", _darkdistill, "strategies/darkdistill/README.md",
    ),
    "`eefl`": Row(
        "layer-wise averaging of early-exit prefixes: the baseline that counts",
        "-c run.strategy=eefl -c run.name=teacher", _eefl,
    ),
    "`depthfl`": Row(
        "mutual self-distillation among a client's exits (ICLR 2023)", "-c run.strategy=depthfl", _over_eefl("depthfl")
    ),
    "`exclusivefl`": Row(
        "only devices that carry the whole network take part", "-c run.strategy=exclusivefl", _over_eefl("exclusivefl")
    ),
    "`fedavg`": Row(
        "the whole network, last exit only, on capable devices (2017)", "-c run.strategy=fedavg", _fedavg
    ),
    "`fedprox`": Row(
        "`eefl` with a pull towards the server's weights (2020)", "-c run.strategy=fedprox", _over_eefl("fedprox")
    ),
    "`inclusivefl`": Row(
        "`eefl`, and larger models' gradients go into the last layers of smaller ones (KDD 2022)",
        "-c run.strategy=inclusivefl", _over_eefl("inclusivefl"),
    ),
    "`reefl`": Row(
        "one recurrent classifier for all exits; a client's best exit teaches the others (ICML 2024)",
        "-c run.strategy=reefl -c train.lr=0.01", _over_eefl("reefl"),
    ),
    "`median`": Row(
        "`eefl` with the coordinate-wise median in place of the mean", "-c run.strategy=median", _over_eefl("median")
    ),
    "`cafedistill`": Row(
        "personal networks: similar clients' last exits teach shallow ones (arXiv 2601.10015)",
        f"-c run.strategy=cafedistill {PERSONAL}", _cafedistill, "strategies/cafedistill/README.md",
    ),
    "`fedper` `fedrep` `fedbabu` `ditto` `fedavg_ft` `local`": Row(
        "personal baselines", f"-c run.strategy=fedper {PERSONAL}", _personal, "strategies/personalised"
    ),
    "`hetero_splitee`": Row(
        "devices train the first layers, the server the rest from streamed features (arXiv 2512.09313)",
        "-c run.strategy=hetero_splitee", _hetero_splitee, "strategies/hetero_splitee/README.md",
    ),
    "`distree`": Row(
        "one teacher becomes small students, one per device, that answer together (arXiv 2502.15735)",
        "-c run.strategy=distree -c distree.teacher=runs/teacher", _distree, "strategies/distree/README.md",
    ),
}  # fmt: skip


def methods(read: Read) -> str:
    """Return the table."""
    return table(
        ("method", "what it does", "how to start it", "measured"),
        (
            (
                f"[{name}]({row.page})" if row.page else name,
                row.does,
                f"`{RUN} {row.command}`",
                row.measured(read),
            )
            for name, row in METHODS.items()
        ),
    )
