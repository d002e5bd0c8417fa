"""Tables of speed: deployed rounds, the streams of split training, simulations."""

from typing import Any

from benchmarks.readme.cells import Read, table

ROUNDS = {
    "flower": "Flower's own way",
    "worker": "a worker keeps torch",
    "stand-in": "and a process keeps Flower (`client start`)",
}
STREAMS = {
    "slim ResNet, cut 1, fp32 / bf16": ("resnet_slim, cut 1, sequential, fp32", "resnet_slim, cut 1, sequential, bf16"),
    "slim ResNet, cut 3, fp32 / bf16": ("resnet_slim, cut 3, sequential, fp32", "resnet_slim, cut 3, sequential, bf16"),
    "ResNet-18, cut 3 / cut 7, fp32": ("resnet18, cut 3, sequential, fp32", "resnet18, cut 7, sequential, fp32"),
}
SIMULATIONS = {"lenet": "LeNet, 51 k parameters", "1.6M": "LeNet, 1.6 M parameters"}


def deployment(read: Read) -> str:
    """What a deployed round takes."""
    result = read("deployment")
    return table(
        ("", "seconds a round", "CPU-seconds a message"),
        (
            (title, f"{result[case]['seconds_per_round']:.1f}", f"{result[case]['cpu_seconds_per_message']:.1f}")
            for case, title in ROUNDS.items()
        ),
    )


def streams(read: Read) -> str:
    """Streams against the same training in one process."""
    speed = read("split")["speed"]

    def both(cases: tuple[str, str], key: str) -> str:
        return " / ".join(f"{speed[case]['2 devices, TLS'][key]:.2f}" for case in cases)

    return table(
        ("", "per CPU-second", "wall-clock"),
        ((title, both(cases, "cpu_speed"), both(cases, "speed")) for title, cases in STREAMS.items()),
    )


def simulation(read: Read) -> str:
    """Clients per CPU-second, and wall-clock speed, over a bare PyTorch loop."""
    result = read("simulation")
    return table(
        (
            *("", "this project, in-process", "this project, Ray", "Flower's FedAvg, a node per client"),
            "Ray, wall-clock",
        ),
        (_simulation_row(title, result[name]) for name, title in SIMULATIONS.items()),
    )


def _simulation_row(title: str, result: dict[str, Any]) -> tuple[str, ...]:
    share = result["of_bare_per_cpu_second"]
    return title, *(f"{share[way]:.2f}" for way in ("local", "ray", "flower")), f"{result['ray_speed_over_bare']:.2f}x"
