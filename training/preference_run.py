# pyright: basic
# drives torch and peft, which are typed too loosely for strict checking
"""One run of preference tuning, top to bottom: pairs → adapter → fit → evaluate → register."""

import time
from collections.abc import Sequence
from typing import Any

from training.config import TrainingConfig
from training.evaluate import load_passages
from training.rows import Renderer
from training.run import Outcome, Prepared, finish, held_out_contexts, opened, watching


def tune(
    config: TrainingConfig,
    *,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Any] = (),
) -> Outcome:
    """The whole run; `training.run.train` calls it for the objective `preference`.

    Raises:
        TrainingError: What is wrong and what to do about it.
    """
    started = time.time()
    say = opened(config, resume=resume, quiet=quiet)

    from training.preference import load_pairs, pair_rows

    split, pairs = load_pairs(config, held_out_contexts(config))
    say(split.report.to_markdown())
    judged = config.evaluation.enabled and config.evaluation.contexts is not None
    passages = load_passages(config.evaluation) if judged else []

    import transformers

    from training.memory import remedies_for
    from training.model import load_base
    from training.preference import fit_pairs

    transformers.set_seed(config.fit.seed)
    base = load_base(config)
    rows = pair_rows(pairs, Renderer(base.tokenizer, config.prompt_format), config.data.max_length)
    say(f"{len(rows)} pairs of {len(pairs)} fit into {config.data.max_length} tokens")
    fitted = fit_pairs(
        config,
        base,
        rows,
        resume=resume,
        callbacks=watching(config, quiet, callbacks),
        remedies=lambda: remedies_for(config, base),
    )
    prepared = Prepared(split, passages)
    chosen = [row.chosen for row in rows]
    return finish(config, base, prepared, chosen, fitted, time.time() - started, say)
