"""Predict masks of single images, without shards or commits."""
