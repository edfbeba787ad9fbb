"""Average the weights of two stages of spanqa-mini, and fit threshold and calibration again on the held-out articles.

    python scripts/average_mini.py TRAIN FIRST LAST SHARE OUT

OUT is a copy of LAST with the weights `SHARE * FIRST + (1 - SHARE) * LAST`, in half precision (Wortsman et al. 2022,
https://arxiv.org/abs/2203.05482). The held-out articles are those of `spanqa train`.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from spanqa import Reader, read_squad
from spanqa.checkpoint import read_settings, write_settings
from spanqa.evaluate.record import questions_sha256
from spanqa.evaluate.stored import store
from spanqa.evaluate.tune import fit, gather
from spanqa.train.labels import hold_out


def main() -> None:
    data, first, last, share, out = *map(Path, sys.argv[1:4]), float(sys.argv[4]), Path(sys.argv[5])
    questions = hold_out(read_squad(data))[1]
    work = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(last, work)
    parts = [(share, load_file(first / "model.safetensors")), (1 - share, load_file(last / "model.safetensors"))]
    mixed = {
        name: sum(part * weights[name].astype(np.float32) for part, weights in parts).astype(np.float16)
        for name in parts[0][1]
    }
    save_file(mixed, work / "model.safetensors", {"format": "pt"})
    reader = Reader.load(work)
    stored, digest = reader.answers.no_answer_threshold, questions_sha256(questions)
    tuned = fit(gather(reader, questions), stored, reader.calibration, digest)
    store(reader.checkpoint, tuned)
    settings = read_settings(work)
    averaged = {
        "shares": {first.name: share, last.name: 1 - share},
        "dev_f1": tuned.value,
        "backend": f"{reader.backend.name} {reader.backend.dtype}",
    }
    write_settings(work, settings | {"training": settings["training"] | {"averaged": averaged}})
    work.replace(out)
    print(
        f"{out}: F1 {tuned.value:.2f} on {tuned.questions:,} held-out questions, threshold {tuned.no_answer_threshold}"
    )


if __name__ == "__main__":
    main()
