"""python -m alignment_lab.chat MODEL [MODEL] [KEY=VALUE ...]: talk with a model, or with two side by side.

MODEL is a run, a checkpoint, an adapter, a folder, a Hub id, or an option of conf/model, such as `embedded`.
Over a pipe each line is a message, and the answers alone are printed. --serve offers one model as an
OpenAI-compatible endpoint instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..config.validation import SpecError
from ..runtime.caches import redirect_unwritable_caches
from ..runtime.errors import Interrupted, UserError
from ..runtime.output import keep_output_writable
from ..runtime.signals import StopRequest
from .settings import CHAT_KEYS, ENDPOINT_KEYS, EXPERIMENT_KEYS, CommandLine, read_words

MAX_MODELS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Talk, or serve; 2 for a mistake, with one sentence on stderr, 128 plus its number after a signal."""
    keep_output_writable()
    if line := redirect_unwritable_caches():
        print(line, file=sys.stderr)
    options = _parser().parse_intermixed_args(arguments)
    try:
        with StopRequest().listen():
            words = read_words(options.words)
            _check(words, serve=options.serve)
            if options.serve:
                from .endpoint import serve

                serve(words)
            else:
                from .start import talk

                talk(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as reason:
        print(reason, file=sys.stderr)
        return reason.code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alignment_lab.chat",
        description="Talk with a model, or with two side by side; over a pipe, a line is a message.",
        epilog=f"settings: {', '.join(CHAT_KEYS)}, system, and, as train.py has them, "
        f"{', '.join(EXPERIMENT_KEYS)}; with --serve {' and '.join(ENDPOINT_KEYS)}. /help says more.",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="MODEL|KEY=VALUE",
        help="one model or two: a run, a checkpoint, an adapter, a folder, a Hub id, an option of "
        "conf/model; and settings, such as temperature=0",
    )
    parser.add_argument(
        "--serve", action="store_true", help="offer one model as an OpenAI-compatible endpoint"
    )
    return parser


def _check(words: CommandLine, *, serve: bool) -> None:
    """Raise UserError for mistakes that need no model to be seen."""
    count, most = len(words.models), 1 if serve else MAX_MODELS
    if not all(model.strip() for model in words.models):
        raise UserError(
            "a model's name is empty, as a shell leaves it where a variable is not set; give one."
        )
    for model in words.models:
        if words.models.count(model) > 1:
            raise UserError(f"{model} is there twice, and would give the same answers; name another model.")
    if not count:
        raise UserError("no model is named; give a run, a folder, a Hub id, or embedded.")
    if count > most:
        what = "--serve offers" if serve else "a talk is with"
        raise UserError(
            f"{what} {'one model' if most == 1 else f'{most} models at most'}, and these are {count}: "
            f"{', '.join(words.models)}; leave some out."
        )
    for key in ENDPOINT_KEYS:
        if key in words.given and not serve:
            value = getattr(words.start, key)
            raise SpecError(f"{key}={value}: is about the endpoint; add --serve, or leave it out.")
    for key in ("system", "max_new_tokens"):
        if serve and key in words.given:
            raise SpecError(
                f"{key}: a client of the endpoint says it in its request; leave it out with --serve."
            )


if __name__ == "__main__":
    sys.exit(main())
