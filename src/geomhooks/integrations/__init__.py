"""Callbacks for the training loops of others; each module needs its library, and imports it.

- :mod:`geomhooks.integrations.huggingface`: ``GeometryCallback`` for ``transformers.Trainer``.
- :mod:`geomhooks.integrations.lightning`: ``GeometryCallback`` for Lightning's ``Trainer``.

A loop of your own takes three lines, here marked, and every scalar is a curve of the history:

>>> import torch, geomhooks as gh
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> history = gh.History()
>>> with gh.watch(model, when="train", every=2) as watch:  # 1: look
...     for step in range(12):
...         model(torch.randn(2, 3, 4)).square().mean().backward()
...         optimizer.step()
...         optimizer.zero_grad()
...         watch.step()  # 2: a step is over
...         if step % 4 == 3:
...             history.append(step, watch.geometry())
...             watch.reset()  # 3: a window is over
>>> history.curve("1/pos_ctx/shares/pos")[0]
tensor([ 3,  7, 11])

With Accelerate they are the same: watch the model that was prepared, and the state of the watch is
saved and loaded with ``accelerator.save_state`` and ``load_state`` once it is registered::

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    watch = gh.watch(model, when="train", every=10).attach()  # 1
    accelerator.register_for_checkpointing(watch)
    for step, batch in enumerate(loader):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            watch.step()  # 2
        if step % 100 == 99:
            scalars = watch.geometry().scalars()  # 3
            accelerator.log({f"geometry/{name}": scalars[name] for name in scalars}, step)
            watch.reset()
    watch.detach()
"""
