"""The optimizer step, and the LightningModule that runs it."""
