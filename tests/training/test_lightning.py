"""Lightning's own loop trains the bottlenecks: precision, checkpoints, callbacks and copies as its users have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import compoff
from benchmarks.zoo.library_shim import import_torchvision
from tests.small_networks import Plain, same, values

if TYPE_CHECKING:
    from pathlib import Path

# Advice on data loaders and loggers, which these runs do without on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def lightning() -> Any:
    import_torchvision()
    return pytest.importorskip("lightning")


def module_of(lightning: Any, model: compoff.Wrapped) -> Any:
    """An ordinary LightningModule whose step returns the distillation loss."""

    class Distilled(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model
            self.losses: list[float] = []

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            images, _labels = batch
            loss = self.net.distillation_loss(images)
            self.losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=3e-3)

    return Distilled()


def wrapped(x: torch.Tensor) -> compoff.Wrapped:
    torch.manual_seed(0)
    return compoff.wrap(Plain(), "block1", example_input=x, codec="deepcod")


def trainer_of(lightning: Any, folder: Path, **options: Any) -> Any:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(max_epochs=6, accelerator="cpu", default_root_dir=folder, **{**quiet, **options})


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_trainer_trains_the_bottleneck_alone(lightning: Any, tmp_path: Path, precision: str) -> None:
    x = torch.randn(32, 3, 8, 8)
    model = wrapped(x[:2])
    base = values(model.base)
    start = [value.detach().clone() for value in model.bottleneck_parameters()]
    module = module_of(lightning, model)
    trainer = trainer_of(lightning, tmp_path, precision=precision, enable_checkpointing=False)
    trainer.fit(module, DataLoader(TensorDataset(x, torch.zeros(32)), batch_size=8))
    assert len(module.losses) == 24
    assert sum(module.losses[-4:]) < 0.95 * sum(module.losses[:4])
    assert same(values(model.base), base)
    assert not any(part.training for part in model.base.modules())
    assert all(not torch.equal(new, old) for new, old in zip(model.bottleneck_parameters(), start, strict=True))


def test_a_checkpoint_carries_the_bottleneck_over(lightning: Any, tmp_path: Path) -> None:
    x = torch.randn(16, 3, 8, 8)
    model = wrapped(x[:2])
    trainer = trainer_of(lightning, tmp_path, enable_checkpointing=False)
    module = module_of(lightning, model)
    trainer.fit(module, DataLoader(TensorDataset(x, torch.zeros(16)), batch_size=8))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    twin = wrapped(x[:2])
    again = module_of(lightning, twin)
    again.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    with model.eval().at("block1"), twin.eval().at("block1"), torch.no_grad():
        assert torch.equal(twin(x), model(x))
