"""The demo: a training run is killed, goes on without its source, and ends as if nothing happened.

1. ``digits_train.py`` trains a CNN with flax and optax, to the end.
2. The same once more, but the process is killed with SIGKILL on its way.
3. ``digits_resume.py`` goes on from the last checkpoint in an environment without flax, optax or
   the source of the model, and then differentiates the imported model by its input.
4. Here: is the final state that of the first run, to the last bit? And a picture.

    python examples/digits.py
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import bare_environment
import jax
import matplotlib as mpl
import numpy as np
import orbax.checkpoint as ocp
from matplotlib.figure import Figure

import jaxmeta as jm

HERE = pathlib.Path(__file__).parent
KILL_AFTER = 137  # steps
ABSENT = ("flax", "optax", "sklearn", "matplotlib", "tensorflow", "digits_train")

Metrics = dict[int, dict[str, float]]


def train(directory: pathlib.Path) -> None:
    """Runs the training script to its end."""
    command = [sys.executable, str(HERE / "digits_train.py"), str(directory)]
    subprocess.run(command, check=True)


def train_and_kill(directory: pathlib.Path) -> None:
    """Starts the training script and kills it after some steps."""
    command = [sys.executable, str(HERE / "digits_train.py"), str(directory)]
    process = subprocess.Popen(command)
    try:
        while (
            process.poll() is None and len(read_metrics(directory / "metrics.jsonl")) < KILL_AFTER
        ):
            time.sleep(0.002)
    finally:
        process.kill()
    print(file=sys.stderr)
    if process.wait() != -signal.SIGKILL:
        raise SystemExit(f"the training script ended by itself, with {process.returncode}")


def read_metrics(path: pathlib.Path) -> Metrics:
    """Returns the metrics of each step; a line that the kill cut short is left out."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    return {line.pop("step"): line for line in lines}


def read_arrays(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of the last checkpoint by path. Plain Orbax does it: the format is its."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(pathlib.Path(str(jm.latest_checkpoint(directory))).resolve())
    flat, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in flat}


def differences(expected: dict[Any, Any], found: dict[Any, Any]) -> list[Any]:
    """Returns the keys of ``found`` whose values are not, bit by bit, the expected ones."""
    return [key for key in found if not _is_same(expected.get(key), found[key])]


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return a == b


def draw(path: pathlib.Path, whole: Metrics, killed: Metrics, resumed: Metrics) -> None:
    """Writes the picture: loss curves on the left, saliency maps over digits on the right."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1))
    _draw_losses(left.subplots(), whole, killed, resumed)
    _draw_saliency(right, dict(np.load(path.parent / "killed" / "saliency.npz")))
    figure.savefig(path, dpi=110)


def _draw_losses(axes: Any, whole: Metrics, killed: Metrics, resumed: Metrics) -> None:
    def plot(metrics: Metrics, **style: Any) -> None:
        axes.semilogy(list(metrics), [line["loss"] for line in metrics.values()], **style)

    plot(whole, color="0.8", linewidth=5, label="never interrupted")
    plot(killed, color="tab:blue", linewidth=2.5, label="flax and optax, killed")
    plot(resumed, color="tab:red", linewidth=1.0, label="resumed by jaxmeta alone")
    for step, color, text, align in (
        (max(killed), "tab:blue", f" SIGKILL\n after step {max(killed)}", "left"),
        (min(resumed) - 1, "tab:red", f"resumed from \nstep {min(resumed) - 1} ", "right"),
    ):
        axes.axvline(step, color=color, linewidth=0.8, linestyle=":")
        axes.text(step, 0.78, text, color=color, ha=align, transform=axes.get_xaxis_transform())
    axes.set(xlabel="step", ylabel="loss", title="The loss of each step, and the kill")
    axes.legend(frameon=False, loc="lower left")


def _draw_saliency(figure: Any, shown: dict[str, np.ndarray]) -> None:
    figure.suptitle(
        "d loss / d pixel: more ink raises (red) or lowers (blue) the loss", fontsize=10
    )
    columns = figure.subplots(2, len(shown["label"])).T
    for (above, below), image, label, guess, saliency in zip(columns, *shown.values(), strict=True):
        above.imshow(image, cmap="gray_r")
        limit = np.abs(saliency).max()
        below.imshow(saliency, cmap="RdBu_r", vmin=-limit, vmax=limit)
        above.set_title(f"{label}" if label == guess else f"{label}, taken for {guess}", fontsize=9)
        above.set_axis_off()
        below.set_axis_off()


def report(out: pathlib.Path, picture: pathlib.Path, killed: Metrics, resumed: Metrics) -> None:
    """Prints what was done, where the files are, and what to try next."""
    prefix = jm.latest_checkpoint(out / "killed")
    meta = pathlib.Path(f"{prefix}.meta")
    command = pathlib.Path(sys.executable).with_name("jaxmeta")
    jaxmeta = shown(command) if command.exists() else f"{shown(sys.executable)} -m jaxmeta"
    print(f"""
