"""The objective in a loop of your own: your optimizer, your schedule, your logging.

python examples/own_loop.py
"""

import torch

import compoff
from compoff.demo.networks import DigitsNet

torch.manual_seed(0)
images = torch.rand(256, 1, 8, 8)
model = compoff.wrap(DigitsNet().eval(), "layer2", example_input=images[:2])

optimizer = torch.optim.AdamW(model.bottleneck_parameters(), lr=3e-3, weight_decay=0.0)
model.train()  # the bottlenecks; the model itself stays frozen
losses = []
for step in range(60):
    batch = images[torch.randint(len(images), (32,))]
    loss = model.distillation_loss(batch, distill=step >= 30)  # Eq. 10 alone, then with Eq. 11
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(float(loss.detach()))

print(f"reconstruction: {losses[0]:.3f} -> {losses[29]:.3f}; with distillation: {losses[30]:.3f} -> {losses[-1]:.3f}")
