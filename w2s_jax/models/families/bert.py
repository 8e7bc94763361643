"""BERT (with MiniLM), RoBERTa and XLM-RoBERTa: encoders with the same tensors.

Config keys, tensor names and the computation are those of transformers' classes of these names.
RoBERTa's position embedding starts with rows for padding, which no document uses. Its classifier
has its own dense layer in place of BERT's pooler; both are called 'pooler' here.
"""

import functools
from typing import Any

from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families import views as v
from w2s_jax.models.families.base import Family, TensorView
from w2s_jax.models.families.reading import (
    HF,
    MOST,
    activation,
    activation_to_hf,
    common_to_hf,
    integer,
    number,
    refusal,
    require,
    sizes,
)


def _config(hf: HF, name: str, offset: int) -> ModelConfig:
    require(hf, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    shape = sizes({**hf, "head_dim": None, "num_key_value_heads": None})
    rows = integer(hf, "max_position_embeddings", 512)
    if rows <= offset:
        raise refusal("max_position_embeddings", rows, f"more than pad_token_id + 1 = {offset}")
    return ModelConfig(
        name=name,
        family=name,
        d_mlp=integer(hf, "intermediate_size"),
        norm_epsilon=number(hf, "layer_norm_eps", 1e-12),
        activation=activation(hf, "hidden_act", "gelu"),
        bidirectional=True,
        position_offset=offset,
        token_types=integer(hf, "type_vocab_size", 2),
        # As in transformers' class; a file may lack it (see `encoder_files`).
        pooler=True,
        read_out="first",
        **shape | {"max_positions": rows - offset},
    )


def _bert_config(hf: HF) -> ModelConfig:
    return _config(hf, "bert", 0)


def _roberta_config(hf: HF, name: str) -> ModelConfig:
    padding = hf.get("pad_token_id", 1)
    if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding < MOST:
        raise refusal("pad_token_id", padding, "a token id (positions start after it)")
    return _config(hf, name, padding + 1)


def _to_hf(config: ModelConfig, architecture: str, model_type: str) -> dict[str, Any]:
    hf = common_to_hf(config, architecture, model_type)
    del hf["num_key_value_heads"], hf["head_dim"]
    return hf | {
        "max_position_embeddings": config.max_positions + config.position_offset,
        "hidden_act": activation_to_hf(config.activation, "gelu_new"),
        "layer_norm_eps": config.norm_epsilon,
        "type_vocab_size": config.token_types,
        "position_embedding_type": "absolute",
    }


def _bert_to_hf(config: ModelConfig) -> dict[str, Any]:
    return _to_hf(config, "BertModel", "bert")


def _roberta_to_hf(config: ModelConfig, stem: str, model_type: str) -> dict[str, Any]:
    padding = {"pad_token_id": config.position_offset - 1}
    return _to_hf(config, f"{stem}Model", model_type) | padding


def _views(config: ModelConfig) -> dict[str, TensorView]:
    d, f, heads = config.d_model, config.d_mlp, config.num_heads
    block = "encoder.layer.{layer}."
    rows = config.max_positions + config.position_offset
    tree = {
        "embedding": TensorView("embeddings.word_embeddings.weight", (config.vocab_size, d)),
        "position_embedding": TensorView("embeddings.position_embeddings.weight", (rows, d)),
        "token_type_embedding": TensorView(
            "embeddings.token_type_embeddings.weight", (config.token_types, d)
        ),
        "embedding_norm": v.norm("embeddings.LayerNorm", d),
        "blocks": {
            "attention": {
                **{
                    part: v.heads_in(f"{block}attention.self.{part}", config, heads)
                    for part in ("query", "key", "value")
                },
                "out": v.heads_out(f"{block}attention.output.dense", config),
            },
            "attention_norm": v.norm(f"{block}attention.output.LayerNorm", d),
            "mlp": {
                "up": v.linear(f"{block}intermediate.dense", d, f),
                "down": v.linear(f"{block}output.dense", f, d),
            },
            "mlp_norm": v.norm(f"{block}output.LayerNorm", d),
        },
        "pooler": v.linear("pooler.dense", d, d),
    }
    return v.flatten(config, tree)


#: Buffers of positions and types, and the heads for masked tokens and next sentences.
_IGNORED = (r"(\w+\.)?embeddings\.(position|token_type)_ids", r"cls\..*", r"lm_head\..*")
#: Names of a norm's tensors in the first releases.
_OLD_NORMS = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))


def _roberta(name: str, stem: str) -> Family:
    return Family(
        name=name,
        model_types=(name,),
        architectures=(f"{stem}Model", f"{stem}ForMaskedLM"),
        classifier=f"{stem}ForSequenceClassification",
        classifier_head="classifier.out_proj.weight",
        classifier_bias="classifier.out_proj.bias",
        classifier_names=(("pooler.dense.", "classifier.dense."), ("", "roberta.")),
        to_config=functools.partial(_roberta_config, name=name),
        to_hf=functools.partial(_roberta_to_hf, stem=stem, model_type=name),
        views=_views,
        # Old classifiers also have the pooler, but do not use it.
        ignored=(*_IGNORED, r"roberta\.pooler\..*"),
        prefixes=("", "roberta."),
        old_names=_OLD_NORMS,
    )


FAMILIES = (
    Family(
        name="bert",
        model_types=("bert",),
        architectures=(
            *("BertModel", "BertForMaskedLM", "BertForPreTraining"),
            "BertForNextSentencePrediction",
        ),
        classifier="BertForSequenceClassification",
        classifier_head="classifier.weight",
        classifier_bias="classifier.bias",
        classifier_names=(("", "bert."),),
        to_config=_bert_config,
        to_hf=_bert_to_hf,
        views=_views,
        ignored=_IGNORED,
        prefixes=("", "bert."),
        old_names=_OLD_NORMS,
    ),
    _roberta("roberta", "Roberta"),
    _roberta("xlm-roberta", "XLMRoberta"),
)
