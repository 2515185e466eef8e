"""The fixed questions of a run, what every snapshot answered, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from deltaw.data.feed import Feed
from deltaw.events import Note
from deltaw.judge import choice, drift, questions, scores
from deltaw.judge.choice import Candidate, Choice
from deltaw.judge.drift import Drift
from deltaw.judge.questions import Again, Answers
from deltaw.judge.scores import Score
from deltaw.training import asking, stepping, verify
from deltaw.training.session import Session
from deltaw.training.stepping import Work


class Judge:
    """Asks the fixed questions and keeps the answers.

    Args:
        session: of the run.
        data: what training reads.
        history: what a run that is gone on with had found, see `Judge.history`; as many questions are asked as there.
    """

    def __init__(self, session: Session, data: Feed, history: Mapping[str, Tensor]):
        self.session = session
        made, base = session.plan, session.base
        asked = asking.pictures(made)
        answered = history.get("probe/0")
        n_times = asking.n_times(made) if answered is None else answered.shape[1]
        self.questions = questions.about(
            [data.latents[i] if made.held_out else questions.moved(data.latents[i]) for i in asked], [data.texts[data.captions[i]] for i in asked], base.objective,
            base.schedule, made.settings.seed, n_times,
        )  # fmt: skip
        self.weights = questions.weights(self.questions, base.objective, base.schedule, made.settings.min_snr_gamma)
        plain = [data.texts[prompt] for prompt in asking.plain_prompts(made)]
        few = torch.linspace(0, len(self.questions.groups[0].x) - 1, asking.N_DRIFT).long()
        self.again = Again(few, [plain[i % len(plain)] for i in range(asking.N_DRIFT)])
        self.probes: dict[int, Tensor] = {}
        """Losses (n, k), picture by question, by step, 0 being the base."""
        self.drifts: dict[int, Drift] = {}
        self.means: list[Candidate] = []
        self.at_a_time = session.outlook.predicted.at_a_time * made.settings.processes
        self._of_base: Answers | None = None
        self._restore(history)

    @property
    def n_questions(self) -> int:
        """How many a round has, those that are put again aside."""
        return self.questions.times.numel()

    def ask(self, work: Work, step: int) -> Score:
        """Answers the questions with the adapter as it stands, and the first time with none: the base's own answers."""
        if self._of_base is None:
            with verify.holding(work.wrapped, verify.zeros(work.wrapped)):
                self._of_base = self._answers(work)
                self.probes.setdefault(0, self._of_base.losses)  # a resumed run knows them
        of_base, found = self._of_base, self._answers(work)
        self.probes[step] = found.losses
        self.drifts[step] = Drift(
            drift.relative(found.plain, of_base.plain), drift.relative(found.called, of_base.called)
        )
        return self.score(Candidate(step, self.probes[step]))

    def losses(self, work: Work) -> Tensor:
        """The answers' errors (n, k) with the adapter as it stands."""
        return self.questions.losses(partial(stepping.answer_together, work), self.at_a_time)

    def tell(self, score: Score) -> None:
        """Says how a snapshot does."""
        kind = "held-out" if self.session.plan.held_out else "moved pictures'"
        self.session.tell(Note(f"step {score.step}: {kind} loss {score.loss:.4f}, {100 * score.change.mean:+.1f} % against "
                               f"the base, better on {score.n_better} of {score.n}"))  # fmt: skip

    def score(self, candidate: Candidate) -> Score:
        """A candidate's, against the base."""
        return scores.score(candidate.step, candidate.losses, self.probes[0], self.weights)

    def scores(self) -> tuple[Score, ...]:
        """Every snapshot's."""
        return tuple(self.score(snapshot) for snapshot in self.snapshots())

    def snapshots(self) -> list[Candidate]:
        """Every snapshot as a candidate, in the order of their steps."""
        return [Candidate(step, losses) for step, losses in self.probes.items() if step]

    def choose(self) -> Choice:
        """What to use, and why."""
        snapshots = self.snapshots()
        if self.session.plan.settings.pick == "last":
            return choice.choose_last(snapshots)
        further = choice.outlook(
            Candidate(0, self.probes[0]), snapshots, asking.learnt(self.session.plan, snapshots[-1].step)
        )
        return choice.choose(snapshots, self.means, further)

    def wants_to_stop(self, step: int) -> bool:
        """Whether further steps have stopped paying; never before the step that the user asked for."""
        settings = self.session.plan.settings
        allowed = settings.stop and settings.until <= step < settings.steps
        return allowed and choice.has_stopped_paying(self.snapshots())

    def history(self) -> dict[str, Tensor]:
        """Everything that was found, for the state."""
        found = {f"probe/{step}": losses for step, losses in self.probes.items()}
        return found | {f"drift/{step}": torch.tensor([d.plain, d.called]) for step, d in self.drifts.items()}

    def _restore(self, history: Mapping[str, Tensor]) -> None:
        for name, tensor in history.items():
            kind, _, step = name.partition("/")
            if kind == "probe":
                self.probes[int(step)] = tensor
            elif kind == "drift":
                self.drifts[int(step)] = Drift(*tensor.tolist())

    def _answers(self, work: Work) -> Answers:
        """To all questions, and to some of them under plain prompts."""
        return self.questions.answers(partial(stepping.answer_together, work), self.again, self.at_a_time)
