"""The same mixes by Optuna's tree-structured Parzen estimator: what the loop's proposals beat.

    pip install optuna==5.0.0

It chooses a level for each unit, knows what the levels by themselves came to, and measures as many
mixes as the loop did, by the same rule.
"""

from collections.abc import Sequence

import optuna
import torch

from tauten.core.measurement import Measurement
from tauten.search.candidate import Candidate
from tauten.search.levels import LevelTable
from tauten.search.trials import Trials


def smallest_by_tpe(
    table: LevelTable,
    levels: Sequence[Measurement],
    trials: Trials,
    candidates: Sequence[Candidate],
    count: int,
    seed: int = 0,
) -> tuple[int, int]:
    """Look for the smallest mix within the drop that the goal of `trials` allows.

    Args:
        table: Its units and levels are the space.
        levels: What each level alone came to.
        trials: Measures.
        candidates: Of the levels, to cut from.
        count: Mixes to measure.
    Returns:
        Bytes of the smallest within the limit, levels included, and how many mixes kept it.
    """
    limit = trials.goal.max_drop
    assert limit is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=0, constraints_func=lambda t: (t.user_attrs["over"],)
    )
    study = optuna.create_study(sampler=sampler)
    names = [names[0] for names in table.units]
    choice = optuna.distributions.CategoricalDistribution(range(len(levels)))
    space: dict[str, optuna.distributions.BaseDistribution] = dict.fromkeys(names, choice)
    kept = []
    for number in range(len(levels) + count):
        if number < len(levels):
            study.enqueue_trial(dict.fromkeys(names, number))
        asked = study.ask(space)
        chosen = torch.tensor([asked.params[name] for name in names])
        if number < len(levels):
            found: Measurement | None = levels[number]
        else:
            level_of = table.level_of(chosen).items()
            parents = {name: candidates[level] for name, level in level_of}
            found = trials.measure(table.recipe(chosen), parents).measurement
        assert found is not None
        over = found.quality.drop.high - limit
        asked.set_user_attr("over", over)
        study.tell(asked, found.size_bytes)
        if over <= 0:
            kept.append((found.size_bytes, number))
    return min(kept)[0], sum(number >= len(levels) for _, number in kept)
