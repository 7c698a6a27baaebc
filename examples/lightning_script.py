"""An ordinary Lightning script with three lines added (marked), and two at its end that show what they did.

python examples/lightning_script.py

It needs lightning and scikit-learn. For a CPU build of torch, torchvision has to come from the same index, or
Lightning cannot be imported ("operator torchvision::nms does not exist"); CONTRIBUTING.md has the line.
"""

import logging

import lightning
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

import compoff  # +
from compoff.demo.networks import DigitsNet

Batch = tuple[torch.Tensor, torch.Tensor]


class Digits(lightning.LightningModule):
    """A classifier of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = DigitsNet()

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        x, y = batch
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def test_step(self, batch: Batch, index: int) -> None:
        x, y = batch
        self.log("accuracy", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
lightning.seed_everything(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
train, test = random_split(TensorDataset(images, torch.tensor(digits.target)), [1500, 297])
train_loader, test_loader = DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=64)

model = Digits()
trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(model, train_loader)
trainer.test(model, test_loader)

model.net = compoff.wrap(model.net, "layer2", example_input=images[:2])  # +
compoff.fit(model.net, train_loader, steps=30)  # +

with model.net.at("layer2"):
    trainer.test(model, test_loader)
