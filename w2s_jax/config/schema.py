"""Every default in one place: the fields of a config, and what the rest of the code gets of them.

A config is a locked `ml_collections.ConfigDict` with the fields of `default_config()`;
`validation.validate` turns it into the frozen `Settings` below. Imports no JAX.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_origin, get_type_hints

from ml_collections import config_dict

from w2s_jax.config.loss_options import LOSS_OPTIONS, loss_section
from w2s_jax.config.method_options import METHODS

OPTIMIZERS = ("adam", "adamw", "adafactor")
SCHEDULES = ("cosine", "linear", "constant")
DTYPES = ("float32", "bfloat16")
#: What of a model is trained: everything; low-rank adapters; the last layers; the head alone, on
#: features that are computed once; or the head first and then everything (LP-FT).
ADAPTS = ("full", "lora", "last_layers", "probe", "probe_then_full")
REMATS = ("none", "block", "dots")
#: Which slots of a document the class head reads.
READ_OUTS = ("last", "first", "mean", "pooler")
OVERLONG = ("truncate", "drop", "error")

#: A larger one could make an update overflow where the gradient does not.
MAX_LEARNING_RATE = 1000.0

#: What each protocol's name stands for (Burns et al. 2023, and the code released with it).
#: head_init: rows of the unembedding for the two label tokens, or zeros.
#: balance: rebalance training documents when the majority exceeds 55%.
#: balance_test: validation and test hold equally many documents of both classes.
#: grouping: documents that share a passage, question or text stay on one side of every split.
#: halves: the ceiling trains on the student's slice ('shared') or on slice 1 ('separate').
#: item_expansion: every question-answer pair ('all'), or one answer drawn with the seed ('one').
#: early_stopping: students keep the step with the best weak-label agreement, the last one
#: ('none'), or, as an oracle, the one with the best accuracy ('ground_truth').
PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": {
        "head_init": "unembedding",
        "balance": True,
        "balance_test": True,
        "grouping": True,
        "halves": "shared",
        "item_expansion": "all",
        "early_stopping": "agreement",
    },
    "released": {
        "head_init": "zeros",
        "balance": False,
        "balance_test": False,
        "grouping": False,
        "halves": "separate",
        "item_expansion": "one",
        "early_stopping": "none",
    },
}


@dataclass(frozen=True)
class TrainSettings:
    """How one model is trained.

    `steps` overrides `epochs`. `warmup` is the share of steps over which the learning rate rises
    linearly to `learning_rate`; `schedule` then leads to 0 (or stays constant). `microbatch_size`
    documents are computed at a time (None: the whole batch). Batches are packed into at most
    `max_shapes` static shapes: more of them leave fewer slots empty, and each is compiled.
    `remat` recomputes activations in the backward pass instead of keeping them: all of a block's
    ('block') or all but the results of weight matmuls ('dots'). `microbatch_size`, `remat` and
    `max_shapes` change memory and speed, never results.

    `ema` above 0: the result is the exponential moving average of the trained parameters with this
    decay, in float32 and debiased; evaluations see it too. `dropout` is the share of the embeddings
    and of what attention and MLP add to the residual stream that is set to zero in training (as in
    GPT-2; Srivastava et al. 2014). With `label_smoothing` epsilon a model learns (1 - epsilon) w +
    epsilon / 2 in place of the soft labels w of its training documents. All three are off at 0;
    probes have no `dropout`, pretraining has no `label_smoothing`.

    `adapt` says what is trained (see `ADAPTS`), with 'last_layers' the last `last_layers` blocks,
    final norm and head. What is not trained has no gradient and no optimiser state. Parameters of
    the backbone are kept in `param_dtype`; adapters and heads in float32. `learning_rate` and
    `param_dtype` None: by the model and `adapt` (`w2s models NAME` tells).
    """

    epochs: float = 2.0
    steps: int | None = None
    batch_size: int = 32
    microbatch_size: int | None = None
    learning_rate: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.0
    optimizer: str = "adam"
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float | None = None
    compute_dtype: str = "float32"
    param_dtype: str | None = None
    remat: str = "none"
    max_shapes: int = 6
    adapt: str = "full"
    last_layers: int = 1
    dropout: float = 0.0
    ema: float = 0.0
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class PretrainSettings(TrainSettings):
    """Pretraining, or pretraining further: `TrainSettings` and where the text comes from.

    `source`: None (no pretraining), 'task' (the task's own pretraining documents), a folder of
    `task.data_dir`, or a file. Long text is cut into chunks of `chunk_length` tokens. With
    `streaming` the text is never in memory as a whole; it needs `steps`, and a .jsonl file or a
    folder written by `w2s data prepare`.
    """

    source: str | None = None
    seed: int = 0
    chunk_length: int = 256
    streaming: bool = False
    epochs: float = 1.0


@dataclass(frozen=True)
class ProbeSettings(TrainSettings):
    """How a head is trained on frozen features: Burns et al. 2023, appendix on linear probing."""

    epochs: float = 200.0
    batch_size: int = 128
    schedule: str = "constant"
    adapt: str = "probe"


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters: W + (alpha / rank) A B for the projections that match `targets`.

    Targets are patterns of `attention.{query,key,value,out}` and `mlp.{gate,up,down}`.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention.*", "mlp.*")


@dataclass(frozen=True)
class TaskSettings:
    """Which documents. `train_docs` counts documents before halving; None means all of them.

    `tokenizer`: that of embedded models (pretrained ones bring their own): 'bytes', or a folder,
    file or hub id of a fast Hugging Face tokenizer.
    """

    name: str = "digits_even"
    source: str = "auto"
    data_dir: str | None = None
    train_docs: int | None = None
    test_docs: int | None = None
    validation_docs: int | None = None
    tokenizer: str = "bytes"
    max_length: int | None = None
    overlong: str = "truncate"
    split_seed: int = 0


@dataclass(frozen=True)
class Protocol:
    """The switches in which the paper and the released code differ (see `PROTOCOLS`)."""

    name: str
    head_init: str
    balance: bool
    balance_test: bool
    grouping: bool
    halves: str
    item_expansion: str
    early_stopping: str


@dataclass(frozen=True)
class Role:
    """A model and how it is trained: the weak supervisor or the strong student.

    `model`: an embedded model's name, or whatever `models.load` takes. `tokenizer`, `read_out`
    None: the model's own. `labels`: of the supervisor, a file with labels from outside (people, a
    judge) that are taken instead of a model's.
    """

    model: str
    tokenizer: str | None
    read_out: str | None
    train: TrainSettings
    pretrain: PretrainSettings
    probe: ProbeSettings
    lora: LoraSettings
    labels: str | None = None


#: Sections of a config that `weak` and `strong` inherit.
ROLE_SECTIONS: dict[str, type] = {
    "train": TrainSettings,
    "pretrain": PretrainSettings,
    "probe": ProbeSettings,
    "lora": LoraSettings,
}


@dataclass(frozen=True)
class LossSettings:
    """One student's loss: its label in results, its kind, and all of its options."""

    label: str
    kind: str
    options: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class MethodSettings:
    """A method beyond naive finetuning (see `METHODS`) and all of its options."""

    kind: str
    options: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class MeshSettings:
    """Devices along each mesh axis; one of `data`, `fsdp` and `tensor` may be -1: what is left.

    `data`: rows of a batch are split, parameters whole. `fsdp`: both are split. `tensor`: the
    parameters of a layer are split, by heads and MLP width. `population`: how many phases that can
    share a program are trained together, at most, on the same devices, each on one (1: each alone);
    -1: all that fit, where that is faster by what was measured and parameters are not split.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    population: int = -1

    @property
    def splits_parameters(self) -> bool:
        """Whether a model may be spread over several devices."""
        return (self.fsdp, self.tensor) != (1, 1)


@dataclass(frozen=True)
class CheckpointSettings:
    """Mid-phase checkpoints: how often, how many, where; whether finished models stay on disk.

    `dir` None: in the phases' folders. Else a local folder or gs://bucket/path, whose folder
    `<dir>/<phase>/` holds those of a phase as long as it is being trained, so that another machine
    can go on. Runs that may train the same phase at once must not share it.
    """

    every_minutes: float = 3.0
    keep: int = 2
    keep_final: bool = True
    dir: str | None = None


@dataclass(frozen=True)
class LogSettings:
    """TensorBoard event files; Weights & Biases; `every`: steps between the rows that they get.

    metrics.jsonl holds a row for every step. A phase that makes no progress for `hang_minutes` is
    told of, with the stacks of all threads (`watchdog`); 0: never.
    """

    every: int = 10
    tensorboard: bool = True
    wandb: bool = False
    hang_minutes: float = 10.0


@dataclass(frozen=True)
class Settings:
    """A validated config.

    `method_losses`: those of `losses` that the students of methods are trained with.
    `middle`: the models between the weak and the strong one, small ones first, that bootstrapping
    takes; in all else they are as the strong one. Their roles are 'middle1', ...
    """

    name: str
    seed: int
    task: TaskSettings
    protocol: Protocol
    weak: Role
    strong: Role
    losses: tuple[LossSettings, ...]
    methods: tuple[MethodSettings, ...]
    method_losses: tuple[LossSettings, ...]
    middle: tuple[Role, ...]
    eval_every: int | None
    mesh: MeshSettings
    checkpoint: CheckpointSettings
    log: LogSettings

    @property
    def roles(self) -> dict[str, Role]:
        """All roles by name, in order of strength."""
        middle = {f"middle{number}": role for number, role in enumerate(self.middle, 1)}
        return {"weak": self.weak, **middle, "strong": self.strong}

    @property
    def num_slices(self) -> int:
        """In how many slices the training documents are cut: one more than there are steps up."""
        return 2 + len(self.middle)


def _section(cls: type, *, inherit: bool = False) -> config_dict.ConfigDict:
    """The fields of a settings class; with `inherit`, all are None but typed (None: inherit)."""
    hints = get_type_hints(cls)
    section = config_dict.ConfigDict()
    for field in dataclasses.fields(cls):
        base = _base_type(hints[field.name])
        default = None if inherit else field.default
        section[field.name] = config_dict.placeholder(base) if default is None else default
    return section


def _base_type(hint: Any) -> type:
    """`int` for `int | None`, `tuple` for `tuple[str, ...]`."""
    if get_origin(hint) is tuple:
        return tuple
    args = [a for a in getattr(hint, "__args__", ()) if a is not type(None)]
    return args[0] if args else hint


def default_config() -> config_dict.ConfigDict:
    """A new config with every field at its default, locked.

    `weak.train` and `strong.train` inherit `train` where they are None, and so do their sections
    `pretrain`, `probe` and `lora`. `loss` holds an entry per label; `add_loss` adds one, and so
    does `with_labels` for each mapping among `losses`.
    """
    config = config_dict.ConfigDict()
    config.name = "run"
    config.seed = 0
    config.task = _section(TaskSettings)
    config.protocol = config_dict.ConfigDict(
        {
            "name": "paper",
            "head_init": config_dict.placeholder(str),
            "balance": config_dict.placeholder(bool),
            "balance_test": config_dict.placeholder(bool),
            "grouping": config_dict.placeholder(bool),
            "halves": config_dict.placeholder(str),
            "item_expansion": config_dict.placeholder(str),
            "early_stopping": config_dict.placeholder(str),
        }
    )
    for name, section in ROLE_SECTIONS.items():
        config[name] = _section(section)
    for role, model in (("weak", "gpt-d8"), ("strong", "gpt-d32")):
        own = {name: _section(cls, inherit=True) for name, cls in ROLE_SECTIONS.items()}
        placeholders = {name: config_dict.placeholder(str) for name in ("tokenizer", "read_out")}
        config[role] = config_dict.ConfigDict({"model": model} | placeholders | own)
    config.weak.labels = config_dict.placeholder(str)
    config.losses = ("xent", "confidence")
    # Labels such as 'confidence(alpha_max=0.75)' have a dot.
    config.loss = config_dict.ConfigDict(
        {kind: loss_section(kind, {}) for kind in LOSS_OPTIONS}, allow_dotted_keys=True
    )
    options = {kind: dict(options) for kind, options in METHODS.items() if options}
    config.method = config_dict.ConfigDict({"name": "naive", "losses": (), **options})
    config.eval = config_dict.ConfigDict({"every": config_dict.placeholder(int)})
    config.mesh = _section(MeshSettings)
    config.checkpoint = _section(CheckpointSettings)
    config.log = _section(LogSettings)
    config.lock()
    return config


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'task.name': ..., 'train.epochs': ...}: one entry a leaf."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | config_dict.ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
