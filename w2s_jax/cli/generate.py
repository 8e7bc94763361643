"""`w2s generate`."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add `w2s generate`."""
    command = commands.add_parser(
        "generate",
        help="complete prompts with a model or a phase",
        description="Complete prompts with a language model, or with a phase of a run. Completions "
        "are printed; with --to they are the rows of a JSON Lines file, with text, sample and "
        "logprob, the log-probability of the completion with its end.",
        allow_abbrev=False,
    )
    command.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="PHASE_OR_MODEL",
        help="DIR/phases/<kind>-<fingerprint>, a folder with a model, or a hub id",
    )
    prompts = command.add_mutually_exclusive_group(required=True)
    prompts.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a prompt; may be given several times"
    )
    prompts.add_argument(
        "--prompts",
        metavar="FILE",
        help="JSON Lines with a field prompt, and perhaps id, which the output repeats",
    )
    command.add_argument(
        "--max_new_tokens",
        type=int,
        metavar="N",
        help="tokens of a completion, at most (default: those of the phase, else 64)",
    )
    command.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 for the most probable token at each position (default: 0)",
    )
    command.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the most probable tokens with this share of probability (default: 1)",
    )
    command.add_argument(
        "--num_samples", type=int, default=1, metavar="N", help="completions a prompt (default: 1)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples")
    command.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="'bytes', or a folder, file or hub id (default: the model's own)",
    )
    command.add_argument("--to", metavar="FILE", help="new JSON Lines file (default: print)")


def run(options: argparse.Namespace) -> int:
    """Complete the prompts, and print or write them."""
    from w2s_jax.execution import generate

    if options.to is not None:
        generate.refuse_target(Path(options.to))
    if options.prompts is None:
        rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in options.prompt]
    else:
        rows = generate.read_prompts(Path(options.prompts))
    sampling = generate.Sampling(
        options.max_new_tokens,
        options.temperature,
        options.top_p,
        options.num_samples,
        options.seed,
    )
    found = list(generate.generate(options.source, rows, sampling, options.tokenizer))
    if options.to is not None:
        generate.write(Path(options.to), found)
        print(f"{options.to}: {len(found):,} completions of {len(rows):,} prompts")
        return 0
    for row in found:
        print(row["prompt"] + row["text"])
        if len(found) > 1:
            print("---")
    return 0
