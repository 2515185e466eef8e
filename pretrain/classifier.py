"""A judge of pictures: which concept, which style. `python -m pretrain.classifier`.

Trained on the art alone, never on generated pictures, and not shipped. The validation pairs (concept known,
style known, the two never together) are kept out and tell how far the judge itself can be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from deltaw import tensorfile
from pretrain import captions, data, run, sources

SIDE_PX = 64
WIDTHS = (32, 64, 128, 256)


class Block(nn.Module):
    """A residual block of two 3×3 convolutions; the first may halve the picture."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out))
        self.skip = nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(self.first(x)) + self.skip(x))


class Judge(nn.Module):
    """(n, 3, h, w) in [-1, 1] -> scores of concepts and of styles.

    Drawings are centred, so the last features keep their places (4×4): pooled over the picture they took
    several times as long to learn concepts. The style is read from the early features too: texture, edges, palette.
    """

    def __init__(self, n_concepts: int, n_styles: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 5, 2, 2, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        self.blocks = nn.ModuleList(Block(a, b, 2) for a, b in pairwise(WIDTHS))
        self.neck = nn.Sequential(
            nn.Flatten(), nn.Linear(WIDTHS[-1] * 16, 384, bias=False), nn.BatchNorm1d(384), nn.ReLU()
        )
        self.drop = nn.Dropout(0.3)
        self.concept = nn.Linear(384, n_concepts)
        self.style = nn.Linear(2 * WIDTHS[0] + 2 * WIDTHS[1] + 384, n_styles)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(F.interpolate(x, (SIDE_PX, SIDE_PX), mode="area"))
        early = [x.mean((2, 3)), x.amax((2, 3))]
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 0:
                early += [x.mean((2, 3)), x.amax((2, 3))]
        late = self.drop(self.neck(x))
        return self.concept(late), self.style(torch.cat([*early, late], 1))


@dataclass(frozen=True)
class Labels:
    """The order of the judge's outputs."""

    concepts: tuple[str, ...]
    styles: tuple[str, ...]

    def of(self, records: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        concept = {name: i for i, name in enumerate(self.concepts)}
        style = {name: i for i, name in enumerate(self.styles)}
        return torch.tensor([concept[r["id"]] for r in records]), torch.tensor([style[r["style"]] for r in records])


def shrunk(images: np.ndarray) -> torch.Tensor:
    """uint8 pictures at the judge's size."""
    return torch.cat(
        [
            F.interpolate(data.to_tensor(images[i : i + 256]), (SIDE_PX, SIDE_PX), mode="area")
            for i in range(0, len(images), 256)
        ]
    )


def moved(x: torch.Tensor, may_flip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture turned, stretched, moved, brightened and blurred a little, some mirrored: over white paper."""
    n = len(x)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    angle, sx, sy = uniform(-0.1, 0.1), uniform(0.9, 1.15), uniform(0.9, 1.15)
    sx = torch.where(may_flip & (uniform(0, 1) < 0.5), -sx, sx)
    rows = [
        sx * angle.cos(),
        -sy * angle.sin(),
        uniform(-0.08, 0.08),
        sx * angle.sin(),
        sy * angle.cos(),
        uniform(-0.08, 0.08),
    ]
    grid = F.affine_grid(torch.stack(rows, 1).reshape(n, 2, 3), list(x.shape), align_corners=False)
    turned = F.grid_sample(x - 1, grid, align_corners=False) + 1
    blurred = F.avg_pool2d(F.pad(turned, (1, 1, 1, 1), mode="replicate"), 3, 1)
    turned = torch.where((uniform(0, 1) < 0.3)[:, None, None, None], blurred, turned)
    return ((turned - 1) * uniform(0.9, 1.1)[:, None, None, None] + 1).clamp(-1, 1)


def save(judge: Judge, labels: Labels, path: Path) -> None:
    """Weights and the order of the outputs."""
    tensorfile.write(
        path, judge.state_dict(), {"concepts": " ".join(labels.concepts), "styles": " ".join(labels.styles)}
    )


def load(path: Path) -> tuple[Judge, Labels]:
    """A trained judge, ready to ask."""
    facts = tensorfile.read_header(path).metadata
    labels = Labels(tuple(facts["concepts"].split()), tuple(facts["styles"].split()))
    judge = Judge(len(labels.concepts), len(labels.styles))
    judge.load_state_dict(tensorfile.read(path))
    return judge.eval(), labels


@torch.no_grad()
def hits(judge: Judge, x: torch.Tensor, concept: torch.Tensor, style: torch.Tensor) -> dict[str, float]:
    """Shares of pictures whose concept is in the judge's top 5 and top 1, and whose style is its top 1."""
    scores = [judge.eval()(part) for part in x.split(64)]
    concepts, styles = (torch.cat([s[i] for s in scores]) for i in (0, 1))
    five = concepts.topk(min(5, concepts.shape[1]), 1).indices == concept[:, None]
    found = {"concept_top5": five.any(1), "concept_top1": five[:, 0], "style_top1": styles.argmax(1) == style}
    return {name: round(hit.float().mean().item(), 4) for name, hit in found.items()}


def main() -> None:
    """Trains the judge and says how well it does on real pictures that it never saw."""
    parser = run.options(__doc__.splitlines()[0], "classifier", steps=4000, batch=64, lr=2e-3)
    parser.add_argument("--out", type=Path, default=run.RUNS / "classifier.safetensors")
    parser.add_argument("--styles", nargs="*", default=list(sources.STYLES), choices=list(sources.STYLES))
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    split = data.splits()
    art = data.together(args.data, tuple(args.styles))
    labels = Labels(tuple(sorted({r["id"] for r in art.records})), tuple(args.styles))
    seen = art.where_record(lambda r: not data.is_validation(r, split)).some(args.limit)
    unseen = art.where_record(lambda r: data.is_validation(r, split))
    concept, style = labels.of(seen.records)
    small = shrunk(seen.images)
    may_flip = torch.tensor([captions.may_flip(r) for r in seen.records])
    judge = Judge(len(labels.concepts), len(labels.styles)).to(args.device)

    def step_loss(step: int) -> torch.Tensor:
        judge.train()
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        chosen = torch.randint(len(seen), (args.batch,), generator=generator)
        x = moved(small[chosen], may_flip[chosen], generator).to(args.device)
        with torch.autocast(args.device, torch.bfloat16):
            concepts, styles = judge(x)
        wanted = F.cross_entropy(concepts.float(), concept[chosen].to(args.device), label_smoothing=0.1)
        return wanted + F.cross_entropy(styles.float(), style[chosen].to(args.device), label_smoothing=0.05)

    optimizer = torch.optim.AdamW(judge.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.05)
    run.train({"network": judge}, optimizer, step_loss, run.schedule(args, hold=0.3), args.run)
    judge.cpu()
    save(judge, labels, args.out)
    real = hits(judge, data.to_tensor(unseen.images), *labels.of(unseen.records))
    print(f"on {len(unseen)} real pictures that it never saw: {real} -> {args.out}")


if __name__ == "__main__":
    main()
