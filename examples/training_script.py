"""An ordinary training script with three lines added: digits, a small residual network, a codec at each block start.

python examples/training_script.py

It needs scikit-learn.
"""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

import compoff
from compoff.demo.networks import DigitsNet

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
dataset = TensorDataset(images, torch.tensor(digits.target))
train, test = random_split(dataset, [1500, len(dataset) - 1500])
train_loader, test_loader = DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=64)


def accuracy(net: torch.nn.Module) -> float:
    """Share of test digits that the network gets right."""
    with torch.no_grad():
        return sum(int((net(x).argmax(1) == y).sum()) for x, y in test_loader) / len(test)


model = DigitsNet()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(3):
    for x, y in train_loader:
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

model = compoff.wrap(model.eval(), ["layer1", "layer2"], example_input=images[:2])
report = compoff.fit(model, train_loader, steps=30, validation=test_loader)
print(report)

model.eval()
print(f"the model itself: {accuracy(model):.1%}")
for split in model.split_points:
    with model.at(split):
        print(f"through the codec at {split}: {accuracy(model):.1%}")
