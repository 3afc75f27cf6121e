"""What a training shows on the terminal: its net before it starts, and how far it is."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar

from segmod.ground.printing import print_table


class ProgressBar(RichProgressBar):
    """Lightning's bar, without a last epoch of -2 where ``trainer.max_steps`` alone says how long a training is."""

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs != -1:
            return super()._get_train_description(current_epoch)
        return f"Epoch {current_epoch}".ljust(len(self.validation_description))


class ModelSummary(RichModelSummary):
    """Modules of the net and their parameters; without FLOPs, which ``segmod-benchmark`` counts."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Print the table, and the sums below it."""
        columns = {heading: cells for heading, cells in summary_data if heading.strip() and heading != "FLOPs"}
        console = print_table("", [list(columns), *map(list, zip(*columns.values(), strict=True))])
        console.print(f"{total_parameters:,} parameters, {trainable_parameters:,} of them trained; {model_size:.1f} MB")
