"""Model families: map Hugging Face's config.json and tensors to `ModelConfig` and parameters.

A `Family` consists of plain data and three functions, and needs no JAX. The interface for reading
and writing checkpoints:

- `family_of(hf_config, location)` finds the family, and `family.to_config(hf_config)` returns the
  `ModelConfig`. Its field `family` is the family's name, so that a trained model can be exported.
- `family.views(config)` has exactly one `TensorView` per parameter, keyed by its flat path
  ('blocks.attention.query.kernel'). Parameters under 'blocks.' are stacked by layer: the name of
  their view contains '{layer}', and the view describes one layer. `view.stored` is the tensor's
  shape in the file, `view.take(tensor)` returns the parameter as a view of the tensor, and the
  inverse `view.put(parameter, buffer)` fills this parameter's part of a tensor of the shape
  `stored`. Several parameters may share a tensor (GPT-2's fused query, key and value). Values and
  dtypes are never changed.
- Names in views are those that transformers writes for the family's first architecture: the
  language model, or an encoder without a head. Other files may have other prefixes and names:
  `file_names(family, config, names)` maps the names in views to those of a file, and
  `classifier_name(family, name)` to that of a classifier's file.
- A tensor that no view names is accepted if `is_ignored(family, name)`, or if it is outside the
  backbone: the head of another task. The class head is the tensor `family.classifier_head`
  ([classes, D]); encoders also have its bias, `family.classifier_bias` ([classes]).
- For an encoder, `encoder_files.completed` adds to `to_config` what config.json does not contain.
- Tied models have no view for an unembedding, and none is written. If a file of a tied model has
  another one, the model is read as untied.
"""

from w2s_jax.models.families import bert, gemma, gpt, llama
from w2s_jax.models.families.base import (
    FAMILIES,
    Family,
    TensorView,
    architectures_of,
    classifier_name,
    family_of,
    file_names,
    is_ignored,
    register_family,
)

__all__ = [
    "FAMILIES",
    "Family",
    "TensorView",
    "architectures_of",
    "classifier_name",
    "family_of",
    "file_names",
    "is_ignored",
    "register_family",
]

for _family in (*gpt.FAMILIES, *llama.FAMILIES, *gemma.FAMILIES, *bert.FAMILIES):
    register_family(_family)