The process was killed after step {max(killed)}. Another one, which could import none of
{", ".join(ABSENT)}, went on from step {min(resumed) - 1} to step {max(resumed)}.
All {len(killed) + len(resumed)} steps gave the numbers of the run that was never interrupted, and
the final state is the same to the last bit.

  the program   {shown(meta)}  ({meta.stat().st_size / 1000:.0f} kB)
  its state     {shown(prefix)}/  (an ordinary Orbax checkpoint)
  the picture   {shown(picture)}

Try next:
  {jaxmeta} show {shown(meta)}
  {jaxmeta} run {shown(meta)} --signature predict --feed random
""")


def shown(path: str | os.PathLike[str] | None) -> str:
    """Returns a path as it is best typed: relative if it is below the current directory."""
    relative = os.path.relpath(str(path))
    return str(path) if relative.startswith(os.pardir) else relative


def main(out: pathlib.Path) -> int:
    """Runs the demo; returns the exit code."""
    whole_dir, killed_dir = out / "uninterrupted", out / "killed"
    for directory in (whole_dir, killed_dir):
        shutil.rmtree(directory, ignore_errors=True)
    print("[1/4] Training with flax and optax, to the end", flush=True)
    train(whole_dir)
    print(f"[2/4] The same again; SIGKILL comes after step {KILL_AFTER}", flush=True)
    train_and_kill(killed_dir)
    print("[3/4] Going on in an environment without flax, optax and the model's source", flush=True)
    absent = ["--without", *ABSENT]
    bare_environment.run_script(HERE / "digits_resume.py", str(killed_dir), *absent, extra=["tqdm"])

    print("[4/4] Comparing and drawing", flush=True)
    whole, killed, resumed = (
        read_metrics(path / name)
        for path, name in (
            (whole_dir, "metrics.jsonl"),
            (killed_dir, "metrics.jsonl"),
            (killed_dir, "metrics_resumed.jsonl"),
        )
    )
    arrays, expected_arrays = read_arrays(killed_dir), read_arrays(whole_dir)
    different = [
        *(f"step {step} before the kill" for step in differences(whole, killed)),
        *(f"step {step} after it" for step in differences(whole, resumed)),
        *(f"step {step} is missing" for step in sorted({*whole} - {*killed, *resumed})),
        *differences(expected_arrays, arrays),
        *(f"{path} is missing" for path in expected_arrays.keys() - arrays.keys()),
    ]
    picture = out / "digits.png"
    draw(picture, whole, killed, resumed)
    if different:
        print("NOT bit-identical to the uninterrupted run:", *different, sep="\n  ")
        return 1
    report(out, picture, killed, resumed)
    return 0


if __name__ == "__main__":
    # So small a model is as fast there. On a GPU: JAX_PLATFORMS=cuda, and for the same bits in
    # every run XLA_FLAGS=--xla_gpu_deterministic_ops=true.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/digits"))
    try:
        sys.exit(main(parser.parse_args().out.resolve()))
    except subprocess.CalledProcessError as error:
        sys.exit(f"The demo failed: {error}")
