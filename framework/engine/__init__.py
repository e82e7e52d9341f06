"""One optimizer step, and the Lightning hooks around it.

Read it in this order, a quarter of an hour from top to bottom:

1. ``objective``: the network, J, the plugins by hook point (``answers``), the current step (``at``) and the weights to
   evaluate. ``Core`` is its subclass.
2. ``core``: what Lightning calls. ``Core.training_step`` makes one step of one window of micro-batches.
3. ``update``: the step from top to bottom: gradient, terms on weights, clipping, the optimizer, schedulers.
4. ``gradient``: the gradient of a window, one micro-batch after the other; ``forward`` evaluates one micro-batch.
5. ``recorder``: means, metrics and logging, with ``meter`` and ``metrics``.

Each part of the step receives the objective, typed as ``Objective``, and the parts that it calls; none of them uses
what only ``Core`` has. ``core.again``, by which plugins evaluate a micro-batch a second time, is the ``Forward``;
``step.again`` counts how many such evaluations enclose the present one.

.. code-block:: text

    loop ─▶ core ─▶ update ─▶ gradient ─▶ forward ─▶ objective ─▶ plugin/answers
                      │          ├─▶ recorder ─▶ meter, metrics
                      │          └─▶ nonfinite
                      ├─▶ skips ─▶ recorder
                      ├─▶ forward
                      └─▶ stepper
"""
