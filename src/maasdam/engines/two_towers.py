"""Models of pictures and texts (CLIP, SigLIP) as rows that stand alone. Knows what transformers calls their parts; no files.

As transformers has them a batch is so many pictures and so many texts, and its answer the likeness of all with all: two batches
at once, which no scheduler can cut in rows. Here a row is one picture and several texts, and its answer the vectors of both.
"""

from __future__ import annotations

from typing import Any

ARCHITECTURES = ("CLIPModel", "SiglipModel")


def in_rows(kind: Any) -> Any:
    """The class with a forward that takes `pixel_values` [B, C, H, W] and `input_ids` [B, L, T].

    It gives `image_embeds` [B, D] and `text_embeds` [B, L, D], of length 1. What makes scores of their likeness stands beside
    the model (`sources/likeness.py`): an output that never varies could not be compared.
    """

    class InRows(kind):  # type: ignore[misc]  # of transformers, which is not typed
        def forward(self, pixel_values: Any, input_ids: Any, return_dict: bool = True) -> dict[str, Any]:
            seen = _vectors(self.get_image_features(pixel_values=pixel_values))
            read = _vectors(self.get_text_features(input_ids=input_ids.flatten(0, 1)))
            return {"image_embeds": seen, "text_embeds": read.unflatten(0, input_ids.shape[:2])}

    return InRows


def _vectors(features: Any) -> Any:
    """Of length 1."""
    found = features if not hasattr(features, "pooler_output") else features.pooler_output
    return found / found.norm(p=2, dim=-1, keepdim=True)
