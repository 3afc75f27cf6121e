"""Nets: functions image -> logits, without loss, device or config."""
