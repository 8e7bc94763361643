"""The sections of a config: fields with their defaults, allowed values and meanings."""

from dataclasses import dataclass
from typing import Any

from w2s_jax.config.options import option, redefault

OPTIMIZERS = ("adam", "adamw", "adafactor")
SCHEDULES = ("cosine", "linear", "constant")
DTYPES = ("float32", "bfloat16")
#: What of a model is trained: everything; low-rank adapters; the last layers; the head alone, on
#: features that are computed once; or the head first and then everything (LP-FT).
ADAPTS = ("full", "lora", "last_layers", "probe", "probe_then_full")
REMATS = ("none", "block", "dots")
#: Which slots of a document the class head reads.
READ_OUTS = ("last", "first", "mean", "pooler")
#: What counts the same in the loss of completions.
TOKEN_WEIGHTINGS = ("token", "document")
OVERLONG = ("truncate", "drop", "error")
#: How the kept step of a student is chosen: the last one; the best agreement with its labels; as an
#: oracle, the best accuracy on ground truth.
STOPPING = ("none", "agreement", "ground_truth")

#: A larger one could make an update overflow where the gradient does not.
MAX_LEARNING_RATE = 1000.0
#: Of a config. All optimizers move a parameter by about the rate per step: no model survives more.
HIGHEST_LEARNING_RATE = 10.0
#: The history of a training and the order of its documents are held in memory.
MAX_STEPS = 10_000_000
#: Tokens of a document or chunk, which is a row of a batch.
MAX_TOKENS = 2**20
#: A JAX key takes 32 bits of its seed.
MAX_SEED = 2**32 - 1

#: The switches of each protocol (Burns et al. 2023, and the code released with it); see `Protocol`.
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
    """Training of one model. The fields' meanings are in their declarations."""

    epochs: float = option(2.0, above=0, meaning="Passes over the training documents")
    steps: int | None = option(
        None, low=1, high=MAX_STEPS, meaning="Training steps; overrides `epochs`"
    )
    batch_size: int = option(32, low=1, meaning="Documents per step")
    microbatch_size: int | None = option(
        None,
        low=1,
        meaning="Documents computed at a time, a divisor of `batch_size`; None: all of them. "
        "Changes memory and speed, never results",
    )
    learning_rate: float | None = option(
        None,
        above=0,
        high=HIGHEST_LEARNING_RATE,
        meaning="Peak learning rate; None: by the model and `adapt` (`w2s models NAME` shows it)",
    )
    schedule: str = option(
        "cosine",
        choices=SCHEDULES,
        meaning="Learning rate after the warm-up: to 0 along a cosine or a line, or constant",
    )
    cosine_steps: int | None = option(
        None,
        low=1,
        meaning="Steps in which a cosine falls to 0, after which it rises again, and so on; None: "
        "all. The released vision code's schedule has as many as epochs",
    )
    warmup: float = option(
        0.0, low=0, high=1, meaning="Share of steps over which the learning rate rises linearly"
    )
    optimizer: str = option("adam", choices=OPTIMIZERS, meaning="Optimizer")
    beta1: float = option(0.9, low=0, high=0.99999, meaning="Decay of Adam's first moment")
    beta2: float = option(0.999, low=0, high=0.9999999, meaning="Decay of Adam's second moment")
    weight_decay: float = option(0.0, low=0, meaning="Decoupled weight decay; needs 'adamw'")
    clip_norm: float | None = option(
        None, above=0, meaning="Largest global norm of the gradient; None: not clipped"
    )
    compute_dtype: str = option("float32", choices=DTYPES, meaning="Dtype of the computation")
    param_dtype: str | None = option(
        None,
        choices=DTYPES,
        meaning="Dtype of the backbone's parameters (adapters and heads are float32); None: by the "
        "model and `adapt`",
    )
    remat: str = option(
        "none",
        choices=REMATS,
        meaning="Activations that the backward pass recomputes: none, all of a block's, or all but "
        "the results of weight matmuls ('dots'). Changes memory and speed, never results",
    )
    max_shapes: int = option(
        6,
        low=1,
        meaning="Static shapes that batches are packed into, at most. More leave fewer slots "
        "empty; each is compiled. Changes memory and speed, never results",
    )
    adapt: str = option(
        "full",
        choices=ADAPTS,
        meaning="Parameters that are trained: all, low-rank adapters, the last layers, the head "
        "alone, or the head first and then all (LP-FT). The others have no optimizer state",
    )
    last_layers: int = option(
        1, low=1, meaning="Blocks that adapt='last_layers' trains, with final norm and head"
    )
    head_bias: bool = option(
        False, meaning="The class head has a bias, as that of the released vision code"
    )
    dropout: float = option(
        0.0,
        low=0,
        below=1,
        meaning="Share of the embeddings and of the outputs of attention and MLP set to zero in "
        "training, as in GPT-2 (Srivastava et al. 2014); not for probes",
    )
    ema: float = option(
        0.0,
        low=0,
        below=1,
        meaning="Above 0: the result is the exponential moving average of the trained parameters "
        "with this decay, in float32 and debiased; evaluations use it too",
    )
    label_smoothing: float = option(
        0.0,
        low=0,
        below=1,
        meaning="e: train on (1 - e) w + e / 2 instead of the soft labels w; not for pretraining",
    )
    token_weighting: str = option(
        "token",
        choices=TOKEN_WEIGHTINGS,
        meaning="Of completions: every token counts the same, or every document does",
    )


