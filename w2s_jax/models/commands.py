"""The output of `w2s models [NAME]`. All numbers are computed by formula, without JAX."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from w2s_jax.core.errors import InputError, nearest
from w2s_jax.models import budget, image_commands, ladders, sources
from w2s_jax.models.checking import read_description
from w2s_jax.models.config import EMBEDDED_MODELS, ModelConfig, embedded_model
from w2s_jax.models.families import FAMILIES
from w2s_jax.models.gguf_files import dequantised, is_gguf, read_gguf
from w2s_jax.models.image_models import IMAGE_MODELS
from w2s_jax.models.locations import split_layers, truncated
from w2s_jax.models.peft_files import is_adapter_folder

#: Embedded models take their vocabulary and length from the task; these are used for display.
_EMBEDDED_VOCAB, _EMBEDDED_LENGTH = 259, 256

#: The batch of the memory estimates: documents, and tokens per document.
_DOCUMENTS, _TOKENS = 32, 256

#: Values of `train.adapt` that are shown; 'probe_then_full' costs as much as 'full'.
_ADAPTS = ("full", "last_layers", "lora", "probe")


def list_models(console: Console) -> None:
    """Print the model families, the embedded models and the ladders of known models."""
    _print_families(console)
    _print_embedded(console)
    image_commands.print_image_models(console)
    _print_ladders(console)
    console.print(
        "\nparameters: size of the backbone with embeddings; lr: default learning rate;\n"
        "dtype: default dtype of the parameters. Other checkpoints of these families\n"
        "work as well. w2s models NAME shows sizes, FLOPs and memory of one model.",
        highlight=False,
    )


def _table(title: str | None, left: tuple[str, ...], right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for column in left:
        table.add_column(column, no_wrap=True)
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print_families(console: Console) -> None:
    positions: dict[str, str] = {}
    rungs: dict[str, list[str]] = {}
    for known in ladders.KNOWN.values():
        config = known.config()
        positions[config.family] = config.positions
        names = rungs.setdefault(config.family, [])
        if known.ladder not in names:
            names.append(known.ladder)
    table = _table("families", ("family", "architecture", "positions", "ladders"))
    for name, family in FAMILIES.items():
        table.add_row(
            name,
            family.architectures[0],
            positions.get(name, "-"),
            ", ".join(rungs.get(name, ["-"])),
        )
    console.print(table)


def _print_embedded(console: Console) -> None:
    console.print()
    table = _table(
        f"embedded models (vocabulary {_EMBEDDED_VOCAB}, {_EMBEDDED_LENGTH} positions)",
        ("model",),
        ("parameters", "layers", "width", "lr", "lr lora", "dtype"),
    )
    for name in EMBEDDED_MODELS:
        config = _embedded(name)
        count = config.num_parameters()
        sizes = (str(config.num_layers), str(config.d_model))
        table.add_row(name, f"{count:,}", *sizes, *_defaults(name, count, embedded=True))
    console.print(table)


def _print_ladders(console: Console) -> None:
    for ladder in dict.fromkeys(known.ladder for known in ladders.KNOWN.values()):
        console.print()
        table = _table(ladder, ("model",), ("parameters", "lr", "lr lora", "dtype"))
        # Align the columns of all ladders.
        table.columns[0].min_width = max(map(len, ladders.KNOWN))
        table.columns[1].min_width = 10
        for known in ladders.KNOWN.values():
            if known.ladder == ladder:
                count = known.config().num_parameters()
                table.add_row(known.name, _short(count), *_defaults(known.name, count))
        console.print(table)
        if ladder in ladders.NOTES:
            console.print(f"  {ladders.NOTES[ladder]}", highlight=False, style="dim")


def _defaults(name: str, count: int, *, embedded: bool = False) -> tuple[str, str, str]:
    """Return the default learning rate, that of adapters, and the default dtype."""
    full, lora = (
        ladders.default_learning_rate(name, count, embedded=embedded, adapt=adapt)
        for adapt in ("full", "lora")
    )
    return _rate(full), _rate(lora), ladders.default_param_dtype(count)


def _rate(rate: float) -> str:
    """Format a learning rate: '5e-5'."""
    digits, exponent = f"{rate:.0e}".split("e")
    return f"{digits}e{int(exponent)}"


def _short(count: float, units: str = "KMB") -> str:
    """Format a count: '5.0K', '124.4M', '1.56B'."""
    if count >= 1e9:
        return f"{count / 1e9:,.2f}{units[2]}"
    return f"{count / 1e6:.1f}{units[1]}" if count >= 1e6 else f"{count / 1e3:.1f}{units[0]}"


def _embedded(name: str) -> ModelConfig:
    return embedded_model(name, vocab_size=_EMBEDDED_VOCAB, max_positions=_EMBEDDED_LENGTH)


def show_model(name: str, console: Console) -> None:
    """Print sizes, learning rates, FLOPs and memory of one model.

    Args:
      name: an embedded model, a known model, or a folder with a config.json (in Hugging Face's
        layout, converted, or a phase).
      console: where to print.

    Raises:
      InputError: if `name` is none of these, or the folder's config.json is not supported.
    """
    if name in IMAGE_MODELS:
        image_commands.show_image_model(name, console)
        return
    config, title, note = _read(name)
    embedded = name in EMBEDDED_MODELS
    console.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
    if note:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    count = config.num_parameters()
    dtype = ladders.default_param_dtype(count)
    _print_sizes(config, console)
    console.print(
        f"\nEstimated by formula, not measured: Adam, batch and microbatch of {_DOCUMENTS} "
        f"documents of {_TOKENS} tokens, parameters and computation in {dtype}, no "
        f"rematerialisation, train.last_layers={budget.LAST_LAYERS}, lora.rank={budget.LORA_RANK} "
        "on every matrix. The class head is not counted.",
        highlight=False,
    )
    rates = {
        adapt: ladders.default_learning_rate(name, count, embedded=embedded, adapt=adapt)
        for adapt in _ADAPTS
    }
    _print_costs(config, rates, dtype, console)
    _print_devices(config, dtype, console)


def _read(name: str) -> tuple[ModelConfig, str, str]:
    """Return (config, title, note) of the model that the user named."""
    if name in EMBEDDED_MODELS:
        note = (
            f"embedded model; shown with a vocabulary of {_EMBEDDED_VOCAB} and {_EMBEDDED_LENGTH} "
            "positions (in a run, the task sets both)"
        )
        return _embedded(name), name, note
    whole, layers = split_layers(name)
    if layers is not None:
        if whole in EMBEDDED_MODELS:
            raise InputError(f"models: {name!r}: @layers=K needs a trained model, not {whole}")
        config, _, note = _read(whole)
        return truncated(config, layers, whole), name, note
    path = Path(name).expanduser() / "config.json"
    if is_adapter_folder(path.parent):
        path = path.with_name("adapter_config.json")
    if is_gguf(path.parent):
        _, family, config = read_description(path.parent)
        kind = dequantised(read_gguf(path.parent).quantisation)
        note = f"read from {path.parent}; family {family.name}{kind}"
        return config, name, note
    if path.is_file() and not sources.is_huggingface(path.parent):
        config = sources.read_ours(path.parent)[1].without_adapters()
        return config, name, f"read from {path}"
    if path.is_file():
        _, family, config = read_description(path.parent)
        return config, name, f"read from {path}; family {family.name}"
    known = ladders.find(name)
    if known is not None:
        note = f"ladder {known.ladder}"
        if known.ladder in ladders.NOTES:
            note += f"; {ladders.NOTES[known.ladder]}"
        return known.config(), known.name, note
    names = [*EMBEDDED_MODELS, *IMAGE_MODELS, *ladders.KNOWN]
    short = {known.rpartition("/")[2]: known for known in names}
    match = nearest(name, [*names, *short])
    match = short.get(match or "", match)
    hint = f" (did you mean {match!r}?)" if match else ""
    raise InputError(
        f"models: unknown model {name!r}{hint}; use a name listed by w2s models, or a folder: in "
        "Hugging Face's layout, written by w2s convert, or a finished phase"
    )


def _print_sizes(config: ModelConfig, console: Console) -> None:
    table = _table(None, ("", ""))
    table.show_header = False
    heads = f"{config.num_heads} of size {config.head_dim}"
    if config.num_kv_heads != config.num_heads:
        heads += f", {config.num_kv_heads} for keys and values"
    count = config.num_parameters()
    blocks = config.num_layers * budget.block_parameters(config)
    limit = f", {config.max_positions:,}" if config.max_positions else ""
    if config.window:
        local = sum(config.local_layers) if config.local_layers else config.num_layers
        limit += f"; window of {config.window:,} in {local} layers"
    tied = config.tied_embeddings and not config.bidirectional
    for field, value in (
        ("parameters", f"{count:,} ({blocks:,} in blocks)"),
        ("layers", f"{config.num_layers}"),
        ("width", f"{config.d_model:,}, MLP {config.d_mlp:,}{' gated' * config.gated_mlp}"),
        ("heads", heads),
        ("vocabulary", f"{config.vocab_size:,}{', tied' * tied}"),
        ("positions", f"{config.positions}{limit}"),
    ):
        table.add_row(field, value)
    console.print(table)


def _print_costs(
    config: ModelConfig, rates: dict[str, float], dtype: str, console: Console
) -> None:
    console.print()
    table = _table(None, ("trained",), ("lr", "parameters", "FLOPs per token: forward", "training"))
    forward = budget.flops_per_token(config, _TOKENS)
    for adapt, rate in rates.items():
        trained = budget.trainable_parameters(config, adapt)
        table.add_row(
            adapt,
            _rate(rate),
            _short(trained) if trained else "head",
            _short(forward, "KMG"),
            _short(budget.train_flops_per_token(config, _TOKENS, adapt), "KMG"),
        )
    console.print(table)
    console.print()
    parts = ("parameters", "gradients", "optimizer", "activations", "total")
    table = _table(None, ("GiB",), parts)
    for adapt in rates:
        memory = _memory(config, adapt, dtype)
        table.add_row(adapt, *(_gib(memory[part]) for part in parts))
    console.print(table)


def _memory(config: ModelConfig, adapt: str, dtype: str) -> dict[str, int]:
    return budget.training_memory(
        config,
        adapt=adapt,
        trainable=budget.trainable_parameters(config, adapt),
        param_dtype=dtype,
        compute_dtype=dtype,
        optimizer="adam",
        tokens=_DOCUMENTS * _TOKENS,
        longest=_TOKENS,
    )


def _gib(size: int) -> str:
    gib = size / budget.GIB
    return f"{gib:,.0f}" if gib >= 100 else f"{gib:.2f}" if gib < 10 else f"{gib:.1f}"


def _print_devices(config: ModelConfig, dtype: str, console: Console) -> None:
    console.print()
    table = _table(None, ("devices needed",), ("GiB each", *_ADAPTS))
    totals = [_memory(config, adapt, dtype)["total"] for adapt in _ADAPTS]
    for name, device in budget.DEVICES.items():
        needed = [budget.devices_needed(total, device) for total in totals]
        table.add_row(name, f"{device.memory:g}", *(f"{n} x" if n else "no" for n in needed))
    console.print(table)
    console.print(
        "Assumes even sharding over the devices, with a tenth of their memory left free. GiB each: "
        "the compiler's limit per chip for TPU v5e, v5p and v6e, the documented size for v4, the "
        "nominal size for all others.",
        highlight=False,
    )
