"""The fixed questions of a run: who is asked, and what every snapshot answered."""

from __future__ import annotations

from torch import Tensor

from deltaw.data.feed import Feed
from deltaw.events import Note
from deltaw.judge import choice, questions, scores
from deltaw.judge.scores import Score
from deltaw.training import loop
from deltaw.training.loop import Work
from deltaw.training.session import Session

PROBE_ITEMS = 16
"""Pictures at most that the fixed questions are asked about; more costs time and adds little."""


class Judge:
    """Asks the fixed questions and keeps the answers.

    Args:
        session: of the run.
        data: what training reads.
    """

    def __init__(self, session: Session, data: Feed):
        self.session = session
        made, base = session.plan, session.base
        asked = made.held_out or made.training
        asked = asked[:: max(1, -(-len(asked) // PROBE_ITEMS))]
        self.questions = questions.about(
            [data.latents[i] for i in asked], [data.texts[data.captions[i]] for i in asked], base.objective,
            base.schedule, made.settings.seed,
        )  # fmt: skip
        self.weights = questions.weights(self.questions, base.objective, base.schedule, made.settings.min_snr_gamma)
        self.probes: dict[int, Tensor] = {}
        """Losses (n, k), picture by question, by step, 0 being the base."""

    def ask(self, work: Work, step: int) -> Score:
        """Answers the questions with the adapter as it stands; step 0, while it is still zero, is the base."""
        losses = self.questions.losses(lambda x, times, text: loop.predict(work, x, times, text))
        self.probes[step] = losses
        return self._score(step)

    def tell(self, score: Score) -> None:
        """Says how a snapshot does."""
        kind = "held-out" if self.session.plan.held_out else "fixed"
        self.session.tell(Note(f"step {score.step}: {kind} loss {score.loss:.4f}, {100 * score.change.mean:+.1f} % against "
                               f"the base, better on {score.n_better} of {score.n}"))  # fmt: skip

    def scores(self) -> tuple[Score, ...]:
        """Every snapshot's."""
        return tuple(self._score(step) for step in self.probes if step)

    def recommend(self) -> tuple[int, str]:
        """The snapshot to use, and why."""
        return choice.recommend([(step, losses) for step, losses in self.probes.items() if step])

    def _score(self, step: int) -> Score:
        return scores.score(step, self.probes[step], self.probes[0], self.weights)
