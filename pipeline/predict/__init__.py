"""Masks of single images, without shards or commits."""
