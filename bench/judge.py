"""How much a quantized model's predictions differ from the original's, token by token."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Judge:
    """Compares predictions on the evaluation windows with those of an original.

    Args:
        folder: Of the original; log-probabilities, 100 MB a window, are kept beside it.
        windows: (windows, length) token ids.
    """

    def __init__(self, folder: Path, windows: Tensor):
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._windows, self._kept = windows, folder.with_name("predictions")
        self._kept.mkdir(exist_ok=True)
        for index in range(len(windows)):
            file = self._kept / f"{index}.safetensors"
            if not file.exists():
                partial = file.with_suffix(".partial")
                save_file({"log_probabilities": self._predict(self._model, index)}, partial)
                partial.rename(file)

    def load(self, weights: Path) -> None:
        """Put in the weights of a quantized decoder."""
        found = self._model.load_state_dict(load_file(weights), strict=False)
        left = [key for key in found.missing_keys if "embed" not in key and "lm_head" not in key]
        if left or found.unexpected_keys:
            raise SystemExit(f"error: {weights} lacks {left} or has {found.unexpected_keys} too")

    def judge(self, model: nn.Module | None = None) -> dict[str, Any]:
        """Figures of the model as it is now, or of another one, those of each window too."""
        model = model or self._model
        divergences, losses, original_losses = [], [], []
        for index, ids in enumerate(self._windows):
            kept = load_file(self._kept / f"{index}.safetensors")["log_probabilities"]
            found = self._predict(model, index)
            divergences.append((kept.exp() * (kept - found)).sum(-1))
            losses.append(F.nll_loss(found[:-1], ids[1:]))
            original_losses.append(F.nll_loss(kept[:-1], ids[1:]))
        divergence, loss = torch.stack(divergences), torch.stack(losses)
        return {
            "perplexity": loss.mean().exp().item(),
            "original_perplexity": torch.stack(original_losses).mean().exp().item(),
            "kl_mean": divergence.mean().item(),
            "kl_p99": divergence.flatten().quantile(0.99).item(),
            "window_loss": loss.tolist(),
            "window_kl": divergence.mean(1).tolist(),
        }

    def _predict(self, model: nn.Module, index: int) -> Tensor:
        ids = self._windows[index : index + 1]
        logits: Tensor = model(ids, use_cache=False).logits[0]
        return logits.log_softmax(-1)
