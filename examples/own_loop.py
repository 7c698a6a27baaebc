"""The objective in a loop of your own: your optimizer, your schedule, your logging.

python examples/own_loop.py
"""

import torch

import compoff
from compoff.demo.networks import DigitsNet

torch.manual_seed(0)
images = torch.rand(256, 1, 8, 8)
model = compoff.wrap(DigitsNet().eval(), "layer2", example_input=images[:2])

compoff.calibrate(model, images.split(32))  # the codec starts from real features
optimizer = torch.optim.Adam(model.parameter_groups(lr=1e-3, split="layer2"))
model.train()  # the bottlenecks; the model itself stays frozen
losses = []
for _ in range(60):
    batch = images[torch.randint(len(images), (32,))]
    loss = model.distillation_loss(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(float(loss.detach()))

report = compoff.finish(model, images.split(32))  # the coder's tables, and what every quality costs

print(f"loss: {sum(losses[:10]) / 10:.3f} -> {sum(losses[-10:]) / 10:.3f}")
print(report)
