"""Figures of speed and memory: deployed rounds, simulations, what the server holds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.tables.cells import Figures, Read, percent, table

ROUNDS = {
    "flower": "Flower's own way",
    "worker": "a worker keeps torch",
    "stand-in": "and a process keeps Flower, whose polls follow the traffic",
    "stream": "by a stream",
    "stream-tls": "by a stream with TLS",
}
STARTS = {
    "before": "`server run` of the version before: SuperLink, Ray, two workers",
    "ray": "`server run`: Ray, two workers",
    "in-process": "`server run --in-process`",
}
IDLE = {"flower": "Flower's own way", "stream": "our SuperNode", "launcher": "with `client start` beside it"}
PHASES = {"poll": "waiting for the SuperNode's poll", "start": "the start of a process", "pull": "fetching the message",
          "send": "sending the reply"}  # fmt: skip
POLLS = {"flower": "Flower's", "answers": "by the SuperLink's answers alone", "nodes": "and by the number of nodes"}
NODES = (2, 100, 300)
SIMULATIONS = {"lenet": "LeNet, 51 k parameters", "1.6M": "LeNet, 1.6 M parameters"}


def figures(read: Read) -> Figures:
    """Return every figure of the sections on speed and memory."""
    rounds = read("memory")["rounds"]
    virtual = read("cifar10_300_clients")["rounds"]
    simulated = read("simulation")
    shares = [simulated[name]["of_bare_per_cpu_second"]["ray"] for name in SIMULATIONS]
    return {
        "deployment": deployment(read),
        "phases": _phases(read),
        "idle": ", ".join(_idle(title, read("idle")[case]) for case, title in IDLE.items()),
        **_idle_memory(read),
        "streams": streams(read),
        "streams_gbit": _gigabits(read),
        "streams_on_link": _on_link(read),
        "nodes": nodes(read),
        "superlink_alone": percent(
            median(read("nodes")[f"{count} {case}"]["alone"]["share_of_a_core"] for count in NODES for case in POLLS), 0
        ),
        **dict(_beside(read)),
        "start": start(read),
        "start_repeats": str(read("start")["repeats"]),
        "start_first": _gains(read, "first_round_s"),
        "start_whole": _gains(read, "whole_s"),
        "layout": layout(read),
        "deployed_s": f"{read('deployment')['stream-tls']['seconds_per_round']:.2f}",
        "simulation": simulation(read),
        "ray_share": f"{min(shares):.2f} to {max(shares):.2f}",
        "idle_small": f"{simulated['lenet']['noop']['seconds_per_round']:.2f}",
        "idle_large": f"{simulated['1.6M']['noop']['seconds_per_round']:.1f}",
        "clients_300_rounds": str(len(virtual)),
        "clients_300_seconds": f"{sum(one['seconds']['round'] for one in virtual):.0f}",
        "memory_model": f"{rounds[0]['model']:.0f}",
        "memory_live": f"{max(one['tensors_between_replies'] for one in rounds):.0f}",
        "memory_uploaded": f"{rounds[-1]['uploaded'] / 1024:.1f}",
    }


def deployment(read: Read) -> str:
    """Return the table of what a deployed round takes."""
    return _by_case(read("deployment"), ROUNDS, ("seconds a round", "CPU-seconds a message"), lambda case: (
        f"{case['seconds_per_round']:.2f}", f"{case['cpu_seconds_per_message']:.2f}",
    ))  # fmt: skip


def _phases(read: Read) -> str:
    """Return where the seconds of a round by messages go, in our way of running Flower."""
    took = read("deployment")["stand-in"]["phases"]
    return ", ".join(f"{took[phase]:.1f} s {title}" for phase, title in PHASES.items())


def _idle(title: str, case: Mapping[str, float]) -> str:
    return f"{title} {percent(case['share_of_a_core'], 2)} % and {case['requests_per_second']:.2f}"


def _idle_memory(read: Read) -> Figures:
    """Return the MB of a device's launcher, and of all its processes beside those of Flower's own way."""
    idle = read("idle")
    return {
        "idle_launcher_mb": f"{idle['launcher']['first_process_mb']:.0f}",
        "idle_all_mb": f"{idle['launcher']['all_mb']:.0f}",
        "idle_flower_mb": f"{idle['flower']['all_mb']:.0f}",
    }


def start(read: Read) -> str:
    """Return the table of how long a user waits for a simulation to begin and to end."""
    head = ("seconds to the end of the first round", "CPU-seconds till then", "seconds in all")
    keys = ("first_round_s", "cpu_seconds_to_first_round", "whole_s")
    return _by_case(read("start"), STARTS, head, lambda case: [f"{case[key]:.1f}" for key in keys])


def _gains(read: Read, name: str) -> str:
    gains = read("start")["times_as_fast"][name]
    return f"{min(gains):.2f} to {max(gains):.2f}"


def layout(read: Read) -> str:
    """Return the table of a training step in both layouts of its images."""
    rows = [
        (title, str(found["batch"]), f"{found['planes_ms']:.0f}", f"{found['channels_last_ms']:.0f}",
         f"{found['times_as_fast']:.2f}")
        for title, found in read("layout")["networks"].items()
    ]  # fmt: skip
    return table(("network", "batch", "ms, a plane per channel", "ms, channels last", "times as fast"), rows)


def nodes(read: Read) -> str:
    """Return the table of what the polls of many nodes cost a SuperLink."""
    result = read("nodes")
    windows = ("message", "settled")
    measured = ("polls a second", "of a core", "ms a poll, median and 95 %")
    head = (*("nodes", "pace"), *(f"{when}: {what}" for when in ("after a message", "later") for what in measured))
    return table(head, (
        (str(count), title, *(cell for window in windows for cell in _polls(result[f"{count} {case}"][window])))
        for count in NODES for case, title in POLLS.items()
    ))  # fmt: skip


def _beside(read: Read) -> Iterator[tuple[str, str]]:
    """Yield the seconds that a run's first round and the others take, alone and beside other nodes."""
    for name, others in (("alone", 0), ("beside", 100)):
        run = read("nodes")[f"run beside {others}"]
        least, most = (f"{end(run['first_rounds_s']):.0f}" for end in (min, max))
        yield f"{name}_first", least if least == most else f"{least} to {most}"
        yield name, f"{run['round_s']:.2f}"


