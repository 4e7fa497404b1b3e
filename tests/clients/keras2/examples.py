"""Runs the example programs of Keras 2.3.1 that can run without network, and says what each printed last."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.clients.keras2 import data
from tests.clients.keras2.sdist import fetch_sdist
from tests.clients.keras2.suite import ROOT, Outcome

PATIENCE = 900  # seconds for one program


@dataclass(frozen=True)
class Program:
    """A script and how much of it is run.

    Attributes:
        script: its file name.
        epochs: the most epochs that a call of `fit` takes; None is what the script says.
        fits: how many calls of `fit` train, for scripts that call it in a loop of their own.
        large: whether it counts on the 60,000 and 10,000 images of MNIST.
        arguments: on its command line.
        prepare: what writes the files that it expects in its working folder.
        learns: whether its recorded loss must fall; one epoch has nothing to compare with.
        after: a script that runs first in the same folder and leaves the files that this one reads.
    """

    script: str
    epochs: int | None = None
    fits: int | None = None
    large: bool = False
    arguments: Sequence[str] = ()
    prepare: Callable[[Path], None] | None = None
    learns: bool = True
    after: str | None = None


PROGRAMS = (
    Program("addition_rnn.py", fits=2),
    Program("antirectifier.py", epochs=2, large=True),
    Program("babi_rnn.py", epochs=3),
    Program("cifar10_cnn.py", epochs=5),
    Program("cifar10_resnet.py", epochs=2),
    Program("cnn_seq2seq.py", epochs=5, prepare=data.write_sentence_pairs),
    Program("imdb_bidirectional_lstm.py", epochs=2),
    Program("imdb_cnn.py"),
    Program("imdb_cnn_lstm.py"),
    Program("imdb_fasttext.py"),
    Program("imdb_lstm.py", epochs=2),
    Program("lstm_seq2seq.py", epochs=10, prepare=data.write_sentence_pairs),
    Program(
        "lstm_seq2seq_restore.py", epochs=3, prepare=data.write_sentence_pairs, learns=False, after="lstm_seq2seq.py"
    ),
    Program("lstm_stateful.py", epochs=2),
    Program("lstm_text_generation.py", epochs=1, learns=False),
    Program("mnist_cnn.py"),
    Program("mnist_denoising_autoencoder.py", epochs=5),
    Program("mnist_hierarchical_rnn.py", epochs=2),
    Program("mnist_irnn.py", epochs=1, learns=False),
    Program("mnist_mlp.py", epochs=2, large=True),
    Program("mnist_net2net.py"),
    Program("mnist_siamese.py"),
    Program("mnist_sklearn_wrapper.py"),
    Program("mnist_swwae.py", epochs=2),
    Program("mnist_transfer_cnn.py"),
    Program("pretrained_word_embeddings.py", epochs=3, prepare=data.write_newsgroups),
    Program("reuters_mlp.py"),
    Program("reuters_mlp_relu_vs_selu.py"),
    Program("variational_autoencoder.py", epochs=10),
)
LEFT_OUT = {
    "babi_memnn.py": "splits text by a pattern that Python 3.7 gave another meaning",
    "class_activation_maps.py": "ImageNet weights",
    "conv_filter_visualization.py": "ImageNet weights",
    "conv_lstm.py": "some 80 TFLOP an epoch",
    "deep_dream.py": "ImageNet weights",
    "image_ocr.py": "fonts and a library for drawing text",
    "mnist_acgan.py": "100 epochs in a loop of its own",
    "neural_doodle.py": "ImageNet weights",
    "neural_style_transfer.py": "ImageNet weights",
    "variational_autoencoder_deconv.py": "trains, then labels its plot in a way that today's matplotlib refuses",
}


def run_examples(mode: str, only: Sequence[str], jobs: int, sdist: str | None = None) -> list[Outcome]:
    """Run the programs and print a line for each as it ends.

    Returns:
        What became of each: passed when it ran to its end and its loss fell; `error` then holds its last line.
    """
    folder = fetch_sdist(sdist) / "examples"
    chosen = [p for p in PROGRAMS if not only or any(o in p.script or fnmatch.fnmatch(p.script, o) for o in only)]

    def run(program: Program) -> Outcome:
        outcome = run_program(folder, program, mode)
        print(f"{outcome.outcome:7} {outcome.seconds:6.1f} s  {program.script}: {outcome.error}", flush=True)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(run, chosen))


def run_program(folder: Path, program: Program, mode: str) -> Outcome:
    """Run one program in an empty folder."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        place = Path(work) / "examples"
        place.mkdir()
        scripts = [program.script] if program.after is None else [program.after, program.script]
        for script in scripts:
            shutil.copy(folder / script, place)
        if program.prepare is not None:
            program.prepare(place)
        history = Path(work) / "history.json"
        command = [sys.executable, "-m", "tests.clients.keras2.program", "--history", str(history)]
        command += ["--epochs", str(program.epochs)] if program.epochs else []
        command += ["--fits", str(program.fits)] if program.fits else []
        command += ["--large"] if program.large else []
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "KERAS_HOME": str(Path(work) / "home"),
            "KERAS_BACKEND": "graphkb.backend",
            "GRAPHKB_MODE": mode,
            "MPLBACKEND": "agg",
        }
        try:
            for script in scripts:
                done = subprocess.run(
                    [*command, script, *program.arguments],
                    cwd=place,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE,
                    check=False,
                )
                if done.returncode:
                    break
        except subprocess.TimeoutExpired:
            return Outcome(program.script, "failed", time.perf_counter() - start, f"no end after {PATIENCE} seconds")
        seconds = time.perf_counter() - start
        if done.returncode:
            return Outcome(program.script, "failed", seconds, done.stderr.strip()[-600:])
        losses = [record["loss"] for record in json.loads(history.read_text(encoding="utf-8")) if "loss" in record]
        first, last = (losses[0][0], losses[-1][-1]) if losses else (0.0, 0.0)
        # A script may train several models: the loss of one of them must fall.
        fell = last < first or any(epochs[-1] < epochs[0] for epochs in losses)
        lines = [line for line in done.stdout.replace("\x08", "").splitlines() if line.strip()]
        shown = (f"loss {first:.4g} -> {last:.4g}; " if losses else "") + (lines[-1].strip() if lines else "")
        return Outcome(program.script, "passed" if fell or not program.learns else "failed", seconds, shown)
