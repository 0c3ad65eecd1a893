"""Make the demo checkpoints: ``python -m demo.train``. Resumable: run it again and it goes on where it stopped.

VAE, then text-to-video, then image-to-video from text-to-video's weights. All state is in the work folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from demo import train_transformer, train_vae
from demo.save import save_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo/checkpoints"), help="where t2v/ and i2v/ are written")
    parser.add_argument("--work", type=Path, default=Path("build/train"), help="training state, for resuming")
    parser.add_argument("--start", type=Path, help="a checkpoint whose VAE and weights t2v goes on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument(
        "--eager", action="store_true", help="do not compile (no C++ compiler needed, about 1.5x slower)"
    )
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    start, t2v_stages = None, train_transformer.STAGES
    if arguments.start:
        t2v_stages = t2v_stages[-1:]  # the small clips have done their work
        vae, vae_seconds = train_vae.load(arguments.start), 0.0
        start = train_transformer.load(arguments.start)
    else:
        vae, vae_seconds = train_vae.train(arguments.work, arguments.seed)
    seconds: dict[str, float] = {"vae": vae_seconds}
    for task, stages in (("t2v", t2v_stages), ("i2v", train_transformer.IMAGE_STAGES)):
        model, seconds[task] = train_transformer.train(
            vae, arguments.work, task, stages, start, arguments.seed, not arguments.eager
        )
        start = model
        save_checkpoint(arguments.out / task, vae, model.text, model.transformer, task)
        (arguments.work / "seconds.json").write_text(
            json.dumps({name: round(value) for name, value in seconds.items()})
        )
        print(f"{arguments.out / task} written; training took {seconds[task]:.0f} s", flush=True)


if __name__ == "__main__":
    main()
