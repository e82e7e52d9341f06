"""One optimizer step, and the Lightning hooks around it.

Read it in this order, a quarter of an hour from top to bottom:

1. ``core``: what Lightning calls. ``Core.training_step`` makes one step of one window of micro-batches.
2. ``update``: the step from top to bottom: gradient, terms on weights, clipping, the optimizer, schedulers.
3. ``gradient``: the gradient of a window, one micro-batch after the other; ``forward`` evaluates one micro-batch.
4. ``objective``: the network, J, the plugins and the weights to evaluate. Each part of the step gets this and the parts
   that it calls, never the core.
5. ``recorder``: means, metrics and logging, with ``meter`` and ``metrics``.

The rest when it is needed: ``skips`` and ``nonfinite`` for numbers that are not finite, ``sharding`` for the strategy
``fsdp2``, ``state`` for checkpoints, ``loop``, ``notices`` and ``stepper`` for what Lightning and torch do too slowly.

.. code-block:: text

    loop ──▶ core ──▶ update ──▶ gradient ──▶ forward ──▶ objective ──▶ plugin.answers
              │         │           ├──▶ skips ──▶ recorder
              │         ▼           └──▶ nonfinite
              │      stepper
              └──▶ state, recorder
"""
