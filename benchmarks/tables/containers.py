"""Figures of Docker: what the stacks take on an engine, and how large images and processes are."""

from benchmarks.tables.cells import Figures, Read, table

DEMO, STOPPED = "test_demo_completes_with_readme_command", "test_trained_client_and_run_stop_in_time"
TLS = "test_tls_stack_completes_and_split_training_passes_proxy"
# test, its figure, what it is, and how it ends, which the test checks
ROWS = (
    (DEMO, "seconds", "the demo, five rounds, after the build", "run, server and four devices end with code 0"),
    (TLS, "seconds", "the same with TLS, keys and the proxy", "code 0"),
    (TLS, "split_s", "split training through the proxy, two rounds", "code 0, no batch missing"),
    (STOPPED, "client_s", "`docker stop` of a trained device", "code 0"),
    (STOPPED, "run_s", "`docker stop` of the run", "code 130, the run is stopped in Flower, too"),
    (
        "test_killed_client_comes_back_with_its_personal_head", "whole_s", "a device killed after one round of ten",
        "code 0; the device takes part again, with its own head",
    ),
    (
        "test_killed_server_resumes", "whole_s", "the server killed after some rounds of 30, and the run resumed",
        "code 0, every round whole",
    ),
    (
        "test_students_in_containers_answer_and_one_may_be_gone", "whole_s", "students in containers, then without one",
        "code 0, every image has a label",
    ),
)  # fmt: skip


def figures(read: Read) -> Figures:
    """Return every figure of Docker's section."""
    result = read("docker")
    tests, images = result["tests"], result["images"]
    memory = {name.removesuffix("_mb"): value for name, value in tests[DEMO].items() if name.endswith("_mb")}
    devices = [value for name, value in memory.items() if name.startswith("client")]
    return {
        "table": table(
            ("", "seconds", "ends"),
            ((title, f"{tests[test][name]:.0f}", end) for test, name, title, end in ROWS),
        ),
        "device_mb": f"{max(devices):.0f}",
        "server_mb": f"{memory['server']:.0f}",
        "run_mb": f"{memory['run']:.0f}",
        "client_gb": f"{images['earlybloom-client_mb'] / 1000:.1f}",
        "device_image_mb": f"{tests['test_image_is_small_and_has_neither_torch_nor_flower']['image_mb']:.0f}",
    }
