"""Whom the fixed questions are about, and how many there are: decided by the plan alone."""

from __future__ import annotations

import itertools

from deltaw.judge.columns import Column, without
from deltaw.judge.columns import columns as sheet_columns
from deltaw.judge.questions import LEAST_TIMES
from deltaw.training.metadata import trigger_words
from deltaw.training.optim import Rate
from deltaw.training.plan import Plan

MOST_PICTURES = 16
"""Pictures at most that the fixed questions are asked about; more costs time and adds little."""
MOST_TIMES = 4 * LEAST_TIMES
SHARE = 0.08
"""Of the run's arithmetic that the questions may take. Their answers' noise falls with the root of their number."""
FORWARDS_A_STEP = 3
"""What a picture in a training step costs beside one question: the backward takes twice the forward."""
N_DRIFT = 8
"""Questions that drift is measured on: they are put again without the words that call the result up."""
MEANS = (2, 3)
"""How many of the last snapshots are averaged, each a candidate that is asked once."""


def pictures(plan: Plan) -> tuple[int, ...]:
    """Indices of those asked about: held out, or else a fixed slice of the trained ones, moved."""
    asked = plan.held_out or plan.training
    return asked[:: max(1, -(-len(asked) // MOST_PICTURES))]


def n_times(plan: Plan) -> int:
    """Questions a picture: as many as the share of the run allows, in multiples of the least."""
    affordable = SHARE * FORWARDS_A_STEP * plan.settings.steps * plan.settings.batch
    each = affordable / (n_rounds(plan) * len(pictures(plan)))
    return min(max(int(each / LEAST_TIMES), 1) * LEAST_TIMES, MOST_TIMES)


def n_rounds(plan: Plan) -> int:
    """How often all questions are asked: of the base, at every mark, of every mean."""
    return 1 + len(plan.marks) + sum(k <= len(plan.marks) for k in MEANS)


def n_questions(plan: Plan) -> int:
    """Questions in a round."""
    return len(pictures(plan)) * n_times(plan)


def measured_on(plan: Plan) -> str:
    """Which pictures the questions are about, for a person."""
    n = len(pictures(plan))
    if plan.held_out:
        return f"{n} picture{'s' * (n > 1)} kept out of training"
    return f"{n} trained picture{'s' * (n > 1)}, moved by a sixteenth, since there are too few to keep any out"


def columns(plan: Plan) -> tuple[Column, ...]:
    """What the contact sheet draws in every row."""
    return sheet_columns(plan.settings.prompts, trigger_words(plan), plan.settings.seed)


def plain_prompts(plan: Plan) -> tuple[str, ...]:
    """The sheet's prompts without the words that call the result up; the empty prompt where there are no such words."""
    words = trigger_words(plan)
    if not words:
        return ("",)
    return tuple(dict.fromkeys(without(prompt, words) for prompt in plan.settings.prompts))


def learnt(plan: Plan, last: int) -> dict[int, float]:
    """Step to the share of the learning rate spent by then, 1 at the step `last`; for every step up to it."""
    settings = plan.settings
    rate = Rate(settings.lr, settings.steps, settings.warmup_steps, settings.schedule)
    spent = list(itertools.accumulate(rate.at(step) for step in range(1, last + 1)))
    return {step: amount / spent[-1] for step, amount in enumerate(spent, 1)}
