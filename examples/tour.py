"""A tour of Shaketable: every part that exists, in the order in which one meets it. Takes about a minute on a CPU.

python examples/tour.py
"""

import torch

import shaketable as st

# Real images: 5000 + 2000 of Fashion-MNIST come with the package. Inputs live in [0, 1].
parts = st.data.open_parts("fashion-mnist")
splits = st.data.split(parts.train, parts.test, train_count=300, test_count=100, seed=0)
spec = st.models.ModelSpec("small_cnn", classes=10, channels=1, size=(28, 28), mean=(0.2860,), std=(0.3530,))
model = st.models.build(spec, seed=0)
linf, gen = st.Ball("linf", 0.1, box=(0, 1)), st.generator(0)

# AWP in your own loop: attack the inputs, perturb the weights, step at w + v.
loss = st.training.trades(beta=6.0)
optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
gamma = st.Ball("l2", 0.005, per="tensor", relative=True)
for epoch in range(10):
    order = torch.randperm(300, generator=st.generator(0, "order", epoch))
    for batch in splits.train.batches(50, order):
        x, y = batch.x, batch.y
        model.eval()
        adv = st.perturb(loss.inner(model, x, y), x, linf, by=st.PGD(5, 0.5), start=loss.start, generator=gen).point
        model.train()
        objective = loss.weights(model, x, adv, y)
        v = st.perturb(objective, st.weights(model), gamma, by=st.training.AWP_STEP).delta if epoch >= 3 else {}
        optimiser.zero_grad()
        with st.perturbed(model, v):  # backward and step at w + v, then v is taken off
            loss.outer(model, x, adv, y).backward()
            optimiser.step()
model.eval()

# Attacks: the core verb, the one-line form, and an evaluation that is recomputed and carries its interval.
test = splits.test.batch(range(100))
found = st.perturb(st.ce(model, test.y), test.x, linf, by=st.PGD(steps=20, keep="best"), start="sample", generator=gen)
print("largest perturbation", float(found.size.max()), "for", found.calls)
adv = st.attacks.pgd(model, test.x, test.y, eps=0.1, seed=0).point
result = st.attacks.evaluate(model, splits.test, within=linf, attack=st.attacks.PGDAttack(steps=20), seed=0)
print(result)

# Can that be believed? Signs that the attack failed, and not the model.
print(st.attacks.lint(model, test.x, test.y, within=linf, attack=st.attacks.PGDAttack(steps=20), seed=0, images=20))

# The same verb in other places: a region of the input, a layer's activation, weights and inputs together.
centre = st.attacks.regions.centre(test.x.shape, area=0.18)
region = st.Ball("linf", 0.3, box=(0, 1), mask=centre)
part = st.perturb(st.ce(model, test.y), test.x, region, start="sample", generator=gen)
print("misclassified by the centre alone:", int((model(part.point).argmax(1) != test.y).sum()), "of 100")

layer = "network.conv2"
origin = st.activation(model, layer, test.x)
rest = st.from_activation(model, layer, test.x)
shaken = st.perturb(lambda a, rows: -rest(a, rows).log_softmax(1)[:, 0], origin, st.Ball("l2", 1.0), by=st.PGD(5))
print("activation moved by at most", float(shaken.size.max()))

joint = st.perturb(
    lambda at, rows: torch.nn.functional.cross_entropy(
        st.at(model, at["weights"])(at["inputs"]), test.y, reduction="none"
    ),
    {"weights": st.weights(model), "inputs": test.x},
    {"weights": st.Ball("l2", 0.01, per="tensor", relative=True), "inputs": linf},
    by=st.PGD(5, keep="best"),
)
print("loss with weights and inputs moved together:", float(joint.value.mean()))

# Flatness: how much the robust loss rises when the weights move, the inputs attacked anew each time.
flat = st.flatness.average(model, test.x[:50], test.y[:50], within=linf, samples=4, reference_restarts=1, seed=0)
print("average-case robust flatness:", flat.value)
