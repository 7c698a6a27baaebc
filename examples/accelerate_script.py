"""An ordinary Accelerate script with three lines added (marked), and two at its end that show what they did.

accelerate launch examples/accelerate_script.py     (or: python examples/accelerate_script.py)

It needs accelerate and scikit-learn.
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

import compoff  # +
from compoff.demo.networks import DigitsNet

torch.manual_seed(0)
accelerator = Accelerator()
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
train, test = random_split(TensorDataset(images, torch.tensor(digits.target)), [1500, 297])
model = DigitsNet()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
model, optimizer, train_loader, test_loader = accelerator.prepare(
    model, optimizer, DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=64)
)


def accuracy(net: torch.nn.Module) -> float:
    """Share of test digits that the network gets right, over all processes."""
    net.eval()
    with torch.no_grad():
        right = [accelerator.gather_for_metrics(net(x).argmax(1) == y) for x, y in test_loader]
    return float(torch.cat(right).float().mean())


for _ in range(3):
    for x, y in train_loader:
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
accelerator.print(f"the model itself: {accuracy(model):.1%}")

model = compoff.wrap(accelerator.unwrap_model(model), "layer2", example_input=images[:2])  # +
compoff.fit(model, train_loader, steps=30)  # +

with model.at("layer2"):
    accelerator.print(f"through the codec at layer2: {accuracy(model):.1%}")
