"""Makes `benchmarks/held_out/`: pictures of the example styles that are in no example folder.

    python -m benchmarks.held_out_pack --data DATA

DATA is the folder of rendered art that `python -m pretrain.render` writes. Each style gets the 48
evaluation concepts of its `splits.json`, with the captions that the example folders use.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

STYLES = {"streamline": "streamline", "fluent-mono": "inkline"}
HERE = Path(__file__).parent / "held_out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    wanted = json.loads((data / "splits.json").read_text())["style_eval_concepts"]
    for style, word in STYLES.items():
        records = json.loads((data / f"{style}.json").read_text())
        with np.load(data / f"{style}.npz") as arrays:
            pictures = arrays[arrays.files[0]]
        folder = HERE / word
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for record, picture in zip(records, pictures, strict=True):
            if record["id"] not in wanted:
                continue
            name = "".join(c if c.isalnum() else "_" for c in record["name"]) + ".png"
            Image.fromarray(picture).save(folder / name, optimize=True)
            lines.append(
                {"file_name": name, "text": record["caption"].replace(f"{record['style_word']} style", f"{word} style")}
            )
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        print(f"{folder}: {len(lines)} pictures")


if __name__ == "__main__":
    main()
