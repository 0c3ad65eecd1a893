"""Make the demo checkpoints: ``python -m demo.train``. Resumable: run it again and it goes on where it stopped.

VAE, then text-to-video, then image-to-video from text-to-video's weights. All state is in the work folder; each
checkpoint gets a ``training.json`` with the seconds that it took, those of the checkpoint it started from included.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from demo import train_transformer, train_vae
from demo.save import save_checkpoint

TRAINING = "training.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo/checkpoints"), help="where t2v/ and i2v/ are written")
    parser.add_argument("--work", type=Path, default=Path("build/train"), help="training state, for resuming")
    parser.add_argument(
        "--start", type=Path, help="a text-to-video checkpoint to go on from, with the last stages alone"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, help="seconds after which the training of a network ends")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument(
        "--eager", action="store_true", help="do not compile (no C++ compiler needed, about 1.5x slower)"
    )
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    vae = start = None
    vae_stages, t2v_stages, spent = train_vae.STAGES, train_transformer.STAGES, {"vae": 0}
    if arguments.start:
        vae_stages, t2v_stages = vae_stages[-1:], t2v_stages[-1:]
        vae, start = train_vae.load(arguments.start), train_transformer.load(arguments.start)
        spent = json.loads((arguments.start / TRAINING).read_text())
    vae, vae_seconds = train_vae.train(arguments.work, vae_stages, vae, arguments.seed, arguments.limit)
    spent["vae"] += round(vae_seconds)
    for task, stages in (("t2v", t2v_stages), ("i2v", train_transformer.IMAGE_STAGES)):
        start, seconds = train_transformer.train(
            vae, arguments.work, task, stages, start, arguments.seed, not arguments.eager, arguments.limit
        )
        spent[task] = spent.get(task, 0) + round(seconds)
        save_checkpoint(arguments.out / task, vae, start.text, start.transformer, task)
        (arguments.out / task / TRAINING).write_text(json.dumps(spent) + "\n")
        print(f"{arguments.out / task} written; training took {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
