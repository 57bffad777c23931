"""Methods that learn to say a given text: TRL's SFTTrainer on rows that we tokenised and labelled."""

from __future__ import annotations

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from ..eval.interval import Scores
from ..logprobs import score
from ..progress import shown
from ..training import LabTrainer
from .setting import Setting


def trainer(setting: Setting) -> SupervisedTrainer:
    """Cross-entropy on the labels: the assistant's tokens."""
    return SupervisedTrainer(setting)


class SupervisedTrainer(LabTrainer, SFTTrainer):
    """TRL's trainer, measured on held-out rows by our own engine."""

    def __init__(self, setting: Setting) -> None:
        rows = Dataset.from_list([{key: row[key] for key in ("input_ids", "labels")} for row in setting.train])
        config = SFTConfig(**setting.arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        super().__init__(model=setting.model, args=config, train_dataset=rows, processing_class=setting.tokenizer)
        self.setting, self.heldout = setting, setting.scored

    def heldout_scores(self, *, initial: bool = False) -> dict[str, Scores]:
        """Negative log-probability per assistant token, over all held-out rows."""
        if not self.heldout:
            return {}
        rows = [(row["input_ids"], row["labels"]) for row in self.heldout]
        batch = self.args.per_device_eval_batch_size
        found = score(self.model, rows, batch, self.setting.dtype, shown("held-out rows", self.setting.console))
        return {"eval_loss": Scores((-found.sums).tolist(), found.lengths.double().tolist())}