def _polls(window: Mapping[str, float]) -> tuple[str, ...]:
    took = " and ".join(f"{1000 * window[key]:.0f}" for key in ("poll_median_s", "poll_p95_s"))
    return f"{window['polls_per_second']:.1f}", f"{percent(window['share_of_a_core'], 0)} %", took


def _by_case(
    result: Mapping[str, Any], titles: Mapping[str, str], head: Sequence[str], cells: Callable[[Any], Sequence[str]]
) -> str:
    return table(("", *head), ((title, *cells(result[name])) for name, title in titles.items()))


def streams(read: Read) -> str:
    """Return the table of the rounds' stream itself."""
    result = read("streams")
    rows = []
    for case in (name.removesuffix(", bare socket") for name in result if name.endswith(", bare socket")):
        plain, tls = result[case], result[f"{case}, TLS"]
        bare = result[f"{case}, bare socket"]["seconds"]
        rows.append(
            (case, *(f"{1000 * seconds:.0f}" for seconds in (plain["seconds"], tls["seconds"], bare)),
             f"{max(plain['server_peak_mb'], tls['server_peak_mb']):.0f}")
        )  # fmt: skip
    head = ("", "ms a round", "with TLS", "bare socket", "MB that the server took beyond one model")
    return table(head, rows)


def _gigabits(read: Read) -> str:
    """Return how many gigabits a second the large models come to, with TLS and without."""
    result = read("streams")
    bits = 2 * 2 * 8 * (100 << 20)  # to two nodes and back
    return " and ".join(f"{bits / result[f'2 nodes, 100 MB{how}']['seconds'] / 1e9:.1f}" for how in (", TLS", ""))


def _on_link(read: Read) -> str:
    """Return how many times as long as the bare socket the stream takes on a link of 1 Gbit/s, with TLS and without."""
    result, case = read("streams"), "2 nodes, 100 MB, a link of 1 Gbit/s"
    bare = result[f"{case}, bare socket"]["seconds"]
    return " and ".join(f"{result[f'{case}{how}']['seconds'] / bare:.2f}" for how in (", TLS", ""))


def simulation(read: Read) -> str:
    """Return the table of clients per CPU-second, and wall-clock speed, over a bare PyTorch loop."""
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
