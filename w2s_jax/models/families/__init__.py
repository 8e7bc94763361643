"""Families: how a Hugging Face config.json and its tensors become a `ModelConfig` and parameters.

A `Family` is plain data and three functions; importing it needs no JAX. What a reader or writer of
checkpoints relies on:

- `family_of(hf_config, place)` finds the family; `family.to_config(hf_config)` the `ModelConfig`,
  whose field `family` is the family's name, so that a trained model finds its way back.
- `family.views(config)` has exactly one `TensorView` for each parameter, keyed by its flat path
  ('blocks.attention.query.kernel'). Under 'blocks.' parameters are stacked by layer: their view's
  name contains '{layer}' and describes one layer. `view.stored` is the tensor's shape in the file,
  `view.take(tensor)` the parameter as a view of it, `view.put(parameter, buffer)` the inverse: it
  fills this parameter's part of a tensor of the shape `stored`. Several parameters may share one
  tensor (GPT-2's fused query, key and value). Nothing is computed: values and dtypes stay.
- Names in views are those that transformers writes for the first of the family's architectures: the
  language model, or an encoder without a head. Another file may have other prefixes and names:
  `file_names(family, config, names)` says which name of the file is meant by each name of a view,
  and `classifier_name(family, name)` what a classifier's file calls it.
- A tensor of the file that no view names is fine if `is_ignored(family, name)`; the classification
  head's name is `family.classifier_head` ([classes, D]), and its bias's, which decoders lack,
  `family.classifier_bias` ([classes]).
- Of an encoder, `to_config` says what config.json does; `encoder_files.completed` the rest.
- Tied models have no view for an unembedding and nothing is written for it.
"""

from w2s_jax.models.families import bert, gemma, gpt, llama
from w2s_jax.models.families.base import (
    FAMILIES,
    Family,
    TensorView,
    assemble,
    classifier_name,
    disassemble,
    family_of,
    file_names,
    is_ignored,
    register_family,
)

__all__ = [
    "FAMILIES",
    "Family",
    "TensorView",
    "assemble",
    "classifier_name",
    "disassemble",
    "family_of",
    "file_names",
    "is_ignored",
    "register_family",
]

for _family in (*gpt.FAMILIES, *llama.FAMILIES, *gemma.FAMILIES, *bert.FAMILIES):
    register_family(_family)