@dataclass(frozen=True)
class PretrainSettings(TrainSettings):
    """Pretraining, or continued pretraining: `TrainSettings` and the source of the text."""

    source: str | None = option(
        None,
        meaning="None: no pretraining; 'task': the task's own pretraining documents; or a folder "
        "of `task.data_dir`, or a file",
    )
    seed: int = option(
        0, low=0, high=MAX_SEED, meaning="Seed of the initial parameters and the order of the text"
    )
    chunk_length: int = option(
        256, low=8, high=MAX_TOKENS, meaning="Tokens of the chunks that long text is cut into"
    )
    streaming: bool = option(
        False,
        meaning="Never hold the whole text in memory; needs `steps`, and a .jsonl file or a folder "
        "written by `w2s data prepare`",
    )
    max_docs: int | None = option(
        None, low=1, meaning="Documents to pretrain on, drawn by a hash; None: all"
    )
    epochs: float = redefault(TrainSettings, "epochs", 1.0)


@dataclass(frozen=True)
class ProbeSettings(TrainSettings):
    """Training of a head on frozen features: Burns et al. 2023, appendix on linear probing."""

    epochs: float = redefault(TrainSettings, "epochs", 200.0)
    batch_size: int = redefault(TrainSettings, "batch_size", 128)
    schedule: str = redefault(TrainSettings, "schedule", "constant")
    adapt: str = redefault(TrainSettings, "adapt", "probe")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters: W + (alpha / rank) A B."""

    rank: int = option(8, low=1, meaning="Rank of the adapters")
    alpha: float = option(16.0, above=0, high=1e6, meaning="Scale of the adapters, over the rank")
    targets: tuple[str, ...] = option(
        ("attention.*", "mlp.*"),
        meaning="Patterns of the adapted projections: `attention.{query,key,value,out}` and "
        "`mlp.{gate,up,down}`",
    )


@dataclass(frozen=True)
class TaskSettings:
    """The task and its documents."""

    name: str = option("digits_even", meaning="Task; `w2s data list` shows all")
    source: str = option(
        "auto",
        meaning="Origin of the data: 'files', 'hub', 'tfds', 'embedded', or 'auto' (the first that "
        "is available, local files before others)",
    )
    data_dir: str | None = option(
        None, meaning="Folder with local data; None: the environment variable W2S_DATA_DIR"
    )
    classes: tuple[str, ...] = option(
        (),
        meaning="Classes of a folder, in the order of the labels 0, 1, ...; empty: those in its "
        "labels (names in alphabetical order, integers by value), or the task's own",
    )
    template: str | None = option(
        None,
        meaning="Template of the task, inside of which all models read the texts (`w2s data list "
        "TASK` shows them); None: the bare texts",
    )
    train_split: str | None = option(
        None,
        choices=("train", "validation", "test"),
        meaning="Split to train on, which then serves nothing else; None: 'train', or what a task "
        "declares that has no other",
    )
    train_docs: int | None = option(
        None, low=2, meaning="Training documents, counted before halving; None: all"
    )
    unlabelled: str | None = option(
        None,
        meaning="Documents without labels, for the student: a split of the task, or a file with "
        "the same fields. Slice 1 is then all training documents; None: the training documents "
        "are halved",
    )
    unlabelled_docs: int | None = option(
        None, low=2, meaning="Documents of `unlabelled`, drawn by a hash; None: all"
    )
    test_docs: int | None = option(
        None, low=2, meaning="Test documents; None: all of the official split"
    )
    validation_docs: int | None = option(
        None, low=0, meaning="Validation documents; None: all of the official split"
    )
    tokenizer: str = option(
        "bytes",
        meaning="Tokenizer of embedded models (pretrained models bring their own): 'bytes', or a "
        "folder, file or hub id of a fast Hugging Face tokenizer",
    )
    max_length: int | None = option(
        None,
        low=3,
        high=MAX_TOKENS,
        meaning="Tokens of a document, at most; None: as the model allows",
    )
    overlong: str = option("truncate", choices=OVERLONG, meaning="What to do with longer documents")
    truncate: str | None = option(
        None,
        choices=("start", "end"),
        meaning="Side at which longer texts are cut; None: the task's own (pairs: 'start')",
    )
    empty: str | None = option(
        None,
        choices=("skip", "error"),
        meaning="What to do with empty texts and those that give no token; None: 'skip' for "
        "built-in tasks, 'error' for others",
    )
    split_seed: int = option(
        0, low=0, high=MAX_SEED, meaning="Seed of the choice and the split of documents"
    )
    image_size: int | None = option(
        None,
        low=1,
        high=1024,
        meaning="Pixels of a side to which pictures (PNG, JPEG) are resized; None: not at all",
    )
    where: str | None = option(
        None,
        meaning="Condition on a field of the records, such as 'Rating<1500' or 'Rating<50%' (the "
        "lower half), that training and validation documents meet; None: all",
    )
    test_where: str | None = option(
        None, also=("",), meaning="The same of test documents; None: as `where`; '': all"
    )
    test_tasks: tuple[str, ...] = option(
        (),
        meaning="Other tasks, or folders, on whose test documents all models of the run are "
        "evaluated too; their classes must be those of `name`",
    )
    max_new_tokens: int | None = option(
        None,
        low=1,
        high=MAX_TOKENS,
        meaning="Tokens of a generated completion, at most, its end included; None: those of the "
        "longest target",
    )
    label_top_k: int = option(
        0,
        low=0,
        high=1024,
        meaning="Of completions: the supervisor's most probable tokens at each position that are "
        "stored with its labels, for the losses 'kl' and 'reverse_kl'",
    )


@dataclass(frozen=True)
class Protocol:
    """The switches in which the paper and the released code differ; None: as the name says."""

    name: str = option(choices=tuple(PROTOCOLS), meaning="Sets all switches that are None")
    head_init: str = option(
        choices=("unembedding", "zeros", "uniform"),
        meaning="Class head before training: the label tokens' rows of the unembedding, 0, or "
        "uniform random numbers below 1 / sqrt(D), as PyTorch initialises a layer with D inputs",
    )
    balance: bool = option(
        meaning="Balance the classes of training documents where one of C has more than 110% / C "
        "(of two: 55%)"
    )
    balance_test: bool = option(meaning="Balance the classes of validation and test documents")
    grouping: bool = option(
        meaning="Keep documents with the same passage, question or text on one side of every split"
    )
    halves: str = option(
        choices=("shared", "separate", "none"),
        meaning="The ceiling trains on the student's slice, or on slice 1; or the student's slice "
        "is all training documents, where `weak.labels` needs no slice of its own",
    )
    item_expansion: str = option(
        choices=("all", "one"),
        meaning="Every question-answer pair is a document, or one answer drawn with the seed",
    )
    early_stopping: str = option(
        choices=STOPPING,
        meaning="Students keep the last step, the one of the best agreement with the weak labels, "
        "or (an oracle) the one of the best accuracy on ground truth",
    )


@dataclass(frozen=True)
class Role:
    """A model and how it is trained: the weak supervisor or the strong student."""

    train: TrainSettings
    pretrain: PretrainSettings
    probe: ProbeSettings
    lora: LoraSettings
    model: str = option(
        meaning="Name of an embedded model, what `models.load` takes, or 'features:' and a file or "
        "a function"
    )
    tokenizer: str | None = option(meaning="Tokenizer; None: the model's own")
    read_out: str | None = option(
        choices=READ_OUTS, meaning="Slots that the class head reads; None: the model's own"
    )
    read_out_layers: tuple[float, ...] = option(
        (),
        above=0,
        high=1,
        meaning="Relative depths of the layers whose hidden states a probe's head reads, averaged: "
        "d is layer ceil(d L) of L; empty: the last. Only with `adapt='probe'`",
    )
    labels: str | None = option(
        None,
        meaning="File of external labels (people, a judge) that replace the weak model's; only of "
        "`weak`",
    )


#: Sections of a config that `weak` and `strong` inherit.
ROLE_SECTIONS: dict[str, type] = {
    "train": TrainSettings,
    "pretrain": PretrainSettings,
    "probe": ProbeSettings,
    "lora": LoraSettings,
}


@dataclass(frozen=True)
class MeshSettings:
    """Devices along each mesh axis; one of `data`, `fsdp` and `tensor` may be -1 (fill)."""

    data: int = option(
        -1,
        low=1,
        also=(-1,),
        meaning="Devices that split a batch's rows, with whole parameters; -1: all that remain",
    )
    fsdp: int = option(
        1,
        low=1,
        also=(-1,),
        meaning="Devices that split a batch's rows and the parameters; -1: all that remain",
    )
    tensor: int = option(
        1,
        low=1,
        also=(-1,),
        meaning="Devices that split each layer's parameters, by heads and MLP width; -1: all that "
        "remain",
    )
    population: int = option(
        -1,
        low=1,
        also=(-1,),
        meaning="Phases trained as one program, each on one device, at most; -1: all that fit, "
        "where that is faster by measurement and parameters are not split",
    )

    @property
    def splits_parameters(self) -> bool:
        """True if a model may be spread over several devices."""
        return (self.fsdp, self.tensor) != (1, 1)


@dataclass(frozen=True)
class CheckpointSettings:
    """Checkpoints within a phase, and the parameters of finished phases."""

    every_minutes: float = option(3.0, low=0, high=1_000_000, meaning="Minutes between checkpoints")
    keep: int = option(2, low=1, meaning="Checkpoints kept of a phase in training")
    keep_final: bool = option(
        True,
        meaning="Keep the parameters of all finished phases, not only of those that others "
        "start from",
    )
    dir: str | None = option(
        None,
        meaning="Folder of the checkpoints of phases in training, local or gs://bucket/path, so "
        "that another machine can resume; runs that may train the same phase must not share it. "
        "None: the phases' folders",
    )


@dataclass(frozen=True)
class LogSettings:
    """Logs of a phase in training; metrics.jsonl has a row for every step in any case."""

    every: int = option(10, low=1, meaning="Steps between rows in TensorBoard and Weights & Biases")
    tensorboard: bool = option(True, meaning="Write TensorBoard event files")
    wandb: bool = option(False, meaning="Log to Weights & Biases")
    hang_minutes: float = option(
        10.0,
        low=0,
        high=1_000_000,
        meaning="Minutes without progress until the stacks of all threads are printed; 0: never",
    )
