"""Nets: functions image -> logits, without loss, device or config."""

from segmod.ground.torch_private import without_dynamo

with without_dynamo():
    import torchvision  # noqa: F401
