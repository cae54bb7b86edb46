"""Other libraries' training loops: schedules, checkpoints and resuming."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import transformers as hf
from accelerate import Accelerator
from real_models import llama
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from maxp import Parametrization
from maxp.integrations.hf_trainer import MaxPCallback
from maxp.integrations.lightning_callback import MaxPCallback as LightningCallback

hf.logging.set_verbosity_error()


class Text(Dataset[dict[str, torch.Tensor]]):
    """48 sequences of 8 tokens."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(48, (8,), generator=generator)
        return {"input_ids": ids, "labels": ids}


def parametrized() -> tuple[Any, Parametrization, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model: Any = llama(64)
    p = Parametrization(
        model, base=llama(32), sample_input={"input_ids": torch.zeros(1, 8, dtype=torch.long)},
        lr_prefactor=1e-2, use_training_activations=True, seed=0,
    )  # fmt: skip
    return model, p, torch.optim.AdamW(p.param_groups, weight_decay=0.0)


def check_same(one: Parametrization, other: Parametrization) -> None:
    assert one.steps == other.steps
    assert one.c == other.c
    assert one.c["model.layers.0.mlp.up_proj"] not in (0.5, 1.0)
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=0, atol=0)


# transformers.Trainer


def train_hf(folder: Path, *, callback: bool = True, resume: str | None = None) -> Parametrization:
    model, p, optimizer = parametrized()
    arguments = hf.TrainingArguments(
        output_dir=str(folder), max_steps=6, save_steps=3, per_device_train_batch_size=4,
        lr_scheduler_type="cosine", warmup_steps=2, report_to=[], disable_tqdm=True, use_cpu=True,
        logging_steps=100,
    )  # fmt: skip
    trainer = hf.Trainer(
        model, arguments, train_dataset=Text(), optimizers=(optimizer, None),  # type: ignore[arg-type]
        callbacks=[MaxPCallback(p)] if callback else [],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return p


def test_a_run_of_the_trainer_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = train_hf(tmp_path / "whole")
    again = train_hf(tmp_path / "whole", resume=str(tmp_path / "whole" / "checkpoint-3"))
    check_same(whole, again)


def test_the_trainer_refuses_a_checkpoint_without_the_state(tmp_path: Path) -> None:
    train_hf(tmp_path, callback=False)
    with pytest.raises(RuntimeError, match=r"maxp.pt does not exist: the checkpoint was saved"):
        train_hf(tmp_path, resume=str(tmp_path / "checkpoint-3"))


def test_the_trainers_schedule_and_the_exponents_multiply(tmp_path: Path) -> None:
    model, p, optimizer = parametrized()
    used: list[dict[str, float]] = []
    wanted: list[dict[str, float]] = []
    p.apply(optimizer)
    optimizer.register_step_pre_hook(
        lambda o, *_: used.append({g["name"]: float(g["lr"]) for g in o.param_groups})
    )

    class Watch(hf.TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wanted.append(dict(p.lrs()))

    arguments = hf.TrainingArguments(
        output_dir=str(tmp_path), max_steps=5, per_device_train_batch_size=4, save_strategy="no",
        lr_scheduler_type="linear", report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = hf.Trainer(
        model, arguments, train_dataset=Text(), optimizers=(optimizer, None),  # type: ignore[arg-type]
        callbacks=[MaxPCallback(p), Watch()],
    )  # fmt: skip
    trainer.train()
    for t, (mine, lrs) in enumerate(zip(used, wanted, strict=True)):
        factor = 1 - t / 5
        assert mine == pytest.approx({name: factor * lrs[name] for name in mine})


# Lightning


class Module(lightning.LightningModule):
    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.model, self._optimizer = model, optimizer

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, 6)
        return {
            "optimizer": self._optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def train_lightning(
    folder: Path, epochs: int, *, callback: bool = True, resume: Path | None = None
) -> Parametrization:
    model, p, optimizer = parametrized()
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[LightningCallback(p)] if callback else [],
    )  # fmt: skip
    loader = DataLoader(Subset(Text(), range(12)), batch_size=4)
    trainer.fit(Module(model, optimizer), loader, ckpt_path=resume, weights_only=False)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return p


def test_a_run_of_lightning_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = train_lightning(tmp_path, 2)
    train_lightning(tmp_path, 1)
    check_same(whole, train_lightning(tmp_path, 2, resume=tmp_path / "1.ckpt"))


def test_lightning_refuses_a_checkpoint_without_the_state(tmp_path: Path) -> None:
    train_lightning(tmp_path, 1, callback=False)
    with pytest.raises(RuntimeError, match="the checkpoint was saved without MaxPCallback"):
        train_lightning(tmp_path, 2, resume=tmp_path / "1.ckpt")


# accelerate


def test_a_run_of_accelerate_resumes_to_the_bit(tmp_path: Path) -> None:
    def run(start: int, stop: int, *, save: bool = False) -> Parametrization:
        model, p, optimizer = parametrized()
        accelerator = Accelerator(cpu=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        wrapped, wrapped_optimizer, scheduler = accelerator.prepare(model, optimizer, schedule)
        accelerator.register_for_checkpointing(p)
        p.apply(wrapped_optimizer)
        p.capture_initial()
        if start:
            accelerator.load_state(str(tmp_path / "state"))
            p.apply(wrapped_optimizer)
        for step in range(start, stop):
            ids = torch.stack([Text()[4 * step + i]["input_ids"] for i in range(4)])
            wrapped_optimizer.zero_grad()
            accelerator.backward(wrapped(input_ids=ids, labels=ids).loss)
            wrapped_optimizer.step()
            scheduler.step()
            p.step(None, wrapped_optimizer)
        if save:
            accelerator.save_state(str(tmp_path / "state"))
        return p

    whole = run(0, 6)
    run(0, 3, save=True)
    check_same(whole, run(3, 6))
