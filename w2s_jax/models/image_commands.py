"""What `w2s models [NAME]` prints of the embedded models of images. Imports no JAX."""

from rich.console import Console
from rich.table import Table

from w2s_jax.models import budget, ladders
from w2s_jax.models.image_models import IMAGE_MODELS, SHOWN, ImageConfig, image_model

#: The batch of the memory estimate.
_IMAGES = 32


def print_image_models(console: Console) -> None:
    """Print the embedded models of images, one line each."""
    console.print()
    height, width, channels = SHOWN.shape
    table = _table(f"embedded models of images ({height} x {width} pixels, {channels} channel)")
    for column in ("parameters", "channels", "width", "lr", "FLOPs per image"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in IMAGE_MODELS:
        config = image_model(name)
        count = config.num_parameters()
        table.add_row(
            name,
            f"{count:,}",
            _channels(config),
            str(config.d_model),
            _rate(name, count),
            f"{config.image_flops() / 1e6:.1f}M",
        )
    console.print(table)


def show_image_model(name: str, console: Console) -> None:
    """Print sizes, FLOPs and memory of one embedded model of images."""
    config, (height, width, channels) = image_model(name), SHOWN.shape
    count, size = config.num_parameters(), SHOWN.size
    memory = budget.training_memory(
        config,
        adapt="full",
        trainable=count,
        param_dtype="float32",
        compute_dtype="float32",
        optimizer="adam",
        tokens=_IMAGES * size,
        longest=size,
    )
    console.print(name, style="bold", highlight=False)
    console.print(
        f"embedded convolutional network; shown for images of {height} x {width} pixels and "
        f"{channels} channel (in a run, the task sets the shape)",
        highlight=False,
        soft_wrap=True,
    )
    table = _table(None)
    table.show_header = False
    table.add_column("")
    shapes = "; ".join(f"{i} to {o} channels at {h} x {w}" for h, w, i, o in config.layers)
    forward = config.image_flops()
    for field, value in (
        ("parameters", f"{count:,}"),
        ("convolutions", f"3 x 3 with ReLU and 2 x 2 max-pooling: {shapes}"),
        ("dense layer", f"{config.flat_size:,} to {config.d_model:,}, with ReLU"),
        ("lr", _rate(name, count)),
        ("FLOPs per image", f"{forward / 1e6:.2f}M forward, {3 * forward / 1e6:.2f}M training"),
        ("memory", f"{memory['total'] / 2**20:.1f} MiB to train, Adam, batch of {_IMAGES} images"),
    ):
        table.add_row(field, value)
    console.print(table)
    console.print("Estimated by formula, not measured. The class head is not counted.")


def _table(title: str | None) -> Table:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.add_column("model", no_wrap=True)
    return table


def _channels(config: ImageConfig) -> str:
    return ", ".join(str(outputs) for *_, outputs in config.layers)


def _rate(name: str, count: int) -> str:
    rate = ladders.default_learning_rate(name, count, embedded=True)
    digits, exponent = f"{rate:.0e}".split("e")
    return f"{digits}e{int(exponent)}"
