"""What a training run shows: a bar, and one line per log instead of a dictionary of thirty numbers."""

from typing import Any

from transformers import ProgressCallback

SHOWN = {
    "loss": "loss {:.3f}",
    "logit_scale": "scale {:.1f}",
    "learning_rate": "lr {:.1e}",
    "eval_loss": "held-out loss {:.3f}",
    "eval_text_to_image_recall@5": "text-to-image recall@5 {:.1%}",
    "eval_image_to_text_recall@5": "image-to-text recall@5 {:.1%}",
}


class OneLineProgress(ProgressCallback):
    """`ProgressCallback` with short logs; the whole ones are in `trainer_state.json`."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self.training_bar is None or not logs:
            return
        shown = [form.format(logs[name]) for name, form in SHOWN.items() if name in logs]
        if shown:
            self.training_bar.write(f"step {state.global_step:5}  " + ", ".join(shown))
